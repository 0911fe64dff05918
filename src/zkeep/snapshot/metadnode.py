"""Salt, IV and MAC of all blocks of dnodes of a snapshot, by block number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
_WIDTHS = {"salt": 8, "iv": 12, "mac": 16}


class Seals:
    """The seals of all blocks, one for 32 objects, in columns. `blocks`: their numbers, ascending."""

    def __init__(self, blocks: Array, little: Array, parts: tuple[Array, Array, Array]) -> None:
        """`little`: whether a block was in little-endian order on the sender's disk. `parts`: salts, IVs and MACs."""
        self.blocks = blocks
        self._little = little
        self._parts = parts

    @classmethod
    def read(cls, rows: Array, records: StoredRecords) -> Seals:
        """Read them at once from the headers of OBJECT_RANGE records.

        Raises:
            Damaged: a record is of another block than its row says.
        """
        headers = records.headers(rows, RecordType.OBJECT_RANGE)
        # A record's header must be of the block that its row says: else MACs of other blocks would be taken for
        # these.
        wrong = np.flatnonzero((headers["firstobj"] != rows["object"]) | (headers["firstobj"] % SLOTS > 0))
        if len(wrong):
            raise Damaged(f"{records.where(rows[wrong[0]])}: a block of dnodes lies where another should")
        little = little_of(rows, headers, records) if len(rows) else np.empty(0, bool)
        salts, ivs, macs = (_column(headers[name], name) for name in _WIDTHS)
        return cls(rows["object"] // np.uint64(SLOTS), little, (salts, ivs, macs))

    @classmethod
    def of(cls, seals: Mapping[int, Seal]) -> Seals:
        """Make columns of these, which are little-endian, by the numbers of their blocks."""
        numbers = sorted(seals)
        salts, ivs, macs = (
            np.frombuffer(b"".join(getattr(seals[number], name) for number in numbers), f"V{width}")
            for name, width in _WIDTHS.items()
        )
        return cls(np.array(numbers, np.uint64), np.ones(len(numbers), bool), (salts, ivs, macs))

    def changed(self, changes: Mapping[int, Seal | None]) -> Seals:
        """The same with other seals of some blocks; None: the block is a hole now."""
        stays = ~np.isin(self.blocks, np.fromiter(changes, np.uint64, len(changes)))
        new = Seals.of({number: seal for number, seal in changes.items() if seal is not None})
        blocks = np.concatenate([self.blocks[stays], new.blocks])
        order = np.argsort(blocks, kind="stable")
        little = np.concatenate([self._little[stays], new._little])[order]
        columns = zip(self._parts, new._parts, strict=True)
        salts, ivs, macs = (np.concatenate([mine[stays], other])[order] for mine, other in columns)
        return Seals(blocks[order], little, (salts, ivs, macs))

    def __iter__(self) -> Iterator[int]:
        """The block numbers, ascending."""
        return iter(self.blocks.tolist())

    def __contains__(self, index: int) -> bool:
        return self._at(index) is not None

    def _at(self, index: int) -> int | None:
        at = int(self.blocks.searchsorted(np.uint64(index)))
        return at if at < len(self.blocks) and int(self.blocks[at]) == index else None

    def find(self, index: int) -> Seal | None:
        """The seal of a block; None: there is no such block."""
        at = self._at(index)
        return Seal(*(part[at].tobytes() for part in self._parts)) if at is not None else None

    def get(self, index: int) -> Seal:
        """Raises KeyError if there is no such block."""
        found = self.find(index)
        if found is None:
            raise KeyError(index)
        return found

    def is_little(self, index: int) -> bool:
        """Whether a block was in little-endian byte order on the sender's disk. Raises KeyError: there is none."""
        at = self._at(index)
        if at is None:
            raise KeyError(index)
        return bool(self._little[at])

    def are_little(self) -> bool:
        """Whether all of them were."""
        return bool(self._little.all())

    def pointers(self) -> Array:
        """The metadnode's pointers to its blocks, as `blocks` numbers them."""
        found = np.zeros(len(self.blocks), POINTER)
        found["prop"] = np.uint64(PROP) | self._little.astype(np.uint64) << np.uint64(63)
        found["mac"] = self._parts[2]
        return found


def _column(values: Array, name: str) -> Array:
    return np.ascontiguousarray(values).view(f"V{_WIDTHS[name]}").reshape(-1)
