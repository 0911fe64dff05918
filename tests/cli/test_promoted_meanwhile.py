"""Others promote a clone, or destroy and compact, after a snapshot was looked up and before it is read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from receivekit import take
from zkeep.cli.common.pools import opened
from zkeep.cli.main import run
from zkeep.errors import TryAgain
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.history import history_of
from zkeep.pool.transfer.excerpt import parse_excerpt, send_excerpt
from zkeep.pool.transfer.send import Leg, SendRequest, send
from zkeep.restore.plain.send import PlainSender
from zkeep.snapshot.open import OpenSnapshot

Zkeep = Callable[..., None]
KEY = bytes(range(32))


@pytest.fixture
def zkeep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zkeep]:
    """A pool `v` with v/a@1, @2 and @3, of a file more each; v/c is a clone of v/a@2."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "src").mkdir()

    def call(*words: str) -> None:
        assert run(list(words)) == 0, words

    call("pool", "create", "v", str(tmp_path / "pool"))
    options = ("encryption=on", "keyformat=raw", f"keylocation=file://{tmp_path / 'key'}")
    call("create", *(word for option in options for word in ("-o", option)), "v/a")
    for name in "123":
        (tmp_path / "src" / name).write_bytes(name.encode() * 50_000)
        call("snapshot", "--from", str(tmp_path / "src"), f"v/a@{name}")
    call("clone", "v/a@2", "v/c")
    yield call
    run(["unload-key", "-a"])



@pytest.mark.parametrize("source", [None, "@1", "@2"])
def test_a_stream_begins_where_it_says_whatever_is_promoted(
    zkeep: Zkeep, tmp_path: Path, source: str | None
) -> None:
    """The runs of @1 and @2 are the clone's meanwhile. They belong into the stream all the same."""
    sink = io.BytesIO()

    def promote(leg: Leg) -> None:
        zkeep("promote", "v/c")

    zkeep("create", "v/r")
    with opened("v") as pool:
        if source is not None:
            first = io.BytesIO()
            send(pool, SendRequest(snapshot=f"v/a{source}", raw=True), first)
            take(pool, first.getvalue(), "v/r/a")
        send(pool, SendRequest(snapshot="v/a@3", raw=True, from_=source, begin=promote), sink)
        take(pool, sink.getvalue(), "v/r/a")
    zkeep("verify", "-L", f"file://{tmp_path / 'key'}", "v/r/a@3")


def test_a_plain_stream_is_of_the_snapshot_too(zkeep: Zkeep) -> None:
    sink, before = io.BytesIO(), io.BytesIO()
    with opened("v") as pool:
        request = SendRequest(snapshot="v/a@3", decrypting=lambda: PlainSender(lambda wrapped: KEY))
        send(pool, request, before)
        promoted = SendRequest(
            snapshot="v/a@3", decrypting=request.decrypting, begin=lambda leg: zkeep("promote", "v/c")
        )
        send(pool, promoted, sink)
    assert sink.getvalue() == before.getvalue()


def test_a_snapshot_that_was_looked_up_before_a_promotion_can_be_read(zkeep: Zkeep) -> None:
    with opened("v") as pool:
        snapshot = pool.snapshot(SnapshotName.parse("v/a@3"))
        waiting = OpenSnapshot(pool, snapshot, lambda wrapped: KEY)
        zkeep("promote", "v/c")
        with waiting as opened_one:
            assert len([number for block in opened_one.numbers() for number in opened_one.dnodes(block)]) == 9
        with OpenSnapshot(pool, snapshot, lambda wrapped: KEY) as opened_one:
            assert len([number for block in opened_one.numbers() for number in opened_one.dnodes(block)]) == 9


def test_an_excerpt_is_whole_while_clones_are_promoted(zkeep: Zkeep) -> None:
    """What was looked up for it is of one moment."""
    found = []
    with opened("v") as pool, opened("v") as other:
        for name in ("v/c", "v/a", "v/c"):
            stale = pool.dataset(DatasetName.parse("v/a"))
            zkeep("promote", name)
            found.append([run.txg for run in history_of(pool, stale).runs])
            sink = io.BytesIO()
            send_excerpt(other, "v/a@3", parse_excerpt("index", None), sink)
            found.append(sink.getvalue())
    assert found[0] == found[2] == found[4]
    assert found[1] == found[3] == found[5]
    assert len(found[0]) == 3


@pytest.mark.parametrize("name", ["v/a", "v/c"])
def test_no_dataset_is_taken_for_a_clone_of_itself(zkeep: Zkeep, name: str) -> None:
    with opened("v") as pool:
        stale = pool.dataset(DatasetName.parse(name))
        before = [run.txg for run in history_of(pool, stale).runs]
        for clone in ("v/c", "v/a", "v/c"):
            zkeep("promote", clone)
            assert len(pool.origins(stale)) == (clone != name)
            assert [run.txg for run in history_of(pool, stale).runs] == before


@pytest.mark.parametrize("entered", [False, True])
def test_what_was_destroyed_meanwhile_is_neither_damaged_nor_forged(zkeep: Zkeep, entered: bool) -> None:
    with opened("v") as pool, ExitStack() as stack:
        snapshot = pool.snapshot(SnapshotName.parse("v/a@3"))
        waiting = OpenSnapshot(pool, snapshot, lambda wrapped: KEY) if entered else None
        zkeep("destroy", "v/a@3")
        with pytest.raises(TryAgain, match="destroyed, or a clone of it promoted"):
            stack.enter_context(waiting or OpenSnapshot(pool, snapshot, lambda wrapped: KEY))


def test_a_package_breaks_off_where_one_of_its_snapshots_was_destroyed(zkeep: Zkeep) -> None:
    def destroy(leg: Leg) -> None:
        if leg.snapshot.name.name == "1":
            zkeep("destroy", "v/a@3")
            zkeep("pool", "compact", "v")

    with opened("v") as pool, pytest.raises(TryAgain, match="destroyed, or a clone of it promoted"):
        send(pool, SendRequest(snapshot="v/a@3", raw=True, replicate=True, begin=destroy), io.BytesIO())


def test_reading_one_moment_forgets_nothing_that_was_read(zkeep: Zkeep) -> None:
    """A package of 10,000 snapshots reads the runs once, not once for each."""
    with opened("v") as pool:
        tree = pool.tree()
        history_of(pool, pool.dataset(DatasetName.parse("v/c")))
        with pool.catalog.reading():
            pass
        assert pool.tree() is tree
        zkeep("create", "v/new")
        assert pool.tree() is not tree
