"""A dataset that is mounted, without FUSE; and a model of it: a folder of this system, changed in the same way."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zkeep.cli.mount.live import socket_of
from zkeep.format.compress_writer import compressor
from zkeep.format.records import Feature
from zkeep.live.control import answer_requests, listening
from zkeep.live.dataset import LiveDataset
from zkeep.live.files import EXCHANGE, NOREPLACE, LiveFiles
from zkeep.live.fuse import Operations
from zkeep.live.inode import Inode
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.snapshot.commit import NewSnapshot

RECORD = 16 << 10
ZKEEP = [sys.executable, "-m", "zkeep"]
OWNER = (os.getuid(), os.getgid())


class ByPath(LiveFiles):
    """The operations by path, as the kernel walks through folders."""

    def lookup(self, path: bytes) -> Inode:
        inode = self.dataset.root
        for name in path.split(b"/") if path else ():
            inode = self.find(inode, name)
        return inode

    def place(self, path: bytes) -> tuple[Inode, bytes]:
        if not path:
            raise OSError(errno.EEXIST, "")
        above, _, name = path.rpartition(b"/")
        folder = self.lookup(above)
        if not folder.is_folder:
            raise OSError(errno.ENOTDIR, "")
        return folder, name

    def make(self, path: bytes, mode: int, owner: tuple[int, int], **more: Any) -> Inode:
        return super().make(*self.place(path), mode, owner, **more)

    def unlink(self, path: bytes) -> None:
        super().unlink(*self.place(path))

    def rmdir(self, path: bytes) -> None:
        super().rmdir(*self.place(path))

    def link(self, old: bytes, new: bytes) -> None:
        super().link(self.lookup(old), *self.place(new))

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        super().rename(*self.place(old), *self.place(new), flags)

    def open(self, inode: Inode) -> None:
        self.dataset.use(inode)

    def release(self, inode: Inode) -> None:
        self.dataset.forget(inode.number)


@contextmanager
def live(tmp_path: Path, name: str = "v/home", **places: str) -> Iterator[ByPath]:
    new = NewSnapshot(DatasetName(name).snapshot("head"), compressor("lz4"), Feature(0))
    with (
        Pool.open(tmp_path / "pool") as pool,
        LiveDataset(pool, new, RECORD, lambda wrapped: (tmp_path / "key").read_bytes(), places=places) as dataset,
    ):
        yield ByPath(dataset)


def operations(files: LiveFiles) -> Operations:
    return Operations(LiveFiles(files.dataset), print, lambda: None, acls=False)


@contextmanager
def answering(tmp_path: Path, name: str = "v/home", **places: str) -> Iterator[ByPath]:
    """A dataset that is mounted, and answers requests as a mount does."""
    with live(tmp_path, name, **places) as files:
        pool = files.dataset.pool
        with listening(socket_of(pool, files.dataset.dataset)) as server:
            answer_requests(server, files.dataset, operations(files))
            yield files


@contextmanager
def mounted(tmp_path: Path, *options: str, name: str = "v/home") -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The folder, and the process that serves it."""
    folder = tmp_path / "mnt"
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen([*ZKEEP, "mount", "-f", *options, name, str(folder)])
    try:
        while not os.path.ismount(folder):
            assert process.poll() is None, "it could not be mounted"
        yield folder, process
        if process.poll() is None:
            subprocess.run([*ZKEEP, "unmount", str(folder)], check=True)
    finally:
        process.kill()
        process.wait()
        if os.path.ismount(folder) or not os.access(folder, os.R_OK):
            subprocess.run(["fusermount3", "-uz", str(folder)], check=False, capture_output=True)


def listing(files: ByPath) -> dict[bytes, tuple[Any, ...]]:
    """Every path, with all that a model has in the same way."""
    found = {}

    def walk(path: bytes) -> None:
        inode = files.lookup(path)
        fields = inode.fields
        content = files.read(inode, 0, 1 << 30) if inode.is_file else fields.target
        size = fields.size if not inode.is_folder else 0
        found[path] = (oct(fields.mode), size, fields.links, content)
        if inode.is_folder:
            for name in files.dataset.folders.entries(inode):
                walk(path + b"/" + name if path else name)

    walk(b"")
    return found


def model_listing(top: Path) -> dict[bytes, tuple[Any, ...]]:
    found = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        content = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(os.readlink(path))
        size = status.st_size if not stat.S_ISDIR(status.st_mode) else 0
        name = b"" if path == top else os.fsencode(path.relative_to(top))
        found[name] = (oct(status.st_mode), size, status.st_nlink, content)
    return found


class Twins:
    """Does the same to both, and compares what comes of it."""

    def __init__(self, files: ByPath, top: Path, seed: int) -> None:
        self.files = files
        self.top = top
        self.chance = random.Random(seed)

    def path(self) -> bytes:
        """One of few paths, so that they meet; not too deep. None leads over a link: the kernel follows them."""
        names = [b"a", b"b", b"c", b"d", b"long" * 20]
        path = self.chance.choice(names)
        for _ in range(self.chance.choice([0, 0, 1, 1, 2])):
            if not os.path.islink(self.at(path)):
                path += b"/" + self.chance.choice(names)
        return path

    def both(self, mine: Callable[[], object], theirs: Callable[[], object], what: str) -> None:
        results = [_outcome(mine), _outcome(theirs)]
        assert results[0] == results[1], f"{what}: {results[0]} is not {results[1]}"

    def at(self, path: bytes) -> bytes:
        return os.fsencode(self.top) + b"/" + path

    def step(self) -> None:
        name = self.chance.choice(STEPS)
        getattr(self, name)(self.path())

    def create(self, path: bytes) -> None:
        mode = self.chance.choice([0o600, 0o644, 0o755])
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        self.both(
            lambda: self.files.make(path, stat.S_IFREG | mode, OWNER) and None,
            lambda: os.close(os.open(self.at(path), flags, mode)),
            f"create {path!r}",
        )

    def mkdir(self, path: bytes) -> None:
        self.both(
            lambda: self.files.make(path, stat.S_IFDIR | 0o755, OWNER) and None,
            lambda: os.mkdir(self.at(path), 0o755),
            f"mkdir {path!r}",
        )

    def symlink(self, path: bytes) -> None:
        target = b"t/" * self.chance.choice([1, 30, 300])
        self.both(
            lambda: self.files.make(path, stat.S_IFLNK | 0o777, OWNER, target=target) and None,
            lambda: os.symlink(target, self.at(path)),
            f"symlink {path!r}",
        )

    def mkfifo(self, path: bytes) -> None:
        self.both(
            lambda: self.files.make(path, stat.S_IFIFO | 0o600, OWNER) and None,
            lambda: os.mkfifo(self.at(path), 0o600),
            f"mkfifo {path!r}",
        )

    def unlink(self, path: bytes) -> None:
        self.both(lambda: self.files.unlink(path), lambda: os.unlink(self.at(path)), f"unlink {path!r}")

    def rmdir(self, path: bytes) -> None:
        self.both(lambda: self.files.rmdir(path), lambda: os.rmdir(self.at(path)), f"rmdir {path!r}")

    def link(self, path: bytes) -> None:
        new = self.path()
        self.both(
            lambda: self.files.link(path, new) and None,
            lambda: os.link(self.at(path), self.at(new), follow_symlinks=False),
            f"link {path!r} {new!r}",
        )

    def rename(self, path: bytes) -> None:
        new = self.path()
        flags = self.chance.choice([0, 0, 0, NOREPLACE, EXCHANGE])
        self.both(
            lambda: self.files.rename(path, new, flags),
            lambda: renameat2(self.at(path), self.at(new), flags),
            f"rename {path!r} {new!r} {flags}",
        )

    def chmod(self, path: bytes) -> None:
        mode = self.chance.choice([0o700, 0o755, 0o1777])  # an ordinary user can still look into folders
        if not os.path.islink(self.at(path)):
            self.both(
                lambda: self.files.chmod(self.files.lookup(path), mode),
                lambda: os.chmod(self.at(path), mode),
                f"chmod {path!r}",
            )

    def _regular(self, path: bytes) -> bool:
        return os.path.isfile(self.at(path)) and not os.path.islink(self.at(path))

    def write(self, path: bytes) -> None:
        if not self._regular(path):
            self.create(path)
        offset = self.chance.choice([0, 1, 511, RECORD - 3, RECORD, 3 * RECORD + 7, 900_000])
        size = self.chance.choice([1, 100, 512, RECORD, RECORD + 1, 5 * RECORD])
        data = self.chance.choice([bytes(size), self.chance.randbytes(size), b"text" * (size // 4 + 1)])
        if self._regular(path):
            self.both(
                lambda: self.files.write(self.files.lookup(path), data, offset),
                lambda: _pwrite(self.at(path), data, offset),
                f"write {path!r} {offset} {len(data)}",
            )

    def append(self, path: bytes) -> None:
        if self._regular(path):
            size = os.stat(self.at(path)).st_size
            data = self.chance.randbytes(self.chance.choice([1, 700, RECORD]))
            self.both(
                lambda: self.files.write(self.files.lookup(path), data, size),
                lambda: _pwrite(self.at(path), data, size),
                f"append {path!r}",
            )

    def truncate(self, path: bytes) -> None:
        size = self.chance.choice([0, 0, 1, 511, 512, RECORD - 1, RECORD, 2 * RECORD + 5, 1_000_000])
        if self._regular(path):
            self.both(
                lambda: self.files.truncate(self.files.lookup(path), size),
                lambda: os.truncate(self.at(path), size),
                f"truncate {path!r} {size}",
            )

    def punch(self, path: bytes) -> None:
        offset, size = self.chance.choice([(0, 5), (100, RECORD), (RECORD, 2 * RECORD), (RECORD - 1, 700_000)])
        if self._regular(path):
            inode = self.files.lookup(path)
            stored = self.files.dataset.contents.stored(inode, offset)
            self.files.dataset.contents.punch(inode, offset, offset + size, stored)
            self.files.dataset.touch(self.files.lookup(path))
            with open(self.at(path), "r+b") as file:
                end = min(offset + size, os.fstat(file.fileno()).st_size)
                file.seek(offset)
                file.write(bytes(max(end - offset, 0)))

    def read(self, path: bytes) -> None:
        offset, size = self.chance.randrange(2 * RECORD), self.chance.choice([1, 512, 3 * RECORD])
        if self._regular(path):
            self.both(
                lambda: self.files.read(self.files.lookup(path), offset, size),
                lambda: _pread(self.at(path), offset, size),
                f"read {path!r}",
            )

    def check(self) -> None:
        assert listing(self.files) == model_listing(self.top)


STEPS = [
    *("create", "mkdir", "symlink", "mkfifo", "unlink", "rmdir", "link", "rename", "chmod"),
    *("write", "write", "write", "append", "truncate", "punch", "read", "mkdir", "create", "rename"),
]


def _outcome(action: Callable[[], object]) -> object:
    try:
        return action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _pwrite(path: bytes, data: bytes, offset: int) -> int:
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def _pread(path: bytes, offset: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).renameat2
    if call(-100, old, -100, new, flags):
        raise OSError(ctypes.get_errno(), "")
