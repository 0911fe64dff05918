"""P3: an interruption at or just behind the commit of a transaction loses nothing that the transaction names.

The exception that reaches the caller says nothing of whether the journal has the line, so what is undone is asked of
the journal.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from receivekit import kept, stream, take, take_chain
from vectors.histories import DATA, histories, new_pool, put_together
from vectors.histories import take_chain as take_history
from zkeep.errors import Damaged
from zkeep.format.reader import read_events
from zkeep.format.records import HEADER
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.heal import heal
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.catalog import Catalog
from zkeep.pool.store.journal import Journal
from zkeep.pool.store.port import segment_name
from zkeep.pool.timeline.segment import Segment

MOMENTS = ("the line is durable", "before the index follows", "after the index followed")
HISTORY = next(h for h in histories(DATA / "histories") if h.name == "rs512b")


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[list[Any]], bool]], None]:
    """Have the first transaction whose operations are chosen interrupted at a moment."""

    def arrange(moment: str, chosen: Callable[[list[Any]], bool]) -> None:
        append, settle = Journal.append, Catalog._settle
        armed = [False, True]

        def appended(self: Journal, place: Any, operations: Any) -> Any:
            operations = list(operations)
            found = append(self, place, operations)
            if armed[1] and chosen(operations):
                armed[:] = [True, False]
                if moment == MOMENTS[0]:
                    armed[0] = False
                    raise KeyboardInterrupt
            return found

        def settled(self: Catalog, place: Any) -> None:
            hit, armed[0] = armed[0], False
            if hit and moment == MOMENTS[1]:
                with monkeypatch.context() as patch:
                    patch.setattr(self._index, "move", _interrupted)
                    settle(self, place)
            settle(self, place)
            if hit:
                raise KeyboardInterrupt

        monkeypatch.setattr(Journal, "append", appended)
        monkeypatch.setattr(Catalog, "_settle", settled)

    return arrange


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def puts(kind: str) -> Callable[[list[Any]], bool]:
    """Whether a transaction puts a document of this kind."""
    return lambda operations: any(name == kind and doc is not None for name, _, doc in operations)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "p", "p") as pool:
        yield pool


@pytest.fixture
def history(tmp_path: Path) -> Iterator[Pool]:
    with new_pool(tmp_path) as pool:
        take_history(pool, HISTORY)
        yield pool


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("resumable", [False, True])
def test_p3_a_receive_keeps_its_snapshot(pool: Pool, interrupt: Any, moment: str, *, resumable: bool) -> None:
    interrupt(moment, puts("snapshot"))
    with pytest.raises(KeyboardInterrupt):
        take(pool, stream("full-s0"), "p/t", resumable=resumable)
    assert kept(pool) == {"p/t": ["s0"]}
    assert scrub(pool).clean
    take_chain(pool, "inc-s0-s1", target="p/t")
    assert scrub(pool).clean


@pytest.mark.parametrize("moment", MOMENTS)
def test_p3_a_compaction_keeps_what_it_wrote(history: Pool, interrupt: Any, moment: str) -> None:
    dataset = history.dataset(DatasetName.parse("v/x"))
    plan = destroy.plan_snapshots(View(history), dataset.name, "s1", destroy.DestroyOptions())
    destroy.execute(history, plan)
    interrupt(moment, puts("run"))
    with pytest.raises(KeyboardInterrupt):
        compact(history, dataset)
    assert scrub(history).clean
    pair = (None, HISTORY.last)
    assert put_together(history, pair) == HISTORY.stream(pair)


@pytest.mark.parametrize("moment", MOMENTS)
def test_p3_healing_keeps_what_it_wrote(history: Pool, interrupt: Any, moment: str) -> None:
    dataset = history.dataset(DatasetName.parse("v/x"))
    first = history.snapshots(dataset)[0]
    run = history.catalog.get("run", first.key)
    assert run is not None
    name = segment_name(run["segments"][0])
    with history.store.open(name) as blob:
        rows = Segment(lambda: blob, name).rows("blocks")
        place = int(rows["pos"][rows["size"] > HEADER][0])
    path = history.store.path(name)
    content = bytearray(path.read_bytes())
    content[place + HEADER + 1] ^= 16
    path.write_bytes(content)
    assert not scrub(history).clean
    interrupt(moment, puts("run"))
    with pytest.raises(KeyboardInterrupt):
        heal(history, dataset, first, read_events(io.BytesIO(HISTORY.stream((None, 0)))), dry_run=False)
    assert scrub(history).clean


@pytest.mark.parametrize("failing", [("move",), ("commit",)], ids=lambda names: names[0])
def test_p3_a_disk_that_answers_again_is_read_again(
    pool: Pool, failing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is durable, and from there on nothing can be read: a mount waits with what it has, and goes on."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        for name in failing:
            patch.setattr(pool.catalog._index, name, refuse)
        patch.setattr(Catalog, "_in_memory", refuse)
        with pool.transaction() as t:
            pool.create_dataset(t, DatasetName.parse("p/a"))
        with pytest.raises(Damaged, match="cannot be read any more"):
            pool.tree()
    assert sorted(pool.tree().by_name) == ["p", "p/a"]
    with pool.transaction() as t:
        pool.create_dataset(t, DatasetName.parse("p/b"))
    assert sorted(pool.tree().by_name) == ["p", "p/a", "p/b"]
    with Pool.open(pool.path) as other:
        assert sorted(other.tree().by_name) == ["p", "p/a", "p/b"]
