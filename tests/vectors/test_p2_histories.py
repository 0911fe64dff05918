"""P2: what came in goes out, for every snapshot and every pair of snapshots of real histories."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from histories import (
    DATA,
    History,
    Pair,
    difference,
    forget_originals,
    histories,
    new_pool,
    point,
    put_together,
    take,
    take_chain,
)

from zkeep.names import BookmarkName, DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact

WHERE = os.environ.get("ZKEEP_VECTORS", "")
FOLDERS = [DATA / "histories", *(Path(WHERE) / name for name in ("chains", "holes") if WHERE)]
SETS = list({h.name: h for h in histories(*FOLDERS)}.values())

HOLES: dict[str, set[Pair]] = {"birth": {(0, 2)}, "rs512": {(3, 6)}}
"""Increments with other FREE records over ranges that are holes at both ends: docs/COMPATIBILITY.md."""


def judge(pool: Pool, history: History, gone: set[int] | None = None, *, strict: bool = True) -> int:
    """Compare whatever can be sent with what the kernel sent; returns how many streams there were.

    `strict`: the increments that may differ over holes are known.
    """
    count = 0
    for pair in history.pairs:
        source, to = pair
        if gone and (to in gone or (source in gone and point(pool, source or 0) is None)):
            continue
        count += 1
        got, want = put_together(pool, pair), history.stream(pair)
        if got != want:
            ends = history.stream((None, source)) if source is not None else None, history.stream((None, to))
            assert difference(got, want, *ends) == "", pair
            assert not strict or pair in HOLES.get(history.name, ()), pair
    return count


@pytest.fixture(params=SETS, ids=str)
def history(request: pytest.FixtureRequest) -> History:
    found: History = request.param
    return found


@pytest.fixture
def pool(tmp_path: Path, history: History) -> Iterator[Pool]:
    with new_pool(tmp_path) as pool:
        take_chain(pool, history)
        yield pool


def test_p2_what_came_in_goes_out_and_so_does_every_pair(pool: Pool, history: History) -> None:
    assert judge(pool, history) == len(history.streams)


def test_p2_what_came_in_goes_out_when_all_is_put_together(pool: Pool, history: History) -> None:
    forget_originals(pool)
    assert judge(pool, history) == len(history.streams)


def test_p2_what_came_in_goes_out_after_snapshots_were_destroyed_and_space_came_back(
    pool: Pool, history: History
) -> None:
    dice = random.Random(history.name)
    left, gone = set(range(history.last + 1)), set()
    while len(left) > 1:
        for number in dice.sample(sorted(left), dice.randrange(1, len(left))):
            if dice.random() < 0.5:
                keep_as_bookmark(pool, number)
            destroy_snapshot(pool, number)
            left.discard(number)
            gone.add(number)
        judge(pool, history, gone)
        compact(pool)
        judge(pool, history, gone)


def test_p2_what_came_in_goes_out_from_bookmarks(pool: Pool, history: History) -> None:
    for number in range(history.last):
        keep_as_bookmark(pool, number)
        destroy_snapshot(pool, number)
    judge(pool, history, set(range(history.last)))
    compact(pool)
    assert judge(pool, history, set(range(history.last))) == history.last + 1


def test_p2_what_came_in_goes_out_after_a_rollback(pool: Pool, history: History) -> None:
    turn = history.last // 2 + 1
    take(pool, history.stream((turn - 1, turn)), "v/x@again", force=True)
    assert point(pool, turn) is None
    namespace.rename_snapshot(pool, SnapshotName.parse("v/x@again"), SnapshotName.parse(f"v/x@s{turn}"))
    for number in range(turn, history.last):
        take(pool, history.stream((number, number + 1)), f"v/x@s{number + 1}")
    forget_originals(pool)
    assert judge(pool, history) == len(history.streams)


def test_p2_what_came_in_goes_out_wherever_the_increments_begin(tmp_path: Path, history: History) -> None:
    """Received: the full stream of a later snapshot, then every second increment."""
    numbers = list(range(history.last % 2, history.last + 1, 2))
    with new_pool(tmp_path) as pool:
        take(pool, history.stream((None, numbers[0])), f"v/x@s{numbers[0]}")
        for number in numbers[1:]:
            take(pool, history.stream((number - 2, number)), f"v/x@s{number}")
        forget_originals(pool)
        judge(pool, history, set(range(history.last + 1)) - set(numbers), strict=False)


def test_p2_zstream_accepts_what_goes_out(pool: Pool, history: History) -> None:
    zstream = shutil.which("zstream") or shutil.which("zstream", path="/sbin:/usr/sbin")
    if zstream is None:
        pytest.skip("zstream (Debian: zfsutils-linux) is not installed")
    forget_originals(pool)
    for pair in [(None, history.last), (0, history.last)]:
        subprocess.run([zstream, "dump"], input=put_together(pool, pair), stdout=subprocess.DEVNULL, check=True)


def keep_as_bookmark(pool: Pool, number: int) -> None:
    namespace.bookmark(pool, SnapshotName.parse(f"v/x@s{number}"), BookmarkName.parse(f"v/x#b{number}"))


def destroy_snapshot(pool: Pool, number: int) -> None:
    plan = destroy.plan_snapshots(View(pool), DatasetName.parse("v/x"), f"s{number}", destroy.DestroyOptions())
    destroy.execute(pool, plan)
