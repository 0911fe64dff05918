"""From an opened snapshot to files in a folder, with all that is stored of them.

Only authenticated bytes are written (P5). A file that is there already is never overwritten without `force`; one that
has the size and the time of the stored one counts as extracted, so that an interrupted call can be repeated.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

from zkeep.errors import Damaged, NotAuthentic, Refused, ZkeepError
from zkeep.format.znode import Znode
from zkeep.restore.files.attributes import set_acl, set_project
from zkeep.restore.files.target import NOT_OURS, Folder, Skipped, dress, was_begun, write_sparse
from zkeep.restore.workers import Crew
from zkeep.snapshot.errors import Unreadable
from zkeep.tree.filesystem import BadTree, Extent, Filesystem, Name, shown
from zkeep.tree.volume import Volume

NAME_MAX = 255
"What any filesystem but ZFS takes."
PORTION = 32
"Files that are shared out together. With more, who has large ones is not done when the others are."
OFTEN = 0.2
"Seconds after which another process tells how far it is."


@dataclass
class Progress:
    """How far an extraction is."""

    files: int = 0
    bytes: int = 0
    "Written, holes left out."
    kept: int = 0
    "Files that were there already."
    kept_bytes: int = 0
    "Their sizes."

    def add(self, more: Progress) -> None:
        self.files += more.files
        self.bytes += more.bytes
        self.kept += more.kept
        self.kept_bytes += more.kept_bytes


@dataclass
class Options:
    force: bool = False
    tell: Callable[[Progress], object] = lambda progress: None


Portion = list[tuple[bytes, Name]]
"Files to be extracted, each with the path of its folder."
Failed = list[tuple[bytes, ZkeepError]]
"Paths of what could not be read, and why."
Told = tuple[Progress, Skipped, Portion, Failed]
"What was done since the last time, what was skipped, which files have several names, and what could not be read."
UNREADABLE = (Damaged, NotAuthentic, Unreadable, BadTree)
"What is wrong with one file, and says nothing of the others."


@dataclass
class Extraction:
    """One call's work.

    Folders are made as they are come to, and files are shared out in portions. What depends on others waits until all
    that is done: files of several names, and what folders have, for their times change when something is put there.
    What cannot be read is left out and told of in `failed`: in an emergency everything else is wanted all the more.
    """

    filesystem: Filesystem
    options: Options
    progress: Progress = field(default_factory=Progress)
    skipped: Skipped = field(default_factory=Skipped)
    failed: Failed = field(default_factory=list)
    _portion: Portion = field(default_factory=list)
    "What is to be shared out next."
    _several: Portion = field(default_factory=list)
    "Files of several names."
    _linked: dict[int, bytes] = field(default_factory=dict)
    "Where such a file was put first."
    _folders: dict[bytes, int] = field(default_factory=dict)
    "Paths and numbers of folders that were made, outer ones first."

    def everything(self, target: str) -> None:
        """All files of the snapshot; the target takes what its root has."""
        self.some(target, [b""])

    def some(self, target: str, paths: Iterable[bytes]) -> None:
        """Some files and folders, each below the target with its whole path."""
        with Folder.top(target) as top:
            with Crew[Portion](partial(self._hand, top), self._heard) as crew:
                for path in paths:
                    with self._spared(path):
                        self._path(crew, top, [part for part in path.split(b"/") if part not in (b"", b".")])
                crew.finish()
            self._do(top, self._portion)
            for path, name in sorted(self._several, key=lambda found: found[1].number):
                with top.inner(path) as folder, self._spared(folder.below(name.name)):
                    self._entry(top, folder, name, self.filesystem.znode(name.number))
            for path, number in reversed(self._folders.items()):
                with top.inner(path) as folder, self._spared(path):
                    self._dress(folder.fd, None, self.filesystem.znode(number))

    @contextmanager
    def _spared(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            self.failed.append((path, error))

    def _path(self, crew: Crew[Portion], top: Folder, parts: list[bytes]) -> None:
        """Extract what a path names; the folders on the way get their attributes, too."""
        path, number = b"", self.filesystem.root
        for i, part in enumerate(parts):
            name = self.filesystem.find(number, part)
            below = path + b"/" + part if path else part
            if name is None:
                raise Refused(f"{shown(below)}: no such file or directory")
            if not self.filesystem.is_folder(name):
                if parts[i + 1 :]:
                    raise Refused(f"{shown(below)}: not a directory")
                self._later(crew, path, name)
                return
            with top.inner(path) as folder, folder.enter(name.name) as inner:
                path, number = inner.path, name.number
            self._folders.setdefault(path, number)
        self._below(crew, top, path, number)

    def _below(self, crew: Crew[Portion], top: Folder, path: bytes, number: int) -> None:
        """All that lies in a folder, however deep: one is open at a time."""
        todo = [(path, number)]
        while todo:
            path, number = todo.pop()
            self._folders.setdefault(path, number)
            with top.inner(path) as folder, self._spared(path):
                todo += reversed(self._folder(crew, folder, number))

    def _folder(self, crew: Crew[Portion], folder: Folder, number: int) -> list[tuple[bytes, int]]:
        """Share out what a folder holds, in the order in which it lies in the pool; folders in it are made and told."""
        made = []
        for name in sorted(self.filesystem.names(number), key=lambda name: name.number):
            if len(name.name) > NAME_MAX:
                self.skipped.add(f"names of more than {NAME_MAX} bytes")
            elif self.filesystem.is_folder(name):
                self.filesystem.check_inside(number, name)
                with folder.enter(name.name) as inner:
                    made.append((inner.path, name.number))
            else:
                self._later(crew, folder.path, name)
        return made

    # Sharing the work

    def _later(self, crew: Crew[Portion], path: bytes, name: Name) -> None:
        """Share it out with others, if they become enough. `path`: of its folder."""
        self._portion.append((path, name))
        if len(self._portion) == PORTION:
            self.filesystem.objects.rest()
            crew.give(self._portion)
            self._portion = []

    def _hand(self, top: Folder, portion: Portion, tell: Callable[[Told], object]) -> None:
        """Do a portion in another process, and tell of it now and then."""
        told = time.monotonic()

        def now_and_then(_: Progress) -> None:
            nonlocal told
            if time.monotonic() - told > OFTEN:
                told = time.monotonic()
                tell(self._taken())

        self._taken()  # what was there at the fork is told by who forked
        self.options = replace(self.options, tell=now_and_then)
        self._do(top, portion)
        tell(self._taken())

    def _taken(self) -> Told:
        told = self.progress, self.skipped, self._several, self.failed
        self.progress, self.skipped, self._several, self.failed = Progress(), Skipped(), [], []
        return told

    def _heard(self, told: Told) -> None:
        progress, skipped, several, failed = told
        self.progress.add(progress)
        self.skipped.counts.update(skipped.counts)
        self._several += several
        self.failed += failed
        self.options.tell(self.progress)

    # Files

    def _do(self, top: Folder, portion: Portion) -> None:
        """Extract files; those of several names are set aside."""
        with suppress(*UNREADABLE):  # whichever it is tells when it is asked for
            self.filesystem.objects.expect(name.number for _, name in portion)
        for path, some in groupby(portion, key=lambda found: found[0]):
            with top.inner(path) as folder:
                for _, name in some:
                    with self._spared(folder.below(name.name)):
                        node = self.filesystem.znode(name.number)
                        if node.links > 1:
                            self._several.append((path, name))
                        else:
                            self._entry(top, folder, name, node)

    def _entry(self, top: Folder, folder: Folder, name: Name, node: Znode) -> None:
        if node.links > 1 and self._link(top, folder, name):
            return
        try:
            self._make(folder, name.name, node)
        except FileExistsError:
            if self._is_there(folder, name.name, node):
                self.progress.kept += 1
                self.progress.kept_bytes += node.size if node.is_file else 0
            else:
                self._make(folder, name.name, node)
        if node.links > 1:
            self._linked.setdefault(name.number, folder.below(name.name))
        self.progress.files += 1
        self.options.tell(self.progress)

    def _link(self, top: Folder, folder: Folder, name: Name) -> bool:
        """Make another name of a file that was extracted, if it was."""
        first = self._linked.get(name.number)
        if first is None:
            return False
        there = folder.status(name.name)
        if there is not None and there.st_ino == os.stat(first, dir_fd=top.fd, follow_symlinks=False).st_ino:
            return True
        folder.clear(name.name, force=self.options.force)
        os.link(first, name.name, src_dir_fd=top.fd, dst_dir_fd=folder.fd, follow_symlinks=False)
        self.progress.files += 1
        return True

    def _is_there(self, folder: Folder, name: bytes, node: Znode) -> bool:
        """Whether an earlier call made this file, whole; what else is in the way is removed or refused."""
        found = folder.status(name)
        if found is None:
            return False
        alike = stat.S_IFMT(found.st_mode) == stat.S_IFMT(node.mode) and found.st_mtime_ns == node.mtime
        if was_begun(found) and not node.mode & stat.S_ISVTX:
            alike = False
        if alike and (not node.is_file or found.st_size == node.size) and not self.options.force:
            return True
        folder.clear(name, force=self.options.force)
        return False

    def _make(self, folder: Folder, name: bytes, node: Znode) -> None:
        if not node.is_file:
            self._special(folder, name, node)
            return
        fd = folder.make_file(name, self._told(self.filesystem.extents(node)), node.size)
        try:
            self._dress(fd, None, node)
        except UNREADABLE:
            os.unlink(name, dir_fd=folder.fd)
            raise
        finally:
            os.close(fd)

    def _told(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        for extent in extents:
            yield extent
            self.progress.bytes += len(extent.content)
            self.options.tell(self.progress)

    def _special(self, folder: Folder, name: bytes, node: Znode) -> None:
        if node.is_folder:
            raise BadTree(f"object {node.number}: a folder whose entry says that it is none")
        if node.is_link:
            folder.make_link(name, node.target or b"")
        else:
            try:
                folder.make_node(name, node)
            except OSError as error:
                if error.errno not in NOT_OURS:
                    raise
                self.skipped.add("devices")
                return
        self._dress(name, folder.fd, node)

    def _dress(self, place: int | bytes, folder: int | None, node: Znode) -> None:
        if node.project:
            set_project(place, node, self.skipped)
        has_xattrs = node.packed_xattrs or node.xattr_folder
        dress(place, folder, node, self.filesystem.xattrs(node) if has_xattrs else {}, self.skipped)
        if node.has_acl:
            set_acl(place, folder, node, self.skipped)


def extract_volume(volume: Volume, target: str, name: str, *, force: bool = False) -> str:
    """The disk image as a sparse file in a folder; returns its path."""
    with Folder.top(target) as top:
        top.clear(os.fsencode(name), force=force)
        fd = top.make_file(os.fsencode(name), volume.extents(), volume.size)
        try:
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    return os.path.join(target, name)


__all__ = ["Extraction", "Options", "Progress", "extract_volume", "write_sparse"]
