"""Names are found as the dataset's normalization and casesensitivity say."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from zkeep.errors import ZkeepError
from zkeep.format.dnode import Dnode
from zkeep.format.folding import CANONICAL, COMPATIBLE, COMPOSED, INSENSITIVE, MIXED, SENSITIVE, UPPER, folding
from zkeep.format.objtypes import ObjectType
from zkeep.format.zap_layout import MICRO
from zkeep.tree.filesystem import Filesystem

E_ACUTE, E_AND_ACUTE = "\u00e9".encode(), "e\u0301".encode()


@pytest.mark.parametrize(
    ("flags", "case", "one", "other", "equal"),
    [
        (CANONICAL, SENSITIVE, E_ACUTE, E_AND_ACUTE, True),
        (CANONICAL | COMPOSED, SENSITIVE, E_ACUTE, E_AND_ACUTE, True),
        (CANONICAL, SENSITIVE, b"a", b"A", False),
        (CANONICAL, SENSITIVE, "\ufb01".encode(), b"fi", False),
        (COMPATIBLE, SENSITIVE, "\ufb01".encode(), b"fi", True),
        (COMPATIBLE | COMPOSED, SENSITIVE, "\ufb01".encode(), b"fi", True),
        (UPPER, INSENSITIVE, b"Makefile", b"makeFILE", True),
        (UPPER | CANONICAL, INSENSITIVE, "\u00c9".encode(), E_AND_ACUTE, True),
        (UPPER | CANONICAL, MIXED, b"a", b"A", False),
        (UPPER | CANONICAL, MIXED, E_ACUTE, E_AND_ACUTE, True),
        (UPPER, INSENSITIVE, b"\xff", b"\xfe", False),
    ],
)
def test_names_are_equal_as_the_dataset_says(flags: int, case: int, one: bytes, other: bytes, equal: bool) -> None:
    fold = folding(flags, case)
    assert fold is not None
    assert (fold(one) == fold(other)) == equal


@pytest.mark.parametrize(("flags", "case"), [(0, SENSITIVE), (UPPER, MIXED)])
def test_else_only_the_same_bytes_are_equal(flags: int, case: int) -> None:
    assert folding(flags, case) is None


class Folders:
    """A master node and a folder, both small ZAPs, as the kernel lays them out."""

    def __init__(self, flags: int, case: int, names: list[bytes]) -> None:
        self._blocks = {
            1: _micro({b"ROOT": 34, b"casesensitivity": case}, 0),
            34: _micro({name: 8 << 60 | number for number, name in enumerate(names, 50)}, flags),
        }

    def dnode(self, number: int) -> Dnode:
        kind = ObjectType.DIRECTORY
        return Dnode(number, kind, 44, 1024, 0, 1, 0, 0, False, 17, 1, 1, 0, "little", b"")

    def spill_of(self, number: int) -> bytes | None:
        raise ZkeepError("there is none")

    def read_block(self, number: int, block: int) -> bytes:
        return self._blocks[number]

    def data(self, number: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        yield 0, self._blocks[number]


def _micro(entries: dict[bytes, int], flags: int) -> bytes:
    rows = [struct.pack("<QIH50s", value, 0, 0, name) for name, value in entries.items()]
    return (struct.pack("<3Q40x", MICRO, 1, flags) + b"".join(rows)).ljust(1024, b"\0")


def found(flags: int, case: int, names: list[bytes], wanted: bytes) -> bytes | None:
    name = Filesystem(Folders(flags, case, names)).find(34, wanted)
    return name.name if name else None


def test_a_folder_finds_what_is_equal_under_the_name_that_it_keeps() -> None:
    assert found(UPPER, INSENSITIVE, [b"ReadMe"], b"README") == b"ReadMe"
    assert found(UPPER, MIXED, [b"ReadMe"], b"README") is None
    assert found(CANONICAL, SENSITIVE, [E_ACUTE], E_AND_ACUTE) == E_ACUTE
    assert found(0, SENSITIVE, [b"ReadMe"], b"README") is None


def test_the_same_bytes_come_first() -> None:
    assert found(UPPER | CANONICAL, MIXED, [b"A", b"a"], b"a") == b"a"
