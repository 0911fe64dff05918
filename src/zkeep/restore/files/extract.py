"""From an opened snapshot to files in a folder, with all that is stored of them.

Only authenticated bytes are written (P5), each file is made aside and gets its name when it is whole, and what is there
already is never replaced without `force`. What is there and is the same stays, so that a call can be repeated.
What cannot be read, or what the target cannot take, costs that file or attribute and nothing else.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

from zkeep.errors import Refused, ZkeepError
from zkeep.format.znode import Znode
from zkeep.restore.files.attributes import Target, dress, set_project
from zkeep.restore.files.existing import is_same
from zkeep.restore.files.report import NotTaken, Report
from zkeep.restore.files.staging import Folding, Staging, Stagings
from zkeep.restore.files.target import Folder, InTheWay, Place
from zkeep.restore.files.writing import write_file
from zkeep.restore.workers import Crew
from zkeep.tree.filesystem import BadTree, Extent, Filesystem, Name, shown
from zkeep.tree.xattrs import Value, each_xattr

PORTION = 32
"Files that are shared out together. With more, who has large ones is not done when the others are."
OFTEN = 0.2
"Seconds after which another process tells how far it is."
ALIKE = "the target takes its name for that of another file beside it"
_KINDS = {stat.S_IFCHR: "devices", stat.S_IFBLK: "devices", stat.S_IFIFO: "pipes", stat.S_IFSOCK: "sockets"}


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
    note: Callable[[bytes, str], object] | None = None
    "Called with the path of each file of which something that holds no data could not be made, and what."


Portion = list[tuple[Place, Name]]
"Files to be extracted, each with its folder."
Done = tuple[Progress, Report, Portion]
"What was done since the last time, what is missing of it, and which files have several names."


@dataclass
class Extraction:
    """One call's work.

    Folders are made as they are reached, and files are shared out in portions. What depends on others waits until all
    that is done: files of several names, and what folders have, for their times change when something is put there.
    """

    filesystem: Filesystem
    options: Options
    progress: Progress = field(default_factory=Progress)
    report: Report = field(default_factory=Report)
    _portion: Portion = field(default_factory=list)
    "What is to be shared out next."
    _several: Portion = field(default_factory=list)
    "Files of several names."
    _linked: dict[int, tuple[Staging, bytes] | None] = field(default_factory=dict)
    "Files of several names that were made, and where a link to each is kept; None: the target has no links."
    _folders: dict[Place, int] = field(default_factory=dict)
    "Folders that were made, outer ones first, and their numbers."
    _alike: Portion = field(default_factory=list)
    "Files whose names the target may take for those of others."
    _fold: Folding | None = None
    _stagings: Stagings = field(init=False)

    @property
    def failed(self) -> list[tuple[bytes, ZkeepError]]:
        return self.report.failed

    def everything(self, target: str, place: bytes = b"") -> None:
        """All files of the snapshot, at a place below the target, which takes what the root has."""
        self.some(target, [b""], place)

    def some(self, target: str, paths: Iterable[bytes], place: bytes = b"") -> None:
        """Some files and folders, each below the target with its whole path."""
        if self.options.note is not None:
            self.report.notes = []
        with Folder.top_below(target, place) as top:
            self._stagings = Stagings(top.fd)
            try:
                self._all(top, paths)
            finally:
                self._stagings.close()
            self._dress_folders(top)
            top.restore_mode()
        self._pass_notes()

    def _all(self, top: Folder, paths: Iterable[bytes]) -> None:
        with suppress(OSError):  # where nothing can be made at the top, something may be further down
            self._stagings.of(top.fd, b"", top.device)
        self._fold = self._stagings.folding()
        with Crew[Portion](partial(self._hand, top), self._heard) as crew:
            for path in paths:
                with self.report.spared(path):
                    self._path(crew, top, [part for part in path.split(b"/") if part not in (b"", b".")])
            crew.finish()
        self._do(top, self._portion)
        for place, name in sorted(self._several, key=lambda found: found[1].number):
            with self._spared(place, name), top.inner(place) as folder:
                self._entry(folder, name, *self._node(folder.below(name.name), name))

        self.options = replace(self.options, force=False)
        for place, name in self._alike:
            with self._spared(place, name), top.inner(place) as folder:
                self._entry_if_apart(folder, name)

    def _entry_if_apart(self, folder: Folder, name: Name) -> None:
        """Extract a file unless the target takes its name for that of another one, which must not be replaced."""
        node, error = self._node(folder.below(name.name), name)
        found = folder.status(name.name)
        if found is not None and not is_same(self.filesystem, node, folder.fd, name.name, found, by_content=True):
            raise NotTaken(ALIKE)
        self._entry(folder, name, node, error)

    def _dress_folders(self, top: Folder) -> None:
        """What is stored of the folders; inner ones first, as an outer one may keep us out afterwards."""
        for place, number in reversed(self._folders.items()):
            with self.report.spared(place.path), top.inner(place) as folder:
                try:
                    node, error = self.filesystem.znode_if_spill_is_lost(number)
                    self._dress(Target(place.path, folder.fd), node, error)
                    if node.project:
                        set_project(Target(place.path, folder.fd), node, self.report)
                except BaseException:
                    folder.restore_mode()
                    raise

    def _spared(self, place: Place, name: Name) -> AbstractContextManager[None]:
        return self.report.spared(place.path + b"/" + name.name if place.path else name.name)

    def _path(self, crew: Crew[Portion], top: Folder, parts: list[bytes]) -> None:
        """Extract what a path names; the folders on the way get their attributes, too."""
        place, number = top.place, self.filesystem.root
        for i, part in enumerate(parts):
            name = self.filesystem.find(number, part)
            if name is None:
                raise Refused("no such file or directory")
            if not self.filesystem.is_folder(name):
                if parts[i + 1 :]:
                    raise Refused(f"{shown(name.name)}: not a directory")
                self._later(crew, place, name)
                return
            with top.inner(place) as folder, folder.enter(name.name) as inner:
                place, number = inner.place, name.number
            self._folders.setdefault(place, number)
        self._below(crew, top, place, number)

    def _below(self, crew: Crew[Portion], top: Folder, place: Place, number: int) -> None:
        """All that lies in a folder, however deep: one is open at a time."""
        todo = [(place, number)]
        while todo:
            place, number = todo.pop()
            self._folders.setdefault(place, number)
            with self.report.spared(place.path), top.inner(place) as folder:
                todo += reversed(self._folder(crew, folder, number))

    def _folder(self, crew: Crew[Portion], folder: Folder, number: int) -> list[tuple[Place, int]]:
        """Share out what a folder holds, in the order in which it lies in the pool; folders in it are made and told."""
        made = []
        names = sorted(self.filesystem.names(number), key=lambda name: name.number)
        alike = self._names_alike(names)
        for name in names:
            with self._spared(folder.place, name):
                self.filesystem.below(folder.path, name.name)
                if self.filesystem.is_folder(name):
                    self.filesystem.check_inside(number, name)
                    if name.name in alike:
                        raise NotTaken(ALIKE)
                    with folder.enter(name.name) as inner:
                        made.append((inner.place, name.number))
                elif name.name in alike:
                    self._alike.append((folder.place, name))
                else:
                    self._later(crew, folder.place, name)
        return made

    def _names_alike(self, names: list[Name]) -> set[bytes]:
        """Names that the target may take for those of others that come before them."""
        if self._fold is None:
            return set()
        first: dict[bytes, bytes] = {}
        return {name.name for name in names if first.setdefault(self._fold(name.name), name.name) != name.name}

    # Sharing the work

    def _later(self, crew: Crew[Portion], place: Place, name: Name) -> None:
        """Share it out with others, if they become enough. `place`: its folder."""
        self._portion.append((place, name))
        if len(self._portion) == PORTION:
            self.filesystem.objects.stop_threads()
            crew.give(self._portion)
            self._portion = []

    def _hand(self, top: Folder, portion: Portion, tell: Callable[[Done], object]) -> None:
        """Do a portion in another process, and tell of it now and then."""
        told = time.monotonic()

        def now_and_then(_: Progress) -> None:
            nonlocal told
            if time.monotonic() - told > OFTEN:
                told = time.monotonic()
                tell(self._taken())

        self._taken()  # what was there at the fork is told by who forked
        self.options = replace(self.options, tell=now_and_then)
        inherited = self._stagings.made()
        try:
            self._do(top, portion)
        finally:
            self._stagings.close(before=inherited)
        tell(self._taken())

    def _taken(self) -> Done:
        taken = self.progress, self.report.take(), self._several
        self.progress, self._several = Progress(), []
        return taken

    def _heard(self, done: Done) -> None:
        progress, report, several = done
        self.progress.add(progress)
        self.report.update(report)
        self._several += several
        self._pass_notes()
        self.options.tell(self.progress)

    def _pass_notes(self) -> None:
        for path, kind in self.report.notes or ():
            if self.options.note is not None:
                self.options.note(path, kind)
        if self.report.notes:
            self.report.notes = []

    # Files

    def _do(self, top: Folder, portion: Portion) -> None:
        """Extract files; those of several names are set aside."""
        with suppress(ZkeepError):  # whichever it is tells when it is asked for
            self.filesystem.objects.prefetch(name.number for _, name in portion)
        for place, some in groupby(portion, key=lambda found: found[0]):
            self._in_folder(top, place, [name for _, name in some])

    def _in_folder(self, top: Folder, place: Place, names: list[Name]) -> None:
        try:
            folder = top.inner(place)
        except (OSError, Refused) as error:
            for name in names:
                with self._spared(place, name):
                    raise error
            return
        with folder:
            for name in names:
                with self._spared(place, name):
                    self._alone(folder, name)

    def _alone(self, folder: Folder, name: Name) -> None:
        node, error = self._node(folder.below(name.name), name)
        if node.links > 1:
            self._several.append((folder.place, name))
        else:
            self._entry(folder, name, node, error)

    def _node(self, path: bytes, name: Name) -> tuple[Znode, ZkeepError | None]:
        node, error = self.filesystem.znode_if_spill_is_lost(name.number)
        if node.is_folder:
            raise BadTree(f"object {node.number}: a folder whose entry says that it is none")
        return node, error

    def _entry(self, folder: Folder, name: Name, node: Znode, error: ZkeepError | None) -> None:
        """Extract a file, unless it is there; if it has several names, the others become links to the first."""
        if not self._is_there(folder, name.name, node):
            made = node.number in self._linked and self._link(folder, name.name, node.number)
            if not made and not self._make(folder, name.name, node, error):
                return
        self.progress.files += 1
        self.options.tell(self.progress)

    def _is_there(self, folder: Folder, name: bytes, node: Znode) -> bool:
        """Whether the file is there already; anything else that is there is refused, or to be replaced."""
        found = None if self.options.force else folder.status(name)
        if found is None:
            return False
        if not is_same(self.filesystem, node, folder.fd, name, found):
            raise InTheWay
        if node.links > 1:
            self._keep_link(folder, name, node.number, found)
        self.progress.kept += 1
        self.progress.kept_bytes += node.size if node.is_file else 0
        return True

    def _make(self, folder: Folder, name: bytes, node: Znode, error: ZkeepError | None) -> bool:
        """Make a file aside and put it where it belongs; False if the target has nothing of this kind."""
        staging = self._stagings.of(folder.fd, folder.path, folder.device)
        try:
            return self._make_in(staging, folder, name, node, error)
        except OSError as problem:
            if problem.errno != errno.EXDEV:
                raise
        return self._make_in(self._stagings.apart(folder.fd, folder.path), folder, name, node, error)

    def _make_in(self, staging: Staging, folder: Folder, name: bytes, node: Znode, error: ZkeepError | None) -> bool:
        made = staging.new_name()
        fd = None
        try:
            if node.is_file:
                fd = write_file(staging.fd, made, self._counted(self.filesystem.extents(node)), node.size)
            elif not self._special(staging, folder.below(name), made, node):
                return False
            target = Target(folder.below(name), fd, made, staging.fd)
            self._dress(target, node, error)
            self._put(staging, folder, made, name, node)
            if node.project:  # not before: a file of another project than the folder's could not be moved
                set_project(target, node, self.report)
        finally:
            if fd is not None:
                os.close(fd)
            staging.drop(made)
        return True

    def _put(self, staging: Staging, folder: Folder, made: bytes, name: bytes, node: Znode) -> None:
        kept = _one_more(staging, made, node.number) if node.links > 1 else None
        try:
            folder.put(staging, made, name, replace=self.options.force)
        except FileExistsError:
            raise InTheWay from None
        if node.links > 1:
            if node.number in self._linked:  # it had to be made once more, for want of links
                self.report.add("hard links", folder.below(name))
            self._linked[node.number] = kept

    def _link(self, folder: Folder, name: bytes, number: int) -> bool:
        """Make another name of a file that was extracted, if that can be."""
        kept = self._linked[number]
        if kept is None:
            return False
        staging, first = kept
        made = staging.new_name()
        try:
            os.link(first, made, src_dir_fd=staging.fd, dst_dir_fd=staging.fd, follow_symlinks=False)
            folder.put(staging, made, name, replace=self.options.force)
        except FileExistsError:
            raise InTheWay from None
        except OSError:  # links have a most, and lead to no other filesystem
            return False
        finally:
            staging.drop(made)
        return True

    def _keep_link(self, folder: Folder, name: bytes, number: int, found: os.stat_result) -> None:
        """Other names of a file that is there become links to it; if they are there, too, they should be."""
        kept = self._linked.get(number)
        if kept is not None:
            staging, first = kept
            if not os.path.samestat(found, os.stat(first, dir_fd=staging.fd, follow_symlinks=False)):
                self.report.add("hard links", folder.below(name))
            return
        self._linked[number] = None
        with suppress(OSError):
            staging, first = self._stagings.of(folder.fd, folder.path, folder.device), b"link-%d" % number
            os.link(name, first, src_dir_fd=folder.fd, dst_dir_fd=staging.fd, follow_symlinks=False)
            if os.path.samestat(found, os.stat(first, dir_fd=staging.fd, follow_symlinks=False)):
                self._linked[number] = staging, first

    def _counted(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        for extent in extents:
            yield extent
            self.progress.bytes += len(extent.content)
            self.options.tell(self.progress)

    def _special(self, staging: Staging, path: bytes, made: bytes, node: Znode) -> bool:
        """Make a link, a pipe, a socket or a device; False if it is one of those that hold nothing and cannot be."""
        if node.is_link:
            if b"\0" in (node.target or b""):
                raise BadTree(f"object {node.number}: a link with a zero byte in it")
            os.symlink(node.target or b"", made, dir_fd=staging.fd)
            return True
        kind = stat.S_IFMT(node.mode)
        if kind not in _KINDS:
            raise BadTree(f"object {node.number}: no kind of file has mode {node.mode:o}")
        try:
            os.mknod(made, kind | 0o600, os.makedev(*node.device), dir_fd=staging.fd)
        except (OSError, OverflowError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.report.add(_KINDS[kind], path)
            return False
        return True

    def _dress(self, target: Target, node: Znode, error: ZkeepError | None) -> None:
        if error is not None:
            self.report.lost.append((target.path, error))
        dress(target, node, self._xattrs(node), self.report)

    def _xattrs(self, node: Znode) -> Iterable[tuple[bytes, Value]]:
        return each_xattr(self.filesystem, node) if node.packed_xattrs or node.xattr_folder else ()


def _one_more(staging: Staging, made: bytes, number: int) -> tuple[Staging, bytes] | None:
    """Keep a link to a file that was made, for its other names; None where there are no links."""
    name = b"link-%d" % number
    staging.drop(name)
    try:
        os.link(made, name, src_dir_fd=staging.fd, dst_dir_fd=staging.fd, follow_symlinks=False)
    except OSError:
        return None
    return staging, name


__all__ = ["ALIKE", "Extraction", "Options", "Progress"]
