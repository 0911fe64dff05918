"""send --received-name: packages bear the sender's names in their outer header and in their substreams."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receivekit import CHAINS, REPLICATION, kept, stream, take, take_chain
from zkeep.format.events import Package, SubBegin
from zkeep.format.reader import read_events
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.send import SendRequest, send

PROMOTED = CHAINS.parent / "kernel" / "promoted.0.zfs"


def ds(text: str) -> DatasetName:
    return DatasetName.parse(text)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "p", "p") as pool:
        yield pool


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "r", "r") as pool:
        yield pool


def sent(pool: Pool, snapshot: str, **letters: Any) -> bytes:
    sink = io.BytesIO()
    send(pool, SendRequest(snapshot, raw=True, received_name=True, **letters), sink)
    return sink.getvalue()


def names(content: bytes) -> tuple[str, list[str], list[str]]:
    """The names of the package, of the datasets in its outer header, of its substreams."""
    package, subs = "", []
    listed: list[str] = []
    for event in read_events(io.BytesIO(content)):
        if isinstance(event, Package):
            package = event.header.name.decode()
            listed = [str(entry["name"]) for entry in dict(event.nvlist).get("fss", {}).values()]  # type: ignore[call-overload]
        elif isinstance(event, SubBegin):
            subs.append(event.begin.name.decode())
    return package, listed, subs


def last(pool: Pool, dataset: str) -> str:
    return str(pool.snapshots(pool.dataset(ds(dataset)))[-1].name)


@pytest.mark.parametrize("path", [REPLICATION, PROMOTED], ids=["tree", "clones"])
def test_a_replication_goes_out_under_the_names_that_came_and_in_again(pool: Pool, other: Pool, path: Path) -> None:
    content = path.read_bytes()
    take(pool, content, "p/x")
    again = sent(pool, last(pool, "p/x"), replicate=True)
    came, went = names(content), names(again)
    assert went[0].partition("@")[0] == came[0].partition("@")[0]
    assert sorted(went[1]) == sorted(came[1])
    assert sorted(went[2]) == sorted(came[2])
    take(other, again, "r/x")
    assert [n[1:] for n in kept(other)] == [n[1:] for n in kept(pool)]
    take(other, again, "r/x")


@pytest.mark.parametrize("letters", [{"from_all": "@s0"}, {"props": True}, {"from_": "@s0", "replicate": True}])
def test_so_do_other_packages(pool: Pool, other: Pool, letters: dict[str, Any]) -> None:
    take_chain(pool)
    content = sent(pool, "p/a@s2", **letters)
    package, listed, subs = names(content)
    sender = package.partition("@")[0]
    assert sender not in ("", "p/a")
    assert {name.partition("@")[0] for name in subs} == {sender}
    assert set(listed) <= {sender}
    if "props" not in letters:
        take(other, stream("full-s0"), "r/a")
    take(other, content, "r/a")


def test_names_that_make_no_tree_give_way_to_the_tree_that_is_here(pool: Pool, other: Pool) -> None:
    take_chain(pool, target="p/t")
    take(pool, stream("full-s0"), "p/t/other@s2")  # which says that it is what p/t is
    content = sent(pool, "p/t@s2", replicate=True, skip_missing=True)
    package, listed, subs = names(content)
    top = package.partition("@")[0]
    assert all((name + "/").startswith(top + "/") for name in [*listed, *subs] if "@" not in name)
    assert all(name.partition("@")[0] in listed for name in subs)
    take(other, content, "r/t")


def test_a_renamed_snapshot_goes_by_its_name_of_now(pool: Pool, other: Pool) -> None:
    take_chain(pool)
    namespace.rename_snapshot(pool, SnapshotName.parse("p/a@s1"), SnapshotName.parse("p/a@one"))
    content = sent(pool, "p/a@s2", replicate=True)
    take(other, content, "r/a")
    assert kept(other) == {"r/a": ["s0", "one", "s2"]}
