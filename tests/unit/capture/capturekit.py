"""Folders to be stored, and what is compared of them."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

SIZES = (0, 1, 511, 512, 513, 4095, 131071, 131072, 131073, 300_000)


def extracted(zkeep: Callable[..., int], tmp_path: Path, snapshot: str) -> dict[str, tuple[Any, ...]]:
    target = tmp_path / f"out-{snapshot.replace('/', '-')}"
    target.mkdir()
    assert zkeep("extract", "-L", f"file://{tmp_path / 'key'}", "-C", str(target), snapshot) == 0
    return listing(target)


def make_tree(top: Path, seed: int = 1) -> None:
    """Files of sizes around the edges of blocks, and of every kind that this user may make."""
    chance = random.Random(seed)
    top.mkdir(exist_ok=True)
    for size in SIZES:
        (top / f"file-{size}").write_bytes(chance.randbytes(size))
    (top / "text").write_bytes(b"words that shrink " * 20_000)
    with (top / "sparse").open("wb") as sink:
        sink.seek(3 << 20)
        sink.write(b"middle")
        sink.truncate(1 << 30)
    for count in (7, 8, 300):
        folder = top / "folders" / f"of-{count}"
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}").write_bytes(b"%d" % number if number % 2 else b"")
    for length in (49, 50, 255):
        (top / ("n" * length)).write_bytes(b"")
    (top / os.fsdecode(b"\xff\xfe not text")).write_bytes(b"x")
    for length in (1, 124, 300, 4000):
        os.symlink("t/" * (length // 2) or "t", top / f"link-{length}")
    os.link(top / "text", top / "folders" / "second name")
    os.mkfifo(top / "fifo", 0o600)
    for length in (1, 130, 1000):
        file = top / f"xattr-{length}"
        file.write_bytes(b"x")
        with suppress(OSError):  # not every file system has them
            os.setxattr(file, "user.value", chance.randbytes(length))
    (top / "odd mode").write_bytes(b"")
    (top / "odd mode").chmod(0o477)
    (top / "setuid").write_bytes(b"")
    (top / "setuid").chmod(0o4755)
    os.utime(top / "text", ns=(1_234_567_890_123_456_789, 999_999_999))


def change_tree(top: Path, seed: int) -> None:
    """Change some files in every way in which files change."""
    chance = random.Random(seed)
    for _ in range(25):
        files = sorted(path for path in top.rglob("*") if _is_small_file(path))
        folders = sorted(p for p in [top, *top.rglob("*")] if not p.is_symlink() and p.is_dir())
        file = chance.choice(files) if files else top / "new"
        folder = chance.choice(folders)
        chance.choice(CHANGES)(chance, file, folder, folder / f"{chance.getrandbits(40):x}")


def _is_small_file(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size < 1 << 29


def _append(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    with file.open("ab") as sink:
        sink.write(chance.randbytes(chance.choice([1, 4096, 150_000])))


def _truncate(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    file.touch()
    os.truncate(file, chance.randrange(200_000))


def _overwrite(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    file.touch()
    with file.open("r+b") as sink:
        sink.seek(chance.randrange(file.stat().st_size + 1))
        sink.write(chance.randbytes(700))


def _rename(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    file.touch()
    file.rename(fresh)


def _remove(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    file.unlink(missing_ok=True)


def _link(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    file.touch()
    os.link(file, fresh)


def _new_folder(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    fresh.mkdir()
    for number in range(chance.choice([2, 80])):
        (fresh / f"{'long name ' * 5}{number}").write_bytes(chance.randbytes(number))


def _chmod(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    file.touch()
    file.chmod(chance.choice([0o600, 0o644, 0o755]))


def _symlink(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    os.symlink("t/" * chance.randrange(1, 300), fresh)


def _remove_folder(chance: random.Random, file: Path, folder: Path, fresh: Path) -> None:
    if chance.random() < 0.3:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


CHANGES = (
    _append, _truncate, _overwrite, _rename, _remove, _link, _new_folder, _chmod, _symlink, _remove_folder,
)  # fmt: skip


def listing(top: Path) -> dict[str, tuple[Any, ...]]:
    """Every path below a folder, with all that a snapshot keeps of it but what changes with each look."""
    found = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        folder = stat.S_ISDIR(status.st_mode)
        content = _digest(path) if stat.S_ISREG(status.st_mode) else None
        target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
        names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
        xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        size = 0 if folder else (status.st_size, status.st_nlink)
        times = status.st_mtime_ns
        found[str(path.relative_to(top))] = (oct(status.st_mode), size, times, content, target, xattrs)
    return found


def _digest(path: Path) -> str:
    """A sum over the places that hold data; long holes are passed over."""
    state = sha256()
    with path.open("rb") as source:
        at, size = 0, path.stat().st_size
        while at < size:
            with suppress(OSError):
                at = os.lseek(source.fileno(), at, os.SEEK_DATA)
            part = os.pread(source.fileno(), 1 << 20, at)
            if part.strip(b"\0"):
                state.update(b"%d" % (at + len(part) - len(part.lstrip(b"\0"))) + part.strip(b"\0"))
            if not part or (at + len(part) >= size) or not _more_data(source.fileno(), at + len(part)):
                break
            at += len(part)
    return state.hexdigest()


def _more_data(fd: int, at: int) -> bool:
    try:
        os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        return False
    return True


def sent(zkeep: Callable[..., int], path: Path, *words: str) -> Path:
    """The file that `zkeep send -w WORDS` wrote."""
    with path.open("wb") as sink:
        saved = os.dup(1)
        os.dup2(sink.fileno(), 1)
        try:
            assert zkeep("send", "-w", *words) == 0
        finally:
            os.dup2(saved, 1)
            os.close(saved)
    return path
