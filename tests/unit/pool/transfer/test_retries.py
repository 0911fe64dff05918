"""Sending the same again is harmless, and goes on with what broke off: whatever the stream, wherever it broke."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from badinput.badkit import Record, forged
from badinput.badkit import stream as packed
from receivekit import cut, kept, partial, stream, take, take_chain
from zkeep.errors import BadStream, Interrupted, Refused
from zkeep.format.events import SubEnd
from zkeep.format.reader import read_events
from zkeep.format.records import BeginFlag
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.transfer.receive import Arrival
from zkeep.pool.transfer.send import SendRequest, send


def moved(name: str, by: int, *, clone: bool = False, source: int | None = None) -> bytes:
    """A stream as of another dataset, whose guids are `by` larger."""

    def change(records: list[Record]) -> None:
        begin = records[0].get()
        for record in records:
            record.put("toguid", begin.toguid + by)  # type: ignore[attr-defined]
        if begin.fromguid:  # type: ignore[attr-defined]
            records[0].put("fromguid", begin.fromguid + (by if source is None else source))  # type: ignore[attr-defined]
        if clone:
            records[0].put("flags", begin.flags | BeginFlag.CLONE)  # type: ignore[attr-defined]

    return forged(packed("rs512b", name), change)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Pool]:
    """q/t and q/t/o, each with s0 to s2, and q/t/c, a clone of q/t/o@s1, with an s2."""
    with Pool.create(tmp_path / "q", "q") as pool:
        for dataset, by in (("q/t", 0), ("q/t/o", 1000)):
            for number, name in enumerate(("full-s0", "inc-s0-s1", "inc-s1-s2")):
                take(pool, moved(name, by), f"{dataset}@s{number}")
        clone = moved("inc-s1-s2", 2000, clone=True, source=1000)
        take(pool, clone, "q/t/c@s2", set_properties={"origin": "q/t/o@s1"})
        yield pool


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "p", "p") as pool:
        yield pool


def sent(pool: Pool, snapshot: str | None = None, **letters: object) -> bytes:
    sink = io.BytesIO()
    send(pool, SendRequest(snapshot=snapshot, raw=True, **letters), sink)  # type: ignore[arg-type]
    return sink.getvalue()


REQUESTS: dict[str, dict[str, object]] = {
    "full": {},
    "-i": {"from_": "@s0"},
    "-I": {"from_all": "@s0"},
    "-p": {"props": True},
    "-R": {"replicate": True},
    "-R -i": {"replicate": True, "from_": "@s1"},
    "-R -I": {"replicate": True, "from_all": "@s0"},
}


def prepared(pool: Pool, source: Pool, letters: dict[str, object]) -> tuple[bytes, bool]:
    """What such a stream needs is received; the stream, and whether it is incremental."""
    since = str(letters.get("from_") or letters.get("from_all") or "")
    if since:
        take(pool, sent(source, f"q/t{since}", replicate=bool(letters.get("replicate"))), "p/t")
    return sent(source, "q/t@s2", **letters), bool(since)


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("letters", REQUESTS.values(), ids=REQUESTS)
def test_whoever_did_not_learn_the_result_may_send_it_again(
    pool: Pool, source: Pool, letters: dict[str, object], *, resumable: bool
) -> None:
    content, _ = prepared(pool, source, letters)
    take(pool, content, "p/t", resumable=resumable)
    after, files = kept(pool), pool.store.names("segments")
    told: list[Arrival] = []
    take(pool, content, "p/t", resumable=resumable, on_snapshot=told.append)
    assert told
    assert all(arrival.ignored for arrival in told)
    assert (kept(pool), pool.store.names("segments")) == (after, files)


@pytest.mark.parametrize("force", [False, True])
def test_a_clone_may_be_sent_again(pool: Pool, source: Pool, *, force: bool) -> None:
    take(pool, sent(source, "q/t/o@s1"), "p/o")
    content = sent(source, "q/t/c@s2", from_="q/t/o@s1")
    for _ in range(2):
        take(pool, content, "p/c", force=force, set_properties={"origin": "p/o@s1"})
    assert kept(pool) == {"p/o": ["s1"], "p/c": ["s2"]}


def test_the_rest_may_be_sent_again(pool: Pool) -> None:
    with Pool.create(pool.path.parent / "s", "s") as sender:
        take_chain(sender, target="s/a")
        content = stream("full-s0")
        cut(pool, content, len(content) // 2)
        rest = sent(sender, token=token(pool, "p/a"))
        cut(pool, rest, len(rest) - 400)
        take(pool, rest, "p/a", resumable=True)  # with the token of before
        take(pool, rest, "p/a", resumable=True)
        assert kept(pool) == {"p/a": ["s0"]}
        assert sent(pool, "p/a@s0", received_name=True) == content


def token(pool: Pool, name: str) -> str:
    doc = pool.catalog.get("receive", pool.dataset(DatasetName.parse(name)).key)
    assert doc
    return str(doc["token"])


def ends(content: bytes) -> list[int]:
    """Where the substreams of a package end."""
    return [event.offset + 312 for event in read_events(io.BytesIO(content)) if isinstance(event, SubEnd)]


@pytest.mark.parametrize("letters", REQUESTS.values(), ids=REQUESTS)
def test_p3_what_broke_off_goes_on_by_sending_the_same_again(
    pool: Pool, source: Pool, letters: dict[str, object]
) -> None:
    content, _ = prepared(pool, source, letters)
    first = 0
    for end in ends(content):
        for size in ((first + end) // 2, (first + 2 * end) // 3, end - 1):
            with pytest.raises((Interrupted, BadStream)):  # in a BEGIN there is nothing to keep yet
                take(pool, content[:size], "p/t", resumable=True)
        first = end
    take(pool, content, "p/t", resumable=True)
    assert pool.catalog.keys("receive") == []
    assert not scrub(pool).errors
    assert sent(pool, "p/t@s2", replicate=True)[-2000:]
    for name, snapshots in kept(pool).items():
        for snapshot in snapshots:
            theirs = f"q{name[1:]}@{snapshot}"
            assert sent(pool, f"{name}@{snapshot}", received_name=True) == sent(source, theirs), theirs


def test_p3_an_interrupted_tree_with_f_keeps_what_came(pool: Pool, source: Pool) -> None:
    take(pool, sent(source, "q/t@s0", replicate=True), "p/t")
    content = sent(source, "q/t@s2", replicate=True, from_all="@s0")
    size = len(content) - 2000
    cut(pool, content, size, "p/t", force=True)
    assert partial(pool, "p/t/c")
    before = pool.dataset(DatasetName.parse("p/t/c")).id
    cut(pool, content, size - 10, "p/t", force=True)
    take(pool, content, "p/t", force=True, resumable=True)
    assert pool.dataset(DatasetName.parse("p/t/c")).id == before
    assert kept(pool) == {"p/t": ["s0", "s1", "s2"], "p/t/o": ["s0", "s1", "s2"], "p/t/c": ["s2"]}


def test_other_keys_of_the_same_snapshot_take_the_place_of_what_came(pool: Pool) -> None:
    content = stream("full-s0")
    cut(pool, content, len(content) // 2)
    other = forged(content, lambda records: records[0].put("creation_time", 5))
    cut(pool, other, len(other) // 3)
    assert partial(pool)
    take(pool, other, resumable=True)
    assert sent(pool, "p/a@s0", received_name=True) == other
    assert len({name.partition("-")[0] for name in pool.store.names("segments")}) == 1
    assert pool.catalog.keys("receive") == []


def test_what_took_the_place_of_a_new_dataset_s_first_snapshot_can_be_given_up(pool: Pool) -> None:
    content = stream("full-s0")
    cut(pool, content, len(content) // 2)
    cut(pool, forged(content, lambda records: records[0].put("creation_time", 5)), len(content) // 3)
    take(pool, b"", abort=True)
    assert kept(pool) == {}


@pytest.mark.parametrize("name", ["inc-s0-s1", "full-s0"])
def test_another_snapshot_does_not(pool: Pool, name: str) -> None:
    content = stream(name)
    if name != "full-s0":
        take_chain(pool, "full-s0")
    cut(pool, content, len(content) // 2)
    for options, other in (
        ({"resumable": True}, forged(content, lambda records: [r.put("toguid", 5) for r in records])),
        ({}, content),
    ):
        with pytest.raises(Refused, match=r'destination p/a contains partially-complete state from "zfs receive -s"\.'):
            take(pool, other, "p/a", **options)
    assert partial(pool)


@pytest.mark.parametrize(
    ("letters", "kind", "dataset"),
    [
        ({}, "new filesystem", "p/t"),
        ({"from_": "@s0"}, "incremental", "p/t"),
        ({"replicate": True}, "new filesystem", "p/t/o"),
    ],
)
def test_a_broken_line_is_told_of_in_zfs_s_words(
    pool: Pool, source: Pool, letters: dict[str, object], kind: str, dataset: str
) -> None:
    content, _ = prepared(pool, source, letters)
    size = ends(content)[3] - 400 if letters.get("replicate") else len(content) - 400
    with pytest.raises(Interrupted) as caught:
        take(pool, content[:size], "p/t", resumable=True)
    assert str(caught.value) == f"cannot receive {kind} stream: checksum mismatch or incomplete stream."
    assert caught.value.status == 5
    assert caught.value.advice[:3] == [
        "Partially received snapshot is saved.",
        "A resuming stream can be generated on the sending system by running:",
        f"    zfs send -t {token(pool, dataset)}",
    ]
    assert f"zkeep receive -s {dataset} " in caught.value.advice[3]
    take(pool, sent(source, token=token(pool, dataset)), dataset, resumable=True)
    assert not partial(pool, dataset)


@pytest.mark.parametrize("letters", [{}, {"from_": "@s0"}, {"replicate": True}], ids=["full", "increment", "package"])
@pytest.mark.parametrize("where", ["BEGIN", "before"])
def test_a_line_that_breaks_again_before_what_is_kept_tells_of_it(
    pool: Pool, source: Pool, letters: dict[str, object], where: str
) -> None:
    """The second break comes earlier than the first: within the stream's BEGIN, or in what is skipped."""
    content, _ = prepared(pool, source, letters)
    dataset = "p/t/o" if letters.get("replicate") else "p/t"
    size = ends(content)[3] - 400 if letters.get("replicate") else len(content) - 400
    cut(pool, content[:size], size, "p/t")
    earlier = ends(content)[1] - 700 if letters.get("replicate") and where == "before" else 500
    with pytest.raises(Interrupted) as caught:
        take(pool, content[:earlier], "p/t", resumable=True)
    assert caught.value.status == 5
    assert f"    zfs send -t {token(pool, dataset)}" in caught.value.advice
    assert f"zkeep receive -s {dataset} " in caught.value.advice[3]
    # Without -s, or with nothing kept, it is a bad stream as before.
    with pytest.raises(BadStream):
        take(pool, content[:500], "p/t")
    with pytest.raises(BadStream):
        take(pool, content[:500], "p/other", resumable=True)
    take(pool, content, "p/t", resumable=True)
    assert not partial(pool, dataset)


@pytest.mark.parametrize("resumable", [False, True])
def test_p3_what_is_interrupted_after_the_commit_keeps_the_snapshot(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, *, resumable: bool
) -> None:
    """The transaction names the segments: Ctrl-C in the work behind it must not remove them."""

    def interrupted(pool: Pool, dataset: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zkeep.pool.transfer.session.sum_up", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(pool, stream("full-s0"), "p/t", resumable=resumable)
    assert scrub(pool).clean
    assert kept(pool) == {"p/t": ["s0"]}
