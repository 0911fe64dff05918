"""P5: a store that swaps, drops, rolls back or cuts off what a pool holds, and mends every sum, shows nothing false.

Each snapshot is then what it was, or is said not to be. Changes inside of a stream are in test_forgeries.py.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import Store, put, refooted, retabled, segment, without_row
from manifests import Case, cases

from zkeep.errors import Damaged, NotAuthentic
from zkeep.format.nvlist import NvList, encode
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.model import Pool
from zkeep.pool.timeline.table import DTYPES, Table

NAME = "ccm192-lzjb-8k-composed"
RUN = "000000000002/{:020}"
FORGED_ROWS = 150
WORDS = (b"0", b"9", b"-", b"99999999999999999999", b"null", b'"', b"[]", b"{", b"e9", b"\xff", b"AAAA")


def case_of(name: str) -> Case:
    return next(case for case in cases() if case.name == name)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(case_of(NAME), tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(kept: Store) -> Iterator[Store]:
    """Three snapshots: a full stream and two increments."""
    yield kept
    kept.restore()


def told(store: Store) -> list[bool]:
    """By snapshot, whether it is said that it is not what it was; nothing false is shown of the others."""
    seen = store.seen()
    assert len(seen) == len(store.truth)
    for got, true in zip(seen, store.truth, strict=True):
        assert got in (NotAuthentic, Damaged, true)
    return [isinstance(got, type) for got in seen]


def runs(pool: Pool) -> dict[str, dict[str, Any]]:
    return dict(pool.catalog.scan("run"))


def test_nothing_is_told_of_an_honest_store(store: Store) -> None:
    assert told(store) == [False] * 3
    assert store.is_clean


# Whole segments


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (1, 2)])
def test_p5_two_segments_change_places(store: Store, one: int, other: int) -> None:
    first, second = store.segments[one], store.segments[other]
    contents = first.read_bytes(), second.read_bytes()
    put(first, contents[1])
    put(second, contents[0])
    assert told(store)[one]


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (1, 2)])
def test_p5_two_runs_change_places_with_all_that_the_catalog_says_of_them(store: Store, one: int, other: int) -> None:
    with store.changed() as pool, pool.transaction() as t:
        every = list(runs(pool).items())
        (key, doc), (other_key, other_doc) = every[one], every[other]
        places = ("txg", "from_txg", "fromguid")
        t.put("run", key, other_doc | {name: doc[name] for name in places})
        t.put("run", other_key, doc | {name: other_doc[name] for name in places})
    assert told(store)[one]


@pytest.mark.parametrize(("older", "newer"), [(0, 1), (0, 2), (1, 2)])
def test_p5_an_older_segment_stands_for_a_newer_one(store: Store, older: int, newer: int) -> None:
    put(store.segments[newer], store.segments[older].read_bytes())
    assert told(store)[newer]


@pytest.mark.parametrize("gone", range(3))
def test_p5_a_segment_is_gone(store: Store, gone: int) -> None:
    store.segments[gone].unlink()
    assert told(store) == [at >= gone for at in range(3)]


@pytest.mark.parametrize("gone", range(3))
def test_p5_a_run_is_gone_and_the_catalog_knows_nothing_of_it(store: Store, gone: int) -> None:
    with store.changed() as pool, pool.transaction() as t:
        t.delete("run", list(runs(pool))[gone])
    assert told(store)[gone]


@pytest.mark.parametrize("of", range(3))
def test_p5_a_segment_is_cut_short(store: Store, of: int) -> None:
    path = store.segments[of]
    put(path, path.read_bytes()[:-4096])
    assert told(store) == [at >= of for at in range(3)]


def test_p5_a_segment_of_another_dataset(store: Store, tmp_path: Path) -> None:
    other = Store(case_of("gcm128-zstd-16k-composed"), tmp_path)
    put(store.segments[1], other.segments[1].read_bytes())
    assert told(store) == [False, True, True]


# The past


def test_p5_the_newest_snapshot_with_the_runs_of_the_one_before(store: Store) -> None:
    """The dataset rolled back under its new name: its own BEGIN tells."""
    with store.changed() as pool, pool.transaction() as t:
        newest = list(runs(pool))[-1]
        t.put("run", newest, runs(pool)[newest] | {"segments": []})
    assert told(store) == [False, False, True]


def test_an_old_snapshot_under_a_new_name_is_the_old_one_with_its_own_portable_mac(store: Store) -> None:
    """What the key cannot tell (docs/THREATS.md): only a record of what was sent can, and it does."""
    macs = []
    with store.changed() as pool, pool.transaction() as t:
        newest, before = list(runs(pool))[-1], store.snapshots[-2]
        begin = pool.catalog.get("begin", before.key)
        assert begin is not None
        for snapshot in store.snapshots:
            doc = pool.catalog.get("begin", snapshot.key)
            assert doc is not None
            crypt = Opening.from_doc(doc).crypt
            assert crypt is not None
            macs.append(crypt["portable_mac"])
        t.put("begin", store.snapshots[-1].key, begin)
        t.delete("run", newest)
    assert store.seen() == [*store.truth[:2], store.truth[1]]
    assert len(set(macs)) == 3


def test_an_old_catalog_shows_the_old_pool_and_nothing_else(store: Store, tmp_path: Path) -> None:
    """A pool set back to yesterday is yesterday's: its snapshots are what they were, and today's is not there."""
    with store.changed() as pool, pool.transaction() as t:
        for kind in ("snapshot", "begin"):
            t.delete(kind, store.snapshots[-1].key)
        t.delete("run", list(runs(pool))[-1])
    assert store.seen() == store.truth[:2]


def test_p5_an_old_journal_is_told_from_the_index(store: Store, tmp_path: Path) -> None:
    """A journal of yesterday is told from the index of today."""
    shutil.copytree(store.path / "journal", tmp_path / "journal")
    with store.changed() as pool, pool.transaction() as t:
        t.put("pool", "", pool.doc | {"properties": {"comment": "later"}})
    shutil.rmtree(store.path / "journal")
    shutil.copytree(tmp_path / "journal", store.path / "journal")
    with pytest.raises(Damaged, match="where the index has seen"):
        Pool.open(store.path)


# What the catalog says


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (1, 2)])
def test_p5_begins_change_places(store: Store, one: int, other: int) -> None:
    with store.changed() as pool, pool.transaction() as t:
        keys = [store.snapshots[at].key for at in (one, other)]
        docs = [pool.catalog.get("begin", key) for key in keys]
        for key, doc in zip(keys, reversed(docs), strict=True):
            assert doc is not None
            t.put("begin", key, doc)
    assert told(store) == [at in (one, other) for at in range(3)]


@pytest.mark.parametrize("name", ["mdn_maxblkid", "mdn_nlevels", "mdn_indblkshift", "mdn_nblkptr", "portable_mac"])
def test_p5_the_metadnode_has_another_shape(store: Store, name: str) -> None:
    snapshot = store.snapshots[-1]
    with store.changed() as pool, pool.transaction() as t:
        doc = pool.catalog.get("begin", snapshot.key)
        assert doc is not None
        opening = Opening.from_doc(doc)
        nvlist = opening.nvlist
        assert nvlist is not None
        crypt = nvlist["crypt_keydata"]
        assert isinstance(crypt, NvList)
        now = crypt[name]
        crypt.set(name, bytes(32) if isinstance(now, bytes) else int(now) - 1)  # type: ignore[call-overload]
        t.put("begin", snapshot.key, {**doc, **replace(opening, payload=encode(nvlist)).doc()})
    if name == "mdn_maxblkid":  # no MAC covers it, and nothing depends on it
        assert told(store) in ([False, False, True], [False] * 3)
    else:
        assert told(store) == [False, False, True]


# Tables


def test_p5_any_row_is_dropped(store: Store) -> None:
    """A block rolled back or made a hole, a file dropped, a dnode rolled back: row by row, all there are."""
    path = store.segments[-1]
    content = path.read_bytes()
    tables = segment(path).table()
    for name in DTYPES:
        outcomes = []
        for at in range(len(getattr(tables, name))):
            retabled(path, without_row(name, at))
            outcomes.append(told(store)[-1])
            put(path, content)
        if name in ("ranges", "blocks", "spills"):
            assert all(outcomes), name
        if name == "objects":  # of some the older record says the same
            assert outcomes.count(False) < len(outcomes) // 2


def test_p5_the_dataset_is_truncated(store: Store) -> None:
    """All from the last block of dnodes on is gone, from every segment."""
    for path in store.segments:
        last = int(segment(path).rows("ranges")["object"][-1])
        retabled(path, lambda table, last=last: _below(table, last))  # type: ignore[misc]
    assert all(told(store))


def _below(table: Table, number: int) -> Table:
    parts = {name: getattr(table, name) for name in DTYPES if name != "freed"}
    return replace(table, **{name: rows[rows["object"] < number] for name, rows in parts.items()})


def test_p5_rows_lead_to_one_anothers_blocks(store: Store) -> None:
    path = store.segments[-1]

    def swapped(table: Table) -> Table:
        blocks = table.blocks.copy()
        same = np.flatnonzero(blocks["size"][1:] == blocks["size"][:-1])
        one, two = same[-1], same[-1] + 1
        for name in ("pos", "check"):
            blocks[name][[one, two]] = blocks[name][[two, one]]
        return replace(table, blocks=blocks)

    retabled(path, swapped)
    assert told(store) == [False, False, True]


@pytest.mark.parametrize("seed", range(3))
def test_p5_a_row_says_anything_else(store: Store, seed: int) -> None:
    """A byte of a row is another one, and the sums are right: it shows, or it says nothing that matters."""
    dice = random.Random(seed)
    path = store.segments[-1]
    content, table = path.read_bytes(), segment(path).table()
    names = [name for name in DTYPES if len(getattr(table, name))]
    for _ in range(FORGED_ROWS // 3):
        name = dice.choice(names)
        rows = getattr(table, name)
        changed = bytearray(rows.tobytes())
        changed[dice.randrange(len(changed))] ^= dice.randrange(1, 256)
        retabled(path, lambda _: replace(table, **{name: np.frombuffer(changed, rows.dtype)}))  # noqa: B023
        told(store)
        put(path, content)


@pytest.mark.parametrize("seed", range(3))
def test_p5_a_footer_says_anything_else(store: Store, seed: int) -> None:
    dice = random.Random(seed)
    path = store.segments[-1]
    content = path.read_bytes()

    def change(text: bytearray) -> None:
        at, length = dice.randrange(len(text)), dice.choice((0, 1, 1, 2))
        text[at : at + length] = dice.choice(WORDS)

    for _ in range(FORGED_ROWS // 3):
        refooted(path, change)
        told(store)
        put(path, content)
