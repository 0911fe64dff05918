"""The numbers that new objects get."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zkeep.snapshot.new_filesystem import FIRST_FREE
from zkeep.snapshot.numbers import free_numbers


@given(st.sets(st.integers(1, FIRST_FREE + 60), min_size=1))
def test_they_are_the_lowest_that_are_free(live: set[int]) -> None:
    found = list(islice(free_numbers(np.array(sorted(live), np.uint64)), 30))
    free = (number for number in range(FIRST_FREE, FIRST_FREE + 200) if number not in live)
    assert found == list(islice(free, 30))


def test_finding_them_loads_nothing() -> None:
    """numpy.ma takes longer to load than a small snapshot takes for most of its steps."""
    code = (
        "import sys, numpy as np; from zkeep.snapshot.numbers import free_numbers; "
        "from zkeep.pool.timeline.spans import is_in; a = np.arange(40, 9000, 2, dtype=np.uint64); "
        "next(free_numbers(a)); is_in(a, a[:99]); sys.exit('numpy.ma' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
