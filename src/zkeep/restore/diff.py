"""The differences between two snapshots, as `zfs diff` reports them.

If a block of dnodes has the same salt, IV and MAC in both snapshots, it did not change and is skipped. So the cost
follows the change.

Source: OpenZFS lib/libzfs/libzfs_diff.c write_inuse_diffs_one(), write_free_diffs().
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from zkeep.errors import Refused
from zkeep.format.objtypes import ObjectType
from zkeep.format.znode import IS_XATTR, Znode
from zkeep.snapshot.open import NoObject, OpenSnapshot
from zkeep.snapshot.verified import VerifiedObject
from zkeep.tree.filesystem import BadTree, Filesystem

_LETTERS = {
    stat.S_IFBLK: "B",
    stat.S_IFCHR: "C",
    stat.S_IFDIR: "/",
    stat.S_IFIFO: "|",
    stat.S_IFLNK: "@",
    stat.S_IFSOCK: "=",
    stat.S_IFREG: "F",
}

SOME = 8
"How many objects an error names."


@dataclass(frozen=True, slots=True)
class DiffEntry:
    """A changed file. `kind`: + - M R. `renamed`: its new path. `links`: how many names it gained or lost."""

    kind: str
    node: Znode
    path: bytes
    renamed: bytes | None = None
    links: int = 0

    @property
    def letter(self) -> str:
        """The letter for its type, as `zfs diff -F` prints it."""
        return _LETTERS.get(stat.S_IFMT(self.node.mode), "?")


class _Side:
    """One of the two snapshots."""

    def __init__(self, opened: OpenSnapshot) -> None:
        self.opened = opened
        self.filesystem = Filesystem(opened)
        self.lost: list[int] = []
        "Changed files whose path, or anything about them, cannot be found."

    def files(self, index: int) -> dict[int, VerifiedObject]:
        return {
            number: held
            for number, held in self.opened.dnodes(index).items()
            if held.dnode.type in (ObjectType.PLAIN_FILE, ObjectType.DIRECTORY)
            and held.dnode.bonustype in (ObjectType.SA, ObjectType.ZNODE)
        }

    def look(self, number: int) -> tuple[Znode, bytes] | None:
        """Return a file and its path; None for files without a path: extended attributes, deleted but open files."""
        try:
            node = self.filesystem.znode(number)
            if not node.links or node.flags & IS_XATTR or number in self._shares:
                return None
            return node, b"/" + self._path(number)
        except (BadTree, NoObject):
            self.lost.append(number)
            return None

    def _path(self, number: int) -> bytes:
        try:
            return self.filesystem.path_of(number)
        except (BadTree, NoObject):
            if number not in self._elsewhere:
                raise
            files = self.filesystem
            return min(files.below(files.path_of(folder), name) for folder, name in self._elsewhere[number])

    @cached_property
    def _elsewhere(self) -> dict[int, list[tuple[int, bytes]]]:
        """By object: folders and names where it lies, other than in the folder that it names as its parent.

        A second link makes its folder the parent, and removing it does not bring the first one's back.
        """
        found: dict[int, list[tuple[int, bytes]]] = {}
        folders, seen = [self.filesystem.root], {self.filesystem.root}
        # Walk down from the root, each folder once: a forged tree may lead round in circles.
        while folders:
            folder = folders.pop()
            for name, node in self._inside(folder):
                if node.is_folder and node.parent == folder and node.number not in seen:
                    seen.add(node.number)
                    folders.append(node.number)
                # The file says that it lies elsewhere, so this name is another hard link of it.
                elif node.parent != folder:
                    found.setdefault(node.number, []).append((folder, name))
        return found

    def _inside(self, folder: int) -> Iterator[tuple[bytes, Znode]]:
        """List a folder as far as it can be read. A missed entry matters only if its path is needed later."""
        try:
            for name in self.filesystem.ordered(folder, as_stored=True):
                with suppress(BadTree, NoObject):
                    yield name.name, self.filesystem.znode(name.number)
        except (BadTree, NoObject):
            return

    @cached_property
    def _shares(self) -> set[int]:
        """FreeBSD and illumos keep a folder for SMB shares, which is below no other."""
        folder = self.filesystem.master.get("SHARES")
        return {folder, *(name.number for name in self.filesystem.names(folder))} if folder else set()


def diff(before: OpenSnapshot, after: OpenSnapshot) -> Iterator[DiffEntry]:
    """Changes by object number.

    Raises:
        BadTree: after all others, if there are files that changed and of which no path can be told.
    """
    if before.is_volume or after.is_volume:
        raise Refused("cannot diff: not a filesystem")
    # Walk over the blocks of dnodes that either snapshot has, and skip those that did not change.
    old, new = _Side(before), _Side(after)
    for index in sorted({*before.numbers(), *after.numbers()}):
        if before.seal(index) is not None and before.seal(index) == after.seal(index):
            continue
        # Of the rest, skip the objects that did not change.
        was, now = old.files(index), new.files(index)
        for number in sorted(was.keys() | now.keys()):
            one, other = was.get(number), now.get(number)
            if one is not None and other is not None and before.same(one, other):
                continue
            yield from _compare(old.look(number) if one else None, new.look(number) if other else None)
    # Report last what could not be resolved, so that it keeps no other change back.
    for side in (old, new):
        if side.lost:
            what = ", ".join(map(str, side.lost[:SOME])) + (", ..." if len(side.lost) > SOME else "")
            raise BadTree(f"{side.opened.name}: cannot tell the path of what changed as object {what}")


def _compare(was: tuple[Znode, bytes] | None, now: tuple[Znode, bytes] | None) -> Iterator[DiffEntry]:
    # Only one side has the file: it was made or removed.
    if was is None or now is None:
        if now is not None:
            yield DiffEntry("+", *now)
        elif was is not None:
            yield DiffEntry("-", *was)
        return
    (old, old_path), (new, new_path) = was, now
    # ZFS gives a freed object number to a new file: another generation or type is another file.
    if old.generation != new.generation or stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        yield DiffEntry("-", old, old_path)
        yield DiffEntry("+", new, new_path)
    # A file whose ctime is the same did not change, even if its dnode was moved or compressed again.
    elif old.ctime != new.ctime:
        # A folder's links count its subfolders, which are reported themselves.
        links = 0 if old.is_folder else new.links - old.links
        if links:
            yield DiffEntry("M", new, old_path if links > 0 else new_path, links=links)
        elif old_path == new_path:
            yield DiffEntry("M", new, new_path)
        # Same file, another path.
        else:
            yield DiffEntry("R", new, old_path, renamed=new_path)
