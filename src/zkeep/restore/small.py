"""Objects of one block at most, which most files are, as columns of a whole chunk: there are millions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zkeep.crypto.dnodeblock import Stretch
from zkeep.crypto.mactree import HOLE
from zkeep.format.dnode import CORE, POINTER, SECTOR, SLOT, SLOTS, Dnode, cores_of
from zkeep.format.objtypes import is_encrypted
from zkeep.format.records import HEADER, MAX_PAYLOAD, ByteOrder, RecordFlag, RecordType
from zkeep.restore.held import NO_LEAVES, Verified

if TYPE_CHECKING:
    from zkeep.restore.state import Chunk

Array = npt.NDArray[Any]
SEALED = np.array([is_encrypted(kind) for kind in range(256)])
"Whether a bonus buffer of a type is sealed."
ROW = CORE + len(HOLE)
"Bytes that are authenticated of a dnode with one pointer, next to its bonus buffer."


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
        rows, blocks, heads = chunk.table.objects, chunk.table.blocks, chunk.heads
        starts = np.searchsorted(blocks["object"], rows["object"], "left")
        counts = np.searchsorted(blocks["object"], rows["object"], "right") - starts
        self._heads = heads
        self._alone = counts == 1
        self._leaves = chunk.leaves[starts[self._alone]]
        self._plain = _is_plain(chunk) & (counts <= 1) & ~np.isin(rows["object"], chunk.table.spills["object"])
        self._plain[self._alone] &= (self._leaves["offset"] == 0) & (self._leaves["kind"] == RecordType.WRITE)
        self._turns = np.flatnonzero(_turns(heads, self._plain))
        self._bonuses = chunk.objects.cut(HEADER, np.where(_has_sealed_bonus(heads), chunk.objects.sizes - HEADER, 0))
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
        sealed = self._bonuses.content.data[self._places[start] : self._places[stop]]
        return Stretch(first[0], last[0] + last[5], solid[start * ROW : stop * ROW], sealed)

    def _made_solid(self, order: ByteOrder) -> bytes:
        """The cores and pointers of all small ones; of others zeros, or nothing that is used."""
        solid = np.zeros((len(self._heads), ROW), np.uint8)
        cores = cores_of(*_core_columns(self._heads[self._plain]), byteorder=order)
        solid[self._plain, :CORE] = np.frombuffer(cores, np.uint8).reshape(-1, CORE)
        pointers = np.ascontiguousarray(self._leaves["pointer"])
        solid[self._alone, CORE:] = pointers.view(np.uint8).reshape(-1, len(HOLE))
        return solid.tobytes()

    def cut(self, first: int, end: int) -> Columns:
        """Rows first to end, without holding on to the others."""
        base, last = self._ranks[first], self._ranks[end]
        own = zip(self._ranks[first:end], self._alone[first:end].tolist(), strict=True)
        leaf_of = [rank - base if alone else -1 for rank, alone in own]
        places = [place - self._places[first] for place in self._places[first:end]]
        return Columns(self._fields[first:end], places, leaf_of, self._leaves[base:last].copy())

    @cached_property
    def _ranks(self) -> list[int]:
        """How many of `_leaves` are of the rows before each, and of all."""
        return [0, *np.cumsum(self._alone).tolist()]

    @cached_property
    def _places(self) -> list[int]:
        """Where each row's bonus buffer begins among those that are sealed, and where the last one ends."""
        return [*self._bonuses.starts.tolist(), len(self._bonuses.content)]

    @cached_property
    def _fields(self) -> list[tuple[Any, ...]]:
        """Of each row the fields of its Dnode up to the byte order."""
        heads, names = self._heads, ("object", "type", "bonustype", "blksz", "bonuslen")
        shape = [*(heads[name].tolist() for name in names), _slots(heads).tolist()]
        kinds = [heads[name].tolist() for name in ("checksumtype", "compress")]
        tree = [heads[name].tolist() for name in ("indblkshift", "nlevels", "nblkptr", "maxblkid")]
        return list(zip(*shape, *kinds, repeat(False, len(heads)), *tree, strict=True))


def _slots(heads: Array) -> Array:
    return np.asarray(np.maximum(heads["dn_slots"], 1))


def _has_sealed_bonus(heads: Array) -> Array:
    """crypto.dnodeblock.has_sealed_bonus() in columns."""
    return np.asarray((heads["bonuslen"] > 0) & (heads["bonustype"] <= 0xFF) & SEALED[heads["bonustype"] & 0xFF])


def _is_plain(chunk: Chunk) -> Array:
    """What Dnode.check_shape() asks for, with one level, one pointer, no spill block and a whole, sealed bonus."""
    heads, rows = chunk.heads, chunk.table.objects
    room = _slots(heads).astype(np.int64) * SLOT - CORE - POINTER
    plain = (heads["rtype"] == RecordType.OBJECT) & (heads["object"] == rows["object"]) & (heads["nlevels"] == 1)
    plain &= (heads["nblkptr"] == 1) & (heads["indblkshift"] > 7) & (heads["indblkshift"] <= 20)
    plain &= (heads["dn_slots"] <= SLOTS) & (heads["bonuslen"] <= room) & (chunk.objects.sizes - HEADER == room)
    plain &= (heads["type"] <= 0xFF) & _has_sealed_bonus(heads) & (heads["flags"] & RecordFlag.OBJECT_SPILL == 0)
    plain &= (heads["blksz"] % SECTOR == 0) & (heads["blksz"] > 0) & (heads["blksz"] <= MAX_PAYLOAD)
    return np.asarray(plain)


def _turns(heads: Array, plain: Array) -> Array:
    """Which rows are not small, or do not follow a small one without free slots between them."""
    turns = ~plain
    ends = heads["object"] + _slots(heads)
    turns[1:] |= ~plain[:-1] | (heads["object"][1:] != ends[:-1])
    return np.asarray(turns)


def _core_columns(heads: Array) -> list[list[int]]:
    """As format.dnode.core_of() takes them."""
    kinds = [heads[name] for name in ("type", "indblkshift", "nlevels", "nblkptr", "bonustype")]
    kinds += [heads["checksumtype"], heads["compress"], np.zeros(len(heads), np.uint8)]
    sizes = [heads["blksz"] // SECTOR, heads["bonuslen"], _slots(heads) - 1, heads["maxblkid"]]
    return [column.tolist() for column in (*kinds, *sizes)]
