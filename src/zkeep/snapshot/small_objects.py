"""Objects of one block at most, which most files are, as columns of a whole chunk: there are millions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zkeep.crypto.dnodeblock import Stretch
from zkeep.crypto.mactree import HOLE, POINTER
from zkeep.format.dnode import CORE, SECTOR, SLOT, SLOTS, Dnode, core_dtype
from zkeep.format.dnode import POINTER as ON_DISK
from zkeep.format.objtypes import is_encrypted
from zkeep.format.records import MAX_PAYLOAD, ByteOrder, RecordFlag, RecordType
from zkeep.snapshot.verified import NO_LEAVES, Verified

if TYPE_CHECKING:
    from zkeep.snapshot.chunks import Chunk

Array = npt.NDArray[Any]
SEALED = np.array([is_encrypted(kind) for kind in range(256)])
"Whether a bonus buffer of a type is sealed."
ROW = CORE + POINTER.itemsize
"Bytes that are authenticated of a dnode with one pointer, next to its bonus buffer."
_SHAPE = ("object", "type", "bonustype", "blksz", "bonuslen", "slots", "checksumtype", "compress", "has_spill")
_TREE = ("indblkshift", "nlevels", "nblkptr", "maxblkid")
FIELDS = np.dtype([(name, "?" if name == "has_spill" else "u8") for name in (*_SHAPE, *_TREE)])
"A Dnode's, in their order, up to its byte order."


class Columns(NamedTuple):
    """Some rows of a chunk: of each the fields of its Dnode up to the byte order, where its bonus buffer begins among
    those that are sealed, and which of `leaves` is its only block; -1: it has none, or more than one.
    """

    fields: list[tuple[Any, ...]]
    places: list[int]
    leaf_of: list[int]
    leaves: Array

    def made(self, at: int, order: ByteOrder, bonus: bytes) -> Verified:
        """A small one with its bonus buffer open."""
        dnode = Dnode._make((*self.fields[at], order, bonus))
        index = self.leaf_of[at]
        if index < 0:
            return Verified(dnode, None, HOLE, NO_LEAVES, NO_LEAVES)
        leaf = self.leaves[index : index + 1]
        return Verified(dnode, None, leaf["pointer"].tobytes(), NO_LEAVES, leaf)


class Small:
    """A chunk's objects as far as they are small; who is not, or is odd in any way, is left to be looked at closely."""

    def __init__(self, chunk: Chunk) -> None:
        rows, blocks = chunk.table.objects, chunk.table.blocks
        self._heads, self._bodies = heads, bodies = chunk.objects
        starts = np.searchsorted(blocks["object"], rows["object"], "left")
        counts = np.searchsorted(blocks["object"], rows["object"], "right") - starts
        self._alone = counts == 1
        self._leaves = chunk.leaves[starts[self._alone]]
        self._ranks = _sums(self._alone)
        self._plain = _is_plain(heads, rows, bodies.sizes) & (counts <= 1)
        self._plain &= ~np.isin(rows["object"], chunk.table.spills["object"])
        self._plain[self._alone] &= (self._leaves["offset"] == 0) & (self._leaves["kind"] == RecordType.WRITE)
        self._turns = np.flatnonzero(_turns(heads, self._plain))
        self._fields = _fields(heads)
        self._places = _sums(np.where(_has_sealed_bonus(heads), bodies.sizes, 0))
        self._solid: dict[ByteOrder, bytes] = {}

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Rows first to end: small ones that follow one another slot by slot together, others one by one."""
        if first < end:
            low, high = np.searchsorted(self._turns, [first + 1, end])
            for start, stop in pairwise([first, *self._turns[low:high].tolist(), end]):
                yield start, stop, bool(self._plain[start])

    def stretch(self, start: int, stop: int, order: ByteOrder) -> Stretch:
        """What of a run of small ones is authenticated and sealed; `order`: of their block."""
        solid = self._solid.get(order) or self._solid.setdefault(order, self._made_solid(order))
        first, last = self._fields[start], self._fields[stop - 1]
        low, high = int(self._bodies.starts[start]), int(self._bodies.starts[stop - 1] + self._bodies.sizes[stop - 1])
        end = int(last["object"]) + int(last["slots"])
        return Stretch(int(first["object"]), end, solid[start * ROW : stop * ROW], self._bodies.content.data[low:high])

    def _made_solid(self, order: ByteOrder) -> bytes:
        """The cores and pointers of all small ones; of others nothing that is used."""
        solid = np.zeros(len(self._heads), [("core", core_dtype(order)), ("pointer", POINTER)])
        core, heads = solid["core"], self._heads
        for name in ("type", "indblkshift", "nlevels", "nblkptr", "bonustype", "checksumtype", "compress"):
            core[name] = heads[name]
        core["sectors"], core["bonuslen"] = heads["blksz"] // SECTOR, heads["bonuslen"]
        core["more_slots"], core["maxblkid"] = _slots(heads) - 1, heads["maxblkid"]
        solid["pointer"][self._alone] = self._leaves["pointer"]
        return solid.tobytes()

    def cut(self, first: int, end: int) -> Columns:
        """Rows first to end, without holding on to the others."""
        ranks = self._ranks[first : end + 1]
        leaf_of = np.where(self._alone[first:end], ranks[:-1] - ranks[0], -1)
        leaves = self._leaves[ranks[0] : ranks[-1]].copy()
        places = self._places[first:end] - self._places[first]
        return Columns(self._fields[first:end].tolist(), places.tolist(), leaf_of.tolist(), leaves)


def _sums(values: Array) -> Array:
    """Of the values before each, and of all."""
    return np.append(0, np.cumsum(values, dtype=np.int64))


def _fields(heads: Array) -> Array:
    """Of each row the fields of its Dnode up to the byte order."""
    fields = np.zeros(len(heads), FIELDS)
    for name in ("object", "type", "bonustype", "blksz", "bonuslen", "checksumtype", "compress"):
        fields[name] = heads[name]
    for name in ("indblkshift", "nlevels", "nblkptr", "maxblkid"):
        fields[name] = heads[name]
    fields["slots"] = _slots(heads)
    return fields


def _slots(heads: Array) -> Array:
    return np.asarray(np.maximum(heads["dn_slots"], 1))


def _has_sealed_bonus(heads: Array) -> Array:
    """crypto.dnodeblock.has_sealed_bonus() in columns."""
    return np.asarray((heads["bonuslen"] > 0) & (heads["bonustype"] <= 0xFF) & SEALED[heads["bonustype"] & 0xFF])


def _is_plain(heads: Array, rows: Array, sizes: Array) -> Array:
    """What Dnode.check_shape() asks for, with one level, one pointer, no spill block and a whole, sealed bonus."""
    room = _slots(heads).astype(np.int64) * SLOT - CORE - ON_DISK
    plain = (heads["rtype"] == RecordType.OBJECT) & (heads["object"] == rows["object"]) & (heads["nlevels"] == 1)
    plain &= (heads["nblkptr"] == 1) & (heads["indblkshift"] > 7) & (heads["indblkshift"] <= 20)
    plain &= (heads["dn_slots"] <= SLOTS) & (heads["bonuslen"] <= room) & (sizes == room)
    plain &= (heads["type"] <= 0xFF) & _has_sealed_bonus(heads) & (heads["flags"] & RecordFlag.OBJECT_SPILL == 0)
    plain &= (heads["blksz"] % SECTOR == 0) & (heads["blksz"] > 0) & (heads["blksz"] <= MAX_PAYLOAD)
    return np.asarray(plain)


def _turns(heads: Array, plain: Array) -> Array:
    """Which rows are not small, or do not follow a small one without free slots between them."""
    turns = ~plain
    ends = heads["object"] + _slots(heads)
    turns[1:] |= ~plain[:-1] | (heads["object"][1:] != ends[:-1])
    return np.asarray(turns)
