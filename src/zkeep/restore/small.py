"""Objects of one block at most, which most files are, made from columns of a whole chunk: there are millions."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zkeep.crypto.mactree import HOLE
from zkeep.format.dnode import CORE, MAX_POINTERS, POINTER, SECTOR, SLOT, SLOTS, Dnode
from zkeep.format.records import HEADER, MAX_PAYLOAD, ByteOrder, RecordFlag, RecordType
from zkeep.restore.held import NO_LEAVES, Verified

if TYPE_CHECKING:
    from zkeep.restore.state import Chunk

Array = npt.NDArray[Any]


class Small:
    """A chunk's objects as far as they are small; who is not, or is odd in any way, is left to be looked at closely."""

    def __init__(self, chunk: Chunk) -> None:
        rows, blocks = chunk.table.objects, chunk.table.blocks
        self._chunk = chunk
        heads = chunk.heads
        starts = np.searchsorted(blocks["object"], rows["object"], "left")
        counts = np.searchsorted(blocks["object"], rows["object"], "right") - starts
        self._ok = _is_plain(heads, rows) & (counts <= 1) & ~np.isin(rows["object"], chunk.table.spills["object"])
        alone = counts == 1
        first = chunk.leaves[starts[alone]]
        self._ok[alone] &= (heads["nblkptr"][alone] == 1) & (first["offset"] == 0) & (first["kind"] == RecordType.WRITE)
        self._fields = _fields(heads)
        self._starts, self._counts = starts.tolist(), counts.tolist()
        self._pointers = np.ascontiguousarray(chunk.leaves["pointer"]).tobytes()

    def between(self, first: int, end: int, order: ByteOrder) -> list[Verified] | None:
        """The objects of rows first to end, sealed as they are; None if not all of them are small."""
        if not self._ok[first:end].all():
            return None
        return [self._made(at, order) for at in range(first, end)]

    def _made(self, at: int, order: ByteOrder) -> Verified:
        dnode = Dnode._make((*self._fields[at], order, bytes(self._chunk.objects[at][HEADER:])))
        if not self._counts[at]:
            return Verified(dnode, None, HOLE * dnode.nblkptr, NO_LEAVES, NO_LEAVES)
        start = self._starts[at]
        root = self._pointers[start * len(HOLE) : (start + 1) * len(HOLE)]
        return Verified(dnode, None, root, NO_LEAVES, self._chunk.leaves[start : start + 1])


def _is_plain(heads: Array, rows: Array) -> Array:
    """What Dnode.check_shape() asks for, and that there is one level and no spill block."""
    pointers = heads["nblkptr"].astype(np.int64)
    room = np.maximum(heads["dn_slots"], 1).astype(np.int64) * SLOT - CORE - POINTER * pointers
    plain = (heads["rtype"] == RecordType.OBJECT) & (heads["object"] == rows["object"]) & (heads["nlevels"] == 1)
    plain &= (pointers >= 1) & (pointers <= MAX_POINTERS) & (heads["indblkshift"] > 7) & (heads["indblkshift"] <= 20)
    plain &= (heads["dn_slots"] <= SLOTS) & (heads["bonuslen"] <= room)
    plain &= (heads["type"] <= 0xFF) & (heads["bonustype"] <= 0xFF) & (heads["flags"] & RecordFlag.OBJECT_SPILL == 0)
    plain &= (heads["blksz"] % SECTOR == 0) & (heads["blksz"] > 0) & (heads["blksz"] <= MAX_PAYLOAD)
    return np.asarray(plain)


def _fields(heads: Array) -> list[tuple[Any, ...]]:
    """The fields of a Dnode up to its byte order."""
    shape = [heads[name].tolist() for name in ("object", "type", "bonustype", "blksz", "bonuslen")]
    slots = np.maximum(heads["dn_slots"], 1).tolist()
    kinds = [heads[name].tolist() for name in ("checksumtype", "compress")]
    tree = [heads[name].tolist() for name in ("indblkshift", "nlevels", "nblkptr", "maxblkid")]
    return list(zip(*shape, slots, *kinds, repeat(False, len(heads)), *tree, strict=True))
