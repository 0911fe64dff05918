"""The operations of a mounted dataset, with the results and errors that POSIX wants.

A caller holds the dataset's lock. A file is given as an inode, a name together with its folder. Permissions are checked
by the kernel before it asks (default_permissions), and the kernel walks through paths and follows symbolic links.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Callable

from zkeep.errors import ZkeepError
from zkeep.format.folding import folding
from zkeep.live.contents import Buffer
from zkeep.live.dataset import LiveDataset
from zkeep.live.errors import fail
from zkeep.live.inode import Inode
from zkeep.live.settings import DEFAULTS, Settings
from zkeep.live.xattrs import Xattrs

MAX_NAME = 255
MAX_TARGET = 4095
MAX_LINKS = 65_000
MAX_SIZE = (1 << 63) - 1
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
"Flags of renameat2(2)."
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x1, 0x2, 0x10
"Modes of fallocate(2)."
SEEK_DATA, SEEK_HOLE = 3, 4
DAY = 86_400 * 1_000_000_000
Owner = tuple[int, int]
"User and group."


class LiveFiles:
    """Raises OSError with the errno that the system call fails with (all methods)."""

    def __init__(
        self,
        dataset: LiveDataset,
        settings: Settings = DEFAULTS,
        look: Callable[[], Settings] | None = None,
    ) -> None:
        """`settings`: what the properties say; `look` tells what they say now."""
        self.dataset = dataset
        self._look = look
        self.settings = settings
        self.is_read_only = settings.is_read_only
        self.xattrs = Xattrs(dataset, acls=settings.acls)
        self.xattrs.use(acls=settings.acls, has_user=settings.user_xattrs)

    def look_at_properties(self) -> None:
        """They may have been set since it was mounted. Call it between two operations only."""
        self.dataset.room.look_again()
        if self._look is None:
            return
        try:
            now = self._look()
        except (ZkeepError, OSError):
            return  # what was said last holds
        before, self.settings = self.settings, now
        self.is_read_only = now.is_read_only
        self.xattrs.use(acls=now.acls, has_user=now.user_xattrs)
        if now.storage is not None and now.storage.is_other(before.storage):
            self.dataset.store_as(now.storage)

    # Finding

    def find(self, folder: Inode, name: bytes) -> Inode:
        """What a name in a folder leads to."""
        found = self.look(folder, name)
        if found is None:
            fail(errno.ENOENT)
        return found

    def look(self, folder: Inode, name: bytes) -> Inode | None:
        """The same; None where there is no such name."""
        self._check_name(folder, name)
        return self.dataset.folders.find(folder, name)

    def _entry(self, folder: Inode, name: bytes) -> tuple[Inode, bytes]:
        """What a name leads to, and the name by which the folder has it."""
        inode = self.find(folder, name)
        return inode, self.dataset.folders.stored(folder, name)

    def _check_name(self, folder: Inode, name: bytes, *, new: bool = False) -> None:
        if not folder.is_folder:
            fail(errno.ENOTDIR)
        if len(name) > MAX_NAME:
            fail(errno.ENAMETOOLONG)
        self.dataset.folders.check_name(name, new=new)

    def _check_free(self, folder: Inode, name: bytes) -> None:
        self._check_name(folder, name, new=True)
        if not folder.fields.links:
            fail(errno.ENOENT)  # the folder was removed, and somebody is still in it
        if self.dataset.folders.find(folder, name) is not None:
            fail(errno.EEXIST)
        self.dataset.folders.check_variants(folder, name)

    # Making and removing

    def make(
        self,
        folder: Inode,
        name: bytes | None,
        mode: int,
        owner: Owner,
        *,
        rdev: int = 0,
        target: bytes | None = None,
        umask: int = 0,
    ) -> Inode:
        """A new file, folder, link, device, fifo or socket; without a name (None), it is gone when nobody uses it.

        A default ACL of the folder replaces the umask.
        """
        if name is not None:
            self._check_free(folder, name)
        if target is not None and not 0 < len(target) <= MAX_TARGET:
            fail(errno.ENAMETOOLONG if target else errno.ENOENT)
        if folder.fields.mode & stat.S_ISGID:  # what is made in such a folder belongs to its group
            owner = owner[0], folder.fields.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        inherited = self.xattrs.default_of(folder) if target is None else []
        self.dataset.check_room(0)
        inode = self.dataset.make(mode if inherited else mode & ~umask, owner, folder.number)
        if inherited:
            self.xattrs.inherit(inode, inherited)
        inode.fields.rdev = rdev
        if target is not None:
            inode.fields.target, inode.fields.size = target, len(target)
        if name is None:
            inode.fields.links = 0
            self.dataset.nameless[inode.number] = inode
        else:
            self._enter(folder, name, inode)
        return inode

    def _enter(self, folder: Inode, name: bytes, inode: Inode) -> None:
        self.dataset.folders.set(folder, name, inode)
        folder.fields.size = _counted(folder.fields.size + 1)
        if inode.is_folder:
            folder.fields.links = _counted(folder.fields.links + 1)
        self._changed_content(folder)

    def _leave(self, folder: Inode, name: bytes, inode: Inode) -> None:
        self.dataset.folders.set(folder, name, None)
        folder.fields.size = _counted(folder.fields.size - 1)
        if inode.is_folder:
            folder.fields.links = _counted(folder.fields.links - 1)
        self._changed_content(folder)

    def unlink(self, folder: Inode, name: bytes) -> None:
        inode, name = self._entry(folder, name)
        if inode.is_folder:
            fail(errno.EISDIR)
        self._leave(folder, name, inode)
        self._lose_name(inode)

    def _lose_name(self, inode: Inode) -> None:
        inode.fields.links = 0 if inode.is_folder else _counted(inode.fields.links - 1)
        self._changed(inode)
        self.dataset.drop_if_unused(inode)

    def rmdir(self, folder: Inode, name: bytes) -> None:
        inode, name = self._entry(folder, name)
        if not inode.is_folder:
            fail(errno.ENOTDIR)
        if inode.fields.size > 2:
            fail(errno.ENOTEMPTY)
        self._leave(folder, name, inode)
        self._lose_name(inode)

    def link(self, inode: Inode, folder: Inode, name: bytes) -> None:
        """One more name for a file; also the first for one that was made without."""
        self._check_free(folder, name)
        if inode.is_folder:
            fail(errno.EPERM)
        if inode.fields.links >= MAX_LINKS:
            fail(errno.EMLINK)
        self.dataset.nameless.pop(inode.number, None)
        inode.fields.links += 1
        inode.fields.parent = folder.number
        self._enter(folder, name, inode)
        self._changed(inode)

    def rename(self, source: Inode, old_name: bytes, target: Inode, new_name: bytes, flags: int = 0) -> None:
        """renameat2(2), in folders `source` and `target`."""
        if flags not in (0, NOREPLACE, EXCHANGE):
            fail(errno.EINVAL)
        self._check_name(target, new_name, new=True)
        folders = self.dataset.folders
        (inode, old_name), other = self._entry(source, old_name), folders.find(target, new_name)
        there = folders.stored(target, new_name)
        if not flags and source is target and there == old_name and self._is_other_case(old_name, new_name):
            other = None  # the entry itself: only its name changes
        self._check_rename((source, inode), (target, other), flags)
        if other is inode:
            return
        if other is not None and flags & EXCHANGE:
            self._exchange((source, old_name, inode), (target, there, other))
            return
        if other is not None:
            _check_replace(inode, other)
            self._leave(target, there, other)
        else:
            folders.check_variants(target, new_name)
        self._leave(source, old_name, inode)
        self._enter(target, new_name, inode)
        inode.fields.parent = target.number
        self._changed(inode)
        if other is not None:
            self._lose_name(other)

    def _is_other_case(self, old: bytes, new: bytes) -> bool:
        """Whether two names that are one differ in more than in their normal form: then one becomes the other."""
        form = folding(self.dataset.folders.naming.normalization) or bytes
        return form(old) != form(new)

    def _check_rename(self, old: tuple[Inode, Inode], new: tuple[Inode, Inode | None], flags: int) -> None:
        """Refuse what a kernel refuses before it asks a file system, in its order. `old`, `new`: folder and entry."""
        (source, inode), (target, other) = old, new
        if other is not None and flags & NOREPLACE:
            fail(errno.EEXIST)
        if other is None and flags & EXCHANGE:
            fail(errno.ENOENT)
        if inode.is_folder and self._lies_in(target, inode):
            fail(errno.EINVAL)
        if other is not None and other.is_folder and self._lies_in(source, other):
            fail(errno.EINVAL if flags & EXCHANGE else errno.ENOTEMPTY)

    def _exchange(self, one: tuple[Inode, bytes, Inode], two: tuple[Inode, bytes, Inode]) -> None:
        for place in (one, two):
            self._leave(*place)
        for (folder, name, _), inode in ((one, two[2]), (two, one[2])):
            self._enter(folder, name, inode)
            inode.fields.parent = folder.number
            self._changed(inode)

    def _lies_in(self, folder: Inode, above: Inode) -> bool:
        """Whether a folder is another one, or lies somewhere below it."""
        root = self.dataset.root
        while folder is not above and folder is not root:
            folder = self.dataset.inode(folder.fields.parent)
        return folder is above

    # Attributes

    def _changed(self, inode: Inode) -> None:
        inode.fields.ctime = time.time_ns()
        self.dataset.touch(inode)

    def _changed_content(self, inode: Inode) -> None:
        inode.fields.mtime = inode.fields.ctime = time.time_ns()
        self.dataset.touch(inode)

    def chmod(self, inode: Inode, mode: int) -> None:
        inode.fields.mode = inode.fields.mode & ~0o7777 | mode & 0o7777
        self.xattrs.after_chmod(inode)
        self._changed(inode)

    def chown(self, inode: Inode, uid: int, gid: int, *, by: int | None = None) -> None:
        """-1 leaves one as it is. `by`: as for drop_privileges."""
        self.drop_privileges(inode, by=by)
        inode.fields.uid = inode.fields.uid if uid == -1 else uid
        inode.fields.gid = inode.fields.gid if gid == -1 else gid
        self._changed(inode)

    def chown_as_it_is(self, inode: Inode, uid: int, gid: int) -> None:
        """chown(2) that leaves both as they are, by this user and group: only privileges and a time change."""
        by = gid if uid else None
        # Who does not own it must not take privileges away. It cannot be refused: a kernel asks for the same before it
        # writes, which says by itself what the file loses.
        if uid in (0, inode.fields.uid) or inode.is_folder or not _privileges(inode, by):
            self.chown(inode, -1, -1, by=by)

    def drop_privileges(self, inode: Inode, *, by: int | None = None) -> None:
        """Take set-user-ID, set-group-ID and capabilities from a file that gets other contents or another owner.

        `by`: the group of who does it; None: of one who may set the bits of any file.
        """
        if inode.is_folder:
            return
        if dropped := _privileges(inode, by):
            inode.fields.mode &= ~dropped
            self.dataset.touch(inode)
        self.xattrs.drop_capabilities(inode)

    def utimens(self, inode: Inode, atime: int | None, mtime: int | None) -> None:
        """Nanoseconds since 1970; None leaves one as it is."""
        inode.fields.atime = inode.fields.atime if atime is None else atime
        inode.fields.mtime = inode.fields.mtime if mtime is None else mtime
        self._changed(inode)

    # Content

    def read(self, inode: Inode, offset: int, size: int) -> bytes:
        return bytes(self.view(inode, offset, size))

    def view(self, inode: Inode, offset: int, size: int) -> Buffer:
        """What is read, copied only where need be."""
        if inode.is_folder:
            fail(errno.EISDIR)
        if self.settings.atime and not self.is_read_only:
            self._note_access(inode)
        return self.dataset.contents.view(inode, offset, size)

    def _note_access(self, inode: Inode) -> None:
        now, fields = time.time_ns(), inode.fields
        is_due = fields.atime <= max(fields.mtime, fields.ctime) or fields.atime < now - DAY
        if is_due or not self.settings.relatime:
            fields.atime = now
            self.dataset.touch_access(inode)

    def write(self, inode: Inode, data: bytes | memoryview, offset: int) -> int:
        if offset + len(data) > MAX_SIZE:
            fail(errno.EFBIG)
        self.dataset.check_room(len(data))
        self.dataset.contents.write(inode, data, offset)
        self._changed_content(inode)
        self.dataset.commit_if_large()
        return len(data)

    def truncate(self, inode: Inode, size: int) -> None:
        if inode.is_folder:
            fail(errno.EISDIR)
        if not 0 <= size <= MAX_SIZE:
            fail(errno.EINVAL if size < 0 else errno.EFBIG)
        self.dataset.contents.truncate(inode, size)
        self._changed_content(inode)

    def allocate(self, inode: Inode, mode: int, offset: int, size: int) -> None:
        """fallocate(2). Room is not set aside: what is written may compress, and fail later."""
        if offset < 0 or size <= 0:
            fail(errno.EINVAL)
        if mode not in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
            fail(errno.EOPNOTSUPP)
        if offset + size > MAX_SIZE:
            fail(errno.EFBIG)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            self.dataset.contents.punch(inode, offset, offset + size, self.dataset.contents.stored(inode, offset))
        if not mode & KEEP_SIZE and offset + size > inode.fields.size:
            self.dataset.contents.truncate(inode, offset + size)
        self._changed_content(inode)

    def seek(self, inode: Inode, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        size = inode.fields.size
        if whence not in (SEEK_DATA, SEEK_HOLE):
            fail(errno.EINVAL)
        if not 0 <= offset < size:
            fail(errno.ENXIO)
        at = offset
        for start, end in self.dataset.contents.data_from(inode, offset, self.dataset.contents.stored(inode, offset)):
            if whence == SEEK_DATA:
                return start
            if start > at:
                break
            at = max(at, end)
        if whence == SEEK_DATA:
            fail(errno.ENXIO)
        return min(at, size)


def _privileges(inode: Inode, by: int | None) -> int:
    """Which of set-user-ID and set-group-ID a file has, and loses when one of this group changes it."""
    lost = stat.S_ISUID
    # Without the group's x, set-group-ID means something else (mandatory locks), and stays for the file's own group.
    # FUSE names one group of those that somebody is in: who is in the file's by another one takes the bit away, too.
    if inode.fields.mode & stat.S_IXGRP or by not in (None, inode.fields.gid):
        lost |= stat.S_ISGID
    return inode.fields.mode & lost


def _counted(number: int) -> int:
    """A number of entries or links as it can be stored, whatever the base said that it was before."""
    return min(max(number, 0), MAX_SIZE)


def _check_replace(inode: Inode, other: Inode) -> None:
    """Refuse to rename one over the other."""
    if other.is_folder and not inode.is_folder:
        fail(errno.EISDIR)
    if inode.is_folder and not other.is_folder:
        fail(errno.ENOTDIR)
    if other.is_folder and other.fields.size > 2:
        fail(errno.ENOTEMPTY)
