"""Plain streams of the real kernel become encrypted on arrival, and show what the kernel's mount showed.

So does what is sent of it, raw, and received elsewhere; every MAC of it verifies.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from manifests import Case, cases, is_plain, snapshots
from test_open_vectors import check

from reencryptkit import KEY, encrypted_pool, raw_stream, take
from zkeep.crypto.unwrap import first_that_opens
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot

STEP = 256 << 10


CASES = [replace(case, key=first_that_opens([KEY])) for case in cases() if is_plain(case)]


@pytest.mark.parametrize("step", [1 << 40, STEP])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_plain_stream_becomes_encrypted_and_shows_the_same(case: Case, step: int, tmp_path: Path) -> None:
    with encrypted_pool(tmp_path / "pool") as pool, Pool.create(tmp_path / "back", "b") as back:
        for stream in case.streams:
            take(pool, stream.read_bytes(), step=step, force=True)
        expected = snapshots(pool, case)
        assert expected
        before: Snapshot | None = None
        for snapshot, want in expected:
            check(pool, case, snapshot, want)
            assert_authentic(pool, snapshot)
            # What is sent raw is taken by a pool that checks what a kernel checks, and is the same there.
            source = str(before.name) if before is not None else None
            content = raw_stream(pool, str(snapshot.name), source)
            receive(back, io.BytesIO(content), "b/ds", ReceiveOptions())
            (copy,) = back.snapshots_by_guid(snapshot.guid)
            check(back, case, copy, want)
            before = snapshot


def assert_authentic(pool: Pool, snapshot: Snapshot) -> None:
    with OpenSnapshot(pool, snapshot, first_that_opens([KEY])) as opened:
        assert verify(opened).objects


def test_the_cases_are_there() -> None:
    assert "story-plain" in {case.name for case in CASES}
