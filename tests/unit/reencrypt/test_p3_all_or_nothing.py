"""P3 and P4 for plain streams that become encrypted: whatever breaks off leaves nothing half and nothing in clear.

The streams are real ones, cut and mutated.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reencryptkit import KEY, Intake, Keys, encrypted_pool, take
from zkeep.crypto.unwrap import first_that_opens
from zkeep.errors import ZkeepError
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot

sys.path.append(str(Path(__file__).parents[2] / "fuzz"))
from fuzz_reader import mutate

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
FULL, NEXT = ((STORY / f"plain-blanc-{year}.zfs").read_bytes() for year in (2018, 2019))
HERE = DatasetName.parse("v/enc/ds")
STEP = 4 << 10
MARKS = (b"jambons", b"ledger.csv", b"scan.raw")
"Names in the folders of the streams."


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with encrypted_pool(tmp_path / "pool") as made:
        yield made


def state(pool: Pool) -> dict[str, list[str]]:
    """Snapshots by dataset."""
    every = {d.name.text: d for d in pool.tree().by_id.values()}
    return {name: [str(s.doc["name"]) for s in pool.snapshots(d)] for name, d in every.items()}


def segments(pool: Pool) -> list[str]:
    named = {s for _, doc in pool.catalog.scan("run") for s in doc["segments"]}
    files = [n for n in pool.store.names("segments") if n.rpartition("/")[2].removesuffix(".seg") not in named]
    return files + pool.store.drafts() + os.listdir(pool.path / "tmp")


def in_clear(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file() and any(mark in path.read_bytes() for mark in MARKS)]
    return [path for path in found if path.name != "stream"]


def test_the_marks_are_in_the_stream_and_not_in_the_pool(pool: Pool) -> None:
    assert all(mark in FULL for mark in MARKS[:2])
    take(pool, FULL, step=STEP)
    assert not in_clear(pool.path)


@pytest.mark.parametrize("step", [1 << 40, STEP])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.98])
def test_p3_a_stream_that_breaks_off_leaves_nothing(pool: Pool, part: float, step: int) -> None:
    empty = state(pool)
    with pytest.raises(ZkeepError):
        take(pool, FULL[: int(len(FULL) * part)], step=step)
    assert (state(pool), segments(pool), in_clear(pool.path)) == (empty, [], [])
    take(pool, FULL, step=step)
    full = state(pool)
    assert full["v/enc/ds"] == ["2018"]
    with pytest.raises(ZkeepError):
        take(pool, NEXT[: int(len(NEXT) * part)], step=step)
    assert (state(pool), segments(pool)) == (full, [])
    take(pool, NEXT, step=step)
    assert state(pool)["v/enc/ds"] == ["2018", "2019"]


class Killed:
    """Kills the process when so many bytes were read."""

    def __init__(self, content: bytes, limit: int) -> None:
        self.content, self.limit, self.at = content, limit, 0

    def readinto(self, buffer: memoryview) -> int:
        if self.at >= self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        size = min(len(buffer), 4096, len(self.content) - self.at)
        buffer[:size] = self.content[self.at : self.at + size]
        self.at += size
        return size


@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
def test_p3_a_receive_that_was_killed_leaves_nothing_in_clear_and_the_next_one_does_it(pool: Pool, part: float) -> None:
    for content, want in ((FULL, ["2018"]), (NEXT, ["2018", "2019"])):
        child = os.fork()
        if not child:
            with Pool.open(pool.path) as mine:
                options = ReceiveOptions(intake=Intake(Keys(), STEP))
                receive(mine, Killed(content, int(len(content) * part)), HERE.text, options)  # type: ignore[arg-type]
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert not in_clear(pool.path)
        with Pool.open(pool.path) as again:
            take(again, content, step=STEP)
            assert state(again)["v/enc/ds"] == want
            compact(again)
            for snapshot in again.snapshots(again.dataset(HERE)):
                with OpenSnapshot(again, snapshot, first_that_opens([KEY])) as opened:
                    verify(opened)


@pytest.mark.parametrize("seed", range(60))
def test_p4_a_mutated_stream_is_refused_in_one_line_or_becomes_authentic(pool: Pool, seed: int) -> None:
    """Full ones, and increments onto the real full one."""
    dice = random.Random(seed)
    content = FULL
    if seed % 2:
        take(pool, FULL)
        content = NEXT
    before = state(pool)
    why = ""
    try:
        take(pool, mutate(content, dice), step=STEP if seed % 3 == 0 else 1 << 40)
    except ZkeepError as error:
        why = str(error)
    assert "\n" not in why
    if why and state(pool) == before:
        assert segments(pool) == []
        return
    # Its END was verified before the rest of the package turned out to be broken, or all of it is legal.
    for dataset in pool.tree().within(pool.dataset(DatasetName.parse("v/enc"))):
        for snapshot in pool.snapshots(dataset):
            assert "step" not in snapshot.doc
            with OpenSnapshot(pool, snapshot, first_that_opens([KEY])) as opened:
                verify(opened)


