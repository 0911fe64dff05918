"""Look up what steps send: authentic dnodes, and leaves of MAC trees that lead to blocks.

A row or a stored header is not believed: sizes, types and compressions come from the MAC tree that the snapshot's
portable MAC covers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from zkeep.errors import Damaged
from zkeep.format.compress import Compression
from zkeep.format.records import HEADER, ByteOrder, RecordType
from zkeep.pool.timeline.compose import TAIL
from zkeep.pool.timeline.holes import holds_metadata
from zkeep.pool.timeline.spans import Array, Bools
from zkeep.pool.transfer.plain import OLD_LARGEST
from zkeep.restore.plain.difference import Difference
from zkeep.snapshot.errors import Unreadable
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.verified import LEAF, VerifiedObject

STEPS = 4096
"Steps that are looked up at a time."
_ALIGN = 8
_LITTLE = np.uint64(63)
"The bit of a block pointer's properties that says that the block is little-endian."


@dataclass(frozen=True)
class PlainBatch:
    """Some steps. All columns are beside `steps`; those about blocks are 0 where a step sends none.

    `leaves`: the blocks of WRITE and SPILL. `kinds`: their object types. `packed`: sent compressed, as stored.
    `sizes`: bytes of all payloads of a step. `parts`: how many records a step is.
    """

    steps: Array
    objects: dict[int, VerifiedObject]
    leaves: Array
    kinds: Array
    packed: Bools
    sizes: Array
    parts: Array

    @classmethod
    def empty(cls, steps: Array) -> PlainBatch:
        """Columns for these steps, to be filled in."""
        count = len(steps)
        leaves, kinds = np.zeros(count, LEAF), np.zeros(count, np.uint8)
        return cls(steps, {}, leaves, kinds, np.zeros(count, bool), np.zeros(count, np.int64), np.ones(count, np.int64))


class Verifier:
    """Looks up what steps send, in an opened snapshot, and lets `difference` check that none is missing.

    `large`: blocks of more than 128 KiB are not cut. `compressed`: contents of files are sent as they are stored.

    Raises (all methods):
        Forgery: something is not authentic.
        Damaged: the pool's own data is not what was stored.
        Unreadable: it is authentic, but cannot be sent in this form.
    """

    def __init__(
        self, snapshot: OpenSnapshot, order: ByteOrder, difference: Difference, *, large: bool, compressed: bool
    ) -> None:
        self._snapshot = snapshot
        self._difference = difference
        self._order: ByteOrder = order
        self._large = large
        self._compressed = compressed

    def batches(self, steps: Array) -> Iterator[PlainBatch]:
        for first in range(0, len(steps), STEPS):
            yield self._batch(steps[first : first + STEPS].copy())

    def finish(self) -> None:
        """All steps came. Raises Forgery: some are missing."""
        self._difference.finish()

    def _batch(self, steps: Array) -> PlainBatch:
        batch = PlainBatch.empty(steps)
        freed = steps["rtype"] == RecordType.FREEOBJECTS
        # Freed objects have no content to look up; whether they may be freed is checked.
        self._difference.free(steps[freed])
        mine = np.flatnonzero(~freed)
        for first, last in _runs(steps["object"][mine]):
            self._object(batch, mine[first:last])
        self._size(batch)
        return batch

    def _object(self, batch: PlainBatch, mine: Array) -> None:
        """Fill the columns of the steps `mine`, which are of one object."""
        steps, leaves, kinds = batch.steps, batch.leaves, batch.kinds
        obj = self._snapshot.object(int(steps["object"][mine[0]]))
        dnode = obj.dnode
        batch.objects[dnode.number] = obj
        if dnode.byteorder != self._order:
            raise self._swapped(dnode.number)
        # The leaf of each block that is written, and of the spill block: they say how it is stored.
        rtypes = steps["rtype"][mine]
        written = mine[rtypes == RecordType.WRITE]
        if len(written):
            leaves[written] = self._leaves(obj, steps["offset"][written])
            kinds[written] = dnode.type
        spilled = mine[rtypes == RecordType.SPILL]
        if len(spilled):
            if len(obj.spill) != 1:
                raise Damaged(f"{self._snapshot.name}: object {obj.dnode.number}: its spill block is gone")
            spill: Array = obj.spill[0]
            leaves[spilled], kinds[spilled] = spill, dnode.bonustype
        # An OBJECT brings the decrypted bonus, padded to 8 bytes; the FREE behind it begins after the last block.
        if rtypes[0] == RecordType.OBJECT:
            batch.sizes[mine[0]] = -(-len(dnode.bonus) // _ALIGN) * _ALIGN
        tails = mine[steps["turn"][mine] == TAIL]
        steps["a"][tails] = (dnode.maxblkid + 1) * dnode.blksz
        self._difference.object(obj, steps[mine])

    def _swapped(self, number: int) -> Unreadable:
        what = f"object {number} was written on a host of the other byte order: send it raw, with -w"
        return Unreadable(f"cannot send {self._snapshot.name}: {what}")

    def _leaves(self, obj: VerifiedObject, offsets: Array) -> Array:
        """The leaves of an object's blocks at these offsets, ascending."""
        size = obj.dnode.blksz
        first, last = int(offsets[0]) // size, int(offsets[-1]) // size
        parts = list(self._snapshot.blocks.leaves(obj, first, last + 1))
        found: Array = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, LEAF), *parts])
        # The object may have more blocks in this range than are sent.
        if len(found) != len(offsets):
            found = found[np.isin(found["offset"], offsets)]
        if not np.array_equal(found["offset"], offsets):
            raise Damaged(f"{self._snapshot.name}: object {obj.dnode.number}: its blocks changed while they were read")
        return found

    def _size(self, batch: PlainBatch) -> None:
        """Say how each block is sent: in one record or in several, compressed or not."""
        steps, leaves = batch.steps, batch.leaves
        # 1. Without -L, blocks of more than 128 KiB are cut into several WRITEs.
        is_data, is_spill = steps["rtype"] == RecordType.WRITE, steps["rtype"] == RecordType.SPILL
        logical = leaves["logical"].astype(np.int64)
        cut = is_data & (logical > OLD_LARGEST) if not self._large else np.zeros(len(steps), bool)
        batch.parts[cut] = -(-logical[cut] // OLD_LARGEST)
        # 2. Metadata is never sent compressed, so that a receiver of another byte order can swap it.
        little = leaves["pointer"]["prop"] >> _LITTLE > 0
        swapped, metadata = little != (self._order == "little"), is_spill | holds_metadata(batch.kinds)
        wrong = np.flatnonzero((is_data | is_spill) & swapped & metadata)
        if len(wrong):
            raise self._swapped(int(steps["object"][wrong[0]]))
        # 3. With -c, contents go as they are stored, unless their pieces or bytes have to change.
        packed = is_data & ~cut & ~swapped & ~metadata & (leaves["compression"] > Compression.OFF)
        batch.packed[:] = packed & self._compressed
        stored = leaves["size"].astype(np.int64) - HEADER
        blocks = is_data | is_spill
        batch.sizes[blocks] = np.where(batch.packed, stored, logical)[blocks]


def _runs(values: Array) -> Iterator[tuple[int, int]]:
    """Runs of equal values, each as [start, end)."""
    if len(values):
        turns = np.flatnonzero(values[1:] != values[:-1]) + 1
        yield from pairwise([0, *turns.tolist(), len(values)])
