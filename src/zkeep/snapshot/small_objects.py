"""Objects with one block at most, as most files are, handled as columns of a whole chunk: there are millions of them.

What the MAC of their block of dnodes covers is laid out for all small objects of a chunk at once, so that a block of
dnodes takes two slices, whatever number of objects it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from zkeep.crypto.dnodeblock import Stretch
from zkeep.crypto.mactree import HOLE, POINTER
from zkeep.format.dnode import CORE, SECTOR, SLOT, SLOTS, Dnode, core_dtype
from zkeep.format.dnode import POINTER as ON_DISK
from zkeep.format.objtypes import is_encrypted
from zkeep.format.records import MAX_PAYLOAD, ByteOrder, RecordFlag, RecordType
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import Table
from zkeep.snapshot.records import Packed
from zkeep.snapshot.verified import NO_LEAVES, VerifiedObject

ENCRYPTED = np.array([is_encrypted(kind) for kind in range(256)])
"Whether blocks and bonus buffers of each object type are encrypted."
ROW = CORE + POINTER.itemsize
"Bytes of a dnode with one pointer that are authenticated, without its bonus buffer."
_SHAPE = ("object", "type", "bonustype", "blksz", "bonuslen", "slots", "checksumtype", "compress", "has_spill")
_TREE = ("indblkshift", "nlevels", "nblkptr", "maxblkid")
FIELDS = np.dtype([(name, "?" if name == "has_spill" else "u8") for name in (*_SHAPE, *_TREE)])
"The fields of a Dnode in their order, up to its byte order."


class Columns(NamedTuple):
    """Rows of a chunk's objects, copied out of it so that the chunk need not stay in memory.

    `fields`: of each Dnode, up to its byte order. `bonus_starts`: where its bonus buffer begins among the encrypted
    ones. `leaf_of`: the index in `leaves` of its only block; -1 if it has none, or more than one.
    """

    fields: list[tuple[Any, ...]]
    bonus_starts: list[int]
    leaf_of: list[int]
    leaves: Array

    def make(self, index: int, order: ByteOrder, bonus: bytes) -> VerifiedObject:
        """A small object with its decrypted bonus buffer."""
        dnode = Dnode._make((*self.fields[index], order, bonus))
        at = self.leaf_of[index]
        if at < 0:
            return VerifiedObject(dnode, None, HOLE, NO_LEAVES, NO_LEAVES)
        leaf = self.leaves[at : at + 1]
        return VerifiedObject(dnode, None, leaf["pointer"].tobytes(), NO_LEAVES, leaf)


class SmallObjects:
    """The small objects of a chunk. Objects that are not small, or odd in any way, are left to DnodeBlocks.

    `headers`, `bodies`: of the chunk's OBJECT records. `all_leaves`: of all its blocks.
    """

    def __init__(self, table: Table, headers: Array, bodies: Packed, all_leaves: Array) -> None:
        rows, blocks = table.objects, table.blocks
        self._headers, self._bodies = headers, bodies
        # How many blocks each object has, and the leaf of those that have exactly one.
        starts = np.searchsorted(blocks["object"], rows["object"], "left")
        counts = np.searchsorted(blocks["object"], rows["object"], "right") - starts
        self._alone = counts == 1
        self._leaves = all_leaves[starts[self._alone]]
        self._ranks = _sums(self._alone)
        # Small: a plain dnode, at most one block, which is an ordinary one at offset 0, and no spill block.
        self._small = _is_plain(headers, rows, bodies.sizes) & (counts <= 1)
        self._small &= ~np.isin(rows["object"], table.spills["object"])
        self._small[self._alone] &= (self._leaves["offset"] == 0) & (self._leaves["kind"] == RecordType.WRITE)
        # Rows at which a run of small objects in consecutive slots cannot go on.
        self._breaks = np.flatnonzero(_breaks(headers, self._small))
        self._fields = _fields(headers)
        self._bonus_starts = _sums(np.where(_has_encrypted_bonus(headers), bodies.sizes, 0))
        self._aad: dict[ByteOrder, bytes] = {}

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Cut rows first to end: small objects in consecutive slots together, each other object by itself.

        Each run is (its first row, the row behind it, whether it is small).
        """
        if first < end:
            low, high = np.searchsorted(self._breaks, [first + 1, end])
            for start, stop in pairwise([first, *self._breaks[low:high].tolist(), end]):
                yield start, stop, bool(self._small[start])

    def stretch(self, start: int, stop: int, order: ByteOrder) -> Stretch:
        """What a run of small objects adds to the MAC of their block, whose byte order is `order`."""
        aad = self._aad.get(order) or self._aad.setdefault(order, self._make_aad(order))
        first, last = self._fields[start], self._fields[stop - 1]
        # | core 64 | pointer 32 | core 64 | pointer 32 | ...   the AAD of consecutive small dnodes; their bonus buffers
        #                                                       lie back to back in the chunk, too
        low, high = int(self._bodies.starts[start]), int(self._bodies.starts[stop - 1] + self._bodies.sizes[stop - 1])
        end = int(last["object"]) + int(last["slots"])
        return Stretch(int(first["object"]), end, aad[start * ROW : stop * ROW], self._bodies.content.data[low:high])

    def _make_aad(self, order: ByteOrder) -> bytes:
        """The cores and pointers of all rows' dnodes; those that are not small have a row that is not used."""
        aad = np.zeros(len(self._headers), [("core", core_dtype(order)), ("pointer", POINTER)])
        # One numpy record per object: the dnode's core as on disk, and the authenticated part of its only pointer.
        core, heads = aad["core"], self._headers
        for name in ("type", "indblkshift", "nlevels", "nblkptr", "bonustype", "checksumtype", "compress"):
            core[name] = heads[name]
        core["sectors"], core["bonuslen"] = heads["blksz"] // SECTOR, heads["bonuslen"]
        core["more_slots"], core["maxblkid"] = _slots(heads) - 1, heads["maxblkid"]
        aad["pointer"][self._alone] = self._leaves["pointer"]
        return aad.tobytes()

    def cut(self, first: int, end: int) -> Columns:
        """Copy rows first to end, so that the others can be freed."""
        ranks = self._ranks[first : end + 1]
        leaf_of = np.where(self._alone[first:end], ranks[:-1] - ranks[0], -1)
        leaves = self._leaves[ranks[0] : ranks[-1]].copy()
        bonus_starts = self._bonus_starts[first:end] - self._bonus_starts[first]
        return Columns(self._fields[first:end].tolist(), bonus_starts.tolist(), leaf_of.tolist(), leaves)


def _sums(values: Array) -> Array:
    """The sum of the values before each, and at the end the sum of all."""
    return np.append(0, np.cumsum(values, dtype=np.int64))


def _fields(heads: Array) -> Array:
    """The fields of each row's Dnode, up to its byte order."""
    fields = np.zeros(len(heads), FIELDS)
    for name in ("object", "type", "bonustype", "blksz", "bonuslen", "checksumtype", "compress"):
        fields[name] = heads[name]
    for name in ("indblkshift", "nlevels", "nblkptr", "maxblkid"):
        fields[name] = heads[name]
    fields["slots"] = _slots(heads)
    return fields


def _slots(heads: Array) -> Array:
    return np.asarray(np.maximum(heads["dn_slots"], 1))


def _has_encrypted_bonus(heads: Array) -> Array:
    """crypto.dnodeblock.has_encrypted_bonus() in columns."""
    return np.asarray((heads["bonuslen"] > 0) & (heads["bonustype"] <= 0xFF) & ENCRYPTED[heads["bonustype"] & 0xFF])


def _is_plain(heads: Array, rows: Array, sizes: Array) -> Array:
    """Dnode.check_shape() in columns, and: one level, one pointer, no spill block, a whole encrypted bonus buffer."""
    # Whatever differs from the plain shape goes the long way, where each check has an error of its own.
    room = _slots(heads).astype(np.int64) * SLOT - CORE - ON_DISK
    plain = (heads["rtype"] == RecordType.OBJECT) & (heads["object"] == rows["object"]) & (heads["nlevels"] == 1)
    plain &= (heads["nblkptr"] == 1) & (heads["indblkshift"] > 7) & (heads["indblkshift"] <= 20)
    plain &= (heads["dn_slots"] <= SLOTS) & (heads["bonuslen"] <= room) & (sizes == room)
    plain &= (heads["type"] <= 0xFF) & _has_encrypted_bonus(heads) & (heads["flags"] & RecordFlag.OBJECT_SPILL == 0)
    plain &= (heads["blksz"] % SECTOR == 0) & (heads["blksz"] > 0) & (heads["blksz"] <= MAX_PAYLOAD)
    return np.asarray(plain)


def _breaks(heads: Array, small: Array) -> Array:
    """Which rows are not small, or do not follow a small one without free slots between them."""
    breaks = ~small
    ends = heads["object"] + _slots(heads)
    breaks[1:] |= ~small[:-1] | (heads["object"][1:] != ends[:-1])
    return np.asarray(breaks)
