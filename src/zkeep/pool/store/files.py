"""The store as a directory on a local disk.

    NAME                    what was published
    journal/..., append     grown in place, one writer
    partial/NAME            drafts
    tmp/..                  content that `put` is writing; sweep() removes what a crash left
    lock/NAME               empty files for flock

All calls go through disk.py, which follows no links. On a disk that cannot be written to, reading works: a shared lock
is taken on the lock's file where there is one, and is not needed where no process can write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from mmap import mmap
from pathlib import Path

from zkeep.errors import TryAgain
from zkeep.pool.store.blob import LocalBlob, OpenFile
from zkeep.pool.store.disk import (
    Disk,
    DiskEntry,
    DiskFolder,
    Root,
    file_size,
    is_exposed,
    naming,
    open_file,
    open_folder,
    walk,
)
from zkeep.pool.store.port import BadStoreName, Blob, Buffer, Draft
from zkeep.pool.store.staging import WriteBuffer, memory

_NAME = re.compile(r"[A-Za-z0-9_\-.]+(/[A-Za-z0-9_\-.]+)*")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_WRITTEN = ("journal", "lock")
"Folders that every change writes to."
_CHUNK = 1 << 20
_POLL = 0.02


class LocalDraft(OpenFile):
    def __init__(self, store: LocalStore, name: str, fd: int) -> None:
        super().__init__(name, fd)
        self._store = store
        self._place = f"partial/{name}"
        self._size = os.fstat(fd).st_size
        self._stage: WriteBuffer | None = None
        self._named = False
        self._torn = False
        "A write did not end: nobody knows how much of it is there."

    @property
    def size(self) -> int:
        return self._size + (self._stage.held if self._stage else 0)

    def write(self, *buffers: Buffer, soon: bool = False) -> None:
        if soon:
            self._flush()
        elif not self._stage:
            self._stage = self._store.stage(self._fd, self._append)
        take = self._stage.add if self._stage else self._append
        torn, self._torn = self._torn, True
        for buffer in buffers:
            take(memoryview(buffer).cast("B"))
        self._torn = torn

    def _append(self, content: memoryview) -> None:
        self._size = self._store._write_all(self._fd, self._size, content)

    def readinto(self, offset: int, *buffers: bytearray | memoryview) -> None:
        self._flush()
        super().readinto(offset, *buffers)

    def truncate(self, size: int) -> None:
        self._flush()
        with naming(self._store.root):
            self._store.disk.truncate(self._fd, size)
        self._size = size

    def sync(self) -> None:
        self._flush()
        self._store._sync(self._fd)
        if not self._named:
            self._store._sync_folder_of(self._place)
            self._named = True

    def publish(self, name: str) -> None:
        if self._torn:
            raise OSError(errno.EIO, "a write to it failed before", name)
        self._flush()
        self._store._sync(self._fd)
        self._store._publish(self._place, name)
        with suppress(OSError):  # it was synced
            self.close()

    def discard(self) -> None:
        self._forget()
        self.close()
        with self._store._entry(self._place) as entry:
            self._store.disk.unlink(entry)

    def close(self) -> None:
        if self._fd >= 0:
            try:
                self._flush()
            finally:
                self._store.disk.close(self._fd)
                self._fd = -1

    def _flush(self) -> None:
        if self._stage:
            self._stage.flush()
            self._forget()

    def _forget(self) -> None:
        if self._stage:
            self._store.unstage(self._stage)
            self._stage = None


class LocalStore:
    """A `Store` in the directory `root`, which must exist."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = root
        self._top = Root(root)
        self.disk = disk or Disk()
        self._memories: list[mmap] = []
        self._named: set[str] = set()
        "The files that were appended to, and whose names are durable."

    def stage(self, fd: int, append: Callable[[memoryview], None]) -> WriteBuffer:
        """A write buffer for a draft, until unstage()."""
        try:
            return WriteBuffer(self._memories.pop(), fd, append)
        except IndexError:
            return WriteBuffer(memory(), fd, append)

    def unstage(self, stage: WriteBuffer) -> None:
        """Keep the memory for the next draft: pages that were never touched are slow at first."""
        self._memories.append(stage.memory)

    def path(self, name: str) -> Path:
        """Where `name` lies, for messages. Raises BadName if it could lead out of the store."""
        return self.root.joinpath(*_parts(name))

    def _entry(self, name: str, *, make: bool = False) -> DiskEntry:
        """The entry `name` in its folder, which is open until the `with` block ends. `make`: make folders that are
        missing."""
        *folders, last = _parts(name)
        try:
            folder = open_folder(self._top, folders)
        except FileNotFoundError:
            if not make:
                raise
            self._make_folders(folders)
            folder = open_folder(self._top, folders)
        return folder.entry(last)

    def _write_all(self, fd: int, offset: int, content: Buffer) -> int:
        """Returns the offset after the last byte."""
        rest = memoryview(content).cast("B")
        with naming(self.root):
            while len(rest):
                done = self.disk.write(fd, offset, [rest])
                offset += done
                rest = rest[done:]
        return offset

    def _sync(self, fd: int) -> None:
        with naming(self.root):
            self.disk.sync(fd)

    def _make_folders(self, names: Sequence[str]) -> None:
        """Make the folder and those above it, durably, where they are missing."""
        for end in range(1, len(names) + 1):
            with self._entry("/".join(names[:end])) as entry:
                if not entry.exists():
                    with suppress(FileExistsError), naming(self.root):
                        self.disk.mkdir(entry)
                    self.disk.sync_folder(entry.folder)

    def put(self, name: str, content: Buffer) -> None:
        self.put_all([(name, [content])])

    def put_all(self, files: Sequence[tuple[str, Sequence[Buffer]]]) -> None:
        with ExitStack() as held:
            held.enter_context(self.lock("put", shared=True, wait=60.0))
            folder = held.enter_context(self._entry(f"tmp/{os.urandom(16).hex()}", make=True)).folder
            written = [self._written(held, folder, buffers) for _, buffers in files]
            # All are written before the first is synced: a disk then does much of the others with it.
            for fd, _ in written:
                self._sync(fd)
            # Its blocks are durable before a file has a name; the name is durable when the folder is synced.
            linked: list[tuple[DiskEntry, DiskEntry, bool]] = []
            try:
                with naming(self.root):
                    for (_, old), (name, _) in zip(written, files, strict=True):
                        new = held.enter_context(self._entry(name, make=True))
                        linked.append((old, new, self._link_or_rename(old, new)))
                    for _, new, _ in linked:
                        self.disk.sync_folder(new.folder)
            except OSError:  # the caller sees an error, so it must not find the names
                for old, new, has_both in linked:
                    with suppress(OSError):
                        self.disk.unlink(new) if has_both else self.disk.rename(new, old)
                raise

    def _written(self, held: ExitStack, folder: DiskFolder, buffers: Sequence[Buffer]) -> tuple[int, DiskEntry]:
        """A file for put_all(); when `held` is closed it is closed, too, and its temporary name goes."""
        entry = folder.entry(os.urandom(16).hex())
        with naming(self.root):
            fd = self.disk.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        held.callback(self._forget_temporary, fd, entry)
        size = 0
        for buffer in buffers:
            size = self._write_all(fd, size, buffer)
        return fd, entry

    def _forget_temporary(self, fd: int, entry: DiskEntry) -> None:
        with suppress(OSError):  # it was synced, and sweep() finds what is left
            self.disk.close(fd)
        with suppress(OSError):
            self.disk.unlink(entry)

    def get(self, name: str) -> bytes:
        with self.open(name) as blob:
            return blob.read(0, blob.size)

    def open(self, name: str) -> Blob:
        with self._entry(name) as entry:
            return LocalBlob(name, open_file(entry, os.O_RDONLY))

    def size(self, name: str) -> int:
        with self._entry(name) as entry:
            return file_size(entry)

    def exists(self, name: str) -> bool:
        try:
            with self._entry(name) as entry:
                return entry.exists()
        except FileNotFoundError:
            return False

    def is_own(self, name: str) -> bool:
        """Whether `name` is a regular file that has no other name, or nothing at all."""
        with suppress(FileNotFoundError), self._entry(name) as entry:
            found = entry.stat()
            return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1
        return True

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), self._entry(name) as entry:
            self.disk.unlink(entry)
            self.disk.sync_folder(entry.folder)

    def names(self, folder: str) -> list[str]:
        with suppress(FileNotFoundError), open_folder(self._top, _parts(folder)) as opened:
            return sorted(name for name in walk(opened, folder) if _NAME.fullmatch(name))
        return []

    def draft(self, name: str) -> Draft:
        if len(_parts(name)) > 1:
            raise BadStoreName(f"a draft's name has one component: {name!r}")
        return LocalDraft(self, name, self._open_own(f"partial/{name}"))

    def drafts(self) -> list[str]:
        return [name.removeprefix("partial/") for name in self.names("partial") if name.count("/") == 1]

    def append(self, name: str, content: Buffer) -> int:
        fd = self._open_own(name)
        try:
            # A process that was killed may have made the file and not synced its folder: so each store does that once,
            # and again for a file that it has just made.
            fresh = name not in self._named or not os.fstat(fd).st_size
            return self._append(fd, name, content, fresh)
        finally:
            with suppress(OSError):  # it was synced
                self.disk.close(fd)

    def _append(self, fd: int, name: str, content: Buffer, fresh: bool) -> int:
        before = os.fstat(fd).st_size
        try:
            after = self._write_all(fd, before, content)
            self._sync(fd)
            if fresh:
                self._sync_folder_of(name)
                self._named.add(name)
        except BaseException:
            # What is torn off here would be taken for a crash's rest by later readers; better to leave none.
            self._undo_append(fd, name, before)
            raise
        return after

    def _undo_append(self, fd: int, name: str, size: int) -> None:
        """Truncate the file to the size that it had. Raises TryAgain where that fails, too."""
        try:
            self.disk.truncate(fd, size)
        except OSError as error:
            with suppress(OSError):
                if os.fstat(fd).st_size == size:
                    return
            unsure = "whether the change was made is seen once it works again"
            raise TryAgain(f"{name}: the disk failed ({error.strerror}): {unsure}") from None
        with suppress(OSError):
            self.disk.sync(fd)

    def _sync_folder_of(self, name: str) -> None:
        with self._entry(name) as entry:
            self.disk.sync_folder(entry.folder)

    def _open_own(self, name: str) -> int:
        """Open the file `name` to change it in place; it is made if need be.

        A file with other hard links (a copy of the pool, or another user's file) is replaced by a copy of its own
        first, so that only the pool's file is changed.
        """
        with self._entry(name, make=True) as entry:
            fd = open_file(entry, os.O_RDWR | os.O_CREAT, self.disk.open)
            if os.fstat(fd).st_nlink <= 1:
                return fd
            try:
                # A hard link elsewhere would be changed with it: give the pool a copy of its own.
                self._replace_by_copy(fd, entry)
            finally:
                self.disk.close(fd)
            return open_file(entry, os.O_RDWR, self.disk.open)

    def _replace_by_copy(self, fd: int, entry: DiskEntry) -> None:
        with self._entry(f"tmp/{os.urandom(16).hex()}", make=True) as copy:
            target = self.disk.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                at = 0
                while content := os.pread(fd, _CHUNK, at):
                    at = self._write_all(target, at, content)
                self._sync(target)
                self.disk.rename(copy, entry)
                self.disk.sync_folder(entry.folder)
            finally:
                self.disk.close(target)

    @contextmanager
    def lock(
        self, name: str, *, wait: float = 0.0, shared: bool = False, busy: str = "", passing: bool = False
    ) -> Iterator[None]:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fd = self._locked(f"lock/{name}", mode, wait, busy or f"{self.root}/lock/{name} is locked")
        except OSError as error:
            if not shared or error.errno not in _UNWRITABLE:
                raise
            fd = self._locked_to_read(f"lock/{name}", wait, busy)
        try:
            yield
        finally:
            if passing:
                with suppress(OSError), self._entry(f"lock/{name}") as entry:
                    os.unlink(entry.name, dir_fd=entry.folder.fd)
            if fd >= 0:
                os.close(fd)

    def _locked(self, name: str, mode: int, wait: float, busy: str) -> int:
        """Lock the file `name` and return its descriptor."""
        while True:
            with self._entry(name, make=True) as entry:
                fd = open_file(entry, os.O_RDWR | os.O_CREAT)
                try:
                    _flock(fd, mode, wait, busy)
                    # The former holder may have removed the file (`passing`) while we waited: then lock the new one.
                    with suppress(FileNotFoundError):
                        if os.path.samestat(os.fstat(fd), entry.stat()):
                            return fd
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)

    def _locked_to_read(self, name: str, wait: float, busy: str) -> int:
        """Take a shared lock without writing; -1 where there is no lock file, or we may not open it."""
        try:
            with self._entry(name) as entry:
                # Where nothing can be written no process can write, so a missing lock file means that there is none.
                fd = open_file(entry, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):
            return -1
        try:
            _flock(fd, fcntl.LOCK_SH, wait, busy)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def is_writable(self) -> bool:
        """Whether this user can change what lies here; the disk may still be full."""
        folders = [self.root, *(path for name in _WRITTEN if os.path.lexists(path := self.root / name))]
        return all(os.access(folder, os.W_OK | os.X_OK) for folder in folders)

    def is_exposed(self) -> bool:
        """Whether another user could exchange what is opened here by its path."""
        return is_exposed(self.root)

    def used(self) -> int:
        """Bytes of all files that lie here."""
        with open_folder(self._top, ()) as folder:
            return sum(_size_below(folder, name) for name in walk(folder, "."))

    def sweep(self) -> None:
        """Remove what interrupted `put`s left behind; does nothing while one is under way."""
        with suppress(TryAgain), self.lock("put"):
            for name in self.names("tmp"):
                with self._entry(name) as entry:
                    self.disk.unlink(entry)

    def erase(self, folders: Sequence[str]) -> None:
        """Remove these folders with everything in them; links are removed, not followed."""
        with open_folder(self._top, ()) as top:
            for name in folders:
                if (entry := top.entry(name)).exists() and not stat.S_ISDIR(entry.stat().st_mode):
                    self.disk.unlink(entry)
                shutil.rmtree(name, ignore_errors=True, dir_fd=top.fd)
            self.disk.sync_folder(top)

    def _publish(self, source: str, name: str) -> None:
        """Let the synced file `source` appear as `name`, once."""
        with self._entry(source) as old, self._entry(name, make=True) as new:
            # link() refuses a name that is taken, rename() would replace it: link where the disk can do that.
            with naming(self.root):
                linked = self._link_or_rename(old, new)
            try:
                with naming(self.root):
                    self.disk.sync_folder(new.folder)
            except OSError:  # the caller sees an error, so it must not find the name
                with suppress(OSError):
                    self.disk.unlink(new) if linked else self.disk.rename(new, old)
                raise
            if linked:
                with suppress(OSError):  # sweep() finds it
                    self.disk.unlink(old)

    def _link_or_rename(self, old: DiskEntry, new: DiskEntry) -> bool:
        """Returns whether the file still has its old name, too."""
        try:
            self.disk.link(old, new)
            return True
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        if new.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new.path))
        self.disk.rename(old, new)
        return False


def _parts(name: str) -> list[str]:
    """The folders that lead to `name`, and its last part."""
    parts = name.split("/")
    if not _NAME.fullmatch(name) or ".." in parts or "." in parts:
        raise BadStoreName(f"not a name in a store: {name[:80]!r}")
    return parts


def _size_below(folder: DiskFolder, name: str) -> int:
    try:
        return os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _flock(fd: int, mode: int, wait: float, busy: str) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            # flock() cannot wait for a limited time, so ask again every few milliseconds.
            return fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TryAgain(busy) from None
        time.sleep(min(_POLL, left))
