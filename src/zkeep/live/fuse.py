"""What a dataset that is mounted read-write answers to FUSE.

What was done is committed every few seconds, at fsync and at the end. An error that is none of a system call (damaged
data, a full disk) is EIO or ENOSPC for the caller, and a line in the log.

The kernel knows a file by its object number, as a node, until it sends FORGET for it: so a file that is open and has no
name any more is there for those who have it open, and is freed after the last of them. Nobody else changes the dataset,
so the kernel may keep names, attributes and contents for as long as it likes.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.format.posix_acl import ACCESS
from zkeep.live import protocol as p
from zkeep.live.answers import SECOND, Page, attributes_of
from zkeep.live.control_folder import FIRST_NODE, NAME, ControlFolder, Snapshots
from zkeep.live.errors import CallError, errno_of, fail
from zkeep.live.files import LiveFiles
from zkeep.live.inode import Inode
from zkeep.live.kernel_cache import FOREVER, KernelCache
from zkeep.live.mount_flags import MountFlags
from zkeep.live.protocol import Op, Request
from zkeep.tree.filesystem import OBJECT_BITS

INTERVAL = 5.0
"Seconds after which what was done is committed."
BACKGROUND, CONGESTED = 64, 48
"Requests that nobody waits for, such as reading ahead: how many there may be, and when they are many."
CHANGING = frozenset(
    {
        *(Op.SETATTR, Op.MKDIR, Op.MKNOD, Op.SYMLINK, Op.LINK, Op.RENAME, Op.RENAME2, Op.CREATE, Op.TMPFILE, Op.WRITE),
        *(Op.FALLOCATE, Op.SETXATTR, Op.REMOVEXATTR, Op.UNLINK, Op.RMDIR, Op.FSYNC, Op.FSYNCDIR),
    }
)
"Operations that fail once nothing can be committed any more, as what they do would be lost."

STATFS = int(Op.STATFS)
NOTHING = (0,) * 19
"The rest of the answer for a name that is not there."
Body = bytes | bytearray | memoryview
Log = Callable[[str], object]


class Operations:
    """Answers requests, one at a time: `answer` is for the device."""

    def __init__(
        self,
        files: LiveFiles,
        log: Log,
        on_mounted: Callable[[], object],
        *,
        acls: bool,
        snapshots: Snapshots | None = None,
    ) -> None:
        """`on_mounted` is called once the folder shows its content. `acls`: there are some."""
        self.files = files
        self._dataset = files.dataset
        self._control = ControlFolder(snapshots)
        self.cache = KernelCache(files.dataset)
        self._log = log
        self._on_mounted = on_mounted
        self._acls = self._shows_acls = acls
        self.flags: MountFlags | None = None
        "Those of the mount itself."
        self._ended = threading.Event()
        self._agreed = 0
        "What was agreed upon in INIT."
        self._listings: dict[int, list[tuple[bytes, int]]] = {}
        "Entries of the folders that are open, by handle, as they were when somebody began to read them."
        self._next_handle = 1
        self._answers: dict[int, Callable[[Request], Body]] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.SETATTR: self._setattr,
            Op.READLINK: self._readlink,
            Op.SYMLINK: self._symlink,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            **dict.fromkeys((Op.RENAME, Op.RENAME2), self._rename),
            Op.LINK: self._link,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.STATFS: self._statfs,
            **dict.fromkeys((Op.FSYNC, Op.FSYNCDIR), self._fsync),
            Op.SETXATTR: self._setxattr,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.REMOVEXATTR: self._removexattr,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdirplus,
            Op.RELEASEDIR: self._releasedir,
            Op.CREATE: self._create,
            Op.TMPFILE: self._tmpfile,
            Op.FALLOCATE: self._fallocate,
            Op.LSEEK: self._lseek,
            Op.DESTROY: lambda request: b"",
        }

    def answer(self, request: Request) -> tuple[int, Body] | None:
        """Errno and body; every exception becomes an errno."""
        method = self._answers.get(request.op)
        if method is None:
            return self._answer_otherwise(request)
        try:
            with self._dataset.lock:
                return self._answer(request, method)
        except CallError as error:  # what is refused often, as a name that is not there, takes little
            return error.errno or errno.EIO, b""
        except Exception as error:
            # Nothing may be read here: what cannot be read may be why this failed.
            return self._errno_of(f"{Op(request.op).name} of node {request.node}", error), b""

    def _answer_otherwise(self, request: Request) -> tuple[int, Body] | None:
        """Requests that no file's state answers, or that nobody waits for."""
        op = request.op
        if op in (Op.FORGET, Op.BATCH_FORGET):
            self._forget(request)
            return None
        if op == Op.INTERRUPT:
            return None
        if op == Op.INIT:
            return 0, self._init(request)  # if that fails there is no mount
        return errno.ENOSYS, b""

    def _answer(self, request: Request, method: Callable[[Request], Body]) -> tuple[int, Body]:
        if request.op in CHANGING:
            if self._dataset.is_stale:
                raise Refused("something else was written to the dataset: nothing can be committed any more")
            if self.files.is_read_only and request.op not in (Op.FSYNC, Op.FSYNCDIR):
                fail(errno.EROFS)
        if request.node < FIRST_NODE or request.op == STATFS:
            return 0, method(request)
        try:
            return 0, self._control.answer(request)
        except OSError as error:
            return error.errno or errno.EIO, b""

    def _errno_of(self, what: str, error: Exception) -> int:
        """The errno for who asked; what is wrong here is told in the log."""
        if (number := errno_of(error)) is not None:
            return number
        text = str(error) if isinstance(error, ZkeepError | OSError) else f"unexpected {type(error).__name__}: {error}"
        self._log(f"{what}: {text}")
        return errno.EIO

    # The mount itself

    def _init(self, request: Request) -> bytes:
        major, _, read_ahead, offered = p.INIT_IN.unpack_from(request.body)
        if major != p.MAJOR:
            raise Refused(f"the kernel speaks version {major} of FUSE, and not {p.MAJOR}")
        wanted = sum(p.WANTED) | (p.POSIX_ACL | p.DONT_MASK if self._acls else 0)
        self._agreed = offered & wanted
        pages = p.MAX_WRITE // os.sysconf("SC_PAGE_SIZE")
        limits = (BACKGROUND, CONGESTED, p.MAX_WRITE, 1, pages, 0)
        threading.Thread(target=self._commit_at_times, daemon=True).start()
        self._on_mounted()
        return p.INIT_OUT.pack(p.MAJOR, p.MINOR, read_ahead, self._agreed, *limits, 0, 0)

    def _commit_at_times(self) -> None:
        while not self._ended.wait(INTERVAL):
            try:
                with self.still():
                    self._dataset.commit_if_due()
                    self._dataset.forget_unused()
                    self._control.rest()
                with suppress(Refused):  # who set it was told
                    self.tell_kernel()
            except Exception as error:
                self._errno_of("commit", error)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing changes while this is held, and no change is half done.

        Raises:
            TryAgain: it was unmounted.
        """
        with self._dataset.lock:
            if self._ended.is_set():
                raise TryAgain("it is being unmounted")
            try:
                yield
            finally:
                self.files.look_at_properties()
                self._control.snapdir = self.files.settings.snapdir

    def tell_kernel(self) -> None:
        """Let the kernel know what the properties say now. Nothing may be locked: it may ask something first.

        Raises:
            Refused: there is something that can hold from the next mount on only.
        """
        settings = self.files.settings
        if settings.acls != self._shows_acls:
            self._shows_acls = settings.acls
            self.cache.drop_attributes()
        if self.flags is not None and settings.flags is not None:
            self.flags.set(settings.flags)
        if settings.acls and not self._acls:
            raise Refused("acltype will hold from the next mount on")

    def end(self) -> None:
        """Nobody can ask any more: files that were open and have no name are gone."""
        self.cache.device = None
        with self._dataset.lock:
            self._ended.set()
            for number in list(self._dataset.nameless):
                self._dataset.forget(number, self._dataset.uses.get(number, 0))

    def _statfs(self, request: Request) -> bytes:
        free, total = self._dataset.space()
        unit = 128 << 10
        numbers = total // unit, free // unit, free // unit, 1 << 40, 1 << 40
        return p.STATFS_OUT.pack(*numbers, unit, 255, unit, 0)

    # Nodes

    def _inode(self, node: int) -> Inode:
        if node in self._dataset.gone:
            fail(errno.ESTALE)
        return self._dataset.inode(self._dataset.tree.root if node == p.ROOT else node)

    def _entry(self, inode: Inode) -> bytes:
        """An answer by which the kernel learns of a file."""
        self._dataset.use(inode)
        attributes = attributes_of(self._dataset, inode)
        return p.ENTRY_OUT.pack(inode.number, inode.fields.generation, self.cache.kept, FOREVER, 0, 0, *attributes)

    def _lookup(self, request: Request) -> bytes:
        name = p.name_in(request.body)
        if name == NAME and request.node == p.ROOT and (control := self._control.root()) is not None:
            return control
        found = self.files.look(self._inode(request.node), name)
        if found is not None:
            return self._entry(found)
        # The kernel keeps that a name is not there as well. Only .zfs comes by itself, with the first snapshot.
        kept = 0 if name == NAME and request.node == p.ROOT else self.cache.absent(request.node, name)
        return p.ENTRY_OUT.pack(0, 0, kept, *NOTHING)

    def _forget(self, request: Request) -> None:
        pairs: list[tuple[int, int]]
        if request.op == Op.FORGET:
            pairs = [(request.node, *p.FORGET_IN.unpack_from(request.body))]
        else:
            pairs = [(node, times) for node, times in p.FORGET_ONE.iter_unpack(request.body[8:])]
        try:
            with self._dataset.lock:
                for node, times in pairs:
                    if node >= FIRST_NODE:
                        self._control.forget(node, times)
                    else:
                        self._dataset.forget(node, times)
        except Exception as error:
            self._errno_of("FORGET", error)

    # Attributes

    def _attributes_of(self, inode: Inode) -> bytes:
        return p.ATTR_OUT.pack(FOREVER, 0, 0, *attributes_of(self._dataset, inode))

    def _getattr(self, request: Request) -> bytes:
        return self._attributes_of(self._inode(request.node))

    def _setattr(self, request: Request) -> bytes:
        (valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = p.SETATTR_IN.unpack_from(
            request.body
        )
        inode = self._inode(request.node)
        if valid & p.SET_SIZE:
            self.files.truncate(inode, size)
            if valid & p.KILL_IDS:
                self.files.drop_privileges(inode, by=request.gid)
        if not valid & p.SET_ANY:
            self.files.chown_as_it_is(inode, request.uid, request.gid)
        if valid & (p.SET_UID | p.SET_GID):
            new_uid, new_gid = uid if valid & p.SET_UID else -1, gid if valid & p.SET_GID else -1
            self.files.chown(inode, new_uid, new_gid, by=request.gid if request.uid else None)
        if valid & p.SET_MODE:
            self.files.chmod(inode, mode)
        if valid & (p.SET_ATIME | p.SET_MTIME):
            now = time.time_ns()
            new_atime = now if valid & p.ATIME_NOW else atime * SECOND + atime_ns
            new_mtime = now if valid & p.MTIME_NOW else mtime * SECOND + mtime_ns
            self.files.utimens(
                inode, new_atime if valid & p.SET_ATIME else None, new_mtime if valid & p.SET_MTIME else None
            )
        return self._attributes_of(inode)

    # Names

    def _new_name(self, node: int, name: bytes) -> bytes:
        """A name that may be given: .zfs is taken, also while there are no snapshots."""
        if node == p.ROOT and name == NAME:
            fail(errno.EEXIST)
        self.cache.present(node, name)
        return name

    def _make(self, request: Request, name: bytes | None, mode: int, umask: int, rdev: int = 0) -> Inode:
        if name is not None:
            self._new_name(request.node, name)
        owner = request.uid, request.gid
        folder = self._inode(request.node)
        # Without ACLs the kernel has applied the umask already.
        return self.files.make(folder, name, mode, owner, rdev=rdev, umask=umask if self._acls else 0)

    def _mknod(self, request: Request) -> bytes:
        mode, device, umask, _ = p.MKNOD_IN.unpack_from(request.body)
        rdev = os.major(device) << 20 | os.minor(device)
        return self._entry(self._make(request, p.name_in(request.body, p.MKNOD_IN.size), mode, umask, rdev))

    def _mkdir(self, request: Request) -> bytes:
        mode, umask = p.MKDIR_IN.unpack_from(request.body)
        name = p.name_in(request.body, p.MKDIR_IN.size)
        return self._entry(self._make(request, name, stat.S_IFDIR | mode & 0o7777, umask))

    def _create(self, request: Request) -> bytes:
        _, mode, umask, _ = p.CREATE_IN.unpack_from(request.body)
        name = p.name_in(request.body, p.CREATE_IN.size)
        return self._entry(self._make(request, name, mode, umask)) + p.OPEN_OUT.pack(0, 0, 0)

    def _tmpfile(self, request: Request) -> bytes:
        _, mode, umask, _ = p.CREATE_IN.unpack_from(request.body)
        return self._entry(self._make(request, None, mode, umask)) + p.OPEN_OUT.pack(0, 0, 0)

    def _symlink(self, request: Request) -> bytes:
        name, target = p.names_in(request.body)
        self._new_name(request.node, name)
        folder, owner = self._inode(request.node), (request.uid, request.gid)
        return self._entry(self.files.make(folder, name, stat.S_IFLNK | 0o777, owner, target=target))

    def _readlink(self, request: Request) -> bytes:
        return self._inode(request.node).fields.target or b""

    def _link(self, request: Request) -> bytes:
        (node,) = p.OFFSET.unpack_from(request.body)
        if node >= FIRST_NODE:
            fail(errno.EXDEV)
        inode = self._inode(node)
        name = self._new_name(request.node, p.name_in(request.body, p.OFFSET.size))
        self.files.link(inode, self._inode(request.node), name)
        return self._entry(inode)

    def _unlink(self, request: Request) -> bytes:
        self.files.unlink(self._inode(request.node), p.name_in(request.body))
        return b""

    def _rmdir(self, request: Request) -> bytes:
        self.files.rmdir(self._inode(request.node), p.name_in(request.body))
        return b""

    def _rename(self, request: Request) -> bytes:
        if request.op == Op.RENAME:
            (node,), flags, start = p.OFFSET.unpack_from(request.body), 0, p.OFFSET.size
        else:
            node, flags, _ = p.RENAME2_IN.unpack_from(request.body)
            start = p.RENAME2_IN.size
        if node >= FIRST_NODE:
            fail(errno.EROFS)
        old, new = p.names_in(request.body, start)
        self._new_name(request.node, old)
        self._new_name(node, new)
        self.files.rename(self._inode(request.node), old, self._inode(node), new, flags)
        return b""

    # Folders

    def _opendir(self, request: Request) -> bytes:
        handle = self._next_handle
        self._next_handle += 1
        return p.OPEN_OUT.pack(handle, 0, 0)

    def _releasedir(self, request: Request) -> bytes:
        self._listings.pop(p.OFFSET.unpack_from(request.body)[0], None)
        return b""

    def _listing(self, inode: Inode, handle: int, offset: int) -> list[tuple[bytes, int]]:
        """All entries as they were when reading began, so that each is there once, whatever changes meanwhile."""
        if offset == 0 or handle not in self._listings:
            # In the order of numbers: who goes on to read the files reads what lies together.
            entries = self._dataset.folders.entries(inode).items()
            self._listings[handle] = sorted(entries, key=lambda entry: entry[1] & OBJECT_BITS)
            if inode.number == self._dataset.tree.root and self._control.is_listed:
                self._listings[handle].append((NAME, OBJECT_BITS | stat.S_IFDIR >> 12 << 60))
        return self._listings[handle]

    def _readdir(self, request: Request) -> Body:
        handle, offset, room, *_ = p.READ_IN.unpack_from(request.body)
        inode = self._inode(request.node)
        out = Page(room)
        kind = stat.S_IFDIR >> 12
        dots = [(b".", inode.number | kind << 60), (b"..", inode.fields.parent | kind << 60)]
        listing = self._listing(inode, handle, offset)
        for at in range(offset, len(listing) + 2):
            name, value = dots[at] if at < 2 else listing[at - 2]
            if not out.add(p.dirent(value & OBJECT_BITS, at + 1, name, value >> 60)):
                break
        return out.body

    def _readdirplus(self, request: Request) -> Body:
        """The same with attributes, so that nobody needs to ask for those one by one."""
        handle, offset, room, *_ = p.READ_IN.unpack_from(request.body)
        inode = self._inode(request.node)
        out = Page(room)
        nothing, kind = bytes(p.ENTRY_OUT.size), stat.S_IFDIR >> 12
        dots = [(b".", inode.number | kind << 60), (b"..", inode.fields.parent | kind << 60)]
        listing = self._listing(inode, handle, offset)
        for at in range(offset, len(listing) + 2):
            name, value = dots[at] if at < 2 else listing[at - 2]
            entry = p.dirent(value & OBJECT_BITS, at + 1, name, value >> 60)
            if not out.has_room(p.ENTRY_OUT.size + len(entry)):
                break
            # One that was removed since is listed without attributes; a LOOKUP of it says that it is not there.
            found = self._listed(request.node, inode, name) if at >= 2 else None
            out.add((self._entry(found) if found is not None else nothing) + entry)
        return out.body

    def _listed(self, node: int, folder: Inode, name: bytes) -> Inode | None:
        """A file whose attributes are told with its name; None: who wants them asks, and is told what is wrong."""
        if node == p.ROOT and name == NAME:
            return None
        try:
            return self._dataset.folders.find(folder, name)
        except (ZkeepError, OSError):
            return None

    # Files

    def _read(self, request: Request) -> Body:
        _, offset, size, *_ = p.READ_IN.unpack_from(request.body)
        return self.files.view(self._inode(request.node), offset, size)

    def _write(self, request: Request) -> bytes:
        _, offset, size, flags, *_ = p.WRITE_IN.unpack_from(request.body)
        inode = self._inode(request.node)
        if self.cache.is_dropping and flags & p.WRITE_CACHE:
            return p.SIZE_OUT.pack(size, 0)
        data = request.body[p.WRITE_IN.size : p.WRITE_IN.size + size]
        done = self.files.write(inode, data, offset)
        if flags & p.WRITE_KILLS_IDS:
            self.files.drop_privileges(inode, by=request.gid)
        return p.SIZE_OUT.pack(done, 0)

    def _fallocate(self, request: Request) -> bytes:
        _, offset, size, mode, _ = p.FALLOCATE_IN.unpack_from(request.body)
        inode = self._inode(request.node)
        self.files.allocate(inode, mode, offset, size)
        if request.uid:  # the kernel leaves that to us, and does not say whether it is to be
            self.files.drop_privileges(inode, by=request.gid)
        return b""

    def _lseek(self, request: Request) -> bytes:
        _, offset, whence, _ = p.LSEEK_IN.unpack_from(request.body)
        return p.OFFSET.pack(self.files.seek(self._inode(request.node), offset, whence))

    def _fsync(self, request: Request) -> bytes:
        self._dataset.commit_soon()
        return b""

    # Extended attributes

    def _listxattr(self, request: Request) -> bytes:
        names = self.files.xattrs.names(self._inode(request.node))
        return p.sized(request.body, b"".join(name + b"\0" for name in names))

    def _getxattr(self, request: Request) -> bytes:
        name = p.name_in(request.body, p.XATTR_IN.size)
        return p.sized(request.body, self.files.xattrs.get(self._inode(request.node), name))

    def _setxattr(self, request: Request) -> bytes:
        layout = p.SETXATTR_IN if self._agreed & p.SETXATTR_EXT else p.XATTR_IN
        size, flags, *more = layout.unpack_from(request.body)
        rest = bytes(request.body[layout.size :])
        name, _, value = rest.partition(b"\0")
        inode = self._inode(request.node)
        self.files.xattrs.set(inode, name, value[:size], flags)
        # An ACL makes new bits for the group; who is not in the group must not gain what a program does as that group.
        if more and more[0] & p.ACL_KILLS_SGID and name == ACCESS:
            inode.fields.mode &= ~stat.S_ISGID
        self._dataset.commit_if_large()
        return b""

    def _removexattr(self, request: Request) -> bytes:
        self.files.xattrs.remove(self._inode(request.node), p.name_in(request.body))
        return b""
