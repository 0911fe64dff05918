"""New small files, read many at once, become objects many at once: those that have no extended attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from zkeep.capture.ahead import ReadAhead, SmallFile
from zkeep.capture.contents import stored_flags
from zkeep.capture.previous import ROW, UNKNOWN, are_settled
from zkeep.capture.scan import REGULAR, Node
from zkeep.format.compress import Compression
from zkeep.format.znode_columns import FileColumns
from zkeep.pool.timeline.spans import Array
from zkeep.snapshot.encrypted import Buffer
from zkeep.snapshot.made_files import MadeFile, NewFiles
from zkeep.snapshot.writer import SnapshotWriter

_NUMBERS = (
    *("st_dev", "st_ino", "st_mode", "st_uid", "st_gid", "st_size", "st_nlink"),
    *("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "birth"),
)
"The fields of SmallFile that become columns."
assert SmallFile._fields[: len(_NUMBERS)] == _NUMBERS


class SmallFiles:
    """Makes files that are read ahead, for one writer. `links`: how many names lead to a file; `started`: see Scan."""

    def __init__(self, writer: SnapshotWriter, generation: int, links: Callable[[Node], int], started: int) -> None:
        self._writer, self._generation = writer, generation
        self._links, self._started = links, started
        self._made: dict[int, tuple[MadeFile, bytes]] = {}
        "Those that were not written yet, with their rows for the next capture."

    def made(self, node: Node, small: SmallFile, ahead: ReadAhead) -> tuple[MadeFile, bytes] | None:
        """The object of a file that was just taken from those that are read ahead, and its row, packed.

        None: it has to be made by itself.
        """
        if small.xattrs:
            return None
        if node.number not in self._made:
            self._make([(node, small), *ahead.others()])
        return self._made.pop(node.number)

    def _make(self, files: Iterable[tuple[Node, SmallFile]]) -> None:
        plain = [(node, small) for node, small in files if not small.xattrs]
        numbers = [node.number for node, _ in plain]
        parents = np.array([node.parent.number if node.parent is not None else 0 for node, _ in plain], np.uint64)
        links = np.array([self._links(node) for node, _ in plain], np.uint64)
        columns = _columns([small for _, small in plain])
        contents, codes = self._stored([small for _, small in plain])
        files_made = self._writer.make_files(
            NewFiles(
                numbers,
                _attributes(columns, [small.flags for _, small in plain], links, parents, self._generation),
                [small.block for _, small in plain],
                contents,
                codes,
            )
        )
        rows = self._rows(columns, numbers, parents, links).tobytes()
        for at, each in enumerate(files_made):
            self._made[each.number] = each, rows[at * ROW.itemsize : (at + 1) * ROW.itemsize]

    def _stored(self, files: list[SmallFile]) -> tuple[list[Buffer | None], list[int]]:
        """The contents as they are stored, None where there is nothing, and by which compression."""
        contents: list[Buffer | None] = []
        codes: list[int] = []
        for each in files:
            content, code = each.content or None, each.compression
            if content is not None and code is None:
                content, code = self._writer.compress(content)
            contents.append(content)
            codes.append(Compression.OFF if code is None else code)
        return contents, codes

    def _rows(self, columns: dict[str, Array], numbers: list[int], parents: Array, links: Array) -> Array:
        rows = np.zeros(len(numbers), ROW)
        rows["dev"], rows["ino"], rows["size"] = columns["st_dev"], columns["st_ino"], columns["st_size"]
        ctimes = columns["st_ctime_ns"]
        rows["mtime"], rows["ctime"] = columns["st_mtime_ns"], np.where(are_settled(ctimes, self._started), ctimes, 0)
        rows["object"], rows["parent"], rows["links"] = numbers, parents, links
        rows["names"], rows["kind"] = UNKNOWN, REGULAR
        return rows


def _columns(files: list[SmallFile]) -> dict[str, Array]:
    """The numbers of each file, times signed."""
    values = zip(*files, strict=True)
    return {
        name: np.array(column, np.int64 if name.endswith("_ns") or name == "birth" else np.uint64)
        for name, column in zip(_NUMBERS, values, strict=False)
    }


def _attributes(
    columns: dict[str, Array], flags: list[int], links: Array, parents: Array, generation: int
) -> FileColumns:
    """What FileFields has of one file, see SmallFile.fields()."""
    atime, mtime, ctime, birth = (columns[name] for name in _NUMBERS[-4:])
    earliest = np.minimum(np.minimum(atime, mtime), ctime)
    return FileColumns(
        columns["st_mode"].tolist(),
        *(columns["st_uid"], columns["st_gid"], columns["st_size"], links),
        *(atime, mtime, ctime, np.where(birth == 0, earliest, birth)),
        *(parents, generation),
        np.array([stored_flags(each) if each else 0 for each in flags], np.uint64),
    )
