"""Which blocks of an older object live on when a stream has it again: a table of shapes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from zkeep.format.objtypes import ObjectType
from zkeep.format.records import RecordType
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.resolve import Kind, beginning, resolve
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import BLOCK, FRESH_DATA, FRESH_SPILL, NOTHING, OBJECT, Table

NUMBER = 5
BOTH = FRESH_DATA | FRESH_SPILL
SIZE = {"object": 100, "block": 1000, "spill": 10}


class Before:
    """A timeline of one older run, of txg 7, with one table."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def pieces(self, past: object) -> list[str]:
        return ["all of it"]

    def nearby(self, piece: str, wanted: dict[str, Array]) -> Table:
        return replace(NOTHING, **{name: getattr(self._table, name) for name in wanted})

    def owner(self, number: int) -> tuple[object, None]:
        return SimpleNamespace(txg=7), None


def thing(**changed: int) -> Array:
    """A file of four blocks of 4 KiB, as a raw stream has it."""
    row = np.zeros(1, OBJECT)
    fields = {"object": NUMBER, "slots": 1, "type": ObjectType.PLAIN_FILE, "blksz": 4096, "size": SIZE["object"]}
    fields |= {"bonustype": ObjectType.SA, "bonuslen": 168}
    fields |= {"indblkshift": 17, "nlevels": 2, "maxblkid": 3, "tail": 16384}
    for name, value in (fields | changed).items():
        row[name] = value
    return row


def blocks(*offsets: int, blksz: int = 4096) -> Array:
    rows = np.zeros(len(offsets), BLOCK)
    rows["object"], rows["kind"], rows["offset"] = NUMBER, RecordType.WRITE, offsets
    rows["length"], rows["size"] = blksz, SIZE["block"]
    return rows


def spill() -> Array:
    rows = np.zeros(1, BLOCK)
    rows["object"], rows["kind"], rows["length"], rows["size"] = NUMBER, RecordType.SPILL, 512, SIZE["spill"]
    return rows


OLD = replace(NOTHING, objects=thing(), blocks=blocks(0, 4096, 8192, 12288), spills=spill())


def resolved(new: Table, *, raw: bool = True, grows: bool = False) -> tuple[Table, int]:
    """The new table, resolved against OLD; and how many bytes of it die."""
    table, dead = resolve(new, Before(OLD), ["run"], Kind(raw, grows))  # type: ignore[arg-type,list-item]
    assert dead.keys() <= {7}
    return table, dead.get(7, [0])[0]


OBJ, ALL, SPILL = SIZE["object"], 4 * SIZE["block"], SIZE["spill"]


@pytest.mark.parametrize(
    ("changed", "raw", "fresh", "dies"),
    [
        pytest.param({}, True, 0, OBJ, id="the same shape: only its record is replaced"),
        pytest.param({"slots": 2}, True, BOTH, OBJ + ALL + SPILL, id="other slots: another object"),
        pytest.param({"blksz": 8192}, True, FRESH_DATA, OBJ + ALL, id="other blocks"),
        pytest.param({"indblkshift": 14}, True, BOTH, OBJ + ALL + SPILL, id="raw, other indirect blocks"),
        pytest.param({"nlevels": 1}, True, BOTH, OBJ + ALL + SPILL, id="raw, fewer levels"),
        pytest.param({"nlevels": 3}, True, 0, OBJ, id="raw, more levels"),
        pytest.param({"nlevels": 1}, False, 0, OBJ, id="plain: levels do not matter"),
        pytest.param({"maxblkid": 1}, True, 0, OBJ + ALL // 2, id="raw, shorter: what lies behind its end"),
        pytest.param({"tail": 4096}, False, 0, OBJ + ALL * 3 // 4, id="plain, shorter"),
    ],
)
def test_a_shape_decides_what_lives_on(changed: dict[str, int], raw: bool, fresh: int, dies: int) -> None:
    table, dead = resolved(replace(NOTHING, objects=thing(**changed)), raw=raw)
    assert table.objects["fresh"].tolist() == [fresh]
    assert dead == dies


@pytest.mark.parametrize(
    ("bonuslen", "fresh"), [pytest.param(64, 0, id="room for three pointers"), pytest.param(65, FRESH_DATA, id="fewer")]
)
def test_a_bonus_that_takes_the_room_of_a_pointer_takes_the_blocks(bonuslen: int, fresh: int) -> None:
    """The old object has three pointers."""
    old = replace(OLD, objects=thing(bonustype=0, bonuslen=0))
    new = replace(NOTHING, objects=thing(bonustype=0, bonuslen=bonuslen))
    table, _ = resolve(new, Before(old), ["run"], Kind(True))  # type: ignore[arg-type,list-item]
    assert table.objects["fresh"].tolist() == [fresh]


@pytest.mark.parametrize(
    ("grows", "changed", "fresh"),
    [
        pytest.param(False, {"blksz": 8192}, FRESH_DATA, id="larger blocks, as ever"),
        pytest.param(True, {"blksz": 8192}, 0, id="the first stream with large blocks: files keep theirs"),
        pytest.param(True, {"blksz": 2048}, FRESH_DATA, id="smaller ones"),
        pytest.param(True, {"blksz": 8192, "type": ObjectType.DIRECTORY}, FRESH_DATA, id="a folder"),
    ],
)
def test_blocks_that_only_seem_to_grow(grows: bool, changed: dict[str, int], fresh: int) -> None:
    table, _ = resolved(replace(NOTHING, objects=thing(**changed)), raw=False, grows=grows)
    assert table.objects["fresh"].tolist() == [fresh]


def test_a_number_that_was_freed_before_is_another_object() -> None:
    freed = sp.lines(np.array([NUMBER], np.uint64), np.array([NUMBER + 1], np.uint64))
    table, dead = resolved(replace(NOTHING, objects=thing(), freed=freed))
    assert table.objects["fresh"].tolist() == [BOTH]
    assert dead == OBJ + ALL + SPILL


def test_blocks_and_holes_kill_what_lies_there() -> None:
    at = np.array([NUMBER], np.uint64)
    holes = sp.spans(at, np.array([8192], np.uint64), np.array([12288], np.uint64))
    table, dead = resolved(replace(NOTHING, blocks=blocks(0), holes=holes))
    assert dead == 2 * SIZE["block"]
    assert table.died["start"].tolist() == [8192], "the other one was replaced"


def test_without_a_past_all_is_new() -> None:
    assert beginning(replace(NOTHING, objects=thing())).objects["fresh"].tolist() == [BOTH]
