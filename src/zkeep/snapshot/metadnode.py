"""Salt, IV and MAC of all blocks of dnodes of a snapshot, by block number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zkeep.crypto.dnodeblock import Seal
from zkeep.crypto.mactree import POINTER
from zkeep.errors import Damaged
from zkeep.format.dnode import SLOTS
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import RecordType
from zkeep.pool.timeline.spans import Array
from zkeep.snapshot.chunks import little_of
from zkeep.snapshot.records import StoredRecords

PROP = (SLOTS - 1) | (SLOTS - 1) << 16 | 2 << 32 | ObjectType.DNODE << 48 | 1 << 61
"The blk_prop of a pointer to a block of dnodes: 16 KiB, uncompressed, as raw streams carry them."


class Seals:
    """The seals of all blocks, read at once from the headers of OBJECT_RANGE records: one for 32 objects.

    Raises:
        Damaged: a record is of another block than its row says.
    """

    def __init__(self, rows: Array, records: StoredRecords) -> None:
        headers = records.headers(rows, RecordType.OBJECT_RANGE)
        # A record's header must be of the block that its row says: else MACs of other blocks would be taken for
        # these.
        wrong = np.flatnonzero((headers["firstobj"] != rows["object"]) | (headers["firstobj"] % SLOTS > 0))
        if len(wrong):
            raise Damaged(f"{records.where(rows[wrong[0]])}: a block of dnodes lies where another should")
        self.blocks = rows["object"] // np.uint64(SLOTS)
        self._little = little_of(rows, headers, records) if len(rows) else np.empty(0, bool)
        self._parts = [np.ascontiguousarray(headers[name]) for name in ("salt", "iv", "mac")]
        self._at = dict(zip(self.blocks.tolist(), range(len(rows)), strict=True))

    def __iter__(self) -> Iterator[int]:
        """The block numbers, ascending."""
        return iter(sorted(self._at))

    def __contains__(self, index: int) -> bool:
        return index in self._at

    def get(self, index: int) -> Seal:
        """Raises KeyError if there is no such block."""
        at = self._at[index]
        return Seal(*(part[at].tobytes() for part in self._parts))

    def is_little(self, index: int) -> bool:
        """Whether a block was in little-endian byte order on the sender's disk."""
        return bool(self._little[self._at[index]])

    def pointers(self) -> Array:
        """The metadnode's pointers to its blocks, as `blocks` numbers them."""
        found = np.zeros(len(self.blocks), POINTER)
        found["prop"] = np.uint64(PROP) | self._little.astype(np.uint64) << np.uint64(63)
        found["mac"] = self._parts[2].view("V16").reshape(-1)
        return found
