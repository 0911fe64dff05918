"""Look at every file of a folder once, and compare it with what the last snapshot has of it.

The result names what is new, changed and gone; contents are not read here. One pass of stat() is all that an
unchanged tree costs: an entry whose device, inode, size, mtime and ctime are those of last time needs no node of its
own where its folder did not change either.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from zkeep.capture.previous import NEW, UNKNOWN, Compared, Match, Previous, check_of, check_of_joined
from zkeep.format.zap_writer import MAX_NAME

OPEN_FOLDERS = 128
FOLDER, LINK, REGULAR = stat.S_IFDIR >> 12, stat.S_IFLNK >> 12, stat.S_IFREG >> 12
READ_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Node:
    """One name in a folder. `number`: the object that holds it, 0 until it has one."""

    __slots__ = ("changed", "check", "children", "inode", "kind", "name", "number", "parent", "single", "status")

    def __init__(self, name: bytes, parent: Node | None, kind: int, number: int, changed: bool) -> None:
        self.name = name
        self.parent = parent
        self.kind = kind
        "The type bits of its mode, as in d_type."
        self.number = number
        self.changed = changed
        "Whether its object has to be written."
        self.children: list[Node] | None = None
        "A folder's entries; None: they are those of last time, or it is no folder."
        self.inode: tuple[int, int] | None = None
        "Device and inode of what has several names."
        self.status: os.stat_result | None = None
        "A folder's, from before its entries were read."
        self.check = UNKNOWN
        "The check of the names that a folder had; UNKNOWN: its row has it."
        self.single = True
        "Whether its object is written for this name; of several names of one file, for the first."

    @property
    def path(self) -> bytes:
        """From the folder that is scanned, without a slash before it."""
        parts = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))


@dataclass(frozen=True)
class ReadProblem:
    """What could not be read, and why."""

    path: bytes
    reason: str


@dataclass
class Scan:
    """What is in the folder now. `written`: the nodes whose objects have to be written, folders among them."""

    root: Node
    written: list[Node] = field(default_factory=list)
    problems: list[ReadProblem] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    "Objects of last time that are still there."
    kept: list[int] = field(default_factory=list)
    "Objects of folders that cannot be read; all below stays."
    kept_names: list[Node] = field(default_factory=list)
    "Names of files whose status cannot be had; what the last snapshot has of them stays."
    links: dict[tuple[int, int], list[Node]] = field(default_factory=dict)
    "All names of what has several."
    files: int = 0
    folders: int = 0
    bytes: int = 0
    "Sizes of the files that will be read."
    started: int = 0
    "Nanoseconds since 1970 when it began: what changed since may change again unseen."

    def names_of(self, node: Node) -> list[Node]:
        """All names of a file."""
        return self.links.get(node.inode, [node]) if node.inode else [node]


class Folders:
    """Opens folders by their nodes, each relative to its parent, so that no link on the way is followed."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._open: OrderedDict[Node, int] = OrderedDict()

    def fd(self, node: Node) -> int:
        """Raises OSError: it is gone, or no folder any more, or may not be read."""
        known = self._open.get(node)
        if known is not None:
            self._open.move_to_end(node)
            return known
        # Up to the nearest folder that is open, and down again from there, one name at a time.
        chain = []
        at: Node | None = node
        while at is not None and at.parent is not None and at not in self._open:
            chain.append(at)
            at = at.parent
        fd = self._top if at is None or at.parent is None else self._open[at]
        for each in reversed(chain):
            fd = os.open(each.name, READ_FOLDER, dir_fd=fd)
            self._open[each] = fd
        if node in self._open:
            self._open.move_to_end(node)
        # Close those that were not used for longest, but none of the chain that was just opened.
        while len(self._open) > OPEN_FOLDERS + len(chain):
            _, old = self._open.popitem(last=False)
            os.close(old)
        return fd

    def as_scanned(self, names: list[Node]) -> list[Node]:
        """The names of one file, first those that still lead to it: since the scan another may have got one of them."""
        return sorted(names, key=self._leads_elsewhere) if len(names) > 1 else names

    def _leads_elsewhere(self, name: Node) -> bool:
        assert name.parent is not None
        try:
            status = os.stat(name.name, dir_fd=self.fd(name.parent), follow_symlinks=False)
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != name.inode

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class Seen(NamedTuple):
    """An entry of a folder, as it is now. `stat`: None if it cannot be had; `kind`: as in d_type."""

    name: bytes
    kind: int
    stat: os.stat_result | None
    inode: int = 0
    reason: str = ""
    "Why its status cannot be had."


Choose = Callable[[bytes, int, list[Seen]], list[Seen]]
"(path of a folder, its descriptor, its entries) -> the entries that are stored."


KeepsAll = Callable[[bytes, list[tuple[int, int]]], bool]
"""(names of a folder's entries with slashes between them, device and inode of the folders among them) -> whether all
of them are stored, whatever else they are."""


def choose_all(path: bytes, fd: int, entries: list[Seen]) -> list[Seen]:
    return entries


class Scanner:
    """Walks a folder. `choose` leaves entries out; `on_folder` is called after each folder, for progress.

    `keeps_all` says where `choose` need not be asked, so that one call looks at all that did not change in a folder.
    """

    def __init__(
        self,
        top: int,
        previous: Previous,
        choose: Choose = choose_all,
        on_folder: Callable[[Scan], None] = lambda scan: None,
        keeps_all: KeepsAll = lambda names, folders: False,
    ) -> None:
        self._keeps_all = keeps_all
        self._device = os.fstat(top).st_dev
        self._top = top
        self._previous = previous
        self._choose = choose
        self._on_folder = on_folder
        self.folders = Folders(top)
        self._reads_all = os.geteuid() == 0
        self._owners: dict[int, tuple[int, int]] = {}
        "Objects of files with several names, and the inode whose they are."

    def scan(self, started: int) -> Scan:
        """Raises OSError: the folder itself cannot be read."""
        # The top keeps its object whatever inode it has: the folder may have been copied or restored.
        status = os.fstat(self._top)
        number, unchanged = self._previous.find_root(status)
        root = Node(b"", None, FOLDER, number, not unchanged)
        root.status = status
        found = Scan(root, [root] if root.changed else [], started=started)
        found.seen.add(number)
        # Depth first, folders in the order in which they are listed; a folder that is met twice is a mount.
        visited = {(status.st_dev, status.st_ino)}
        waiting = [root]
        while waiting:
            node = waiting.pop()
            found.folders += 1
            try:
                below = self._compared(node, found, visited)
                entries = self._entries(node) if below is None else []
            except OSError as error:
                if node is root:
                    raise
                # What the last snapshot has of it stays; a new one stays empty
                found.problems.append(ReadProblem(node.path, error.strerror or str(error)))
                if node.number:
                    found.kept.append(node.number)
                elif node.children is None:
                    node.children = []
                continue
            waiting += reversed(self._take(node, entries, found, visited) if below is None else below)
            self._on_folder(found)
        return found

    def _compared(self, node: Node, found: Scan, visited: set[tuple[int, int]]) -> list[Node] | None:
        """Look at what did not change in a folder in one call, and make nodes of what did.

        Returns the folders in it; None: nothing was done, and its entries have to be looked at one by one.
        """
        # 1. It was there before, is on this device, and no pattern leaves anything out.
        is_mount = node.status is not None and node.status.st_dev != self._device
        if not node.number or node.parent is None or is_mount or not self._keeps_all(b"", []):
            return None
        fd = self.folders.fd(node)
        here = self._previous.compared(fd, self._device, node.number)
        if here is None:
            return None
        # 2. Its names are those of the last snapshot, or it is written again in any case, and can have them.
        check = node.check or self._previous.check_of_names(node.number)
        same_names = check == check_of_joined(here.names, len(here.numbers))
        places = [(self._device, inode) for _, _, _, inode, _ in here.folders]
        good_names = same_names or (node.changed and _can_be_stored(here.names))
        if not good_names or not self._keeps_all(here.names, places):
            return None
        # 3. No file is at two places, and each entry that differs can be told by itself.
        same = [number for number in here.numbers if number]
        objects = set(same)
        if len(objects) < len(same) or not found.seen.isdisjoint(objects):
            return None
        others = self._others(fd, here, node.number) if len(same) < len(here.numbers) else {}
        if others is None or not self._own_all(others.values(), objects, found, known=not node.changed):
            return None
        # 4. What is as it was counts as seen; the rest, and what a folder that is written names, gets nodes.
        found.seen |= objects
        visited.update(places)
        return self._nodes(node, here, others, found, visited)

    def _others(self, fd: int, here: Compared, number: int) -> dict[int, tuple[Seen, Match]] | None:
        """The entries that are not what a row says, by index; None: they have to be looked at with all others."""
        names = here.names.split(b"/")
        found: dict[int, Seen] = {}
        for at, known in enumerate(here.numbers):
            if known:
                continue
            try:
                status = os.stat(names[at], dir_fd=fd, follow_symlinks=False)
            except OSError:
                return None
            if status.st_dev != self._device or len(names[at]) > MAX_NAME:
                return None
            found[at] = Seen(names[at], stat.S_IFMT(status.st_mode) >> 12, status)
        statuses = [entry.stat for entry in found.values() if entry.stat is not None]
        if not self._keeps_all(here.names, [(status.st_dev, status.st_ino) for status in statuses]):
            return None
        matches = self._previous.match(statuses, number)
        return {at: (entry, match) for (at, entry), match in zip(found.items(), matches, strict=True)}

    def _own_all(self, others: Iterable[tuple[Seen, Match]], taken: set[int], found: Scan, *, known: bool) -> bool:
        """Whether each entry owns the object that it matches, see _owns(). `taken`: objects of entries beside them.

        `known`: whether each must match one that was in this folder, as the folder is not written.
        """
        owners: dict[int, tuple[int, int]] = {}
        for entry, match in others:
            assert entry.stat is not None
            if not match.number or match.moved:
                if known:
                    return False
                if not match.number:
                    continue
            inode = entry.stat.st_dev, entry.stat.st_ino
            several = entry.kind != FOLDER and entry.stat.st_nlink > 1
            again = match.number in owners and not (several and owners[match.number] == inode)
            if again or match.number in taken or not self._owns(entry.stat, entry.kind, match.number, found):
                return False
            owners[match.number] = inode
        return True

    def _nodes(
        self,
        node: Node,
        here: Compared,
        others: dict[int, tuple[Seen, Match]],
        found: Scan,
        visited: set[tuple[int, int]],
    ) -> list[Node]:
        """Make nodes of what was compared, all in one order; returns those that are folders."""
        # A folder that is written names all; of another one only what differs and its folders need a node.
        folders = {at: (name, number, check) for at, name, number, _, check in here.folders}
        whole, names = node.changed, here.names.split(b"/") if node.changed else []
        children, below = [], []
        for at in range(len(here.numbers)) if whole else sorted(others.keys() | folders.keys()):
            child: Node | None
            if at in others:
                entry, match = others[at]
                found.seen |= {match.number} - {0}
                child = self._child(node, entry, match, whole, found, visited)
            elif at in folders:
                name, number, check = folders[at]
                child = Node(name, node, FOLDER, number, False)
                child.check = check
            else:
                child = Node(names[at], node, here.kinds[at], here.numbers[at], False)
            if child is None:
                continue
            children.append(child)
            if child.kind == FOLDER:
                below.append(child)
        if whole:
            node.children = children
        return below

    def _entries(self, node: Node) -> list[Seen]:
        fd = self.folders.fd(node)
        if node.status is None:
            node.status = os.fstat(fd)
        entries = []
        with os.scandir(fd) as listing:
            for entry in listing:
                name = os.fsencode(entry.name)
                if len(name) > MAX_NAME:
                    entries.append(Seen(name, 0, None, 0, f"its name has {len(name)} bytes, more than {MAX_NAME}"))
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it went while the folder was read
                except OSError as error:
                    # What a folder tells of an entry whose status cannot be had: its inode, and mostly its kind
                    kind, reason = 0, error.strerror or str(error)
                    with suppress(OSError):
                        tests = (entry.is_dir, FOLDER), (entry.is_file, REGULAR)
                        kind = next((kind for test, kind in tests if test(follow_symlinks=False)), 0)
                        kind = kind or (LINK if entry.is_symlink() else 0)
                    entries.append(Seen(name, kind, None, entry.inode(), reason))
                    continue
                entries.append(Seen(name, stat.S_IFMT(status.st_mode) >> 12, status))
        return self._choose(node.path, fd, entries)

    def _take(self, node: Node, entries: list[Seen], found: Scan, visited: set[tuple[int, int]]) -> list[Node]:
        """Make nodes of a folder's entries; returns those that are folders."""
        # 1. Look up what the last snapshot has of each entry, all at once.
        lost = [entry for entry in entries if entry.stat is None]
        entries = [entry for entry in entries if entry.stat is not None]
        matches = self._previous.match([entry.stat for entry in entries if entry.stat is not None], node.number)
        kept = [child for entry in lost if (child := self._keep(node, entry, found))]
        # 2. A folder that did not change has the same names; then only what changed in it needs a node.
        #    It has to be written as well if other names in it are left out than last time.
        names = [entry.name for entry in entries] + [child.name for child in kept]
        whole = node.changed or self._previous.check_of_names(node.number) != check_of(names)
        children: list[Node] = []
        for at, (entry, match) in enumerate(zip(entries, matches, strict=True)):
            assert entry.stat is not None
            if not match.number:
                pass
            elif self._owns(entry.stat, entry.kind, match.number, found):
                found.seen.add(match.number)
            else:
                matches[at] = NEW
            whole = whole or matches[at].number == 0 or matches[at].moved
        # 3. Make the nodes. Files that did not change get none, unless their folder is written, which names them.
        for entry, match in zip(entries, matches, strict=True):
            child = self._child(node, entry, match, whole, found, visited)
            if child is not None:
                children.append(child)
        below = [child for child in children if child.kind == FOLDER]
        if whole:
            node.children = children + kept
            if not node.changed:
                node.changed = True
                found.written.append(node)
        return below

    def _child(
        self, node: Node, entry: Seen, match: Match, whole: bool, found: Scan, visited: set[tuple[int, int]]
    ) -> Node | None:
        """The node of an entry; None: it needs none, as nothing names or changes it, or it has to be left out."""
        assert entry.stat is not None
        if match.same and entry.kind != FOLDER and not whole and entry.stat.st_nlink == 1:
            return None
        child = Node(entry.name, node, entry.kind, match.number, not match.same)
        if child.kind == FOLDER:
            child.status = entry.stat
        if self._refuse(child, entry.name, entry.stat, found, visited):
            return None
        self._count(child, entry.stat, found)
        return child

    def _owns(self, status: os.stat_result, kind: int, number: int, found: Scan) -> bool:
        """Whether an object is this inode's. It belongs to the first inode that is met, under all names of it.

        Others may match it, too. The folder that is the top now has the top's object, and so has, by its inode, the one
        that was the top last time. By paths, as without a cache, both halves of what was one file are that file. And
        what is mounted at two places is met twice.
        """
        if kind == FOLDER or status.st_nlink == 1:
            return number not in found.seen
        inode = status.st_dev, status.st_ino
        if number in found.seen:
            return self._owners.get(number) == inode
        self._owners[number] = inode
        return True

    def _keep(self, node: Node, entry: Seen, found: Scan) -> Node | None:
        """An entry whose status cannot be had; what the last snapshot has of it, and of all below it, stays."""
        # The folder still tells the inode, and by that the object is found.
        path = node.path + b"/" + entry.name if node.parent else entry.name
        found.problems.append(ReadProblem(path, entry.reason))
        device = os.fstat(self.folders.fd(node)).st_dev
        number = self._previous.object_of(device, entry.inode, entry.kind, node.number)
        row = self._previous.row_of(number)
        if not number or row is None:
            return None
        several = entry.kind != FOLDER and int(row["links"]) > 1
        if number in found.seen and not (several and self._owners.get(number) == (device, entry.inode)):
            return None
        if several:
            self._owners[number] = device, entry.inode
        found.seen.add(number)
        child = Node(entry.name, node, entry.kind, number, False)
        if entry.kind == FOLDER:
            found.kept.append(number)
        else:
            found.kept_names.append(child)
        return child

    def _refuse(
        self, child: Node, name: bytes, status: os.stat_result, found: Scan, visited: set[tuple[int, int]]
    ) -> bool:
        """Whether an entry has to be left out, as nothing could be stored of it."""
        if child.kind == FOLDER:
            at = status.st_dev, status.st_ino
            if at in visited:
                found.problems.append(ReadProblem(child.path, "this folder was visited already: it is mounted twice"))
                return True
            visited.add(at)
        elif child.changed and child.parent is not None and not self._may_be_read(child.parent, name, status):
            found.problems.append(ReadProblem(child.path, "Permission denied"))
            child.changed = False  # what the last snapshot has of it stays
            row = self._previous.row_of(child.number)
            return row is None or not row["links"]
        return False

    def _count(self, child: Node, status: os.stat_result, found: Scan) -> None:
        """Note what has to be written of an entry."""
        if child.kind != FOLDER and status.st_nlink > 1:
            self._link(child, status, found)
        if child.changed and child.single:
            found.written.append(child)
            if child.kind != FOLDER:
                found.files += 1
                found.bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0

    def _may_be_read(self, node: Node, name: bytes, status: os.stat_result) -> bool:
        """Whether a file's content can be had: what cannot must not get a name in the snapshot."""
        if not stat.S_ISREG(status.st_mode) or self._reads_all:
            return True
        return os.access(name, os.R_OK, dir_fd=self.folders.fd(node), effective_ids=True)

    def _link(self, child: Node, status: os.stat_result, found: Scan) -> None:
        """One of several names of a file: they share one object, which is written once."""
        child.inode = status.st_dev, status.st_ino
        names = found.links.setdefault(child.inode, [])
        child.single = not names
        names.append(child)


def _can_be_stored(names: bytes) -> bool:
    """Whether none of the names, with slashes between them, is too long."""
    return max(map(len, names.split(b"/"))) <= MAX_NAME
