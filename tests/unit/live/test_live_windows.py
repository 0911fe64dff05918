"""Reading a file from its beginning: what comes next is decrypted meanwhile, and a bad block costs only itself."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, RECORD, ByPath, live

from zkeep.live import device
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
        ahead.extend([content._ahead.key[1]] if content._ahead else [])

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


def test_folders_of_any_name_are_found_among_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mountinfo escapes blanks; what is not there, or may not be set, is left as it is."""
    opened: list[str] = []
    lines = rb"36 35 0:7777777 / /mnt/with\040blank\134s rw - fuse.zkeep v/x rw"
    monkeypatch.setattr(Path, "read_bytes", lambda self: lines + b"\n")
    monkeypatch.setattr(Path, "write_text", lambda self, text: opened.append(f"{self} {text}"))
    device.widen_read_ahead("/mnt/with blank\\s")
    device.widen_read_ahead("/mnt/other")
    assert opened == ["/sys/class/bdi/0:7777777/read_ahead_kb 1024"]
