"""What is written into a segment comes back, and no damaged byte of a table of contents is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zkeep.errors import Damaged
from zkeep.format.records import RecordType
from zkeep.pool.store.files import LocalStore
from zkeep.pool.timeline import segment as seg
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.table import BLOCK, DTYPES, NOTHING, OBJECT, Table

NAME = "segments/00/1-0.seg"
STATE = (1, 2, 3, 2**64 - 1)


def a_table(count: int = 1000) -> Table:
    blocks, objects = np.zeros(count, BLOCK), np.zeros(count // 10, OBJECT)
    blocks["object"], blocks["offset"] = np.arange(count) // 10, np.arange(count) % 10 * 512
    blocks["pos"], blocks["size"], blocks["length"] = np.arange(count) * 824 + 64, 824, 512
    blocks["kind"] = RecordType.WRITE
    objects["object"], objects["slots"] = np.arange(count // 10), 1
    holes = np.array([(3, 8192, sp.END)], sp.SPAN)
    return replace(NOTHING, blocks=blocks, objects=objects, holes=holes)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path)
    with store.draft("1-0") as draft:
        draft.write(seg.head((5, 6, 7, 8), big_endian=True), b"body")
        seg.finish(draft, a_table(), STATE, 7)
        draft.publish(NAME)
    return store


def opened(store: LocalStore) -> seg.Segment:
    return seg.Segment(lambda: store.open(NAME), NAME, 9)


def test_what_goes_in_comes_out(store: LocalStore) -> None:
    segment, table = opened(store), a_table()
    assert segment.head == ((5, 6, 7, 8), True)
    assert segment.end_state == STATE
    assert segment.body == (seg.HEAD_SIZE, seg.HEAD_SIZE + 4)
    assert segment.footer["records"] == 7
    assert segment.footer["stored"] == table.stored
    assert segment.hull == table.hull
    read = segment.table()
    for name in DTYPES:
        rows, wanted = getattr(read, name), getattr(table, name).copy()
        if "segment" in (wanted.dtype.names or ()):
            wanted["segment"] = 9
        assert (rows == wanted).all()


def test_a_stretch_of_keys_reads_only_its_pages(store: LocalStore) -> None:
    rows = opened(store).between("blocks", (60, 0), (62, 0))
    assert 20 <= len(rows) <= 2 * seg.PAGE_ROWS
    assert {60, 61} <= set(rows["object"].tolist())


def test_rows_near_some_keys_are_found(store: LocalStore) -> None:
    wanted = np.array([(5, 512, 5, 1024), (90, 0, 91, 0)], seg.WANT)
    rows = opened(store).near("blocks", wanted)
    keys = set(zip(rows["object"].tolist(), rows["offset"].tolist(), strict=True))
    assert {(5, 512), *((90, o * 512) for o in range(10))} <= keys
    assert (np.diff(rows["pos"].astype(np.int64)) > 0).all()


def test_no_damaged_byte_is_believed(store: LocalStore) -> None:
    path = store.path(NAME)
    content = path.read_bytes()
    for at in [*range(0, seg.HEAD_SIZE), *range(seg.HEAD_SIZE + 4, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        segment = opened(store)
        with pytest.raises(Damaged, match=NAME):
            _ = segment.head, segment.table()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 95, 96, 500])
def test_a_segment_cut_short_is_damaged(store: LocalStore, size: int) -> None:
    path = store.path(NAME)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Damaged, match=NAME):
        opened(store).table()


def turned(table: Table) -> Table:
    return replace(table, blocks=table.blocks[::-1].copy())


def doubled(table: Table) -> Table:
    return replace(table, objects=np.concatenate([table.objects, table.objects[-1:]]))


def of_no_kind(table: Table) -> Table:
    table.blocks["kind"][5] = RecordType.FREE
    return table


def without_a_record(table: Table) -> Table:
    table.blocks["size"][5] = 0
    return table


def without_blocks_of_any_size(table: Table) -> Table:
    table.objects["size"] = 504
    return table


def ending_before_they_begin(table: Table) -> Table:
    return replace(table, holes=np.array([(3, 8192, 512)], sp.SPAN))


@pytest.mark.parametrize(
    "spoil",
    [turned, doubled, of_no_kind, without_a_record, without_blocks_of_any_size, ending_before_they_begin],
    ids=lambda spoil: spoil.__name__,
)
def test_a_table_that_nobody_would_write_is_damaged_though_its_sums_are_right(
    spoil: Callable[[Table], Table], tmp_path: Path
) -> None:
    store = LocalStore(tmp_path)
    with store.draft("1-0") as draft:
        draft.write(seg.head((5, 6, 7, 8), big_endian=True), b"body")
        seg.finish(draft, spoil(a_table()), STATE, 7)
        draft.publish(NAME)
    with pytest.raises(Damaged, match="makes no sense"):
        opened(store).table()


def test_a_shorter_block_may_lie_over_a_longer_one(tmp_path: Path) -> None:
    store, table = LocalStore(tmp_path), a_table()
    blocks = np.concatenate([table.blocks[:1], table.blocks])
    blocks["length"][0] = 1024
    with store.draft("1-0") as draft:
        draft.write(seg.head((5, 6, 7, 8), big_endian=True), b"body")
        seg.finish(draft, replace(table, blocks=blocks), STATE, 7)
        draft.publish(NAME)
    assert len(opened(store).table().blocks) == len(blocks)
