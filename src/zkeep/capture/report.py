"""Report what a capture does: what is new, changed and gone, and how far it is."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from zkeep.capture.previous import Rows
from zkeep.capture.scan import FOLDER, LINK, Node, ReadProblem, Scan
from zkeep.snapshot.open import NoObject
from zkeep.tree.filesystem import Filesystem, Name

KINDS = {
    stat.S_IFREG >> 12: "file",
    FOLDER: "folder",
    LINK: "link",
    stat.S_IFIFO >> 12: "fifo",
    stat.S_IFSOCK >> 12: "socket",
    stat.S_IFCHR >> 12: "character device",
    stat.S_IFBLK >> 12: "block device",
}


@dataclass(frozen=True)
class FileChange:
    """A change to a file, as zkeep diff prints it. `what`: + new, M changed, - gone, R has another path now."""

    what: str
    kind: str
    path: bytes
    renamed: bytes | None = None


@dataclass
class Watch:
    """Callbacks while a folder is captured. `change`: None: the list of changes is not wanted."""

    change: Callable[[FileChange], None] | None = None
    folder: Callable[[Scan], None] = lambda scan: None
    "After each folder that was looked at."
    start: Callable[[int], None] = lambda size: None
    "When all were: about how many bytes are going to be read."
    bytes: Callable[[int], None] = lambda size: None
    "After so many bytes more were read."
    file: Callable[[], None] = lambda: None
    "After a file was stored."


def file_changes(scan: Scan, tree: Filesystem | None) -> Iterator[FileChange]:
    """What a scan found, against the last snapshot's tree; before new files get their numbers."""
    moved: dict[int, FileChange] = {}
    paths = {node.number: node.path for node in scan.written if node.number}
    gone: list[FileChange] = []
    if tree is not None:
        for node in scan.written:
            if node.kind == FOLDER and node.children is not None and node.number:
                gone += list(_lost(scan, tree, node, paths, moved))
    yield from gone
    for node in scan.written:
        # Whatever has a number was there before; what is new gets its number later.
        what = "M" if tree is not None and node.number else "+"
        yield moved.get(node.number) or FileChange(what, KINDS.get(node.kind, "file"), node.path)


def _lost(
    scan: Scan, tree: Filesystem, node: Node, paths: dict[int, bytes], moved: dict[int, FileChange]
) -> Iterator[FileChange]:
    """Names that a folder does not have any more; `moved` gets those whose file has another now."""
    names = {child.name for child in node.children or ()}
    prefix = node.path + b"/" if node.parent else b""
    try:
        before = tree.names(node.number)
    except NoObject:  # an interrupted capture gave it a number and came no further
        before = []
    for entry in sorted(before, key=lambda entry: entry.name):
        if entry.name in names:
            continue
        kind, path = KINDS.get(entry.kind, "file"), prefix + entry.name
        if entry.number in scan.seen:
            new = paths.get(entry.number)
            if new is not None and new != path:
                moved[entry.number] = FileChange("R", kind, path, new)
                continue
        yield FileChange("-", kind, path)
        if entry.number not in scan.seen:
            yield from _below(scan, tree, entry, path)


def _below(scan: Scan, tree: Filesystem, top: Name, path: bytes) -> Iterator[FileChange]:
    """All that lay in a folder that is gone."""
    waiting = [(top, path)]
    while waiting:
        entry, path = waiting.pop()
        if entry.kind != FOLDER:
            continue
        for below in sorted(tree.names(entry.number), key=lambda entry: entry.name):
            if below.number not in scan.seen:
                yield FileChange("-", KINDS.get(below.kind, "file"), path + b"/" + below.name)
                waiting.append((below, path + b"/" + below.name))


@dataclass
class Result:
    """What was written: rows for the cache, and what could not be stored as it is."""

    rows: Rows = field(default_factory=Rows)
    extras: list[tuple[int, int]] = field(default_factory=list)
    problems: list[ReadProblem] = field(default_factory=list)
    names: dict[int, tuple[int, int]] = field(default_factory=dict)
    "Files of which nothing else was written: how many names they have now, and the folder of one."
