"""Clones and their origins change places: here, and because they did at the source."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from badinput.badkit import Record, forged, renamed, stream
from properties.treekit import sent, take
from zkeep.errors import Refused, TryAgain
from zkeep.format.nvlist import NvList, NvType
from zkeep.format.records import BeginFlag
from zkeep.names import BookmarkName, DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, head, keyrecords, namespace, summaries
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.promote import promote
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import rebuild_catalog, scrub
from zkeep.pool.transfer import package

HISTORY = "rs512b"


def ds(text: str) -> DatasetName:
    return DatasetName.parse(text)


def snap(text: str) -> SnapshotName:
    return SnapshotName.parse(text)


def shifted(data: bytes, by: int, *, clone: bool = False, source: int | None = None) -> bytes:
    """The same content as a snapshot of another dataset: its guids are `by` larger."""

    def change(records: list[Record]) -> None:
        begin = records[0].get()
        for record in records:
            record.put("toguid", begin.toguid + by)  # type: ignore[attr-defined]
        if begin.fromguid:  # type: ignore[attr-defined]
            records[0].put("fromguid", begin.fromguid + (by if source is None else source))  # type: ignore[attr-defined]
        if clone:
            records[0].put("flags", begin.flags | BeginFlag.CLONE)  # type: ignore[attr-defined]

    return forged(data, change)


def grown(pool: Pool, dataset: str, by: int) -> None:
    """A dataset with s0 to s2."""
    for number, name in enumerate(("full-s0", "inc-s0-s1", "inc-s1-s2")):
        take(pool, shifted(stream(HISTORY, name), by), f"{dataset}@s{number}")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Pool]:
    """v/t, v/t/o with s0 to s2, and v/t/c, a clone of v/t/o@s1, with a c2."""
    with Pool.create(tmp_path / "v", "v") as pool:
        grown(pool, "v/t", 0)
        grown(pool, "v/t/o", 1000)
        take(pool, shifted(stream(HISTORY, "inc-s1-s2"), 2000, clone=True, source=1000), "v/t/c@s2")
        yield pool


@pytest.fixture
def backup(tmp_path: Path, source: Pool) -> Iterator[Pool]:
    """What the source was before it changed."""
    with Pool.create(tmp_path / "w", "w") as pool:
        take(pool, sent(source, "v/t@s2", replicate=True), "w/t")
        yield pool


def goes_on(source: Pool) -> None:
    """One more snapshot of everything."""
    for dataset, by in (("v/t", 0), ("v/t/o", 1000), ("v/t/c", 2000)):
        if source.find(ds(dataset)):
            take(source, shifted(stream(HISTORY, "inc-s2-s3"), by), f"{dataset}@s3")


def shape(pool: Pool) -> dict[str, Any]:
    """Each dataset's origin and snapshots, below the pool's name."""
    found = {}
    for dataset in pool.tree().by_id.values():
        origin = pool.snapshot_at(*dataset.origin) if dataset.origin else None
        names = [s.doc["name"] for s in pool.snapshots(dataset)]
        found[dataset.name.text[1:]] = (str(origin.name)[1:] if origin else None, names)
    return found


def streams(pool: Pool) -> dict[tuple[str, ...], bytes]:
    """Each snapshot in full, and from each older one of its past, all under one name."""
    found = {}
    every = [s for some in pool.all_snapshots().values() for s in some]
    for snapshot in every:
        name = str(snapshot.name)
        found[name[1:], ""] = renamed(sent(pool, name), b"x@x")
        for older in every:
            try:
                found[name[1:], str(older.name)[1:]] = renamed(sent(pool, name, from_=str(older.name)), b"x@x")
            except Refused:
                continue
    return found


def total(pool: Pool) -> Any:
    return View(pool).figures(pool.dataset(ds(pool.name))).used


def test_what_both_share_becomes_the_clones(source: Pool) -> None:
    before, used = streams(source), total(source)
    promote(source, ds("v/t/c"))
    assert shape(source)["/t/c"] == (None, ["s0", "s1", "s2"])
    assert shape(source)["/t/o"] == ("/t/c@s1", ["s2"])
    assert total(source) == used
    after = streams(source)
    assert after["/t/c@s2", ""] == before["/t/c@s2", ""]
    assert after["/t/o@s2", ""] == before["/t/o@s2", ""]
    assert after["/t/c@s1", "/t/c@s0"] == before["/t/o@s1", "/t/o@s0"]
    assert ("/t/o@s2", "/t/c@s1") in after
    assert scrub(source).clean


def test_twice_is_as_before(source: Pool) -> None:
    before = shape(source), streams(source)
    promote(source, ds("v/t/c"))
    promote(source, ds("v/t/o"))
    assert (shape(source), streams(source)) == before


def test_what_is_refused(source: Pool) -> None:
    before = shape(source)
    with pytest.raises(Refused, match="not a cloned filesystem"):
        promote(source, ds("v/t/o"))
    namespace.rename_snapshot(source, snap("v/t/c@s2"), snap("v/t/c@s0"))
    with pytest.raises(Refused, match="conflicting snapshot 's0' from parent 'v/t/o'"):
        promote(source, ds("v/t/c"))
    namespace.rename_snapshot(source, snap("v/t/c@s0"), snap("v/t/c@s2"))
    for name in ("v/t/o@s1", "v/t/c@s2"):
        namespace.bookmark(source, snap(name), BookmarkName.parse(f"{name.partition('@')[0]}#b"))
    with pytest.raises(Refused, match="conflicting bookmark 'b'"):
        promote(source, ds("v/t/c"))
    busy = source.store.lock(f"dataset-{source.dataset(ds('v/t/o')).key}")
    with busy, pytest.raises(TryAgain, match="v/t/o is busy"):
        promote(source, ds("v/t/c"))
    assert shape(source) == before


def test_bookmarks_and_other_clones_go_along(source: Pool) -> None:
    namespace.bookmark(source, snap("v/t/o@s0"), BookmarkName.parse("v/t/o#b0"))
    namespace.bookmark(source, snap("v/t/o@s2"), BookmarkName.parse("v/t/o#b2"))
    take(source, shifted(stream(HISTORY, "inc-s0-s1"), 3000, clone=True, source=1000), "v/t/d@s1")
    promote(source, ds("v/t/c"))
    assert shape(source)["/t/d"] == ("/t/c@s0", ["s1"])
    assert source.find_bookmark(BookmarkName.parse("v/t/c#b0"))
    assert source.find_bookmark(BookmarkName.parse("v/t/o#b2"))
    assert not source.find_bookmark(BookmarkName.parse("v/t/o#b0"))
    promote(source, ds("v/t/d"))
    assert shape(source)["/t/c"] == ("/t/d@s0", ["s1", "s2"])
    assert scrub(source).clean


def test_keys_that_were_sealed_here_go_along(source: Pool) -> None:
    """A clone that had none of its own; what its origin had before goes on opening both."""
    origin, clone = ds("v/t/o"), ds("v/t/c")
    came = keyrecords.of_snapshot(source, source.snapshot(snap("v/t/o@s0")))
    assert came is not None
    fields = deepcopy(came.fields)
    for number in (1, 2):
        fields.remove("pbkdf2salt")
        fields.set("pbkdf2salt", number, NvType.UINT64)
        with source.transaction() as t:
            keyrecords.add(source, t, source.dataset(origin), fields)
    promote(source, clone)
    for name in (origin, clone):
        records = keyrecords.local(source, source.dataset(name))
        assert [record.fields["pbkdf2salt"] for record in records] == [2, 1]


@pytest.mark.parametrize("fan", [2, 16])
def test_a_replication_does_as_the_source_did(
    source: Pool, backup: Pool, fan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "FAN", fan)
    promote(source, ds("v/t/c"))
    goes_on(source)
    take(backup, sent(source, "v/t@s3", replicate=True, from_="@s2"), "w/t")
    assert shape(backup) == shape(source)
    theirs = streams(source)
    assert streams(backup) == theirs
    compact(backup)
    assert streams(backup) == theirs
    assert scrub(backup).clean


def test_the_origin_may_be_gone_and_its_name_taken(source: Pool, backup: Pool) -> None:
    promote(source, ds("v/t/c"))
    plan = destroy.plan_dataset(View(source), ds("v/t/o"), destroy.DestroyOptions(recursive=True))
    destroy.execute(source, plan)
    namespace.rename(source, ds("v/t/c"), ds("v/t/o"))
    for dataset, by in (("v/t", 0), ("v/t/o", 2000)):
        take(source, shifted(stream(HISTORY, "inc-s2-s3"), by), f"{dataset}@s3")
    changed = sent(source, "v/t@s3", replicate=True, from_="@s2")
    before = shape(backup)
    with pytest.raises(Refused, match="cannot rename as at the source"):
        take(backup, changed, "w/t")
    assert shape(backup) == before
    take(backup, changed, "w/t", force=True)
    assert shape(backup) == shape(source)
    assert {k[0]: v for k, v in streams(backup).items() if not k[1]} == {
        k[0]: v for k, v in streams(source).items() if not k[1]
    }


def test_a_child_waits_for_its_parent(source: Pool, tmp_path: Path) -> None:
    """A clone was promoted before it was replicated: it is what is kept as v/t/o, and v/t/o is still to come."""
    grown(source, "v/t/o/k", 3000)
    grown(source, "v/t/o/k/l", 4000)
    with Pool.create(tmp_path / "w", "w") as backup:
        take(backup, sent(source, "v/t@s2", replicate=True), "w/t")
        take(source, shifted(stream(HISTORY, "inc-s2-s3"), 5000, clone=True, source=1000), "v/t/n@s3")
        goes_on(source)
        for dataset, by in (("v/t/o/k", 3000), ("v/t/o/k/l", 4000)):
            take(source, shifted(stream(HISTORY, "inc-s2-s3"), by), f"{dataset}@s3")
        promote(source, ds("v/t/n"))
        take(backup, sent(source, "v/t@s3", replicate=True, from_all="@s2"), "w/t", force=True)
        assert shape(backup) == shape(source)
        assert streams(backup) == streams(source)
        assert scrub(backup).clean


def test_a_past_that_parts_where_the_source_parted_it(source: Pool, tmp_path: Path) -> None:
    """A clone of something old was promoted before it was replicated: what came later stays, with its clones."""
    grown(source, "v/t/o/k", 3000)
    take(source, shifted(stream(HISTORY, "inc-s2-s3"), 4000, clone=True, source=1000), "v/t/d@s2")
    with Pool.create(tmp_path / "w", "w") as backup:
        take(backup, sent(source, "v/t@s2", replicate=True), "w/t")
        assert shape(backup)["/t/d"] == ("/t/o@s2", ["s2"])
        namespace.rename_snapshot(source, snap("v/t/d@s2"), snap("v/t/d@s3"))
        take(source, shifted(stream(HISTORY, "inc-s1-s3"), 5000, clone=True, source=1000), "v/t/n@s3")
        goes_on(source)
        take(source, shifted(stream(HISTORY, "inc-s2-s3"), 3000), "v/t/o/k@s3")
        promote(source, ds("v/t/n"))
        assert shape(source)["/t/o"] == ("/t/n@s1", ["s2", "s3"])
        take(backup, sent(source, "v/t@s3", replicate=True, from_all="@s2"), "w/t", force=True)
        assert shape(backup) == shape(source)
        assert streams(backup) == streams(source)
        assert scrub(backup).clean


def test_a_tree_is_sent_parents_and_origins_first(source: Pool, tmp_path: Path) -> None:
    """A clone that comes first by its name, of a dataset below one that does not."""
    grown(source, "v/t/o/k", 3000)
    take(source, shifted(stream(HISTORY, "inc-s1-s2"), 4000, clone=True, source=3000), "v/t/a@s2")
    with Pool.create(tmp_path / "w", "w") as backup:
        take(backup, sent(source, "v/t@s2", replicate=True), "w/t")
        assert shape(backup) == shape(source)


def test_a_clone_of_what_lies_below_it_is_sent_in_full(source: Pool, tmp_path: Path) -> None:
    take(source, shifted(stream(HISTORY, "inc-s1-s2"), 4000, clone=True, source=1000), "v/t/o/k@s2")
    promote(source, ds("v/t/o/k"))
    assert shape(source)["/t/o"] == ("/t/o/k@s1", ["s2"])
    with Pool.create(tmp_path / "w", "w") as backup:
        take(backup, sent(source, "v/t@s2", replicate=True), "w/t")
        assert shape(backup) == shape(source) | {"/t/o": (None, ["s2"])}


def test_a_header_that_wants_it_both_ways_comes_to_an_end(
    source: Pool, backup: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says of neither that it is a clone."""
    entry = package._entry

    def lying(*arguments: Any) -> NvList:
        told = entry(*arguments)
        told.remove("origin")
        return told

    monkeypatch.setattr(package, "_entry", lying)
    before = shape(backup)
    take(backup, sent(source, "v/t@s2", replicate=True, from_all="@s0"), "w/t")
    assert shape(backup) == before


def test_p6_a_promotion_is_in_the_journal(source: Pool, tmp_path: Path) -> None:
    promote(source, ds("v/t/c"))
    before = shape(source), streams(source)
    source.close()
    assert rebuild_catalog(tmp_path / "v") == []
    with Pool.open(tmp_path / "v") as pool:
        assert (shape(pool), streams(pool)) == before


@pytest.mark.parametrize("mounted", ["v/t/c", "v/t/o"])
def test_nothing_is_promoted_under_a_mount(source: Pool, mounted: str) -> None:
    before = list(source.catalog.scan("snapshot"))
    with source.store.lock(head.mount_lock(source.dataset(ds(mounted)))):
        with pytest.raises(TryAgain, match=f"cannot promote v/t/c: {mounted}: it is mounted: unmount it first"):
            promote(source, ds("v/t/c"))
        assert list(source.catalog.scan("snapshot")) == before
    promote(source, ds("v/t/c"))


def test_a_replication_renames_nothing_under_a_mount(source: Pool, backup: Pool) -> None:
    namespace.rename(source, ds("v/t/c"), ds("v/t/other"))
    for name, by in (("v/t", 0), ("v/t/o", 1000), ("v/t/other", 2000)):
        take(source, shifted(stream(HISTORY, "inc-s2-s3"), by), f"{name}@s3")
    content = sent(source, "v/t@s3", replicate=True, from_="@s2")
    before = shape(backup)
    with backup.store.lock(head.mount_lock(backup.dataset(ds("w/t/c")))):
        with pytest.raises(TryAgain, match="cannot rename w/t/c as at the source: it is mounted"):
            take(backup, content, "w/t")
        assert shape(backup) == before
    take(backup, content, "w/t")
    assert backup.find(ds("w/t/other"))
