"""Cutting leaves into batches: bounded by bytes, never empty, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest

from zkeep.snapshot.block_reader import batches
from zkeep.snapshot.verified import LEAF


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        pytest.param([], 10, [], id="no leaves, no batch"),
        pytest.param([4, 4, 2], 10, [[4, 4, 2]], id="exactly full"),
        pytest.param([4, 4, 3], 10, [[4, 4], [3]], id="one byte too many begins another"),
        pytest.param([30, 1, 30], 10, [[30], [1], [30]], id="a larger block is a batch by itself"),
        pytest.param([1, 30, 1, 1], 10, [[1], [30], [1, 1]], id="a larger block in between"),
    ],
)
@pytest.mark.parametrize("column", ["size", "logical"])
def test_batches(sizes: list[int], most: int, expected: list[list[int]], column: str) -> None:
    leaves = np.zeros(len(sizes), LEAF)
    leaves[column] = sizes
    assert [batch[column].tolist() for batch in batches(leaves, most, column)] == expected
