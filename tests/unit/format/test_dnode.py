"""One layout, said twice: for one dnode and for columns of many."""

from __future__ import annotations

import numpy as np
import pytest

from zkeep.format import dnode, limits
from zkeep.format.dnode import CORE, core_dtype, core_of
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import ByteOrder


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_core_is_the_same_from_fields_and_from_columns(order: ByteOrder) -> None:
    fields = (1, 2, 3, 4, 5, 6, 7, 8, 0x0901, 0x0A02, 11, 0x0C0B0A0908070605)
    columns = np.zeros(1, core_dtype(order))
    columns[0] = (*fields[:11], b"", fields[11], b"")
    assert columns.tobytes() == core_of(*fields, byteorder=order)
    assert core_dtype(order).itemsize == CORE


@pytest.mark.parametrize(
    ("bonustype", "bonuslen", "slots", "expected"),
    [
        pytest.param(ObjectType.SA, 0, 1, 1, id="attributes take all the room"),
        pytest.param(ObjectType.SA, 168, 4, 1, id="in a large dnode, too"),
        pytest.param(0, 0, 1, 3, id="no bonus"),
        pytest.param(0, 64, 1, 3, id="as much as beside three"),
        pytest.param(0, 65, 1, 2, id="one byte more"),
        pytest.param(ObjectType.ZNODE, 264, 1, 1, id="a znode of old"),
        pytest.param(0, 320, 1, 1, id="the whole dnode"),
        pytest.param(0, 320, 2, 3, id="more slots, more room"),
    ],
)
def test_pointers_beside_a_bonus(bonustype: int, bonuslen: int, slots: int, expected: int) -> None:
    assert dnode.pointers_beside(bonustype, bonuslen, slots) == expected
    columns = (np.array([value], np.uint32) for value in (bonustype, bonuslen, slots))
    assert limits.pointers_beside(*columns).tolist() == [expected]
