"""The store as a directory on a local disk.

    NAME                    what was published
    journal/..., append     grown in place, one writer
    partial/NAME            drafts
    tmp/..                  content on its way to `put`; swept when no one is putting
    lock/NAME               empty files for flock

Every change of the disk goes through `Disk`, so that a test can record the calls and replay them with
whatever was not yet synced lost or reordered.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from zkeep.errors import Damaged, TryAgain
from zkeep.pool.store.port import Blob, Buffer, Draft
from zkeep.pool.store.staging import Stage, memory

if TYPE_CHECKING:
    from zkeep.pool.store.port import Places

_NAME = re.compile(r"[A-Za-z0-9_\-.]+(/[A-Za-z0-9_\-.]+)*")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_POLL = 0.02
_IOV = 1024


class Disk:
    """The calls that change a disk, and nothing else; the recording shim of the tests overrides them all."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer]) -> int:
        """Write some of them at `offset`; returns how many bytes."""
        return os.pwritev(fd, buffers, offset)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        if sys.platform == "darwin":  # fsync leaves the bytes in the drive's cache there
            with suppress(OSError):  # of what is no drive
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
                return
        os.fsync(fd)

    def sync_folder(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o700)


def _unread(name: str, error: OSError) -> Exception:
    """What the disk cannot read any more is damage like any other."""
    if error.errno != errno.EIO:
        return error
    return Damaged(f"{name}: the disk cannot read it: {error.strerror}")


def _read_exactly(fd: int, name: str, offset: int, buffers: Sequence[bytearray | memoryview]) -> None:
    views = [memoryview(b).cast("B") for b in buffers]
    position = offset
    while views := [v for v in views if len(v)]:
        try:
            got = os.preadv(fd, views[:_IOV], position)
        except OSError as error:
            raise _unread(name, error) from None
        if not got:
            raise Damaged(f"{name} ends at byte {position}, {sum(map(len, views))} more are needed")
        position += got
        while views and got >= len(views[0]):
            got -= len(views.pop(0))
        if got:
            views[0] = views[0][got:]


def _write_all(disk: Disk, fd: int, offset: int, content: Buffer) -> int:
    """Returns the offset after the last byte."""
    rest = memoryview(content).cast("B")
    while len(rest):
        done = disk.write(fd, offset, [rest])
        offset += done
        rest = rest[done:]
    return offset


class _Open:
    """What Blob and Draft have in common: a descriptor that is closed once."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def readinto(self, offset: int, *buffers: bytearray | memoryview) -> None:
        _read_exactly(self._fd, self.name, offset, buffers)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalBlob(_Open):
    def __del__(self) -> None:
        self.close()

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        try:
            content = os.pread(self._fd, length, offset)
        except OSError as error:
            raise _unread(self.name, error) from None
        if len(content) == length:
            return content
        buffer = bytearray(length)
        self.readinto(offset, buffer)
        return bytes(buffer)

    def readinto_each(self, places: Places, sizes: Places, out: memoryview, to: Places) -> None:
        from zkeep.format import kernel  # with numpy, which not every command needs

        try:
            short = kernel.gather(self._fd, places, sizes, out, to)
        except OSError as error:
            raise _unread(self.name, error) from None
        if short >= 0:
            end = int(places[short] + sizes[short])
            raise Damaged(f"{self.name} ends before byte {end}, which is needed")


class LocalDraft(_Open):
    def __init__(self, store: LocalStore, name: str, path: Path, fd: int) -> None:
        super().__init__(name, fd)
        self._store = store
        self._path = path
        self._size = os.fstat(fd).st_size
        self._stage: Stage | None = None
        self._named = False

    @property
    def size(self) -> int:
        return self._size + (self._stage.held if self._stage else 0)

    def write(self, *buffers: Buffer, soon: bool = False) -> None:
        if soon:
            self._flush()
        elif not self._stage:
            self._stage = self._store.stage(self._fd, self._append)
        take = self._stage.add if self._stage else self._append
        for buffer in buffers:
            take(memoryview(buffer).cast("B"))

    def _append(self, content: memoryview) -> None:
        self._size = _write_all(self._store.disk, self._fd, self._size, content)

    def readinto(self, offset: int, *buffers: bytearray | memoryview) -> None:
        self._flush()
        super().readinto(offset, *buffers)

    def truncate(self, size: int) -> None:
        self._flush()
        self._store.disk.truncate(self._fd, size)
        self._size = size

    def sync(self) -> None:
        self._flush()
        self._store.disk.sync(self._fd)
        if not self._named:
            self._store.disk.sync_folder(self._path.parent)
            self._named = True

    def publish(self, name: str) -> None:
        self._flush()
        self._store.disk.sync(self._fd)
        self._store._publish(self._path, name)
        self.close()

    def discard(self) -> None:
        self._forget()
        self.close()
        self._store.disk.unlink(self._path)

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
        self.disk = disk or Disk()
        self._memories: list[mmap] = []

    def stage(self, fd: int, append: Callable[[memoryview], None]) -> Stage:
        """For a draft, until it is unstaged."""
        try:
            return Stage(self._memories.pop(), fd, append)
        except IndexError:
            return Stage(memory(), fd, append)

    def unstage(self, stage: Stage) -> None:
        """Its memory is for the next one: pages that were never touched take long."""
        self._memories.append(stage.memory)

    def path(self, name: str) -> Path:
        """Where `name` lies; ValueError if it could lead out of the store."""
        if not _NAME.fullmatch(name) or ".." in name.split("/") or "." in name.split("/"):
            raise ValueError(f"not a name in a store: {name!r}")
        return self.root / name

    def put(self, name: str, content: Buffer) -> None:
        with self.lock("put", shared=True, wait=60.0):
            temporary = self._folder("tmp") / os.urandom(16).hex()
            fd = self.disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                _write_all(self.disk, fd, 0, content)
                self.disk.sync(fd)
                self._publish(temporary, name)
            finally:
                self.disk.close(fd)
                with suppress(FileNotFoundError):
                    self.disk.unlink(temporary)

    def get(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def open(self, name: str) -> Blob:
        return LocalBlob(name, os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC))

    def size(self, name: str) -> int:
        return self.path(name).stat().st_size

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def delete(self, name: str) -> None:
        path = self.path(name)
        with suppress(FileNotFoundError):
            self.disk.unlink(path)
            self.disk.sync_folder(path.parent)

    def names(self, folder: str) -> list[str]:
        top = self.path(folder)
        found = []
        for parent, _, files in os.walk(top):
            prefix = os.path.relpath(parent, self.root)
            found += [f"{prefix}/{name}" for name in files]
        return sorted(found)

    def draft(self, name: str) -> Draft:
        folder = self._folder("partial")
        path = folder / self.path(name).relative_to(self.root)
        if "/" in name:
            raise ValueError(f"a draft's name has one component: {name!r}")
        return LocalDraft(self, name, path, self.disk.open(path, os.O_RDWR | os.O_CREAT))

    def drafts(self) -> list[str]:
        folder = self.root / "partial"
        return sorted(os.listdir(folder)) if folder.exists() else []

    def append(self, name: str, content: Buffer) -> int:
        path = self.path(name)
        self._folder(str(path.parent.relative_to(self.root)))
        fresh = not path.exists()
        fd = self.disk.open(path, os.O_RDWR | os.O_CREAT)
        try:
            before = os.fstat(fd).st_size
            return self._append(fd, before, content, path if fresh else None)
        finally:
            self.disk.close(fd)

    def _append(self, fd: int, before: int, content: Buffer, fresh: Path | None) -> int:
        try:
            after = _write_all(self.disk, fd, before, content)
            self.disk.sync(fd)
            if fresh:
                self.disk.sync_folder(fresh.parent)
        except BaseException:
            with suppress(OSError):
                self.disk.truncate(fd, before)
            raise
        return after

    @contextmanager
    def lock(
        self, name: str, *, wait: float = 0.0, shared: bool = False, busy: str = "", passing: bool = False
    ) -> Iterator[None]:
        path = self._folder("lock") / self.path(name).relative_to(self.root)
        fd = self._locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait, busy or f"{path} is locked")
        try:
            yield
        finally:
            if passing:
                with suppress(OSError):
                    path.unlink()
            os.close(fd)

    def _locked(self, path: Path, mode: int, wait: float, busy: str) -> int:
        """A descriptor that holds the lock of the file that has this name now."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _flock(fd, mode, wait, busy)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), path.stat()):
                        return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def sweep(self) -> None:
        """Remove what interrupted `put`s left behind; does nothing while one is under way."""
        with suppress(TryAgain), self.lock("put"):
            for leftover in (self.root / "tmp").glob("*"):
                self.disk.unlink(leftover)

    def _folder(self, name: str) -> Path:
        """The folder `name`, made durably if it is not there."""
        path = self.root / name if name != "." else self.root
        if not path.is_dir():
            self._folder(str(path.parent.relative_to(self.root)))
            with suppress(FileExistsError):
                self.disk.mkdir(path)
            self.disk.sync_folder(path.parent)
        return path

    def _publish(self, source: Path, name: str) -> None:
        """Let the synced file `source` appear as `name`, once."""
        target = self.path(name)
        folder = self._folder(str(target.parent.relative_to(self.root)))
        try:
            self.disk.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            self.disk.rename(source, target)
        else:
            self.disk.unlink(source)
        self.disk.sync_folder(folder)


def _flock(fd: int, mode: int, wait: float, busy: str) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            return fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TryAgain(busy) from None
        time.sleep(min(_POLL, left))
