"""P4, for streams: nothing in one is believed. Whatever is damaged, the answer is a BadStream or a legal stream."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
from fuzz_reader import SEEDS, WORDS, one_input, restamp

SMALL = [data for data in SEEDS if len(data) < 25_000]
places = st.integers(0, (1 << 16) - 1)


@settings(max_examples=200, deadline=None)
@given(
    data=st.sampled_from(SMALL),
    changes=st.lists(st.tuples(places, st.sampled_from(WORDS) | st.integers(0, 255)), min_size=1, max_size=5),
    stamped=st.booleans(),
    cut=st.none() | places,
)
def test_p4_a_damaged_stream_is_refused_or_legal(
    data: bytes, changes: list[tuple[int, int]], stamped: bool, cut: int | None
) -> None:
    made = bytearray(data)
    for place, value in changes:
        at = place % (len(made) - 8) & ~3
        made[at : at + 8] = value.to_bytes(8, "little")
    if stamped:
        restamp(made)
    one_input(bytes(made if cut is None else made[:cut]))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from([0, 16, 312]))
def test_p4_garbage_is_refused(data: bytes, kept: int) -> None:
    assert not one_input(SMALL[0][:kept] + data)
