"""One layout, said twice: for one dnode and for columns of many."""

from __future__ import annotations

import numpy as np
import pytest

from zkeep.format.dnode import CORE, core_dtype, core_of
from zkeep.format.records import ByteOrder


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_core_is_the_same_from_fields_and_from_columns(order: ByteOrder) -> None:
    fields = (1, 2, 3, 4, 5, 6, 7, 8, 0x0901, 0x0A02, 11, 0x0C0B0A0908070605)
    columns = np.zeros(1, core_dtype(order))
    columns[0] = (*fields[:11], b"", fields[11], b"")
    assert columns.tobytes() == core_of(*fields, byteorder=order)
    assert core_dtype(order).itemsize == CORE
