"""What goes past the page cache, and what through it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from zkeep.pool.store.disk import Disk
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.port import Buffer
from zkeep.pool.store.staging import STAGE

DIRECT = getattr(os, "O_DIRECT", 0)


class Noting(Disk):
    """Notes of each write its size and whether it went past the cache."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, bool]] = []

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer]) -> int:
        done = super().write(fd, offset, buffers)
        self.writes.append((done, bool(fcntl.fcntl(fd, fcntl.F_GETFL) & DIRECT)))
        return done


@pytest.fixture
def disk(tmp_path: Path) -> Noting:
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    if not DIRECT:
        pytest.skip("this system has no O_DIRECT")
    return Noting()


def test_whole_stretches_go_past_the_cache_and_the_rest_through_it(tmp_path: Path, disk: Noting) -> None:
    with LocalStore(tmp_path, disk).draft("d") as draft:
        for _ in range(5):
            draft.write(bytes(STAGE // 2 + 64))
        draft.write(b"table", soon=True)
    assert disk.writes == [(STAGE, True), (STAGE, True), (STAGE // 2 + 320, False), (5, False)]


def test_what_is_small_goes_through_the_cache_at_once(tmp_path: Path, disk: Noting) -> None:
    with LocalStore(tmp_path, disk).draft("d") as draft:
        draft.write(b"head")
        draft.write(bytes(STAGE - 5))
    assert disk.writes == [(STAGE - 1, False)]


def test_an_odd_offset_goes_through_the_cache(tmp_path: Path, disk: Noting) -> None:
    store = LocalStore(tmp_path, disk)
    with store.draft("d") as draft:
        draft.write(b"odd", soon=True)
        draft.write(bytes(STAGE))
        draft.publish("odd")
    assert store.size("odd") == 3 + STAGE
    assert disk.writes == [(3, False), (STAGE, False)]
