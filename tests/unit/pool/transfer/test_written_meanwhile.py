"""A document is read under the lock under which it is written: nothing that is old or gone comes back."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from receivekit import kept, stream, take, take_chain
from zkeep.errors import BadStream, Refused, TryAgain
from zkeep.format.events import Event, SubEnd
from zkeep.format.reader import read_events
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.destroy import lock_name
from zkeep.pool.datasets.model import NotThere, Pool, Snapshot
from zkeep.pool.datasets.promote import promote
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance import notice, verified
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.health import HealthProblem
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.timeline import segment as seg
from zkeep.pool.transfer.receive import ReceiveOptions, receive_events
from zkeep.pool.transfer.send import SendRequest, send

HERE, CLONE = DatasetName("p/a"), DatasetName("p/c")
ORIGIN = SnapshotName.parse("p/o@s0")
Act = Callable[[Pool], object]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """With p/o@s0, and its clone p/c."""
    monkeypatch.setattr(seg, "TARGET", 4_000)
    with Pool.create(tmp_path / "pool", "p") as pool:
        take(pool, stream("full-s0"), "p/o")
        origin = pool.snapshot(ORIGIN)
        with pool.transaction() as t:
            crypt = origin.dataset.doc["crypt"]
            pool.create_dataset(t, CLONE, origin={"dataset": origin.dataset.id, "txg": origin.txg}, crypt=crypt)
        yield pool


@pytest.fixture
def other(pool: Pool) -> Iterator[Pool]:
    """The same pool, as another process has it open."""
    with Pool.open(pool.path) as other:
        yield other


def take_while(pool: Pool, other: Pool, act: Act, *, breaks: bool = False, resumable: bool = True) -> None:
    """Receive a clone of p/o@s0 into p/a; `act` happens before its END, and then it may break off."""

    def events() -> Iterator[Event]:
        for event in read_events(io.BytesIO(stream("inc-s0-s1")), 20_000):
            if isinstance(event, SubEnd):
                act(other)
                if breaks:
                    raise BadStream("cut", 0, "END")
            yield event

    receive_events(pool, events(), "p/a", ReceiveOptions(resumable=resumable, set_properties={"origin": str(ORIGIN)}))


def promoted(pool: Pool) -> None:
    promote(pool, CLONE)


def sent(pool: Pool) -> bytes:
    sink = io.BytesIO()
    send(pool, SendRequest(snapshot="p/a@s1", raw=True, received_name=True), sink)
    return sink.getvalue()


def is_whole(pool: Pool) -> None:
    """p/a@s1 is a clone of what is the clone's now, and every byte is there."""
    assert kept(pool) == {"p/o": [], "p/c": ["s0"], "p/a": ["s1"]}
    assert pool.dataset(HERE).origin == (pool.dataset(CLONE).id, pool.snapshot(SnapshotName.parse("p/c@s0")).txg)
    compact(pool)
    assert scrub(pool).clean
    with Pool.create(pool.path.parent / "undisturbed", "p") as undisturbed:
        take_chain(undisturbed, "full-s0", "inc-s0-s1")
        assert sent(pool) == sent(undisturbed)
    assert pool.catalog.keys("receive") == []


@pytest.mark.parametrize("resumable", [True, False])
def test_p3_a_promotion_while_its_source_is_received_onto_is_followed(
    pool: Pool, other: Pool, resumable: bool
) -> None:
    take_while(pool, other, promoted, resumable=resumable)
    is_whole(pool)


def test_p3_a_partial_receive_finds_its_source_after_a_promotion(pool: Pool, other: Pool) -> None:
    with pytest.raises(TryAgain):
        take_while(pool, other, promoted, breaks=True)
    state = pool.catalog.get("receive", pool.dataset(HERE).key)
    assert state is not None
    assert state["tally"]["segments"]
    assert state["source"] == [pool.dataset(CLONE).id, pool.snapshot(SnapshotName.parse("p/c@s0")).txg]
    with pytest.raises(Refused, match="dependent clones"):
        destroy.plan_snapshots(View(pool), CLONE, "s0", destroy.DestroyOptions())
    options = ReceiveOptions(resumable=True, set_properties={"origin": "p/c@s0"})
    receive_events(pool, read_events(io.BytesIO(stream("inc-s0-s1"))), "p/a", options)
    is_whole(pool)


def test_p3_what_is_set_while_it_is_received_stays(pool: Pool, other: Pool) -> None:
    def act(other: Pool) -> None:
        namespace.rename(other, HERE, DatasetName("p/b"))
        namespace.set_properties(other, [DatasetName("p/b")], {"a:b": "c"})

    take_while(pool, other, act)
    assert kept(pool)["p/b"] == ["s1"]
    assert pool.dataset(DatasetName("p/b")).doc["local"]["a:b"] == "c"


def test_p3_a_receive_that_was_given_up_does_not_come_back(pool: Pool, other: Pool) -> None:
    def act(other: Pool) -> None:
        made = other.dataset(HERE)
        with other.transaction() as t:
            other.remove_dataset(t, made)

    with pytest.raises(Refused, match="given up meanwhile"):
        take_while(pool, other, act)
    assert pool.find(HERE) is None
    for kind in ("receive", "reserve"):
        assert pool.catalog.keys(kind) == []


def gone(pool: Pool) -> Snapshot:
    """A snapshot whose dataset is destroyed, as somebody still has it."""
    take_chain(pool, "full-s0", target="p/x")
    snapshot = pool.snapshot(SnapshotName.parse("p/x@s0"))
    plan = destroy.plan_dataset(View(pool), DatasetName("p/x"), destroy.DestroyOptions(recursive=True))
    destroy.execute(pool, plan)
    return snapshot


def test_p3_a_destroyed_dataset_does_not_come_back(pool: Pool) -> None:
    snapshot = gone(pool)
    before = set(pool.catalog._index.rows())
    verified.note(pool, snapshot, 1, authentic=False)
    problems = [HealthProblem("damaged", "x")]
    notice.remember(pool, [notice.HealthChange("p/x", snapshot.dataset.key, problems, ["damaged"], [])])
    for change in (
        lambda t: pool.update_dataset(t, snapshot.dataset, live=True),
        lambda t: pool.update_snapshot(t, snapshot, defer_destroy=True),
    ):
        with pytest.raises(NotThere, match="destroyed meanwhile"), pool.transaction() as t:
            change(t)
    assert set(pool.catalog._index.rows()) == before


@pytest.mark.parametrize("again", [True, False])
def test_p3_the_dataset_that_is_locked_is_the_one_that_is_received_into(
    pool: Pool, other: Pool, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """It is destroyed, and perhaps made again, before the lock is there."""
    take_chain(pool, "full-s0", "inc-s0-s1", target="p/a")
    first = pool.dataset(HERE)
    real = pool.store.lock

    def lock(name: str, **options: object) -> AbstractContextManager[None]:
        if name == lock_name(first):
            monkeypatch.undo()
            monkeypatch.setattr(seg, "TARGET", 4_000)
            plan = destroy.plan_dataset(View(other), HERE, destroy.DestroyOptions(recursive=True))
            destroy.execute(other, plan)
            if again:
                take_chain(other, "full-s0", "inc-s0-s1", target="p/a")
        return real(name, **options)  # type: ignore[arg-type]

    def others_wait(other: Pool) -> None:
        with pytest.raises(TryAgain), other.store.lock(lock_name(other.dataset(HERE))):
            pass

    monkeypatch.setattr(pool.store, "lock", lock)
    if not again:
        with pytest.raises(Refused):
            take(pool, stream("inc-s1-s2"), "p/a")
        assert pool.find(HERE) is None
        return

    def events() -> Iterator[Event]:
        for event in read_events(io.BytesIO(stream("inc-s1-s2")), 20_000):
            if isinstance(event, SubEnd):
                others_wait(other)
            yield event

    receive_events(pool, events(), "p/a", ReceiveOptions())
    assert kept(pool)["p/a"] == ["s0", "s1", "s2"]
    assert scrub(pool).clean
