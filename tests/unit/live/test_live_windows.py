"""Reading a file from its beginning: what comes next is decrypted meanwhile, and a bad block costs only itself."""

from __future__ import annotations

import random
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from livekit import OWNER, RECORD, ByPath, live

from zkeep.live import device
from zkeep.live.files import KEEP_SIZE, PUNCH_HOLE
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree import windows

Zkeep = Callable[..., int]
BLOCKS = 41
WIDE = 4 * RECORD


@pytest.fixture(autouse=True)
def small_windows(zkeep: Zkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WIDE", WIDE)
    monkeypatch.setattr(windows, "NARROW", 2 * RECORD)


def write(files: ByPath) -> bytes:
    """A file with blocks that compress, others that do not, and holes; its last one is not full."""
    chance = random.Random(5)
    kinds = [chance.randbytes(RECORD), b"letters " * (RECORD // 8), bytes(RECORD)]
    data = b"".join(chance.choice(kinds) for _ in range(BLOCKS))[:-100]
    files.write(files.make(b"file", stat.S_IFREG | 0o644, OWNER), data, 0)
    files.dataset.commit()
    return data


def damage(files: ByPath, opened: OpenSnapshot, number: int, block: int) -> None:
    (leaf,) = [leaf for part in opened.blocks.leaves(opened.object(number), block, block + 1) for leaf in part]
    name = opened.state.timeline.owner(int(leaf["segment"]))[1].name
    (path,) = files.dataset.pool.path.rglob(f"{name.rpartition('/')[2].removesuffix('.seg')}.seg")
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(int(leaf["pos"]) + 400)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("step", [RECORD // 2, RECORD, 3 * RECORD])
def test_what_is_read_ahead_is_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    ahead: list[int] = []
    begin = windows.Content._read_ahead

    def note(content: windows.Content, key: tuple[int, int, int], end: int) -> None:
        begin(content, key, end)
        ahead.extend(each.key[1] for each in content._ahead)

    monkeypatch.setattr(windows.Content, "_read_ahead", note)
    with live(tmp_path) as files:
        data, number = write(files), files.lookup(b"file").number
        content = windows.Content(files.dataset.base)
        found = [content.read(number, len(data), at, step) for at in range(0, len(data), step)]
        assert b"".join(found) == data
    # From the second wide window on, the next one was begun before anybody asked for it.
    assert set(ahead) >= set(range(3 * WIDE, len(data), WIDE))


def test_a_bad_block_that_was_read_ahead_costs_only_itself(tmp_path: Path) -> None:
    with live(tmp_path) as files:
        data, number = write(files), files.lookup(b"file").number
        whole = next(n for n in range(20, BLOCKS) if data[n * RECORD : (n + 1) * RECORD].strip(b"\0"))
        with OpenSnapshot(files.dataset.pool, files.dataset.state, files.dataset._get_key) as opened:
            damage(files, opened, number, whole)
            content = windows.Content(opened)
            for at in range(0, len(data), RECORD):
                if at == whole * RECORD:
                    with pytest.raises(windows.BadBlock) as bad:
                        content.read(number, len(data), at, RECORD)
                    assert (bad.value.number, bad.value.offset) == (number, at)
                else:
                    assert content.read(number, len(data), at, RECORD) == data[at : at + RECORD]


def test_files_that_are_read_in_turns_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, int]] = []
    begin = windows.Content._begin

    def note(content: windows.Content, key: tuple[int, int, int], end: int) -> windows.Reading:
        begun.append(key[:2])
        return begin(content, key, end)

    monkeypatch.setattr(windows.Content, "_begin", note)
    with live(tmp_path) as files:
        data = random.Random(6).randbytes(16 * WIDE)
        for name in (b"one", b"two", b"three"):
            files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), data, 0)
        files.dataset.commit()
        content = windows.Content(files.dataset.base)
        numbers = [files.lookup(name).number for name in (b"one", b"two", b"three")]
        for at in range(0, len(data), RECORD):
            for number in numbers:
                assert content.read(number, len(data), at, RECORD) == data[at : at + RECORD]
    late = [each for each in begun if each[1] >= 2 * WIDE]
    assert sorted(late) == sorted(set(late))


@pytest.mark.parametrize("count", [5, 7, 16])
@pytest.mark.parametrize("step", [RECORD, 2 * RECORD])
def test_many_files_that_are_read_in_turns_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, step: int
) -> None:
    """Neither what was read ahead of one, nor its window, is dropped for the others, and then opened again."""
    begun: list[int] = []
    begin = windows.Content._begin

    def note(content: windows.Content, key: tuple[int, int, int], end: int) -> windows.Reading:
        begun.append(min(key[2], end - key[1]))
        return begin(content, key, end)

    monkeypatch.setattr(windows.Content, "_begin", note)
    monkeypatch.setattr(windows, "HELD", 9 * WIDE)
    with live(tmp_path) as files:
        data = random.Random(6).randbytes(8 * WIDE)
        names = [b"%d" % number for number in range(count)]
        for name in names:
            files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), data, 0)
        files.dataset.commit()
        content = windows.Content(files.dataset.base)
        numbers = [files.lookup(name).number for name in names]
        for at in range(0, len(data), step):
            for number in numbers:
                assert content.read(number, len(data), at, step) == data[at : at + step]
    assert sum(begun) <= 1.5 * count * len(data)


def test_one_file_is_read_ahead_again_once_it_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "HELD", 2 * WIDE)
    with live(tmp_path) as files:
        data = random.Random(6).randbytes(12 * WIDE)
        for name in (b"one", b"two", b"three", b"four"):
            files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), data, 0)
        files.dataset.commit()
        content = windows.Content(files.dataset.base)
        numbers = [files.lookup(name).number for name in (b"one", b"two", b"three", b"four")]
        for at in range(0, 4 * WIDE, RECORD):
            for number in numbers:
                content.read(number, len(data), at, RECORD)
        assert not content._ahead
        for at in range(4 * WIDE, 8 * WIDE, RECORD):
            content.read(numbers[0], len(data), at, RECORD)
        assert content._ahead


def test_who_waits_reads_what_no_thread_has_begun(tmp_path: Path) -> None:
    with live(tmp_path) as files:
        data = random.Random(7).randbytes(4 << 20)
        inode = files.make(b"file", stat.S_IFREG | 0o644, OWNER)
        files.write(inode, data, 0)
        files.dataset.commit()
        with OpenSnapshot(files.dataset.pool, files.dataset.state, files.dataset._get_key) as opened:
            busy = threading.Event()
            with ThreadPoolExecutor(1) as threads:
                opened.blocks.__dict__["_threads"] = threads
                threads.submit(busy.wait)
                reading = opened.begin_read(inode.number, 0, len(data))
                reading.wait()
                busy.set()
            assert reading.content == data


@pytest.mark.parametrize("hole", [0, 7, 31])
def test_holes_are_zeros_where_memory_was_used_before(tmp_path: Path, hole: int) -> None:
    with live(tmp_path) as files:
        data = bytearray(random.Random(hole).randbytes(32 * RECORD))
        inode = files.make(b"file", stat.S_IFREG | 0o644, OWNER)
        files.write(inode, data, 0)
        files.allocate(inode, PUNCH_HOLE | KEEP_SIZE, hole * RECORD, RECORD)
        data[hole * RECORD : (hole + 1) * RECORD] = bytes(RECORD)
        files.dataset.commit()
        base = files.dataset.base
        for _ in range(3):
            used = bytearray(b"\xff" * len(data))
            del used
            reading = base.begin_read(inode.number, 0, len(data))
            reading.wait()
            assert reading.content == data


def test_folders_of_any_name_are_found_among_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mountinfo escapes blanks; what is not there, or may not be set, is left as it is."""
    opened: list[str] = []
    lines = rb"36 35 0:7777777 / /mnt/with\040blank\134s rw - fuse.zkeep v/x rw"
    monkeypatch.setattr(Path, "read_bytes", lambda self: lines + b"\n")
    monkeypatch.setattr(Path, "write_text", lambda self, text: opened.append(f"{self} {text}"))
    device.widen_read_ahead("/mnt/with blank\\s")
    device.widen_read_ahead("/mnt/other")
    assert opened == ["/sys/class/bdi/0:7777777/read_ahead_kb 4096"]
