"""Small files, read before it is their turn: the next ones while those before them are stored.

A compiled module (_reading.c) reads many of them in one call of another thread. Where it is not there, and for whatever
it leaves out (a large file, one that changes or cannot be read), files are read one by one, as objects.py does it.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from zkeep.capture.contents import stored_flags
from zkeep.capture.scan import Folders, Node
from zkeep.format.compress_writer import Compress, CompressEach, in_one_call
from zkeep.format.znode_writer import FileFields
from zkeep.snapshot.encrypted import Buffer, is_zeros

FILES, BYTES = 128, 2 << 20
"How many files are read together, and after how many bytes no other is begun."
READERS, PORTIONS = 2, 2
"How many threads read, and how many portions of files are being read or wait to be taken."
OPEN_FOLDERS = 32
"In how many folders they lie at most: each of these is open until they are read."
LARGEST = 1 << 20
"Bytes of the largest file that is read ahead."


class SmallFile(NamedTuple):
    """A regular file as it was while it was read; times in nanoseconds, `birth` 0 if it is not known.

    The fields that os.stat_result has as well are named as there.
    """

    st_dev: int
    st_ino: int
    st_mode: int
    st_uid: int
    st_gid: int
    st_size: int
    st_nlink: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    birth: int
    flags: int
    "IMMUTABLE, APPEND and NODUMP, as chattr has them."
    xattrs: dict[bytes, bytes]
    content: Buffer | None
    "Filled with zeros to whole sectors of 512 bytes; None: all of it is zeros."
    block: int = 0
    "How many bytes that are."
    compression: int | None = None
    "By which the content is compressed already, as it will be stored; None: it is not compressed yet."

    def fields(self, links: int, parent: int, generation: int) -> FileFields:
        times = self.st_atime_ns, self.st_mtime_ns, self.st_ctime_ns
        made = FileFields(
            *(self.st_mode, self.st_uid, self.st_gid, self.st_size, links),
            *(*times, self.birth or min(times), parent, generation),
        )
        made.flags = stored_flags(self.flags)
        return made


_Read = Callable[[list[int], list[bytes], int, int], list[tuple[Any, ...] | None]]


def _compiled() -> _Read | None:
    if os.environ.get("ZKEEP_KERNEL") == "numpy" or sys.byteorder != "little":
        return None
    try:
        from zkeep.capture import _reading  # type: ignore[attr-defined]
    except ImportError:
        return None
    found: _Read | None = getattr(_reading, "read_files", None)
    return found


_read_files = _compiled()


class _Portion(NamedTuple):
    """Files that are being read together: the first of them, and how many there are. Fewer may be read."""

    first: int
    files: int
    found: Future[list[SmallFile | None]]
    fds: list[int]
    "Folders. A thread takes one out of the list and closes it, so that no other does."


class ReadAhead:
    """Reads the files of nodes that are asked for in this order. `limit`: no file with more bytes is read.

    With `compress` they are compressed as well, if that can be done beside what stores them.
    """

    def __init__(
        self, folders: Folders, nodes: Iterable[Node], limit: int, compress: Compress | None = None
    ) -> None:
        self._compress = in_one_call(compress) if compress is not None else None
        self._folders = folders
        self._limit = min(limit, LARGEST)
        self._nodes = list(nodes) if _read_files is not None else []
        self._asked = self._begun = 0
        "How many were asked for, and the first of those that no portion has."
        self._found: list[SmallFile | None] = []
        self._first = 0
        "Which node the first of those that were read is."
        self._portions: deque[_Portion] = deque()
        self._pool = ThreadPoolExecutor(READERS) if self._nodes else None

    def take(self, node: Node) -> SmallFile | None:
        """A file, if it is one of those; None: it has to be read by itself."""
        if self._asked >= len(self._nodes) or self._nodes[self._asked] is not node:
            return None
        if self._asked == self._first + len(self._found):
            self._next()
        at = self._asked - self._first
        found, self._found[at] = self._found[at], None
        self._asked += 1
        return found

    def others(self) -> list[tuple[Node, SmallFile]]:
        """Files that are read, behind the last one that was taken."""
        at = self._asked - self._first
        nodes = self._nodes[self._asked : self._first + len(self._found)]
        return [(node, found) for node, found in zip(nodes, self._found[at:], strict=True) if found is not None]

    def close(self) -> None:
        """Wait for what is being read; nothing is read any more."""
        self._nodes.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for portion in self._portions:
            _close(portion.fds)  # of what was never begun

    def _next(self) -> None:
        """Take what was read meanwhile, and begin with the next ones."""
        self._fill()
        portion = self._portions.popleft()
        self._first, self._found = portion.first, portion.found.result()
        # Where the files are large only some of them were read.
        done = len(self._found)
        if done < portion.files:
            self._portions.appendleft(self._submit(portion.first + done, portion.files - done))
        self._fill()

    def _fill(self) -> None:
        while len(self._portions) < PORTIONS and self._begun < len(self._nodes):
            portion = self._submit(self._begun, FILES)
            self._begun += portion.files
            self._portions.append(portion)

    def _submit(self, first: int, most: int) -> _Portion:
        assert self._pool is not None
        known: dict[Node, int] = {}
        folders: list[int] = []
        names: list[bytes] = []
        fds: list[int] = []
        for node in self._nodes[first : first + most]:
            assert node.parent is not None
            if node.parent not in known:
                if len(known) == OPEN_FOLDERS:
                    break
                known[node.parent] = self._open(node.parent, fds)
            folders.append(known[node.parent])
            names.append(node.name)
        found = self._pool.submit(_read, folders, names, self._limit, fds, self._compress)
        return _Portion(first, len(names), found, fds)

    def _open(self, folder: Node, fds: list[int]) -> int:
        """A descriptor of a folder, added to others; -1 if it cannot be opened."""
        try:
            # One of its own: Folders closes those that were not used for long.
            fds.append(os.dup(self._folders.fd(folder)))
        except OSError:
            return -1
        return fds[-1]


def _read(
    folders: list[int], names: list[bytes], limit: int, fds: list[int], compress: CompressEach | None
) -> list[SmallFile | None]:
    assert _read_files is not None
    try:
        read = _read_files(folders, names, limit, BYTES)
    finally:
        _close(fds)
    stored = iter(_stored([found[-1] for found in read if found is not None], compress))
    return [SmallFile._make((*found[:-1], *next(stored))) if found is not None else None for found in read]


def _stored(contents: list[bytes], compress: CompressEach | None) -> list[tuple[Buffer | None, int, int | None]]:
    """The last three fields of each file."""
    holes = [not content or is_zeros(content) for content in contents]
    full = [content for content, hole in zip(contents, holes, strict=True) if not hole]
    packed = iter(compress(full) if compress is not None else [(content, None) for content in full])
    found: list[tuple[Buffer | None, int, int | None]] = []
    for content, hole in zip(contents, holes, strict=True):
        stored, code = (None if content else b"", None) if hole else next(packed)
        found.append((stored, len(content), code))
    return found


def _close(fds: list[int]) -> None:
    with suppress(IndexError):  # another thread took the last one
        while fds:
            os.close(fds.pop())
