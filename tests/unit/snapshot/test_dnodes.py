"""A block of dnodes as a mapping, and the blocks that no encrypted object can have."""

from __future__ import annotations

import numpy as np
import pytest

from zkeep.crypto.mactree import HOLE, MacTree, TreeShape
from zkeep.format.dnode import Dnode
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import RecordType
from zkeep.pool.timeline.spans import Array
from zkeep.snapshot.dnodes import DnodeBlock, add_leaves
from zkeep.snapshot.errors import Forgery
from zkeep.snapshot.small_objects import Columns
from zkeep.snapshot.verified import LEAF, NO_LEAVES, VerifiedObject


def fields(number: int, kind: int = ObjectType.PLAIN_FILE, bonuslen: int = 4) -> tuple[int | bool, ...]:
    """A dnode's fields up to its byte order: one level, one pointer."""
    return (number, kind, int(ObjectType.SA), 512, bonuslen, 1, 0, 0, False, 17, 1, 1, 0)


def leaves(*numbers: int) -> Array:
    found = np.zeros(len(numbers), LEAF)
    found["object"] = numbers
    found["pointer"]["prop"] = np.array(numbers) * 11
    return found


def block() -> DnodeBlock:
    """Files 32 (no block), 33 and 36 (one block each), and a directory 35 (one block)."""
    made = [fields(32), fields(33), fields(35, ObjectType.DIRECTORY), fields(36)]
    columns = Columns(made, [0, 4, 8, 12], [-1, 0, 1, 2], leaves(33, 35, 36))
    return DnodeBlock(columns, "little", b"aaaabbbbccccdddd")


def test_objects_are_made_when_they_are_asked_for() -> None:
    found = block()
    assert list(found) == [32, 33, 35, 36]
    assert (len(found), 34 in found, 35 in found) == (4, False, True)
    assert found[33] is found[33]
    assert found[33].dnode.bonus == found.bonus(33).content == b"bbbb"
    assert found[33].roots == leaves(33)["pointer"].tobytes()
    assert found[32].roots == HOLE
    with pytest.raises(KeyError):
        found[34]
    with pytest.raises(KeyError):
        found.bonus(34)


@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        pytest.param(ObjectType.PLAIN_FILE, [32, 33, 34, 35, 36], [33, 36], id="files with a block"),
        pytest.param(ObjectType.DIRECTORY, [32, 33, 34, 35, 36], [35], id="directories"),
        pytest.param(ObjectType.PLAIN_FILE, [36], [36], id="only those asked for"),
        pytest.param(ObjectType.PLAIN_FILE, [], [], id="none"),
    ],
)
def test_only_leaves(kind: ObjectType, numbers: list[int], expected: list[int]) -> None:
    assert block().only_leaves(kind, numbers)["object"].tolist() == expected


def test_an_object_that_is_not_small_gets_its_bonus_from_the_block() -> None:
    found = block()
    dnode = Dnode(*fields(35, ObjectType.DIRECTORY), "little", b"????")  # type: ignore[arg-type]
    found.put(VerifiedObject(dnode, None, b"roots", NO_LEAVES))
    assert (found[35].roots, found[35].dnode.bonus, found.bonus(35).content) == (b"roots", b"cccc", b"cccc")


@pytest.mark.parametrize(
    ("kind", "offset"),
    [
        pytest.param(RecordType.WRITE_EMBEDDED, 0, id="embedded"),
        pytest.param(RecordType.REDACT, 0, id="redacted"),
        pytest.param(RecordType.WRITE, 100, id="between two blocks"),
    ],
)
def test_a_block_that_no_encrypted_object_has(kind: RecordType, offset: int) -> None:
    dnode = Dnode(*fields(33), "little", b"")  # type: ignore[arg-type]
    odd = leaves(33)
    odd["kind"], odd["offset"] = kind, offset
    with pytest.raises(Forgery, match="cannot be in an encrypted dataset"):
        add_leaves("v/x@s", MacTree(TreeShape.of(dnode)), dnode, odd)
