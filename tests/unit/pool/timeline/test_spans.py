"""The algebra of spans against plain sets of points."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zkeep.pool.timeline import spans as sp

TOP = 24
spots = st.integers(0, TOP - 1).flatmap(lambda start: st.tuples(st.just(start), st.integers(start + 1, TOP)))
a_span = st.builds(lambda number, spot: (number, *spot), st.integers(0, 3), spots)
raw_spans = st.lists(a_span, max_size=12)
some_spans = st.lists(a_span, min_size=1, max_size=12)


def array(rows) -> sp.Array:
    return np.array(rows, sp.SPAN)


def as_set(spans: sp.Array) -> set[tuple[int, int]]:
    return {(int(s["object"]), p) for s in spans for p in range(int(s["start"]), int(s["end"]))}


def is_canonical(spans: sp.Array) -> bool:
    rows = [tuple(map(int, row)) for row in spans.tolist()]
    ordered = all(a[0] < b[0] or (a[0] == b[0] and a[2] < b[1]) for a, b in pairwise(rows))
    return ordered and all(start < end for _, start, end in rows)


@given(raw_spans, raw_spans)
def test_union_and_subtract_are_those_of_sets(one, other) -> None:
    a, b = array(one), array(other)
    both, rest = sp.union(a, b), sp.subtract(sp.union(a), b)
    assert as_set(both) == as_set(a) | as_set(b)
    assert as_set(rest) == as_set(a) - as_set(b)
    assert is_canonical(both)
    assert is_canonical(rest)


@given(raw_spans, st.lists(st.tuples(st.integers(0, 3), st.integers(0, TOP)), min_size=1, max_size=8))
def test_covering_finds_the_range_that_holds_a_point(one, wanted) -> None:
    spans = sp.union(array(one))
    objects, offsets = np.array(wanted, np.uint64).T
    for spot, row in zip(wanted, sp.covering(spans, objects, offsets).tolist(), strict=True):
        assert (row >= 0) == (spot in as_set(spans))
        if row >= 0:
            assert spot in as_set(spans[row : row + 1])


@given(raw_spans, some_spans)
def test_within_and_meets_are_subset_and_overlap(one, wanted) -> None:
    spans, asked = sp.union(array(one)), array(wanted)
    columns = asked["object"], asked["start"], asked["end"]
    inside, met = sp.within(spans, *columns).tolist(), sp.meets(spans, *columns).tolist()
    for i, row in enumerate(asked):
        mine = as_set(np.array([row], sp.SPAN))
        assert inside[i] == (mine <= as_set(spans))
        assert met[i] == bool(mine & as_set(spans))


@given(raw_spans, st.lists(st.integers(0, TOP + 1), min_size=1))
def test_lines_hold_numbers(one, numbers) -> None:
    rows = array(one)
    lines = sp.union(sp.lines(rows["start"], rows["end"])) if len(rows) else sp.EMPTY
    held = sp.on_lines(lines, np.array(numbers, np.uint64)).tolist()
    assert held == [(0, n) in as_set(lines) for n in numbers]


def test_ranges_end_at_the_largest_number_and_do_not_wrap() -> None:
    starts, lengths = np.array([10, sp.END - 5], np.uint64), np.array([5, 100], np.uint64)
    assert sp.reach(starts, lengths).tolist() == [15, sp.END]


def test_keys_sort_like_pairs() -> None:
    objects, offsets = np.array([1, 1, 256, 2**63], np.uint64), np.array([0, 2**40, 1, 0], np.uint64)
    found = sp.keys(objects, offsets)
    assert (np.argsort(found) == np.arange(4)).all()


numbers = st.lists(st.integers(0, 30) | st.integers((1 << 64) - 3, (1 << 64) - 1), max_size=20)


@given(numbers, numbers)
def test_which_numbers_are_among_others(values: list[int], among: list[int]) -> None:
    found = sp.is_in(np.array(values, np.uint64), np.array(among, np.uint64))
    assert found.tolist() == [value in among for value in values]


def test_many_numbers_among_others() -> None:
    values = np.arange(sp.SMALL + 1, dtype=np.uint64)
    assert sp.is_in(values, values[::2]).tolist() == [number % 2 == 0 for number in range(len(values))]
