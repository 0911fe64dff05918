"""From an opened snapshot to files in a folder, with all that is stored of them.

Only authenticated bytes are written (P5). A file that is there already is never overwritten without `force`; one that
has the size and the time of the stored one counts as extracted, so that an interrupted call can be repeated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from zkeep.errors import Refused
from zkeep.format.znode import Znode
from zkeep.restore.beyond import set_acl, set_project
from zkeep.restore.placing import Folder, Skipped, dress, was_begun, write_sparse
from zkeep.tree.filesystem import Extent, Filesystem, Name, shown
from zkeep.tree.volume import Volume

NAME_MAX = 255
"What any filesystem but ZFS takes."


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


@dataclass
class Options:
    force: bool = False
    tell: Callable[[Progress], object] = lambda progress: None


@dataclass
class Extraction:
    """One call's work."""

    filesystem: Filesystem
    options: Options
    progress: Progress = field(default_factory=Progress)
    skipped: Skipped = field(default_factory=Skipped)
    _linked: dict[int, bytes] = field(default_factory=dict)
    "Where a file of several names was put first."

    def everything(self, target: str) -> None:
        """All files of the snapshot; the target takes what its root has."""
        with Folder.top(target) as top:
            self._folder(top, top, self.filesystem.root)

    def some(self, target: str, paths: Iterable[bytes]) -> None:
        """Some files and folders, each below the target with its whole path."""
        with Folder.top(target) as top:
            for path in paths:
                self._path(top, top, self.filesystem.root, [p for p in path.split(b"/") if p not in (b"", b".")])

    def _path(self, top: Folder, folder: Folder, number: int, parts: list[bytes]) -> None:
        """Extract what a path names; the folders on the way get their attributes, too."""
        if not parts:
            self._folder(top, folder, number)
            return
        name = self.filesystem.find(number, parts[0])
        if name is None:
            raise Refused(f"{shown(folder.below(parts[0]))}: no such file or directory")
        if len(parts) == 1:
            self._entry(top, folder, name)
            return
        node = self.filesystem.znode(name.number)
        if not node.is_folder:
            raise Refused(f"{shown(folder.below(name.name))}: not a directory")
        with folder.enter(name.name) as inner:
            self._path(top, inner, name.number, parts[1:])
            self._dress(inner.fd, None, node)

    def _folder(self, top: Folder, folder: Folder, number: int) -> None:
        """What a folder holds, in the order in which it lies in the pool; then its own attributes."""
        inner = []
        for name in sorted(self.filesystem.names(number), key=lambda name: name.number):
            if self.filesystem.is_folder(name):
                inner.append(name)
            else:
                self._entry(top, folder, name)
        for name in inner:
            self._entry(top, folder, name)
        self._dress(folder.fd, None, self.filesystem.znode(number))

    def _entry(self, top: Folder, folder: Folder, name: Name) -> None:
        node = self.filesystem.znode(name.number)
        if len(name.name) > NAME_MAX:
            self.skipped.add(f"names of more than {NAME_MAX} bytes")
            return
        if node.is_folder:
            with folder.enter(name.name) as inner:
                self._folder(top, inner, name.number)
            return
        if node.links > 1 and self._link(top, folder, name):
            return
        if self._is_there(folder, name.name, node):
            self.progress.kept += 1
            self.progress.kept_bytes += node.size if node.is_file else 0
        elif node.is_file:
            self._file(folder, name.name, node)
        else:
            self._special(folder, name.name, node)
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

    def _file(self, folder: Folder, name: bytes, node: Znode) -> None:
        fd = folder.make_file(name, self._told(self.filesystem.extents(node)), node.size)
        try:
            self._dress(fd, None, node)
        finally:
            os.close(fd)

    def _told(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        for extent in extents:
            yield extent
            self.progress.bytes += len(extent.content)
            self.options.tell(self.progress)

    def _special(self, folder: Folder, name: bytes, node: Znode) -> None:
        if node.is_link:
            folder.make_link(name, node.target or b"")
        else:
            try:
                folder.make_node(name, node)
            except PermissionError:
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
