"""Everything that happens to a folder, as operations whose choices are numbers: Hypothesis chooses and shrinks them."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

SIZES = (0, 1, 511, 512, 513, 4096, 16_384, 131_071, 131_072, 131_073, 262_144, 300_001)
IS_ROOT = os.geteuid() == 0
HIDDEN = ("security.capability", "security.selinux")


class Change(NamedTuple):
    """An operation, and three numbers that it takes its choices from."""

    name: str
    one: int
    two: int
    three: int


def apply(top: Path, change: Change) -> None:
    """Do it; where it makes no sense, or this file system cannot do it, nothing happens."""
    with suppress(OSError):
        OPERATIONS[change.name](Tree(top, change), change)


class Tree:
    def __init__(self, top: Path, change: Change) -> None:
        self.top = top
        self._change = change
        self._paths = sorted(top.rglob("*"))

    def _chosen(self, found: list[Path], number: int) -> Path:
        if not found:
            raise OSError("there is none")
        return found[number % len(found)]

    @property
    def file(self) -> Path:
        return self._chosen([p for p in self._paths if stat.S_ISREG(p.lstat().st_mode)], self._change.one)

    @property
    def other(self) -> Path:
        """Any path, of whatever kind."""
        return self._chosen(self._paths, self._change.two)

    @property
    def folder(self) -> Path:
        return self._chosen([self.top, *self.folders], self._change.two)

    @property
    def folders(self) -> list[Path]:
        return [p for p in self._paths if stat.S_ISDIR(p.lstat().st_mode)]

    @property
    def fresh(self) -> Path:
        """A name that may be there: short, or so long that its folder gets a large table."""
        name = f"n{self._change.three % 40}"
        return self.folder / (name + "-" * 50 if self._change.three % 7 == 0 else name)

    @property
    def content(self) -> bytes:
        size, kind = SIZES[self._change.three % len(SIZES)], self._change.three % 3
        return random.Random(self._change.three).randbytes(size) if kind else b"words " * (size // 6)


def _create(tree: Tree, change: Change) -> None:
    path = tree.fresh
    if not path.is_symlink() and (path.is_file() or not path.exists()):  # never into a pipe or a device
        path.write_bytes(tree.content)


def _append(tree: Tree, change: Change) -> None:
    with tree.file.open("ab") as sink:
        sink.write(tree.content)


def _truncate(tree: Tree, change: Change) -> None:
    os.truncate(tree.file, (0, 1, 500, 131_072, 200_000, 1 << 20, 1 << 33)[change.two % 7])


def _punch(tree: Tree, change: Change) -> None:
    path = tree.file
    start, length = (0, 4096, 131_072, 100)[change.two % 4], (4096, 131_072, 1 << 20)[change.three % 3]
    os.system(f"fallocate -p -o {start} -l {length} '{path}' 2>/dev/null")


def _overwrite(tree: Tree, change: Change) -> None:
    with tree.file.open("r+b") as sink:
        sink.seek((0, 100, 131_000, 131_072, 1 << 22)[change.two % 5])
        sink.write(tree.content[:5000])


def _rename(tree: Tree, change: Change) -> None:
    tree.other.rename(tree.fresh)


def _rename_over(tree: Tree, change: Change) -> None:
    os.replace(tree.file, tree.other)


def _link(tree: Tree, change: Change) -> None:
    os.link(tree.file, tree.fresh, follow_symlinks=False)


def _unlink(tree: Tree, change: Change) -> None:
    path = tree.other
    shutil.rmtree(path) if stat.S_ISDIR(path.lstat().st_mode) else path.unlink()


def _reuse(tree: Tree, change: Change) -> None:
    """A file goes, and something else comes at once, likely under the same inode."""
    path = tree.file
    path.unlink()
    kinds = path.mkdir, lambda: os.mkfifo(path), lambda: path.write_bytes(tree.content), lambda: os.symlink("x", path)
    kinds[change.three % 4]()


def _chmod(tree: Tree, change: Change) -> None:
    path = tree.other
    if not path.is_symlink():
        folder = stat.S_ISDIR(path.lstat().st_mode)
        path.chmod((0o700, 0o755, 0o1777, 0o2750)[change.three % 4] if folder else change.three % 0o10000)


def _chown(tree: Tree, change: Change) -> None:
    if IS_ROOT:
        os.lchown(tree.other, change.one % 70_000, change.three % 70_000)


def _xattr(tree: Tree, change: Change) -> None:
    """A few bytes stay beside the dnode, some hundred are spilled; of an empty value, and by odd names."""
    names = ["user.a", "user.\u00e4 b", "user." + "n" * 200, "user.c"]
    names += ["trusted.t", "security.s"] if IS_ROOT else []
    size = (0, 1, 40, 130, 300, 900, 1500)[change.three % 7]
    value = random.Random(change.three).randbytes(size)
    os.setxattr(tree.other, names[change.one % len(names)], value, follow_symlinks=False)


def _no_xattr(tree: Tree, change: Change) -> None:
    path = tree.other
    for name in os.listxattr(path, follow_symlinks=False)[:1]:
        os.removexattr(path, name, follow_symlinks=False)


def _acl(tree: Tree, change: Change) -> None:
    path = tree.other
    named = [(2, change.one % 8, 1000 + number) for number in range(change.three % 5 + 1)]
    entries = [(1, 6, 2**32 - 1), *named, (4, 4, 2**32 - 1), (16, 5, 2**32 - 1), (32, 0, 2**32 - 1)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    default = stat.S_ISDIR(path.lstat().st_mode) and change.one % 2
    os.setxattr(path, f"system.posix_acl_{'default' if default else 'access'}", packed, follow_symlinks=False)


def _symlink(tree: Tree, change: Change) -> None:
    os.symlink("t/" * ((1, 60, 63, 500, 2000)[change.one % 5]), tree.fresh)


def _special(tree: Tree, change: Change) -> None:
    path = tree.fresh
    if change.one % 3 == 0 and IS_ROOT:
        kind = (stat.S_IFCHR, stat.S_IFBLK)[change.three % 2]
        os.mknod(path, kind | 0o640, os.makedev(2000 + change.one % 2000, change.three % (1 << 20)))  # there is none
    elif change.one % 3 == 1 and len(os.fsencode(path)) < 100:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        os.mkfifo(path)


def _mkdir(tree: Tree, change: Change) -> None:
    tree.fresh.mkdir()


def _grow(tree: Tree, change: Change) -> None:
    """A folder gets many names, or loses them: its table has one block, or many, or none."""
    folder, file = tree.folder, tree.file
    count = (0, 5, 300, 2045, 2050)[change.three % 5]
    here = {path.name for path in folder.iterdir()}
    for number in range(2050):
        name = f"grown{number}"
        if number < count and name not in here and change.three % 5 in (1, 2, 3, 4):
            os.link(file, folder / name, follow_symlinks=False)
        elif number >= count and name in here:
            (folder / name).unlink()


def _touch(tree: Tree, change: Change) -> None:
    moment = change.one * 1_000_000_007 + change.three
    os.utime(tree.other, ns=(moment, moment + 1), follow_symlinks=False)


OPERATIONS: dict[str, Callable[[Tree, Change], None]] = {
    name.removeprefix("_"): function
    for name, function in list(globals().items())
    if name in (
        "_create", "_append", "_truncate", "_punch", "_overwrite", "_rename", "_rename_over", "_link", "_unlink",
        "_reuse", "_chmod", "_chown", "_xattr", "_no_xattr", "_acl", "_symlink", "_special", "_mkdir", "_grow",
        "_touch",
    )
}  # fmt: skip


def everything(top: Path) -> dict[str, tuple[Any, ...]]:
    """All that a snapshot keeps of each path, but for what changes with each look."""
    paths = [top, *top.rglob("*")]
    names = Counter(path.lstat().st_ino for path in paths if not stat.S_ISDIR(path.lstat().st_mode))
    found = {}
    for path in paths:
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if name not in HIDDEN
        }
        found[str(path.relative_to(top))] = (
            oct(status.st_mode),
            (status.st_uid, status.st_gid) if IS_ROOT else (),
            () if kind == stat.S_IFDIR else (status.st_size, names[status.st_ino]),
            status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            status.st_mtime_ns,
            _content(path) if kind == stat.S_IFREG else os.readlink(path) if kind == stat.S_IFLNK else None,
            attributes,
        )
    return found


def _content(path: Path) -> str:
    """A sum over the blocks that are no zeros: a file may have a hole of gigabytes."""
    state = sha256()
    with path.open("rb") as source:
        size, at = os.fstat(source.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(source.fileno(), at, os.SEEK_DATA) // 4096 * 4096
            except OSError:
                break
            part = os.pread(source.fileno(), 4096, at)
            if part.strip(b"\0"):
                state.update(at.to_bytes(8, "big") + part)
            at += 4096
    return state.hexdigest()
