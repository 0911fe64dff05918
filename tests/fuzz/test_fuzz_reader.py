"""The fuzz target itself is run, for a moment."""

from __future__ import annotations

import fuzz_reader


def test_mutated_streams_are_taken_or_refused() -> None:
    taken, refused = fuzz_reader.run(400, seed=20261123)
    assert refused > 200
    assert taken > 5


def test_the_seeds_are_good() -> None:
    assert all(fuzz_reader.one_input(data) for data in fuzz_reader.SEEDS)
    assert all(bytes(fuzz_reader.restamp(bytearray(data)))[-312:] == data[-312:] for data in fuzz_reader.SEEDS)
