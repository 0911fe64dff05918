"""Tables add up: in whatever order neighbours are merged, and to what a dictionary makes of them by hand."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tablekit import Draw, build, histories

from zkeep.pool.timeline.table import DTYPES, Table, fold, merge


def same(one: Table, other: Table) -> bool:
    return all((getattr(one, name) == getattr(other, name)).all() for name in DTYPES) and one.rows == other.rows


@settings(max_examples=300, deadline=None)
@given(histories)
def test_a_fold_is_what_a_dictionary_says(history) -> None:
    tables, model = build(history)
    assert model.agrees(fold(list(tables)))


@settings(max_examples=300, deadline=None)
@given(histories, st.data())
def test_merging_is_associative(history, data) -> None:
    tables, _ = build(history)
    expected = reduce(merge, tables)
    while len(tables) > 1:
        at = data.draw(st.integers(0, len(tables) - 2))
        tables[at : at + 2] = [merge(tables[at], tables[at + 1])]
    assert same(tables[0], expected)


def objects(*numbers_and_slots: tuple[int, int]) -> list[Draw]:
    return [Draw(number, slots, False, frozenset(), frozenset(), False, False) for number, slots in numbers_and_slots]


NOBODY: frozenset[int] = frozenset()


@pytest.mark.parametrize(
    "history",
    [
        [(objects((2, 2)), NOBODY, NOBODY), (objects((2, 1)), NOBODY, NOBODY), (objects((2, 2)), NOBODY, NOBODY)],
        [(objects((3, 1)), NOBODY, NOBODY), ([], frozenset([3]), NOBODY), (objects((2, 2)), NOBODY, NOBODY)],
    ],
    ids=["narrow and wide again", "freed and taken"],
)
def test_a_number_that_an_object_takes_is_not_freed_as_well(history) -> None:
    first, second, third = build(history)[0]
    assert same(merge(merge(first, second), third), merge(first, merge(second, third)))


@given(histories)
def test_a_table_without_rows_changes_nothing(history) -> None:
    from zkeep.pool.timeline.table import NOTHING

    tables, _ = build(history)
    whole = fold(list(tables))
    assert same(merge(whole, NOTHING), whole)
    assert same(merge(NOTHING, whole), whole)
