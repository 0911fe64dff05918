"""What somebody else does to a pool while a stream comes in: it is refused, or the stream lands where it began."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zkeep.errors import Refused, TryAgain
from zkeep.format.events import Event, SubEnd
from zkeep.format.reader import read_events
from zkeep.format.records import HEADER
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.transfer.receive import ReceiveOptions, receive, receive_events
from zkeep.pool.transfer.send import SendRequest, send

CHAINS = Path(__file__).parents[3] / "data" / "opened" / "chains"
CHAIN = "ccm192-lzjb-8k"
HERE, THERE = DatasetName.parse("p/a"), DatasetName.parse("p/b")
Act = Callable[[Pool], object]


def stream(name: str) -> bytes:
    return (CHAINS / f"{CHAIN}.{name}.zfs").read_bytes()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", "p") as pool:
        yield pool


@pytest.fixture
def other(pool: Pool, tmp_path: Path) -> Iterator[Pool]:
    """The same pool, as another process has it open."""
    with Pool.open(tmp_path / "pool") as other:
        yield other


def take(pool: Pool, *names: str) -> None:
    for name in names:
        receive(pool, io.BytesIO(stream(name)), "p/a", ReceiveOptions())


def interrupted_by(act: Act, other: Pool, content: bytes) -> Iterator[Event]:
    """A stream's events; `act` happens before its END."""
    for event in read_events(io.BytesIO(content)):
        if isinstance(event, SubEnd):
            act(other)
        yield event


def take_while(pool: Pool, other: Pool, act: Act, name: str, options: ReceiveOptions | None = None) -> None:
    receive_events(pool, interrupted_by(act, other, stream(name)), "p/a", options or ReceiveOptions())


def kept(pool: Pool) -> dict[str, list[str]]:
    found = pool.all_snapshots().items()
    return {pool.by_id(key).name.text: [s.doc["name"] for s in some] for key, some in found if key > 1}


def sent(pool: Pool, name: str) -> bytes:
    sink = io.BytesIO()
    send(pool, SendRequest(snapshot=name, raw=True, received_name=True), sink)
    return sink.getvalue()


def renamed(pool: Pool) -> None:
    namespace.rename(pool, HERE, THERE)


def destroyed(pool: Pool) -> None:
    destroy.execute(pool, destroy.plan_dataset(View(pool), HERE, destroy.DestroyOptions(recursive=True)))


def made(pool: Pool) -> None:
    namespace.create(pool, HERE, {})


@pytest.mark.parametrize("resumable", [False, True])
def test_an_increment_lands_in_its_dataset_whatever_that_is_called_by_then(
    pool: Pool, other: Pool, resumable: bool
) -> None:
    take(pool, "full-s0")
    take_while(pool, other, renamed, "inc-s0-s1", ReceiveOptions(resumable=resumable))
    assert kept(pool) == {"p/b": ["s0", "s1"]}
    assert sent(pool, "p/b@s0") == stream("full-s0")


def test_the_first_snapshot_lands_in_the_dataset_that_was_made_for_it(pool: Pool, other: Pool) -> None:
    take_while(pool, other, renamed, "full-s0", ReceiveOptions(resumable=True))
    assert kept(pool) == {"p/b": ["s0"]}


def test_what_a_hold_protects_by_now_is_not_rolled_back(pool: Pool, other: Pool) -> None:
    take(pool, "full-s0", "inc-s0-s1", "inc-s1-s2")
    namespace.rename_snapshot(pool, SnapshotName.parse("p/a@s1"), SnapshotName.parse("p/a@before"))

    def hold(other: Pool) -> None:
        namespace.hold(other, "keep", [SnapshotName.parse("p/a@s2")])

    with pytest.raises(Refused, match=r"cannot roll back: p/a@s2 is held \(keep\)"):
        take_while(pool, other, hold, "inc-s0-s1", ReceiveOptions(force=True))
    assert kept(pool) == {"p/a": ["s0", "before", "s2"]}


def test_what_has_a_clone_by_now_is_not_rolled_back(pool: Pool, other: Pool) -> None:
    take(pool, "full-s0", "inc-s0-s1", "inc-s1-s2")
    namespace.rename_snapshot(pool, SnapshotName.parse("p/a@s1"), SnapshotName.parse("p/a@before"))

    def clone(other: Pool) -> None:
        dataset = other.dataset(HERE)
        origin = {"dataset": dataset.id, "txg": other.snapshots(dataset)[-1].txg}
        with other.transaction() as t:
            other.create_dataset(t, THERE, origin=origin, raw=True)

    with pytest.raises(Refused, match="cannot roll back: p/b is a clone of p/a@s2"):
        take_while(pool, other, clone, "inc-s0-s1", ReceiveOptions(force=True))
    assert kept(pool) == {"p/a": ["s0", "before", "s2"], "p/b": []}


def give_up(pool: Pool) -> None:
    receive(pool, None, "p/a", ReceiveOptions(abort=True))


@pytest.mark.parametrize("act", [destroyed, give_up])
def test_what_is_being_received_into_is_busy(act: Act, pool: Pool, other: Pool) -> None:
    def busy(other: Pool) -> None:
        with pytest.raises(TryAgain):
            act(other)

    take_while(pool, other, busy, "full-s0", ReceiveOptions(resumable=True))
    assert kept(pool) == {"p/a": ["s0"]}


def test_two_full_streams_do_not_meet_in_one_dataset(pool: Pool, other: Pool) -> None:
    def another(other: Pool) -> None:
        made(other)
        receive(other, io.BytesIO(stream("full-s0")), "p/a@other", ReceiveOptions(force=True))

    with pytest.raises(Refused, match="dataset already exists"):
        take_while(pool, other, another, "full-s0")
    assert kept(pool) == {"p/a": ["other"]}
    assert sent(pool, "p/a@other")[HEADER:] == stream("full-s0")[HEADER:]
    assert list(pool.catalog.keys("receive")) == []


def quota(pool: Pool, size: int) -> None:
    namespace.set_properties(pool, [DatasetName.parse("p")], {"quota": str(size)})


def cut(pool: Pool, name: str, size: int, content: bytes) -> None:
    with pytest.raises(TryAgain):
        receive(pool, io.BytesIO(content[:size]), name, ReceiveOptions(resumable=True))


def test_what_interrupted_receives_keep_takes_room(pool: Pool) -> None:
    content = stream("full-s0")
    quota(pool, len(content))
    cut(pool, "p/a", 200_000, content)
    with pytest.raises(Refused, match="the quota is used up"):
        receive(pool, io.BytesIO(content), "p/b", ReceiveOptions(resumable=True))
    give_up(pool)
    receive(pool, None, "p/b", ReceiveOptions(abort=True))
    receive(pool, io.BytesIO(content), "p/b", ReceiveOptions())


def test_a_resumed_receive_has_no_more_room_than_one(pool: Pool) -> None:
    content = stream("full-s0")
    cut(pool, "p/a", 150_000, content)
    token = str(View(pool).get(pool.dataset(HERE), "receive_resume_token").value)
    with Pool.create(pool.store.root.parent / "source", "q") as source:  # type: ignore[attr-defined]
        receive(source, io.BytesIO(content), "q/a", ReceiveOptions())
        sink = io.BytesIO()
        send(source, SendRequest(token=token), sink)
    quota(pool, 160_000)
    with pytest.raises(Refused, match="the quota is used up"):
        receive(pool, io.BytesIO(sink.getvalue()), "p/a", ReceiveOptions(resumable=True))
    quota(pool, len(content))
    receive(pool, io.BytesIO(sink.getvalue()), "p/a", ReceiveOptions(resumable=True))
    assert kept(pool) == {"p/a": ["s0"]}


def test_two_receives_share_one_quota(pool: Pool, other: Pool) -> None:
    quota(pool, len(stream("full-s0")) + 1000)

    def too(other: Pool) -> None:
        with pytest.raises(Refused, match="the quota is used up"):
            receive(other, io.BytesIO(stream("full-s0")), "p/b", ReceiveOptions())

    take_while(pool, other, too, "full-s0")
    assert kept(pool) == {"p/a": ["s0"]}


def test_a_dataset_whose_only_snapshot_was_destroyed_begins_again_with_f(pool: Pool) -> None:
    take(pool, "full-s0")
    destroy.execute(pool, destroy.plan_snapshots(View(pool), HERE, "s0", destroy.DestroyOptions()))
    assert not pool.catalog.keys("run")
    with pytest.raises(Refused, match="destination exists; must specify -F to overwrite it"):
        take(pool, "full-s0")
    receive(pool, io.BytesIO(stream("full-s0")), "p/a", ReceiveOptions(force=True))
    take(pool, "inc-s0-s1")
    assert sent(pool, "p/a@s0") == stream("full-s0")


def test_a_partial_receive_is_given_up_and_a_dataset_made_below_stays(pool: Pool) -> None:
    content = stream("full-s0")
    with pytest.raises(TryAgain):
        receive(pool, io.BytesIO(content[: len(content) * 2 // 3]), "p/a", ReceiveOptions(resumable=True))
    below = DatasetName.parse("p/a/below")
    namespace.create(pool, below, {})
    receive(pool, io.BytesIO(b""), "p/a", ReceiveOptions(abort=True))
    assert pool.find(HERE)
    assert pool.find(below)
