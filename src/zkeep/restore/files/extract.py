"""Extract files of an open snapshot into a folder, with all attributes that are stored.

Only authenticated bytes are written (P5). Each file is made in a staging folder and gets its name when it is complete.
A file that exists is never replaced without `force`; if it is the same, it stays, so that a call can be repeated.
If a file or an attribute cannot be read, or the target cannot take it, only that one is missing.
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
from zkeep.names import printable_path
from zkeep.restore.files.attributes import TargetFile, dress, linux_flags, set_flags, set_project
from zkeep.restore.files.existing import is_same
from zkeep.restore.files.report import NotTaken, RestoreReport
from zkeep.restore.files.staging import Folding, Staging, Stagings
from zkeep.restore.files.target import InTheWay, TargetFolder, TargetPlace
from zkeep.restore.files.writing import write_file
from zkeep.restore.workers import WorkerPool
from zkeep.tree.filesystem import BadTree, Extent, Filesystem, Name
from zkeep.tree.xattrs import each_xattr

PORTION = 32
"Files in a portion. With more, a worker with large files would still be busy when all others are done."
OFTEN = 0.2
"Seconds after which a worker reports its progress."
ALIKE = "the target takes its name for that of another file beside it"
_KINDS = {stat.S_IFCHR: "devices", stat.S_IFBLK: "devices", stat.S_IFIFO: "pipes", stat.S_IFSOCK: "sockets"}


@dataclass
class ExtractProgress:
    """How far an extraction has got."""

    files: int = 0
    bytes: int = 0
    "Written, holes left out."
    kept: int = 0
    "Files that existed already."
    kept_bytes: int = 0
    "Their sizes."

    def add(self, more: ExtractProgress) -> None:
        self.files += more.files
        self.bytes += more.bytes
        self.kept += more.kept
        self.kept_bytes += more.kept_bytes


@dataclass
class ExtractOptions:
    """What the caller wants, and the callbacks."""

    force: bool = False
    on_progress: Callable[[ExtractProgress], object] = lambda progress: None
    note: Callable[[bytes, str], object] | None = None
    "Called for each attribute, device and the like that could not be made: path and kind."


Portion = list[tuple[TargetPlace, Name]]
"Files to be extracted, each with its folder."
Result = tuple[ExtractProgress, RestoreReport, Portion]
"Progress since the last report, what is missing, and files with several names, which are left to the parent."


@dataclass
class Extraction:
    """One call of extract.

    Folders are made as they are reached, and files are shared out in portions among worker processes. Two things wait
    until all that is done: files with several names, which become links, and attributes of folders, whose times change
    whenever something is put into them.
    """

    filesystem: Filesystem
    options: ExtractOptions
    progress: ExtractProgress = field(default_factory=ExtractProgress)
    report: RestoreReport = field(default_factory=RestoreReport)
    _portion: Portion = field(default_factory=list)
    "The portion that is being filled."
    _many_names: Portion = field(default_factory=list)
    "Files with several names."
    _linked: dict[int, tuple[Staging, bytes] | None] = field(default_factory=dict)
    "By object: where a link to a file with several names is kept; None: the target has no links."
    _folders: dict[TargetPlace, int] = field(default_factory=dict)
    "Folders that were made, outer ones first, and their object numbers."
    _alike: Portion = field(default_factory=list)
    "Files whose names the target may not tell from those of others (upper and lower case)."
    _flagged: list[tuple[TargetPlace, bytes, Znode, os.stat_result]] = field(default_factory=list)
    "Files with several names that get flags when they have all of them."
    _fold: Folding | None = None
    _stagings: Stagings = field(init=False)

    @property
    def failed(self) -> list[tuple[bytes, ZkeepError]]:
        return self.report.failed

    def extract_all(self, target: str, place: bytes = b"") -> None:
        """Extract all files, at a place below the target; that folder gets the attributes of the root."""
        self.extract(target, [b""], place)

    def extract(self, target: str, paths: Iterable[bytes], place: bytes = b"") -> None:
        """Extract some files and folders, each below the target with its whole path."""
        if self.options.note is not None:
            self.report.notes = []
        # First the files, in staging folders on the same filesystem, from which they are renamed into place.
        with TargetFolder.top_below(target, place) as top:
            self._stagings = Stagings(top.fd)
            try:
                self._all(top, paths)
            finally:
                self._stagings.close()
            # Then what would have stood in the way before: immutable flags, and modes and times of folders.
            self._set_flags_of_linked(top)
            self._dress_folders(top)
            top.restore_mode()
        self._pass_notes()

    def _all(self, top: TargetFolder, paths: Iterable[bytes]) -> None:
        # A staging folder at the top. If it cannot be made there, one may be possible further down.
        with suppress(OSError):
            self._stagings.of(top.fd, b"", top.device)
        self._fold = self._stagings.folding()
        # Folders are made here; files with one name are shared out among the workers.
        with WorkerPool[Portion](partial(self._do_in_worker, top), self._on_result) as workers:
            for path in paths:
                with self.report.spared(path):
                    self._path(workers, top, [part for part in path.split(b"/") if part not in (b"", b".")])
            workers.finish()
        self._do(top, self._portion)
        # Files with several names: the first is extracted, the others become links to it.
        for place, name in sorted(self._many_names, key=lambda found: found[1].number):
            with self._spared(place, name), top.inner(place) as folder:
                self._extract_file(folder, name, *self._node(folder.below(name.name), name))

        # Names that the target may confuse with others come last, so that they never replace one.
        self.options = replace(self.options, force=False)
        for place, name in self._alike:
            with self._spared(place, name), top.inner(place) as folder:
                # The target may take its name for that of another one (exFAT ignores case): that is not replaced.
                node, error = self._node(folder.below(name.name), name)
                there, at = folder.status(name.name), folder.fd
                if there and not is_same(self.filesystem, node, at, name.name, there, by_content=True):
                    raise NotTaken(ALIKE)
                self._extract_file(folder, name, node, error)

    def _dress_folders(self, top: TargetFolder) -> None:
        """Set the attributes of folders, inner ones first: an outer one may lock us out afterwards."""
        for place, number in reversed(self._folders.items()):
            with self.report.spared(place.path), top.inner(place) as folder:
                try:
                    node, error = self.filesystem.znode_if_spill_is_lost(number)
                    self._dress(TargetFile(place.path, folder.fd), node, error)
                    if node.project:
                        set_project(TargetFile(place.path, folder.fd), node, self.report)
                    set_flags(TargetFile(place.path, folder.fd), node, self.report)
                # Interrupted half way, a folder of ours must not stay as open as we needed it.
                except BaseException:
                    folder.restore_mode()
                    raise

    def _spared(self, place: TargetPlace, name: Name) -> AbstractContextManager[None]:
        return self.report.spared(place.path + b"/" + name.name if place.path else name.name)

    def _path(self, workers: WorkerPool[Portion], top: TargetFolder, parts: list[bytes]) -> None:
        """Extract what a path names; the folders on the way get their attributes, too."""
        place, number = top.place, self.filesystem.root
        for i, part in enumerate(parts):
            # Follow the path in the snapshot, part by part: no link in it is followed.
            name = self.filesystem.find(number, part)
            if name is None:
                raise Refused("no such file or directory")
            if not self.filesystem.is_folder(name):
                # Only the last part may be a file.
                if parts[i + 1 :]:
                    raise Refused(f"{printable_path(name.name)}: not a directory")
                self._submit(workers, place, name)
                return
            # Make the same folder in the target, or enter the one that is there.
            with top.inner(place) as folder, folder.enter(name.name) as inner:
                place, number = inner.place, name.number
            self._folders.setdefault(place, number)
        # The path names a folder: extract all that is in it.
        self._below(workers, top, place, number)

    def _below(self, workers: WorkerPool[Portion], top: TargetFolder, place: TargetPlace, number: int) -> None:
        """Walk through a folder, however deep; only one is open at a time."""
        todo = [(place, number)]
        while todo:
            place, number = todo.pop()
            self._folders.setdefault(place, number)
            with self.report.spared(place.path), top.inner(place) as folder:
                todo += reversed(self._folder(workers, folder, number))

    def _folder(self, workers: WorkerPool[Portion], folder: TargetFolder, number: int) -> list[tuple[TargetPlace, int]]:
        """Share out the files of a folder, ordered as they lie in the pool; make the folders in it, and return them."""
        # In the order of object numbers: that is the order in which their records lie.
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
                    self._submit(workers, folder.place, name)
        return made

    def _names_alike(self, names: list[Name]) -> set[bytes]:
        """Names that the target may take for those of others that come before them."""
        if self._fold is None:
            return set()
        first: dict[bytes, bytes] = {}
        return {name.name for name in names if first.setdefault(self._fold(name.name), name.name) != name.name}

    # Sharing the work

    def _submit(self, workers: WorkerPool[Portion], place: TargetPlace, name: Name) -> None:
        """Add a file in the folder `place` to the portion; submit the portion when it is full."""
        self._portion.append((place, name))
        if len(self._portion) == PORTION:
            self.filesystem.objects.stop_threads()
            workers.submit(self._portion)
            self._portion = []

    def _do_in_worker(self, top: TargetFolder, portion: Portion, report: Callable[[Result], object]) -> None:
        """Do a portion in a worker, and report progress now and then."""
        reported = time.monotonic()

        def now_and_then(_: ExtractProgress) -> None:
            nonlocal reported
            if time.monotonic() - reported > OFTEN:
                reported = time.monotonic()
                report(self._take_result())

        self._take_result()  # what was there at the fork is the parent's to report
        self.options = replace(self.options, on_progress=now_and_then)
        inherited = self._stagings.made()
        try:
            self._do(top, portion)
        finally:
            self._stagings.close(before=inherited)
        report(self._take_result())

    def _take_result(self) -> Result:
        taken = self.progress, self.report.take(), self._many_names
        self.progress, self._many_names = ExtractProgress(), []
        return taken

    def _on_result(self, done: Result) -> None:
        progress, report, many_names = done
        self.progress.add(progress)
        self.report.update(report)
        self._many_names += many_names
        self._pass_notes()
        self.options.on_progress(self.progress)

    def _pass_notes(self) -> None:
        for path, kind in self.report.notes or ():
            if self.options.note is not None:
                self.options.note(path, kind)
        if self.report.notes:
            self.report.notes = []

    # Files

    def _do(self, top: TargetFolder, portion: Portion) -> None:
        """Extract files; those with several names are set aside."""
        with suppress(ZkeepError):  # only prefetching: the error is raised again where the file is read
            self.filesystem.objects.prefetch(name.number for _, name in portion)
        for place, found in groupby(portion, key=lambda found: found[0]):
            self._in_folder(top, place, [name for _, name in found])

    def _in_folder(self, top: TargetFolder, place: TargetPlace, names: list[Name]) -> None:
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
                    node, lost = self._node(folder.below(name.name), name)
                    if node.links > 1:
                        self._many_names.append((folder.place, name))
                    else:
                        self._extract_file(folder, name, node, lost)

    def _node(self, path: bytes, name: Name) -> tuple[Znode, ZkeepError | None]:
        node, error = self.filesystem.znode_if_spill_is_lost(name.number)
        if node.is_folder:
            raise BadTree(f"object {node.number}: a folder whose entry says that it is none")
        return node, error

    def _extract_file(self, folder: TargetFolder, name: Name, node: Znode, error: ZkeepError | None) -> None:
        """Extract a file, unless it is there; if it has several names, the others become links to the first."""
        if not self._is_there(folder, name.name, node):
            made = node.number in self._linked and self._link(folder, name.name, node.number)
            if not made and not self._make(folder, name.name, node, error):
                return
        self.progress.files += 1
        self.options.on_progress(self.progress)

    def _is_there(self, folder: TargetFolder, name: bytes, node: Znode) -> bool:
        """Whether the same file exists already. Raises InTheWay if another one does, unless it is to be replaced."""
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

    def _make(self, folder: TargetFolder, name: bytes, node: Znode, error: ZkeepError | None) -> bool:
        """Make a file in a staging folder and move it to its place; False if the target has no files of this type."""
        staging = self._stagings.of(folder.fd, folder.path, folder.device)
        try:
            return self._make_in(staging, folder, name, node, error)
        except OSError as problem:
            if problem.errno != errno.EXDEV:
                raise
        return self._make_in(self._stagings.apart(folder.fd, folder.path), folder, name, node, error)

    def _make_in(
        self, staging: Staging, folder: TargetFolder, name: bytes, node: Znode, error: ZkeepError | None
    ) -> bool:
        made = staging.new_name()
        fd = None
        try:
            try:
                if node.is_file:
                    fd = write_file(staging.fd, made, self._counted(self.filesystem.extents(node)), node.size)
                elif not self._special(staging, folder.below(name), made, node):
                    return False
                target = TargetFile(folder.below(name), fd, made, staging.fd)
                self._dress(target, node, error)
                self._put(staging, folder, made, name, node)
                if node.project:  # not before: a file of another project than the folder's could not be moved
                    set_project(target, node, self.report)
            finally:
                staging.drop(made)
            # Set flags last: an immutable file can be neither changed nor linked. One with several names waits for
            # all.
            if node.links < 2 or target.fd is None:
                set_flags(target, node, self.report)
            elif linux_flags(node):
                self._flagged.append((folder.place, name, node, os.fstat(target.fd)))
        finally:
            if fd is not None:
                os.close(fd)
        return True

    def _set_flags_of_linked(self, top: TargetFolder) -> None:
        for place, name, node, status in self._flagged:
            path = place.path + b"/" + name if place.path else name
            with self.report.spared(path), top.inner(place) as folder:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder.fd)
                with os.fdopen(fd, "rb"):
                    if os.path.samestat(status, os.fstat(fd)):
                        set_flags(TargetFile(path, fd), node, self.report)

    def _put(self, staging: Staging, folder: TargetFolder, made: bytes, name: bytes, node: Znode) -> None:
        kept = _one_more(staging, made, node.number) if node.links > 1 else None
        try:
            folder.put(staging, made, name, replace=self.options.force)
        except FileExistsError:
            raise InTheWay from None
        if node.links > 1:
            if node.number in self._linked:  # it had to be made once more, for want of links
                self.report.add("hard links", folder.below(name))
            self._linked[node.number] = kept

    def _link(self, folder: TargetFolder, name: bytes, number: int) -> bool:
        """Try to link another name to a file that was extracted."""
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
        except OSError:  # too many links, or another filesystem
            return False
        finally:
            staging.drop(made)
        return True

    def _keep_link(self, folder: TargetFolder, name: bytes, number: int, found: os.stat_result) -> None:
        """Keep a link to a file that existed already, so that its other names become links to it.

        Report the file if another of its names exists too, and is not the same inode.
        """
        kept = self._linked.get(number)
        # Another name of it was there before: it must be the same file, or the link would be lost.
        if kept is not None:
            staging, first = kept
            if not os.path.samestat(found, os.stat(first, dir_fd=staging.fd, follow_symlinks=False)):
                self.report.add("hard links", folder.below(name))
            return
        # Not every filesystem has hard links: without one, the other names become files of their own.
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
            self.options.on_progress(self.progress)

    def _special(self, staging: Staging, path: bytes, made: bytes, node: Znode) -> bool:
        """Make a symbolic link, pipe, socket or device; False (and reported) if the target does not allow it."""
        # A link is made whatever it points to: it is only ever read as text here.
        if node.is_link:
            if b"\0" in (node.target or b""):
                raise BadTree(f"object {node.number}: a link with a zero byte in it")
            os.symlink(node.target or b"", made, dir_fd=staging.fd)
            return True
        # What is forged or damaged can claim any mode.
        kind = stat.S_IFMT(node.mode)
        if kind not in _KINDS:
            raise BadTree(f"object {node.number}: no kind of file has mode {node.mode:o}")
        try:
            # Devices take root; pipes and sockets do not everywhere. Not to be allowed is reported, a full disk is an
            # error.
            os.mknod(made, kind | 0o600, os.makedev(*node.device), dir_fd=staging.fd)
        except (OSError, OverflowError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.report.add(_KINDS[kind], path)
            return False
        return True

    def _dress(self, target: TargetFile, node: Znode, error: ZkeepError | None) -> None:
        if error is not None:
            self.report.lost.append((target.path, error))
        dress(
            target,
            node,
            each_xattr(self.filesystem, node) if node.packed_xattrs or node.xattr_folder else (),
            self.report,
        )


def _one_more(staging: Staging, made: bytes, number: int) -> tuple[Staging, bytes] | None:
    """Keep a link to a new file, for its other names; None if the target has no links."""
    name = b"link-%d" % number
    staging.drop(name)
    try:
        os.link(made, name, src_dir_fd=staging.fd, dst_dir_fd=staging.fd, follow_symlinks=False)
    except OSError:
        return None
    return staging, name


__all__ = ["ALIKE", "ExtractOptions", "ExtractProgress", "Extraction"]
