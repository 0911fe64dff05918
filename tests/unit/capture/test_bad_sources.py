"""What a folder does while it is read, and odd files in it, cost themselves: never the snapshot, or the pool."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pytest
from capturekit import extracted, listing, make_tree

from zkeep.capture import ahead, contents, objects
from zkeep.capture.report import Watch
from zkeep.cli.common import snapshot_from
from zkeep.format.znode import APPEND_ONLY, IMMUTABLE, NO_DUMP
from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

Zkeep = Callable[..., int]


def watching(monkeypatch: pytest.MonkeyPatch, **calls: Callable[..., None]) -> None:
    """Do something at a moment of the next captures."""
    monkeypatch.setattr(snapshot_from.Printer, "watch", lambda self: Watch(**calls))


def once(action: Callable[[], object]) -> Callable[..., None]:
    waiting = [action]

    def call(*_: object) -> None:
        if waiting:
            waiting.pop()()

    return call


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


def take(zkeep: Zkeep, source: Path, name: str) -> int:
    return zkeep("snapshot", "--from", str(source), f"v/home@{name}")


def names(zkeep: Zkeep, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert zkeep("list", "-H", "-t", "snapshot", "-o", "name") == 0
    return capsys.readouterr().out.split()


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], Filesystem]:
    """A snapshot's tree, by the name behind the @."""
    stack = []

    def get(name: str) -> Filesystem:
        pool = Pool.open(tmp_path / "pool", "v")
        snapshot = pool.snapshot(SnapshotName.parse(f"v/home@{name}"))
        found = OpenSnapshot(pool, snapshot, lambda wrapped: bytes(range(32)))
        stack.append(found.__enter__())
        return Filesystem(found)

    yield get
    for each in stack:
        each.__exit__(None, None, None)


def node_of(tree: Filesystem, name: bytes) -> Any:
    (number,) = [entry.number for entry in tree.names(tree.root) if entry.name == name]
    return tree.znode(number)


def test_new_files_and_folders_that_vanish_are_not_there(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(source)
    watching(monkeypatch, start=once(lambda: (shutil.rmtree(source / "folders"), (source / "file-511").unlink())))
    assert take(zkeep, source, "1") == 0
    want = listing(source)
    want["text"] = (want["text"][0], (want["text"][1][0], 1), *want["text"][2:])
    assert set(extracted(zkeep, tmp_path, "v/home@1")) == set(want)
    assert take(zkeep, source, "2") == 0
    assert zkeep("verify", "v/home@2") == 0


def test_known_files_that_vanish_stay_as_they_were(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "d").mkdir()
    for name in ("a", "d/b"):
        (source / name).write_bytes(b"old")
    assert take(zkeep, source, "1") == 0
    for name in ("a", "d/b", "d/new"):
        (source / name).write_bytes(b"changed")
    watching(monkeypatch, start=once(lambda: (shutil.rmtree(source / "d"), (source / "a").unlink())))
    assert take(zkeep, source, "2") == 3
    found = extracted(zkeep, tmp_path, "v/home@2")
    assert (tmp_path / "out-v-home@2" / "a").read_bytes() == b"old"
    assert (tmp_path / "out-v-home@2" / "d" / "b").read_bytes() == b"old"
    assert {".", "a", "d", "d/b"} <= set(found)
    assert take(zkeep, source, "3") == 0
    assert set(extracted(zkeep, tmp_path, "v/home@3")) == {"."}


def test_a_file_that_grows_while_it_is_read(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = source / "log"
    log.write_bytes(os.urandom(300_000))

    def grow(*_: object) -> None:
        with log.open("ab") as sink:
            sink.write(b"x" * 100_000)

    watching(monkeypatch, bytes=once(grow))
    assert take(zkeep, source, "1") == 0, "it was read again"
    monkeypatch.setattr(objects, "SMALL", 0)
    log.write_bytes(os.urandom(300_000))
    watching(monkeypatch, bytes=grow)
    assert take(zkeep, source, "2") == 3
    assert "'log': it changed while it was read" in capsys.readouterr().err
    extracted(zkeep, tmp_path, "v/home@2")
    kept = (tmp_path / "out-v-home@2" / "log").read_bytes()
    assert log.read_bytes().startswith(kept)
    watching(monkeypatch)
    assert take(zkeep, source, "3") == 0, "and it is read again next time"
    assert extracted(zkeep, tmp_path, "v/home@3") == listing(source)


class FullDisk:
    """A file on a disk that has no room."""

    def __init__(self, real: IO[bytes]) -> None:
        self.real = real

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.real.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_a_full_disk_ends_the_snapshot_and_nothing_of_it_stays(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is never taken for a file that cannot be read."""
    make_tree(source)

    def full(**words: Any) -> FullDisk:
        return FullDisk(TemporaryFile(**words))

    with monkeypatch.context() as patch:
        patch.setattr("zkeep.snapshot.writer.SPOOL", 0)
        patch.setattr("zkeep.snapshot.commit.TemporaryFile", full)
        assert take(zkeep, source, "1") == 1
    assert f"cannot create snapshot v/home@1: {tmp_path / 'pool'}: No space left on device" in capsys.readouterr().err
    assert names(zkeep, capsys) == []
    assert zkeep("pool", "scrub", "v") == 0
    assert not [path for path in (tmp_path / "pool" / "tmp").rglob("*") if path.is_file()]
    assert take(zkeep, source, "1") == 0
    assert extracted(zkeep, tmp_path, "v/home@1") == listing(source)


def test_extended_attributes_over_64_kib_get_a_folder_of_their_own(
    zkeep: Zkeep, source: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[[str], Filesystem]
) -> None:
    file = source / "file"
    wanted = {b"user.large": os.urandom(300_000), b"user.small": b"x", b"security.empty": b""}
    wanted |= {b"user.%d" % number: os.urandom(20_000) for number in range(5)}
    with monkeypatch.context() as patch:
        patch.setattr(ahead, "_read_files", None)
        patch.setattr(objects, "xattrs_of", lambda place: (wanted, {}))
        file.write_bytes(b"content")
        assert take(zkeep, source, "1") == 0
        tree = opened("1")
        assert tree.xattrs(node_of(tree, b"file")) == wanted
        assert tree.xattrs(tree.znode(tree.root)) == wanted
        wanted[b"user.large"] = b"short now"
        file.write_bytes(b"other content")
        assert take(zkeep, source, "2") == 0
        tree = opened("2")
        assert tree.xattrs(node_of(tree, b"file")) == wanted
    file.write_bytes(b"third content")
    for name in ("3", "4"):
        assert take(zkeep, source, name) == 0
        assert zkeep("verify", f"v/home@{name}") == 0
    tree = opened("4")
    assert tree.xattrs(node_of(tree, b"file")) == {}
    tree = opened("2")
    assert tree.xattrs(node_of(tree, b"file")) == wanted


@pytest.mark.parametrize("recordsize", ["512", "128K"])
def test_sizes_up_to_the_largest(
    zkeep: Zkeep, recordsize: str, opened: Callable[[str], Filesystem], tmp_path: Path
) -> None:
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        pytest.skip("no file system takes such files")
    source = place / f"zkeep-{os.getpid()}-{recordsize}"
    source.mkdir()
    try:
        assert zkeep("set", f"recordsize={recordsize}", "v/home") == 0
        largest = (1 << 63) - 1
        for name, size in (("a", largest), ("b", largest - 4096), ("c", 1 << 62)):
            try:
                with (source / name).open("wb") as sink:
                    sink.truncate(size)
                    os.pwrite(sink.fileno(), b"end", min(size - 3, (1 << 63) - 8192))
            except OSError:
                pytest.skip("no file system takes such files")
        for turn in ("1", "2"):
            assert take(zkeep, source, turn) == 0
            tree = opened(turn)
            for name in "abc":
                assert node_of(tree, name.encode()).size == (source / name).stat().st_size
            assert zkeep("verify", f"v/home@{turn}") == 0
            os.utime(source / "a")
    finally:
        shutil.rmtree(source)


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Callable[[Path, Path], None]]:
    """Bind mounts, where this process may make them."""
    made: list[Path] = []

    def bind(one: Path, place: Path) -> None:
        if os.geteuid() or subprocess.run(["mount", "--bind", one, place], capture_output=True, check=False).returncode:
            pytest.skip("mounts cannot be made here")
        made.append(place)

    yield bind
    for place in reversed(made):
        subprocess.run(["umount", place], check=True)


def test_a_loop_of_bind_mounts_ends(
    zkeep: Zkeep, tmp_path: Path, source: Path, bound: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "d" / "loop").mkdir(parents=True)
    (source / "d" / "file").write_bytes(b"x")
    bound(source, source / "d" / "loop")
    assert take(zkeep, source, "1") == 3
    assert "'d/loop': this folder was visited already" in capsys.readouterr().err
    assert set(extracted(zkeep, tmp_path, "v/home@1")) == {".", "d", "d/file"}


def test_a_file_mounted_at_two_places_is_two_files(
    zkeep: Zkeep, tmp_path: Path, source: Path, bound: Callable[[Path, Path], None]
) -> None:
    for name in ("a", "z"):
        (source / name).mkdir()
        (source / name / "file").write_bytes(name.encode())
    (source / "a" / "other").write_bytes(b"")
    bound(source / "a" / "file", source / "z" / "file")
    bound(source / "a" / "file", source / "a" / "other")
    for turn in "123":
        assert take(zkeep, source, turn) == 0
        assert extracted(zkeep, tmp_path, f"v/home@{turn}") == listing(source)
        assert zkeep("verify", f"v/home@{turn}") == 0


def test_a_cache_of_another_pool_is_not_used(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    make_tree(source)
    assert zkeep("pool", "create", "w", str(tmp_path / "other")) == 0
    options = ("encryption=on", "keyformat=raw", f"keylocation=file://{tmp_path / 'key'}")
    assert zkeep("create", *(word for option in options for word in ("-o", option)), "w/home") == 0
    assert take(zkeep, source, "1") == 0
    (mine,) = (tmp_path / "state" / "capture").iterdir()
    (source / "only later").write_bytes(b"x")
    shutil.move(source / "text", source / "moved")
    assert zkeep("snapshot", "--from", str(source), "w/home@1") == 0
    (other,) = [path for path in (tmp_path / "state" / "capture").iterdir() if path != mine]
    shutil.copy(other, mine)
    assert take(zkeep, source, "2") == 0
    assert extracted(zkeep, tmp_path, "v/home@2") == listing(source)


def test_an_inode_that_became_another_kind_of_file(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache says that it was a file; its object becomes a folder, and the other way round."""
    (source / "a").write_bytes(os.urandom(300_000))
    (source / "b").mkdir()
    for number in range(300):
        (source / "b" / f"{'long name ' * 5}{number}").write_bytes(b"")
    assert take(zkeep, source, "1") == 0
    swapped = {(source / "a").stat().st_ino: (source / "b").stat().st_ino}
    swapped |= {two: one for one, two in swapped.items()}
    from zkeep.capture.previous import Match, Previous

    real = Previous.match

    def confused(self: Previous, statuses: Any, parent: int) -> list[Match]:
        """A scan as if the inodes of both had been given to the other."""
        found = real(self, statuses, parent)
        objects = {status.st_ino: match for status, match in zip(statuses, found, strict=True)}
        return [
            objects[swapped[s.st_ino]]._replace(same=False) if swapped.get(s.st_ino) in objects else match
            for s, match in zip(statuses, found, strict=True)
        ]

    monkeypatch.setattr(Previous, "match", confused)
    os.utime(source)
    assert take(zkeep, source, "2") == 0
    assert extracted(zkeep, tmp_path, "v/home@2") == listing(source)
    assert zkeep("verify", "v/home@2") == 0


FLAGS = [(0x10, IMMUTABLE), (0x20, APPEND_ONLY), (0x40, NO_DUMP), (0x80050, IMMUTABLE | NO_DUMP), (0x80000, 0)]


@pytest.mark.parametrize(("linux", "stored"), FLAGS)
def test_file_flags_are_stored(
    zkeep: Zkeep,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: Callable[[str], Filesystem],
    linux: int,
    stored: int,
) -> None:
    (source / "file").write_bytes(b"x")

    def ioctl(fd: int, request: int, buffer: bytes) -> bytes:
        assert request & 0xFFFF == 0x6601
        return linux.to_bytes(len(buffer), "little")

    monkeypatch.setattr(ahead, "_read_files", None)
    monkeypatch.setattr(contents, "ioctl", ioctl)
    assert take(zkeep, source, "1") == 0
    tree = opened("1")
    every = IMMUTABLE | APPEND_ONLY | NO_DUMP
    assert node_of(tree, b"file").flags & every == stored
    assert tree.znode(tree.root).flags & every == stored


def test_where_there_are_no_file_flags_none_are_stored(
    zkeep: Zkeep, source: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[[str], Filesystem]
) -> None:
    def ioctl(fd: int, request: int, buffer: bytes) -> bytes:
        raise OSError(errno.ENOTTY, "no")

    (source / "file").write_bytes(b"x")
    monkeypatch.setattr(contents, "ioctl", ioctl)
    assert take(zkeep, source, "1") == 0
    assert not node_of(opened("1"), b"file").flags & (IMMUTABLE | APPEND_ONLY | NO_DUMP)
