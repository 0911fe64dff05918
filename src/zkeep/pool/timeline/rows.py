"""Make the rows of a table from the verified records of a stream. Nothing is looked up.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from zkeep.format.events import Batch
from zkeep.format.records import HEADER, RecordFlag, RecordType
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import BLOCK, DTYPES, FRESH_SPILL, NOTHING, OBJECT, RANGE, TAILLESS, Table, concat

NO_OFFSET = 1 << 63
"No data block has an offset this large or larger."


@dataclass
class RowBuilder:
    """Builds the table of one segment.

    `spill_flags`: the stream has a flag for each object that has a spill block.
    """

    spill_flags: bool
    bare: bool = False
    "There may be WRITEs without payload."
    parts: list[Table] = field(default_factory=list)
    records: int = 0
    _open: Array | None = None
    "The row of an OBJECT at the end of the last batch: its FREE to the end may begin the next one."

    @property
    def closable(self) -> bool:
        """Whether the segment may end here: an OBJECT and its FREE to the end share a segment."""
        return self._open is None

    def add(self, batch: Batch, position: int) -> None:
        """Add the rows of a batch whose first record lies at byte `position` of the segment."""
        self.records += len(batch.types)
        places = batch.offsets + position
        objects = self._objects(batch, places)
        frees = self._frees(batch, objects)
        self._open = objects[-1:] if len(batch.types) and batch.types[-1] == RecordType.OBJECT else None
        holes = sp.union(frees) if len(frees) else sp.EMPTY
        # OBJECT_RANGE: the metadnode blocks of raw streams. FREEOBJECTS: numbers from one on.
        index, headers = batch.select(RecordType.OBJECT_RANGE)
        ranges = _placed(batch, RANGE, index, places)
        ranges["object"], ranges["slots"] = headers["firstobj"], headers["numslots"]
        _, freed = batch.select(RecordType.FREEOBJECTS)
        gone = sp.lines(freed["firstobj"], sp.reach(freed["firstobj"], freed["numobjs"])) if len(freed) else None
        self.parts.append(
            Table(
                ranges=ranges,
                objects=objects,
                blocks=_blocks(batch, places, bare=self.bare),
                spills=self._spills(batch, places),
                holes=holes,
                died=sp.EMPTY,
                freed=sp.EMPTY if gone is None else sp.union(gone),
            )
        )

    def table(self) -> Table:
        """All rows so far as one table."""
        if not self.parts:
            return NOTHING
        made = concat(self.parts)
        # An object has one spill block: the one that came last.
        spills = made.spills
        spills = spills[np.append(spills["object"][1:] != spills["object"][:-1], True)] if len(spills) else spills
        return replace(
            made,
            spills=spills,
            holes=sp.union(made.holes) if len(made.holes) else sp.EMPTY,
            freed=sp.union(made.freed) if len(made.freed) else sp.EMPTY,
        )

    def _objects(self, batch: Batch, places: Array) -> Array:
        index, headers = batch.select(RecordType.OBJECT)
        rows = _placed(batch, OBJECT, index, places)
        for name in ("object", "maxblkid", "blksz", "bonuslen", "indblkshift", "nlevels", "nblkptr", "flags"):
            rows[name] = headers[name]
        rows["type"], rows["bonustype"] = headers["type"], headers["bonustype"]
        # Senders without the large_dnode feature leave dn_slots 0, which means one.
        rows["slots"] = np.maximum(headers["dn_slots"], 1)
        rows["tail"] = TAILLESS
        # Such a stream says for each object whether it has a spill block; one without loses an older object's.
        if self.spill_flags:
            rows["fresh"] = np.where(rows["flags"] & RecordFlag.OBJECT_SPILL, 0, FRESH_SPILL)
        return rows

    def _frees(self, batch: Batch, objects: Array) -> Array:
        """FREE records as spans, without the FREE to the end that follows each OBJECT: that one sets its `tail`."""
        index, headers = batch.select(RecordType.FREE)
        if not len(index):
            return sp.EMPTY
        # OBJECT 7, FREE 7 from 8192 to the end: the shape of object 7. Any other FREE is a hole.
        after = (index > 0) & (batch.types[index - 1] == RecordType.OBJECT)
        tails = after & (headers["length"] == sp.END)
        at = np.searchsorted(objects["object"], headers["object"][tails])
        objects["tail"][at] = headers["offset"][tails]
        # The OBJECT was the last record of the batch before: its row is waiting for this FREE.
        if self._open is not None and index[0] == 0 and headers["length"][0] == sp.END:
            self._open["tail"] = headers["offset"][0]
            tails[0] = True
        rest = headers[~tails]
        return sp.spans(rest["object"], rest["offset"], sp.reach(rest["offset"], rest["length"]))

    def _spills(self, batch: Batch, places: Array) -> Array:
        index, headers = batch.select(RecordType.SPILL)
        if self.spill_flags:  # unmodified ones are for receivers that do not know the flag
            changed = headers["flags"] & RecordFlag.SPILL_UNMODIFIED == 0
            index, headers = index[changed], headers[changed]
        rows = _placed(batch, BLOCK, index, places)
        rows["object"], rows["length"], rows["kind"] = headers["object"], headers["length"], RecordType.SPILL
        return _with_embedded_spills(batch, rows, places)


def _with_embedded_spills(batch: Batch, rows: Array, places: Array) -> Array:
    """Some senders put compressible spill blocks into WRITE_EMBEDDED at the end of all offsets (openzfs/zfs#18239)."""
    index, headers = batch.select(RecordType.WRITE_EMBEDDED)
    odd = headers["offset"] >= NO_OFFSET
    if not odd.any():
        return rows
    more = _placed(batch, BLOCK, index[odd], places)
    more["object"], more["length"] = headers["object"][odd], headers["length"][odd]
    more["kind"] = RecordType.WRITE_EMBEDDED
    every = np.concatenate([rows, more])
    ordered: Array = every[np.argsort(every["pos"], kind="stable")]
    return ordered


def _placed(batch: Batch, dtype: np.dtype[np.void], index: Array, places: Array) -> Array:
    rows = np.zeros(len(index), dtype)
    rows["pos"], rows["check"], rows["size"] = places[index], batch.checks[index], batch.lengths[index]
    return rows


def _blocks(batch: Batch, places: Array, *, bare: bool) -> Array:
    found = []
    for kind, size in (
        (RecordType.WRITE, "logical_size"),
        (RecordType.WRITE_EMBEDDED, "length"),
        (RecordType.REDACT, "length"),
    ):
        index, headers = batch.select(kind)
        # Embedded spill blocks have impossible offsets; RowBuilder._spills takes them.
        if kind == RecordType.WRITE_EMBEDDED:
            real = headers["offset"] < NO_OFFSET
            index, headers = index[real], headers[real]
        rows = _placed(batch, BLOCK, index, places)
        rows["object"], rows["offset"], rows["kind"] = headers["object"], headers["offset"], kind
        rows["length"] = np.minimum(headers[size], 0xFFFFFFFF)
        if bare and kind == RecordType.WRITE:
            rows["bare"] = rows["size"] == HEADER
        found.append(rows)
    if not len(found[1]) and not len(found[2]):
        return found[0]
    rows = np.concatenate(found)
    return rows[np.argsort(rows["pos"], kind="stable")]


assert set(DTYPES) == set(Table.__dataclass_fields__)
