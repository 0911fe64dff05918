"""What a mount shows, and what it does where something is wrong."""

from __future__ import annotations

import errno
import json
import lzma
import os
import stat
import subprocess
import sys
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path

import pytest

from mountkit import lazy, mounted, needs_fuse
from zkeep.crypto.unwrap import GetKey, first_that_opens
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.restore.mount.fuse import ReadOnlyOperations
from zkeep.restore.mount.layout import MountLayout
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

CHAINS = Path(__file__).parents[3] / "data" / "opened" / "chains"
NAME = "gcm128-zstd-16k"
FILE, BOTH = "d7d8f/f7990fb", "ffd9cee"
"One that only the older snapshot has, and one that both have."
BLOCK = 16_384
SHAPE = ["--folders", "1", "--files", "200", "--size", "512"]


@pytest.fixture(scope="module")
def key() -> GetKey:
    manifest = json.loads(lzma.decompress((CHAINS / f"{NAME}.manifest.json.xz").read_bytes()))
    return first_that_opens([bytes.fromhex(manifest["key"]["hex"])])


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = Pool.create(tmp_path / "pool", "v", {})
    for part in ("full-s0", "inc-s0-s1"):
        with (CHAINS / f"{NAME}.{part}.zfs").open("rb") as source:
            receive(pool, source, "v/x", ReceiveOptions())
    return pool


def snapshots(pool: Pool) -> list[Snapshot]:
    return pool.snapshots(next(d for d in pool.tree().by_id.values() if d.name.text == "v/x"))


def damage(pool: Pool, snapshot: Snapshot, key: GetKey, path: str, block: int) -> None:
    """Change one stored byte of one block of a file."""
    with OpenSnapshot(pool, snapshot, key) as opened:
        number = Filesystem(opened).lookup(path.encode()).number
        leaf = opened.state.leaves(number, block * BLOCK, block * BLOCK + BLOCK)
        record = bytes(opened.state.records.whole(leaf)[0])
    spoil(pool, record)


def spoil(pool: Pool, record: bytes) -> None:
    """Change a byte of the payload of one stored record."""
    for file in (pool.path / "segments").rglob("*"):
        if file.is_file() and record in (content := file.read_bytes()):
            at = content.index(record) + len(record) - 100
            file.chmod(0o600)
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            return
    raise AssertionError("the record was not found")


@pytest.fixture
def answers(pool: Pool, key: GetKey) -> ReadOnlyOperations:
    """The operations of a mounted dataset; what is logged lies in its `lines`."""
    every = [lazy(pool.path, snapshot, key) for snapshot in snapshots(pool)]
    lines: list[str] = []
    found = ReadOnlyOperations(MountLayout(every[-1], every), 1 << 20, lines.append, lambda: None)
    found.lines = lines  # type: ignore[attr-defined]
    return found


def listed(answers: ReadOnlyOperations, path: str) -> set[str]:
    return {name for name, _, _ in answers.readdir(path, 0)} - {".", ".."}


def test_a_dataset_shows_its_newest_snapshot_and_each_below_the_hidden_folder(answers: ReadOnlyOperations) -> None:
    assert ".zfs" not in listed(answers, "/")
    assert listed(answers, "/.zfs") == {"snapshot"}
    assert listed(answers, "/.zfs/snapshot") == {"s0", "s1"}
    assert listed(answers, "/.zfs/snapshot/s1") == listed(answers, "/")
    assert listed(answers, "/.zfs/snapshot/s0") != listed(answers, "/")


def pages(answers: ReadOnlyOperations, path: str) -> list[tuple[str, dict[str, int], bool]]:
    """What a listing tells, to its end."""
    found: list[tuple[str, dict[str, int], bool]] = []
    while some := answers.readdir_plus(path, len(found)):
        found += some
    return found


@pytest.mark.parametrize("path", ["/", "/.zfs/snapshot/s0/d7d8f"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_listing_tells_of_entries_what_they_tell_of_themselves(
    answers: ReadOnlyOperations, path: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkeep.restore.mount.layout.PAGE", size)
    found = pages(answers, path)
    assert [name for name, _, _ in found] == [name for name, _, _ in answers.readdir(path, 0)]
    assert [is_whole for _, _, is_whole in found] == [False, False, *[True] * (len(found) - 2)]
    assert all(status == answers.getattr(f"{path}/{name}") for name, status, is_whole in found if is_whole)


def test_to_list_snapshots_opens_none(pool: Pool, key: GetKey) -> None:
    every = [lazy(pool.path, snapshot, key) for snapshot in snapshots(pool)]
    opened: list[str] = []
    told = [replace(each, open=lambda each=each: opened.append(each.name) or each.open()) for each in every]
    answers = ReadOnlyOperations(MountLayout(told[-1], told), 1 << 20, str, lambda: None)
    found = [(name, is_whole) for name, _, is_whole in pages(answers, "/.zfs/snapshot")]
    assert found == [(name, False) for name in (".", "..", "s0", "s1")]
    assert opened == ["s1"]


def test_p7_to_look_at_the_folders_of_snapshots_opens_none_until_somebody_goes_in(pool: Pool, key: GetKey) -> None:
    every = [lazy(pool.path, snapshot, key) for snapshot in snapshots(pool)]
    opened: list[str] = []
    told = [replace(each, open=lambda each=each: opened.append(each.name) or each.open()) for each in every]
    answers = ReadOnlyOperations(MountLayout(told[-1], told), 1 << 20, str, lambda: None)
    before = [answers.getattr(f"/.zfs/snapshot/{name}") for name in ("s0", "s1")]
    assert opened == ["s1"]
    assert all(status["st_mode"] == answers.getattr("/")["st_mode"] for status in before)
    assert len({status["st_ino"] for status in before}) == 2
    answers.readdir("/.zfs/snapshot/s0", 0)
    assert opened == ["s1", "s0"]
    assert answers.getattr("/.zfs/snapshot/s0")["st_ino"] == before[0]["st_ino"]
    with pytest.raises(OSError, match="No such file"):
        answers.getattr("/.zfs/snapshot/s2")


def test_entries_in_trouble_are_listed_with_the_others(tmp_path: Path) -> None:
    stream, secret = tmp_path / "stream", tmp_path / "key"
    maker = str(Path(__file__).parents[4] / "bench" / "sealing.py")
    subprocess.run([sys.executable, maker, stream, secret, *SHAPE], check=True)
    key = first_that_opens([secret.read_bytes()])
    pool = Pool.create(tmp_path / "pool", "v", {"blind": "off"})
    with stream.open("rb") as source:
        receive(pool, source, "v/x", ReceiveOptions())
    (snapshot,) = snapshots(pool)
    with OpenSnapshot(pool, snapshot, key) as opened:
        number = Filesystem(opened).lookup(b"d0/file-000100").number
        (chunk,) = opened.state.over((number, 0), (number + 1, 0))
        row = chunk.table.objects[chunk.table.objects["object"] == number]
        record = bytes(opened.state.records.whole(row)[0])
    spoil(pool, record)
    told: list[str] = []
    answers = ReadOnlyOperations(MountLayout(lazy(pool.path, snapshot, key)), 0, told.append, lambda: None)
    whole = {name: is_whole for name, _, is_whole in pages(answers, "/d0")}
    assert len(whole) == 2 + 200
    assert [name for name in whole if not whole[name]][2:] == [f"file-{n:06d}" for n in range(93, 125)]
    assert told == []
    with pytest.raises(OSError, match="Input/output"):
        answers.getattr("/d0/file-000100")


@needs_fuse
def test_where_no_file_has_xattrs_the_system_asks_once(tmp_path: Path) -> None:
    story = CHAINS.parent / "story"
    pool = Pool.create(tmp_path / "pool", "v", {})
    with (story / "full-Rw.zfs").open("rb") as source:
        receive(pool, source, "v/x", ReceiveOptions())
    key = first_that_opens([(story / "jambon-zfs-key").read_bytes()])
    snapshot = next(s for found in pool.all_snapshots().values() for s in found if s.doc["name"] == "to-remote-server")
    with mounted(tmp_path / "m", lazy(pool.path, snapshot, key)):
        for path in (tmp_path / "m").iterdir():
            assert os.listxattr(path) == []
            with pytest.raises(OSError, match="not supported"):
                os.getxattr(path, "user.x")


@needs_fuse
def test_where_a_file_has_xattrs_each_is_asked(pool: Pool, key: GetKey, tmp_path: Path) -> None:
    with mounted(tmp_path / "m", lazy(pool.path, snapshots(pool)[0], key)):
        found = [path for path in (tmp_path / "m").rglob("*") if os.listxattr(path, follow_symlinks=False)]
        assert found
        for path in found:
            for name in os.listxattr(path, follow_symlinks=False):
                assert os.getxattr(path, name, follow_symlinks=False) is not None


def test_files_of_two_snapshots_are_not_taken_for_links_of_one_another(answers: ReadOnlyOperations) -> None:
    numbers = {answers.getattr(f"{top}/{BOTH}")["st_ino"] for top in ("", "/.zfs/snapshot/s0", "/.zfs/snapshot/s1")}
    assert len(numbers) == 3
    assert len({number & (1 << 48) - 1 for number in numbers}) == 1


@pytest.mark.parametrize("path", ["/x", "/.zfs/x", "/.zfs/snapshot/s2", f"/{FILE}/x", "/.zfs/snapshot/s0/x"])
def test_what_is_not_there_is_not_there(answers: ReadOnlyOperations, path: str) -> None:
    with pytest.raises(OSError, match="No such file") as error:
        answers.getattr(path)
    assert error.value.errno == errno.ENOENT
    assert not answers.lines  # type: ignore[attr-defined]


def test_nothing_is_opened_for_writing(answers: ReadOnlyOperations) -> None:
    with pytest.raises(OSError, match="Read-only"):
        answers.open(f"/{FILE}", os.O_RDWR)


def test_a_file_is_the_same_in_whatever_pieces_it_is_read(answers: ReadOnlyOperations) -> None:
    path = f"/.zfs/snapshot/s0/{FILE}"
    whole = answers.read(path, 1 << 20, 0, 0)
    assert len(whole) == answers.getattr(path)["st_size"]
    for size in (777, BLOCK, 5 * BLOCK + 1):
        assert whole == b"".join(answers.read(path, size, at, 0) for at in range(0, len(whole), size))
    backwards = [answers.read(path, 5000, at, 0) for at in reversed(range(0, len(whole), 5000))]
    assert whole == b"".join(reversed(backwards))
    assert answers.read(path, 10, len(whole), 0) == b""


def test_a_damaged_block_is_an_error_of_its_own_and_one_line(
    answers: ReadOnlyOperations, pool: Pool, key: GetKey
) -> None:
    whole = answers.read(f"/.zfs/snapshot/s0/{FILE}", 1 << 20, 0, 0)
    damage(pool, snapshots(pool)[0], key, FILE, 3)
    told: list[str] = []
    again = ReadOnlyOperations(MountLayout(lazy(pool.path, snapshots(pool)[0], key)), 0, told.append, lambda: None)
    for block in range(9):
        at = block * BLOCK
        for _ in range(2):
            if block == 3:
                with pytest.raises(OSError, match="Input/output"):
                    again.read(f"/{FILE}", BLOCK, at, 0)
            else:
                assert again.read(f"/{FILE}", BLOCK, at, 0) == whole[at : at + BLOCK]
    assert len(told) == 1
    assert told[0].startswith(f"/{FILE}, offset {3 * BLOCK}: ")


def failing(file: int, at: int) -> int | None:
    """The errno of reading a page, if it fails."""
    try:
        assert os.pread(file, 4096, at)
    except OSError as error:
        return error.errno
    return None


@needs_fuse
def test_a_damaged_block_is_an_error_for_its_own_pages_only(pool: Pool, key: GetKey, tmp_path: Path) -> None:
    damage(pool, snapshots(pool)[0], key, FILE, 3)
    with mounted(tmp_path / "m", lazy(pool.path, snapshots(pool)[0], key)) as log:
        with (tmp_path / "m" / FILE).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            failed = {at: error for at in range(0, size, 4096) if (error := failing(file.fileno(), at))}
        assert failed == dict.fromkeys(range(3 * BLOCK, 4 * BLOCK, 4096), errno.EIO)
        assert len(log.read_text().splitlines()) == 1


@needs_fuse
def test_a_dataset_is_mounted_and_gone_again(pool: Pool, key: GetKey, tmp_path: Path) -> None:
    every = [lazy(pool.path, snapshot, key) for snapshot in snapshots(pool)]
    with mounted(tmp_path / "m", every[-1], every) as log:
        control = tmp_path / "m" / ".zfs" / "snapshot"
        assert {path.name for path in control.iterdir()} == {"s0", "s1"}
        assert (control / "s0" / FILE).stat().st_size == len((control / "s0" / FILE).read_bytes())
        assert (control / "s1" / BOTH).stat().st_mtime_ns == (tmp_path / "m" / BOTH).stat().st_mtime_ns
        assert stat.S_ISDIR((control / "s0").stat().st_mode)
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "m" / "new").touch()
        assert log.read_text() == ""
    assert not list((tmp_path / "m").iterdir())


@needs_fuse
@pytest.mark.parametrize("library", ["", *(name for name in ("fuse", "fuse3") if find_library(name))])
def test_numbers_of_files_are_those_of_objects_whichever_libfuse_is_used(library: str) -> None:
    """libfuse 2 takes as options what libfuse 3 is told later; where both are installed, it is libfuse 3."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FUSE_LIBRARY")}
    if library:
        env["FUSE_LIBRARY_NAME"] = library
    code = (
        "from zkeep.restore.mount.readdirplus import cache_options, mfusepy;"
        "print(mfusepy.fuse_version_major, 'use_ino' in cache_options(1.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    expected = "2 True" if library == "fuse" or not find_library("fuse3") else "3 False"
    assert done.stdout.split() == expected.split()
