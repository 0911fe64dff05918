"""The spool: what is read gives its room back, where the file system can."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zkeep.snapshot import spool
from zkeep.snapshot.spool import Spool

PART = 64 << 10


@pytest.mark.parametrize("call", ["the system's", "one that fails", "none"])
def test_all_comes_back_and_room_is_given_back(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if call != "the system's":
        monkeypatch.setattr(spool, "_fallocate", lambda: None if call == "none" else lambda *_: -1)
    with (tmp_path / "spool").open("w+b") as file:
        kept = Spool(file)
        content = os.urandom(16 * PART)
        for _ in range(2):  # it is used again once it was cleared
            kept.write(content)
            kept.write(memoryview(b"end"))
            assert kept.size == len(content) + 3
            found = bytearray()
            for part in kept.taken(5, kept.size, PART):
                found += part
            assert found == content[5:] + b"end"
            left = os.fstat(file.fileno()).st_blocks * 512
            assert left <= 2 * PART if call == "the system's" else left >= len(content)
            kept.write(b"more")  # goes behind what was there
            assert list(kept.taken(kept.size - 4, kept.size, PART)) == [b"more"]
            kept.clear()
            assert kept.size == os.fstat(file.fileno()).st_size == 0


def test_a_spool_that_lost_bytes_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "spool").open("w+b") as file, pytest.raises(OSError, match="shorter"):
        list(Spool(file).taken(0, 5, PART))
