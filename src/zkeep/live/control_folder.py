"""The folder `.zfs` of a mounted dataset, with its snapshots; what shows snapshots elsewhere answers for it."""

from __future__ import annotations

import errno
from typing import Any, Protocol

from zkeep.live import protocol as p
from zkeep.live.errors import fail
from zkeep.live.files import SEEK_DATA
from zkeep.live.protocol import Op, Request

NAME = b".zfs"
TOP = "/.zfs"
FIRST_NODE = 1 << 48
"Nodes from here on are paths below .zfs; objects have smaller numbers."
KEPT = 1
"Seconds for which the kernel may keep names and attributes: snapshots come and go."
SECOND = 1_000_000_000
STATUS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_blksize")


class Snapshots(Protocol):
    """Shows the snapshots that there are, as the operations of a read-only mount."""

    version: int
    "Another one whenever other snapshots are shown."

    def operations(self) -> Any:
        """None: there is no snapshot."""
        ...

    def rest(self) -> None:
        """Give up what is open if it was not used for a while."""
        ...


class ControlFolder:
    """Answers for the nodes below .zfs. A node stands for a path, as long as the kernel knows it."""

    def __init__(self, snapshots: Snapshots | None) -> None:
        self._snapshots = snapshots
        self.snapdir = "hidden"
        "The property: hidden (only who knows of .zfs finds it), visible or disabled."
        self._paths: dict[int, str] = {}
        self._nodes: dict[str, int] = {}
        self._uses: dict[int, int] = {}
        self._next = FIRST_NODE
        self._version = -1
        self._answers = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.READLINK: self._readlink,
            Op.READ: self._read,
            Op.LSEEK: self._lseek,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdir,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
        }

    def root(self) -> bytes | None:
        """The entry of .zfs; None: there is no snapshot."""
        found = self._found()
        return self._entry(found, TOP) if found is not None else None

    @property
    def is_listed(self) -> bool:
        """Whether .zfs is among the entries of the root folder."""
        return self.snapdir == "visible" and self._found() is not None

    def _found(self) -> Any:
        return self._snapshots.operations() if self._snapshots is not None and self.snapdir != "disabled" else None

    def answer(self, request: Request) -> bytes:
        if request.op in (Op.RELEASEDIR, Op.FSYNCDIR, Op.FSYNC):
            return b""
        method = self._answers.get(Op(request.op))
        if method is None:
            fail(errno.EROFS)
        found = self._found()
        if found is None:
            fail(errno.ENOENT)
        return method(found, self._paths[request.node], request)

    def forget(self, node: int, times: int) -> None:
        self._uses[node] = self._uses.get(node, 0) - times
        if self._uses[node] <= 0:
            self._uses.pop(node)
            path = self._paths.pop(node, "")
            if self._nodes.get(path) == node:
                self._nodes.pop(path)

    def rest(self) -> None:
        # What the kernel remembers are paths: they are opened again when it asks.
        if self._snapshots is not None:
            self._snapshots.rest()

    def _entry(self, found: Any, path: str) -> bytes:
        status = found.getattr(path)
        # A name may lead to another snapshot now, and the kernel may keep what it knows of a node: so it is a new one.
        if self._snapshots is not None and self._snapshots.version != self._version:
            self._version = self._snapshots.version
            self._nodes.clear()
        if path not in self._nodes:
            self._nodes[path], self._paths[self._next] = self._next, path
            self._next += 1
        node = self._nodes[path]
        self._uses[node] = self._uses.get(node, 0) + 1
        return p.ENTRY_OUT.pack(node, 0, KEPT, KEPT, 0, 0, *_attributes(node, status))

    def _lookup(self, found: Any, path: str, request: Request) -> bytes:
        return self._entry(found, f"{path}/{_text(p.name_in(request.body))}")

    def _getattr(self, found: Any, path: str, request: Request) -> bytes:
        return p.ATTR_OUT.pack(KEPT, 0, 0, *_attributes(request.node, found.getattr(path)))

    def _readlink(self, found: Any, path: str, request: Request) -> bytes:
        return _bytes(found.readlink(path))

    def _read(self, found: Any, path: str, request: Request) -> bytes:
        _, offset, size, *_ = p.READ_IN.unpack_from(request.body)
        return bytes(found.read(path, size, offset, 0))

    def _lseek(self, found: Any, path: str, request: Request) -> bytes:
        """All of a file counts as data, to its end."""
        _, offset, whence, _ = p.LSEEK_IN.unpack_from(request.body)
        size = found.getattr(path)["st_size"]
        if offset >= size:
            fail(errno.ENXIO)
        return p.OFFSET.pack(offset if whence == SEEK_DATA else size)

    def _opendir(self, found: Any, path: str, request: Request) -> bytes:
        found.getattr(path)
        return p.OPEN_OUT.pack(0, 0, 0)

    def _readdir(self, found: Any, path: str, request: Request) -> bytes:
        _, offset, room, *_ = p.READ_IN.unpack_from(request.body)
        # With attributes, an entry comes in front of each name; one of zeros says that there are none.
        before = bytes(p.ENTRY_OUT.size if request.op == Op.READDIRPLUS else 0)
        body = bytearray()
        for at, (name, status, _) in enumerate(found.readdir(path, 0)):
            entry = before + p.dirent(status["st_ino"], at + 1, _bytes(name), status["st_mode"] >> 12)
            if at < offset:
                continue
            if len(body) + len(entry) > room:
                break
            body += entry
        return bytes(body)

    def _getxattr(self, found: Any, path: str, request: Request) -> bytes:
        return p.sized(request.body, found.getxattr(path, _text(p.name_in(request.body, p.XATTR_IN.size))))

    def _listxattr(self, found: Any, path: str, request: Request) -> bytes:
        return p.sized(request.body, b"".join(_bytes(name) + b"\0" for name in found.listxattr(path)))


def _attributes(node: int, status: dict[str, int]) -> tuple[int, ...]:
    """What stat() tells, in the order of the protocol."""
    times = [divmod(status[name], SECOND) for name in ("st_atime", "st_mtime", "st_ctime")]
    rest = [status[name] & 0xFFFFFFFF for name in STATUS]
    return (node, status["st_size"], status["st_blocks"], *(t[0] for t in times), *(t[1] for t in times), *rest, 0)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
