"""Single rules of the merge, one by one; that it adds up at all is in properties/test_merge.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.table import (
    BLOCK,
    DTYPES,
    FRESH_DATA,
    FRESH_SPILL,
    NOTHING,
    OBJECT,
    RANGE,
    Table,
    concat,
    fold,
    merge,
)


def objects(*rows: tuple[int, int, int]) -> np.ndarray:
    """(number, slots, fresh)"""
    made = np.zeros(len(rows), OBJECT)
    for row, (number, slots, fresh) in zip(made, rows, strict=True):
        row["object"], row["slots"], row["fresh"], row["size"] = number, slots, fresh, 500
    return made


def blocks(*rows: tuple[int, int], length: int = 512, size: int = 824) -> np.ndarray:
    made = np.zeros(len(rows), BLOCK)
    for row, (number, offset) in zip(made, rows, strict=True):
        row["object"], row["offset"], row["length"], row["size"] = number, offset, length, size
    return made


def ranges(*numbers: int) -> np.ndarray:
    made = np.zeros(len(numbers), RANGE)
    made["object"], made["slots"], made["size"] = numbers, 32, 312
    return made


def lines(first: int, end: int) -> np.ndarray:
    return sp.lines(np.array([first], np.uint64), np.array([end], np.uint64))


def spots(table: Table) -> list[tuple[int, int]]:
    return [(int(b["object"]), int(b["offset"])) for b in table.blocks]


def test_a_freed_object_takes_its_blocks_along() -> None:
    old = replace(NOTHING, objects=objects((5, 1, 3), (6, 1, 3)), blocks=blocks((5, 0), (6, 0)))
    left = merge(old, replace(NOTHING, freed=lines(5, 6)))
    assert spots(left) == [(6, 0)]
    assert left.objects["object"].tolist() == [6]


def test_a_new_object_in_the_slots_of_a_large_one_ends_it() -> None:
    old = replace(NOTHING, objects=objects((8, 4, 3)), blocks=blocks((8, 0)))
    left = merge(old, replace(NOTHING, objects=objects((10, 1, 3)), blocks=blocks((10, 512))))
    assert spots(left) == [(10, 512)]
    assert left.objects["object"].tolist() == [10]
    assert sp.on_lines(left.freed, np.array([8, 11], np.uint64)).all()


def test_a_large_new_object_ends_those_in_its_slots() -> None:
    old = replace(NOTHING, objects=objects((9, 1, 3)), blocks=blocks((9, 0)))
    left = merge(old, replace(NOTHING, objects=objects((8, 2, 3))))
    assert spots(left) == []
    assert left.objects["object"].tolist() == [8]


def test_a_new_incarnation_starts_without_blocks_and_stays_one_under_later_rows() -> None:
    old = replace(NOTHING, objects=objects((5, 1, 3)), blocks=blocks((5, 0), (5, 512)))
    again = replace(NOTHING, objects=objects((5, 1, FRESH_DATA)), blocks=blocks((5, 512)))
    later = replace(NOTHING, objects=objects((5, 1, 0)), blocks=blocks((5, 1024)))
    both = merge(again, later)
    assert both.objects["fresh"].tolist() == [FRESH_DATA]
    assert spots(merge(old, both)) == [(5, 512), (5, 1024)]


def test_a_spill_block_lives_on_only_if_the_object_says_so() -> None:
    old = replace(NOTHING, objects=objects((5, 1, 3)), spills=blocks((5, 0)))
    assert len(merge(old, replace(NOTHING, objects=objects((5, 1, 0)))).spills) == 1
    assert len(merge(old, replace(NOTHING, objects=objects((5, 1, FRESH_SPILL)))).spills) == 0


def test_a_block_dies_only_if_all_of_it_is_freed_or_replaced() -> None:
    old = replace(NOTHING, objects=objects((5, 1, 3)), blocks=blocks((5, 0), (5, 4096), length=4096))
    partly = np.array([(5, 0, 4000)], sp.SPAN)
    assert spots(merge(old, replace(NOTHING, holes=partly))) == [(5, 0), (5, 4096)]
    whole = np.array([(5, 0, 4096)], sp.SPAN)
    assert spots(merge(old, replace(NOTHING, holes=whole))) == [(5, 4096)]


def test_a_metadnode_block_dies_when_all_its_objects_are_freed() -> None:
    old = replace(NOTHING, ranges=ranges(0, 32))
    assert merge(old, replace(NOTHING, freed=lines(32, 63))).ranges["object"].tolist() == [0, 32]
    assert merge(old, replace(NOTHING, freed=lines(32, 64))).ranges["object"].tolist() == [0]


def test_figures_count_what_is_stored() -> None:
    table = replace(NOTHING, objects=objects((5, 1, 3)), blocks=blocks((5, 0), (5, 512)))
    assert (table.stored, table.logical, table.rows) == (500 + 2 * 824, 1024, 3)
    assert table.hull == (5, 37)
    assert NOTHING.hull == (1, 0)


def only(table: Table, first: int, last: int) -> Table:
    """The part of a table over object numbers first <= object < last."""

    def cut(rows: np.ndarray) -> np.ndarray:
        lo, hi = np.searchsorted(rows["object"], np.array([first, last], np.uint64))
        return rows[lo:hi]

    freed = table.freed[(table.freed["end"] > first) & (table.freed["start"] < last)].copy()
    freed["start"] = np.maximum(freed["start"], np.uint64(first))
    freed["end"] = np.minimum(freed["end"], np.uint64(last))
    parts = {name: cut(getattr(table, name)) for name in DTYPES if name != "freed"}
    return Table(**parts, freed=freed)


def test_parts_of_the_key_space_put_together_are_the_whole() -> None:
    rows = {"objects": objects((5, 1, 3), (40, 1, 3)), "blocks": blocks((5, 0), (40, 0))}
    table = replace(NOTHING, **rows, freed=lines(50, 70))
    low, high = only(table, 0, 32), only(table, 32, 100)
    assert spots(concat([low, high])) == spots(table)
    assert (low.rows, high.rows) == (2, 3)
    assert fold([]) is NOTHING
