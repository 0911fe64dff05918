"""One scrub at a time; how far it is can be seen from outside, and it can be stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vectors.histories import DATA, histories, new_pool, take_chain
from zkeep.errors import Refused, TryAgain
from zkeep.pool.datasets.lifecycle import SCRUB, SCRUB_RUNNING, scrub_runs
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance import scrub_state
from zkeep.pool.maintenance.scrub import rebuild_catalog, scrub
from zkeep.pool.maintenance.scrub_state import CANCEL, Cancelled, request_cancel

HISTORY = next(h for h in histories(DATA / "histories") if h.name == "rs512b")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with new_pool(tmp_path) as pool:
        take_chain(pool, HISTORY)
        yield pool


def test_a_second_one_is_refused_in_zpools_words(pool: Pool) -> None:
    with pool.store.lock(SCRUB), pytest.raises(TryAgain, match=r"cannot scrub \w+: currently scrubbing; use '.* -s'"):
        scrub(pool)
    assert pool.catalog.get(SCRUB, "") is None
    assert scrub(pool).clean


def test_a_catalog_is_not_made_anew_under_a_scrub(pool: Pool) -> None:
    with pool.store.lock(SCRUB), pytest.raises(TryAgain, match="currently scrubbing"):
        rebuild_catalog(pool.path)


def test_it_is_seen_from_outside_while_it_runs(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_state, "EVERY", 0.0)
    seen = []

    def look(done: int, total: int) -> None:
        with Pool.open(pool.path) as other:
            seen.append((scrub_runs(other), other.catalog.get(SCRUB, SCRUB_RUNNING), done, total))

    assert scrub(pool, look).clean
    assert all(runs for runs, _, _, _ in seen)
    noted = [doc for _, doc, _, _ in seen if doc]
    assert noted
    assert all(0 <= doc["done"] <= doc["total"] for doc in noted)
    assert max(done for _, _, done, _ in seen) == seen[-1][3]
    assert not scrub_runs(pool)
    assert pool.catalog.get(SCRUB, SCRUB_RUNNING) is None


def test_it_stops_when_asked(pool: Pool) -> None:
    def ask(done: int, total: int) -> None:
        with Pool.open(pool.path) as other:
            if not other.catalog.get(SCRUB, CANCEL):
                request_cancel(other)

    with pytest.raises(Cancelled):
        scrub(pool, ask)
    doc = pool.catalog.get(SCRUB, SCRUB_RUNNING)
    assert doc is not None
    assert 0 <= doc["done"] <= doc["total"]  # in so small a pool all may have been read before it was asked
    assert pool.catalog.get(SCRUB, "") is None
    assert scrub(pool).clean  # an old request does not stop the next one
    assert pool.catalog.get(SCRUB, SCRUB_RUNNING) is None
    assert pool.catalog.get(SCRUB, CANCEL) is None


def test_nothing_is_asked_where_nothing_runs(pool: Pool) -> None:
    with pytest.raises(Refused, match="there is no active scrub"):
        request_cancel(pool)


def test_an_error_ends_all_threads(pool: Pool) -> None:
    class _Odd(Exception):
        pass

    def fail(done: int, total: int) -> None:
        raise _Odd

    with pytest.raises(_Odd):
        scrub(pool, fail)
    assert not scrub_runs(pool)
