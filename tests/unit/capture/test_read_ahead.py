"""Small files are read many in one call; what is stored of them is what reading each by itself finds."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Timer
from typing import Any

import numpy as np
import pytest
from capturekit import extracted, listing

from zkeep.capture import ahead, contents, objects, previous
from zkeep.capture.ahead import BYTES, FILES, LARGEST, OPEN_FOLDERS, PORTIONS, READERS, ReadAhead, SmallFile
from zkeep.capture.scan import READ_FOLDER, Folders, Node
from zkeep.format.compress_writer import Compress, compressor
from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

Zkeep = Callable[..., int]
FILE = 0o10

pytestmark = pytest.mark.skipif(ahead._read_files is None, reason="it is not compiled here")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    return made


def nodes_of(top: Path) -> list[Node]:
    """Nodes of all that is in a folder and in those below, as if each were a file."""
    root = Node(b"", None, 4, 34, True)
    folders = {top: root}
    found = []
    for place, below, names in os.walk(top):
        for name in below:
            folders[Path(place, name)] = Node(os.fsencode(name), folders[Path(place)], 4, 0, True)
        found += [Node(os.fsencode(name), folders[Path(place)], FILE, 0, True) for name in sorted(names)]
    return found


def read(top: Path, limit: int = 1 << 20, compress: Compress | None = None) -> dict[bytes, SmallFile | None]:
    fd = os.open(top, READ_FOLDER)
    folders, nodes = Folders(fd), nodes_of(top)
    reader = ReadAhead(folders, nodes, limit, compress)
    try:
        return {node.path: reader.take(node) for node in nodes}
    finally:
        reader.close()
        folders.close()
        os.close(fd)


def test_a_file_is_read_with_all_that_is_stored_of_it(top: Path) -> None:
    for size in (0, 1, 511, 512, 513, 100_000):
        path = top / f"{size}"
        path.write_bytes(bytes(range(1, 101)) * (size // 100 + 1))
        os.truncate(path, size)
        os.utime(path, ns=(-5_000_000_001, 1_234_567_890_123_456_789))
        path.chmod(0o4751)
    folder = os.open(top, READ_FOLDER)
    for name, small in read(top).items():
        assert small is not None
        status, content = os.stat(top / os.fsdecode(name)), (top / os.fsdecode(name)).read_bytes()
        assert small.content == content.ljust(-(-len(content) // 512) * 512, b"\0")
        ours = (getattr(small, field) for field in SmallFile._fields if field.startswith("st_"))
        assert list(ours) == [getattr(status, field) for field in SmallFile._fields if field.startswith("st_")]
        assert small.birth == contents.birth_of(name, folder)
        # The same attributes as if it were read by itself.
        alone = contents.fields_of(
            status, size=status.st_size, links=1, parent=34, generation=7, birth=contents.birth_of(name, folder)
        )
        assert small.fields(1, 34, 7) == alone
    os.close(folder)


@pytest.mark.parametrize("setting", ["zstd", "zstd-9", "zstd-fast-10"])
def test_a_file_is_compressed_as_it_would_be_by_itself(top: Path, setting: str) -> None:
    """What does not get smaller is left as it is; zeros are a hole."""
    files = {"empty": b"", "short": b"x", "words": b"word " * 2000, "noise": os.urandom(5000), "zeros": bytes(3000)}
    for name, content in files.items():
        (top / name).write_bytes(content)
    compress = compressor(setting)
    for name, small in read(top, compress=compress).items():
        assert small is not None
        content = files[os.fsdecode(name)]
        content = content.ljust(-(-len(content) // 512) * 512, b"\0")
        assert small.block == len(content)
        if name in (b"empty", b"zeros"):
            assert (small.content, small.compression) == (None if content else b"", None)
        else:
            assert (small.content, small.compression) == compress(content)


@pytest.mark.parametrize("setting", ["lz4", "off", "gzip-1", "zle"])
def test_a_file_is_compressed_later_where_no_call_does_many(top: Path, setting: str) -> None:
    (top / "words").write_bytes(b"word " * 2000)
    small = read(top, compress=compressor(setting))[b"words"]
    assert small is not None
    assert (small.content, small.compression) == ((b"word " * 2000).ljust(10_240, b"\0"), None)


@pytest.mark.parametrize("setting", ["zstd", "lz4", "off", "gzip"])
def test_a_snapshot_has_the_same_blocks_whether_files_are_read_ahead(
    zkeep: Zkeep, tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    for name, content in {"empty": b"", "words": b"word " * 2000, "noise": b"\x9f" * 600, "zeros": bytes(3000)}.items():
        (top / name).write_bytes(content)
    make_dataset(zkeep, tmp_path)
    sizes = []
    for name in "12":
        assert zkeep("create", "-o", f"compression={setting}", f"b/home/{name}") == 0
        assert zkeep("snapshot", "--from", str(top), f"b/home/{name}@s") == 0
        assert extracted(zkeep, tmp_path, f"b/home/{name}@s") == listing(top)
        sizes.append(sorted(blocks_of(tmp_path / "b", f"b/home/{name}@s")))
        monkeypatch.setattr(ahead, "_read_files", None)
    assert sizes[0] == sizes[1]


def blocks_of(pool_path: Path, name: str) -> list[Any]:
    """Sizes of each block of a file, before and after compression."""
    with Pool.open(pool_path, "b") as pool:
        snapshot = pool.snapshot(SnapshotName.parse(name))
        with OpenSnapshot(pool, snapshot, lambda wrapped: bytes(range(32))) as base:
            tree = Filesystem(base)
            files = [base.object(entry.number) for entry in tree.names(tree.root)]
            blocks = [(each.dnode.blksz, each.flat) for each in files]
            return [(size, leaves[["logical", "size"]].tolist()) for size, leaves in blocks if leaves is not None]


def test_extended_attributes_come_along(top: Path) -> None:
    wanted = {b"user.one": b"1", b"user.empty": b"", b"user.bytes": bytes(range(256))}
    (top / "file").write_bytes(b"content")
    try:
        for name, value in wanted.items():
            os.setxattr(top / "file", name, value)
    except OSError:
        pytest.skip("no extended attributes here")
    small = read(top)[b"file"]
    assert small is not None
    assert {name: value for name, value in small.xattrs.items() if name in wanted} == wanted
    assert small.xattrs == contents.xattrs_of(str(top / "file"))[0]


@pytest.mark.parametrize("flags", ["d", "i", "a", "di", "dia", "A"])
def test_flags_are_those_of_chattr(top: Path, flags: str) -> None:
    (top / "file").write_bytes(b"content")
    if subprocess.run(["chattr", f"+{flags}", top / "file"], check=False, capture_output=True).returncode:
        pytest.skip("no flags here")
    try:
        small = read(top)[b"file"]
        with (top / "file").open("rb") as source:
            alone = contents.flags_of(source.fileno())
    finally:
        subprocess.run(["chattr", f"-{flags}", top / "file"], check=True)
    assert small is not None
    assert contents.stored_flags(small.flags) == alone
    assert alone.bit_count() == len(flags.strip("A"))


def test_what_is_no_small_file_is_left_to_others(top: Path) -> None:
    (top / "large").write_bytes(bytes(4097))
    (top / "just").write_bytes(bytes(4096))
    (top / "link").symlink_to("just")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "socket"))
    found = read(top, 4096)
    (top / "just").unlink()
    assert {name for name, small in found.items() if small is not None} == {b"just"}


def test_every_file_of_many_is_read_once_and_in_order(top: Path) -> None:
    """More than are read together, in number and in bytes, in several folders."""
    for number in range(3 * FILES):
        place = top / f"{number % 7}"
        place.mkdir(exist_ok=True)
        (place / f"{number}").write_bytes(b"%d" % number)
    for number in range(3 * BYTES // LARGEST):
        (top / "0" / f"large{number}").write_bytes(bytes([number + 1]) * LARGEST)
    for path, small in read(top).items():
        content = (top / os.fsdecode(path)).read_bytes()
        assert small is not None
        assert small.content.rstrip(b"\0") == content


def test_portions_come_in_order_whichever_is_read_first(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of which only a part is read at first; the last reader is the fastest."""
    genuine = ahead._read_files
    assert genuine is not None
    turns = iter(range(1000))

    def reading(folders: list[int], names: list[bytes], limit: int, budget: int) -> Any:
        time.sleep(0.01 * (next(turns) % PORTIONS == 0))
        return genuine(folders, names, limit, 3000)

    for number in range(5 * FILES):
        (top / f"{number:04}").write_bytes(b"%d" % number * (1000 if number % 50 == 0 else 1))
    monkeypatch.setattr(ahead, "_read_files", reading)
    for path, small in read(top).items():
        assert small is not None
        assert small.content.rstrip(b"\0") == (top / os.fsdecode(path)).read_bytes()


def test_a_file_that_is_not_the_next_one_is_left_to_others(top: Path) -> None:
    for number in range(3):
        (top / f"{number}").write_bytes(b"%d" % number)
    fd = os.open(top, READ_FOLDER)
    nodes = nodes_of(top)
    reader = ReadAhead(Folders(fd), nodes, 512)
    assert reader.take(nodes[1]) is None
    for node in nodes:
        small = reader.take(node)
        assert small is not None
        assert small.content.rstrip(b"\0") == node.name
    assert reader.take(nodes[0]) is None
    reader.close()
    os.close(fd)


def test_files_whose_folder_is_gone_are_left_to_others(top: Path) -> None:
    for name in ("gone", "here"):
        (top / name).mkdir()
        (top / name / "file").write_bytes(b"content")
    fd = os.open(top, READ_FOLDER)
    nodes = nodes_of(top)
    (top / "gone" / "file").unlink()
    (top / "gone").rmdir()
    reader = ReadAhead(Folders(fd), nodes, 512)
    assert {node.path for node in nodes if reader.take(node)} == {b"here/file"}
    reader.close()
    os.close(fd)


def test_no_descriptor_stays_open(top: Path) -> None:
    for number in range(FILES + 1):
        (top / f"{number}").mkdir()
        (top / f"{number}" / "file").write_bytes(b"content")
    before = len(os.listdir("/proc/self/fd"))
    assert all(read(top).values())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("compression", ["zstd", "off"])
def test_a_snapshot_is_what_it_is_without(
    zkeep: Zkeep, tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    for number in range(40):
        (top / f"{number}").write_bytes(os.urandom(number) * number)
    (top / "zeros").write_bytes(bytes(5000))
    (top / "hole").touch()
    os.truncate(top / "hole", 70_000)
    os.link(top / "7", top / "seven")
    (tmp_path / "key").write_bytes(bytes(range(32)))
    options = ["-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{tmp_path}/key"]
    assert zkeep("pool", "create", "b", str(tmp_path / "b")) == 0
    shown = []
    for name in ("ahead", "alone"):
        assert zkeep("create", *options, "-o", f"compression={compression}", f"b/{name}") == 0
        assert zkeep("snapshot", "--from", str(top), f"b/{name}@1") == 0
        shown.append(extracted(zkeep, tmp_path, f"b/{name}@1"))
        monkeypatch.setattr(ahead, "_read_files", None)
    assert shown[0] == shown[1] == listing(top)


FAR = [10**19, (1 << 63) - 1, 1 << 63, 9_000_000_000 * 10**9]
"Nanoseconds around the last ones that 64 bits hold, in 2262, and about those that are read ahead."


@pytest.mark.parametrize("compiled", [True, False])
def test_times_after_2262_are_stored(
    zkeep: Zkeep, tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    (top / "folder").mkdir()
    for number, far in enumerate(FAR):
        (top / "folder" / f"{number}").write_bytes(b"content")
        os.utime(top / "folder" / f"{number}", ns=(far, far))
    os.utime(top / "folder", ns=(FAR[0], FAR[0]))
    if (top / "folder" / "0").stat().st_mtime_ns != FAR[0]:
        pytest.skip("no such times here")
    if not compiled:
        monkeypatch.setattr(ahead, "_read_files", None)
        monkeypatch.setattr(previous, "_listing", None)
    make_dataset(zkeep, tmp_path)
    for name in "12":
        assert zkeep("snapshot", "--from", str(top), f"b/home@{name}") == 0
        assert extracted(zkeep, tmp_path, f"b/home@{name}") == listing(top)
        time.sleep(0.05)  # what changed within a tick of the kernel's clock is read again
    # What the cache knows is not read again; without it, each file is found where it was.
    with monkeypatch.context() as patch:
        patch.setattr(objects.ObjectWriter, "_write_file", forbidden)
        patch.setattr(ahead, "_read_files", None)
        assert zkeep("snapshot", "--from", str(top), "b/home@3") == 0
    for cache in (tmp_path / "state" / "capture").iterdir():
        cache.unlink()
    assert zkeep("snapshot", "--from", str(top), "b/home@4") == 0
    assert extracted(zkeep, tmp_path, "b/home@4") == listing(top)


def make_dataset(zkeep: Zkeep, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    options = ["-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{tmp_path}/key"]
    assert zkeep("pool", "create", "b", str(tmp_path / "b")) == 0
    assert zkeep("create", *options, "b/home") == 0


def forbidden(*_: object) -> bool:
    raise AssertionError("it was read again")


def test_only_some_folders_are_open_at_once(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, asked = ahead._read_files, []
    assert genuine is not None

    def reading(folders: list[int], *others: Any) -> Any:
        asked.append(set(folders))
        return genuine(folders, *others)

    for number in range(3 * OPEN_FOLDERS + 1):
        (top / f"{number}").mkdir()
        (top / f"{number}" / "file").write_bytes(b"content")
    monkeypatch.setattr(ahead, "_read_files", reading)
    assert all(read(top).values())
    assert max(map(len, asked)) == OPEN_FOLDERS


def test_descriptors_of_what_was_never_begun_are_closed(top: Path) -> None:
    (top / "file").write_bytes(b"content")
    fd = os.open(top, READ_FOLDER)
    before = len(os.listdir("/proc/self/fd"))
    reader, gate = ReadAhead(Folders(fd), nodes_of(top), 512), Event()
    assert reader._pool is not None
    for _ in range(READERS):
        reader._pool.submit(gate.wait)
    reader._fill()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    Timer(0.05, gate.set).start()
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)


def test_nodes_are_forgotten_when_all_is_written(
    zkeep: Zkeep, tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the cache is saved, their memory is free."""
    for number in range(50):
        (top / f"{number}").write_bytes(b"content")
    left: list[int] = []
    genuine = previous.save

    def save(*words: Any) -> None:
        left.append(sum(isinstance(each, Node) for each in gc.get_objects()))
        genuine(*words)

    make_dataset(zkeep, tmp_path)
    gc.collect()
    monkeypatch.setattr(previous, "save", save)
    assert zkeep("snapshot", "--from", str(top), "b/home@1") == 0
    assert left[-1] < 50


@pytest.mark.parametrize("step", [1, 3000, 100_000])
def test_steps_end_in_the_middle_of_what_was_read(
    zkeep: Zkeep, tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """What was made for one transaction group is made again for the next one, with its guid and salt."""
    for number in range(40):
        (top / f"{number}").write_bytes(os.urandom(1000) * (number % 3))
    make_dataset(zkeep, tmp_path)
    monkeypatch.setenv("ZKEEP_STEP", str(step))
    for name in "12":
        assert zkeep("snapshot", "--from", str(top), f"b/home@{name}") == 0
        assert extracted(zkeep, tmp_path, f"b/home@{name}") == listing(top)
        assert zkeep("verify", "-L", f"file://{tmp_path}/key", f"b/home@{name}") == 0
        (top / "more").mkdir(exist_ok=True)
        for number in range(40):
            (top / "more" / f"{number}").write_bytes(os.urandom(1000) * (number % 3))


@pytest.mark.parametrize("name", ["user.one", "trusted.one"])
def test_files_with_extended_attributes_lie_among_others(
    zkeep: Zkeep, tmp_path: Path, top: Path, name: str
) -> None:
    for number in range(40):
        (top / f"{number}").write_bytes(b"%d" % number)
    try:
        for number in range(0, 40, 3):
            os.setxattr(top / f"{number}", name, b"v" * number * 10)
    except OSError:
        pytest.skip("no such attributes here")
    make_dataset(zkeep, tmp_path)
    assert zkeep("snapshot", "--from", str(top), "b/home@1") == 0
    assert extracted(zkeep, tmp_path, "b/home@1") == listing(top)


HOUR = 3600 * 10**9


@pytest.mark.parametrize(("tick", "again"), [(HOUR, True), (-HOUR, False)])
def test_what_may_change_again_unseen_is_read_the_next_time(
    zkeep: Zkeep, tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch, tick: int, again: bool
) -> None:
    for number in range(3):
        (top / f"{number}").write_bytes(b"old")
    make_dataset(zkeep, tmp_path)
    monkeypatch.setattr(previous, "CLOCK_TICK", tick)
    assert zkeep("snapshot", "--from", str(top), "b/home@1") == 0
    read: list[bytes] = []
    genuine = objects.ObjectWriter._write_file

    def write_file(self: Any, node: Node) -> bool:
        read.append(node.name)
        return genuine(self, node)

    monkeypatch.setattr(objects.ObjectWriter, "_write_file", write_file)
    assert zkeep("snapshot", "--from", str(top), "b/home@2") == 0
    assert sorted(read) == ([b"0", b"1", b"2"] if again else [])


def test_many_times_are_settled_as_each_of_them_is() -> None:
    started = 1_700_000_000 * 10**9
    near = [started + second * 10**9 + part for second in (-4, -2, -1, 0, 1) for part in (-1, 0, 1, 10_000_000)]
    times = [*near, 0, -1, -(10**18), started - previous.CLOCK_TICK, started - previous.CLOCK_TICK - 1]
    found = previous.are_settled(np.array(times, np.int64), started).tolist()
    assert found == [previous.is_settled(each, started) for each in times]
    assert {True, False} <= set(found)
