"""Turn the records of a plain stream into changes to objects.

What a plain stream lacks is put back: how many pointers a dnode has follows from its bonus, how far its tree reaches
from the FREE to the end that comes right behind each OBJECT, which blocks stay from the base.

An OBJECT waits in a queue until its data come, or data of a later one: senders up to 0.8 send the OBJECTs of a whole
block of dnodes first, and then their data.

Source: OpenZFS module/zfs/dmu_recv.c receive_object(), receive_handle_existing_object(), receive_free();
module/zfs/dmu_send.c dump_dnode(), do_dump().
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zkeep.errors import BadStream, Refused
from zkeep.format.dnode import SLOTS, pointers_beside
from zkeep.format.limits import OLD_MAX_BLOCK, TO_THE_END
from zkeep.format.objtypes import ObjectType, is_encrypted
from zkeep.format.records import Begin, BeginFlag, Feature, RecordFlag, RecordType
from zkeep.pool.datasets.contents import NotHere
from zkeep.reencrypt.blocks import BlockJoiner, BlockSource, NothingKept, embedded_content
from zkeep.reencrypt.clear_objects import is_none_in_clear, only_numbers
from zkeep.reencrypt.records import StreamRecord, StreamRecords
from zkeep.snapshot.changes import Block, ObjectChange
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.verified import VerifiedObject
from zkeep.snapshot.writer import SnapshotWriter

STEP = 4 << 30
"Bytes of new data after which a transaction group ends."
MOST_BLOCKS = 1 << 18
"Blocks of one object in a transaction group: what is known of each is in memory until the object is complete."
NO_OFFSET = 1 << 63
"No file is larger. WRITE_EMBEDDED from here on is a spill block of a broken sender (openzfs/zfs#18239)."
_DATA = frozenset(
    {RecordType.WRITE, RecordType.FREE, RecordType.WRITE_EMBEDDED, RecordType.SPILL, RecordType.REDACT}
)


@dataclass(slots=True)
class _Head:
    """An OBJECT that was read; its data may still come."""

    change: ObjectChange
    at: int
    has_spill: bool
    end: int | None = None
    "Bytes to the end of its last block, as the FREE behind it says."
    begun: bool = False
    "A part of it was written in an earlier transaction group."


@dataclass(slots=True)
class _FreedRange:
    """A range of FREEOBJECTS that waits behind an OBJECT."""

    first: int
    end: int


class Translator:
    """Gives a SnapshotWriter the changes that a plain stream brings. `fill` is that of snapshot/commit.py."""

    def __init__(self, begin: Begin, records: StreamRecords, step: int = STEP) -> None:
        self._begin = begin
        self._records = records
        self._step = step
        self._room = step
        self._blocks = MOST_BLOCKS
        self._queue: deque[_Head | _FreedRange] = deque()
        self._cut: _Head | None = None
        "The object in the middle of whose data the last transaction group ended."
        self._writer: SnapshotWriter
        self._base: OpenSnapshot | None = None
        self._spills_flagged = bool(begin.flags & BeginFlag.SPILL_BLOCK)
        self.point: tuple[int, int] | None = None
        "Object and offset of the last block that was written: where a stream that goes on begins."
        self.bytes = 0
        "Bytes of blocks that were read so far."
        self.mended = 0
        "Spill blocks that a broken sender sent as something else."
        self.redacted = 0
        "Ranges that the sender left out, which become holes."

    def fill(self, writer: SnapshotWriter, base: OpenSnapshot | None) -> bool:
        """Write what belongs into the next transaction group; whether there is more."""
        self._writer, self._base, self._room = writer, base, self._step
        # An object in the middle of which the last group ended goes on first: its records come next.
        if self._cut is not None:
            head, self._cut = self._cut, None
            self._write(head)
        while self._cut is None and self._room > 0 and (record := self._records.peek()) is not None:
            if record.type == RecordType.OBJECT:
                self._object(record)
            # Objects are written in ascending order, so what is freed waits behind OBJECTs before it.
            elif record.type == RecordType.FREEOBJECTS:
                self._records.take()
                first, count = record.fields
                self._queue.append(_FreedRange(first, first + count))
                if not any(isinstance(item, _Head) for item in self._queue):
                    self._settle()
            else:
                self._data(record)
        if self._records.broken is not None:
            # What was written so far becomes a step. Objects without data yet come again in the stream that goes on.
            self._queue.clear()
            if self.point is None:
                raise self._records.broken
            return True
        if self._cut is None:
            self._settle()
        return self._cut is not None or self._records.peek() is not None

    @property
    def broken(self) -> bool:
        """Whether the stream broke off."""
        return self._records.broken is not None

    # The queue

    def _object(self, record: StreamRecord) -> None:
        self._records.take()
        number, kind, bonustype, blksz, bonuslen, checksum, compress, slots, flags = record.fields
        # No sender mixes the data of two blocks of dnodes: what waits from the one before has none.
        if any(isinstance(item, _Head) and item.change.number // SLOTS != number // SLOTS for item in self._queue):
            self._settle()
        if bonustype == ObjectType.ZNODE:
            raise Refused(
                "the filesystem is of version 4 or older, whose attributes OpenZFS does not encrypt: "
                "zfs upgrade it, and send it again"
            )
        if not is_none_in_clear(number, kind, bonustype, bonuslen):
            raise Refused(
                f"object {number} is of a type, {kind} with a bonus of {bonustype}, that OpenZFS does not encrypt, and "
                f"that no filesystem or volume has there"
            )
        bonus = bytes(record.payload[:bonuslen])
        change = ObjectChange(number, kind, blksz, -1, bonus=bonus, bonustype=bonustype)
        change.slots, change.checksum, change.compress = max(slots, 1), checksum, compress
        self._queue.append(_Head(change, record.at, bool(flags & RecordFlag.OBJECT_SPILL)))

    def _data(self, record: StreamRecord) -> None:
        """A record that belongs to an object: write those before it, and then this one with all its data."""
        number = record.fields[0]
        head = next((item for item in self._queue if isinstance(item, _Head) and item.change.number == number), None)
        if head is None:
            raise BadStream(f"data of object {number} come after those of a later one", record.at, record.name)
        # The first FREE to the end is no change: it says where the object ends.
        if record.type == RecordType.FREE and record.fields[2] == TO_THE_END and head.end is None:
            self._records.take()
            head.end = record.fields[1]
            if head.end > NO_OFFSET:
                raise BadStream(f"object {number} ends where no file can", record.at, record.name)
            return
        # An unmodified spill block may come right behind the OBJECT, before the data of objects that still wait.
        if record.type == RecordType.SPILL and record.fields[2] & RecordFlag.SPILL_UNMODIFIED and self._spills_flagged:
            self._spill(head, record)
            return
        # Data come in ascending order: nothing more comes for the objects before this one.
        while self._queue[0] is not head:
            self._settle_first()
        self._queue.popleft()
        self._write(head)

    def _settle(self) -> None:
        """Write all that waits, because nothing more comes for it."""
        while self._queue and self._cut is None:
            self._settle_first()

    def _settle_first(self) -> None:
        item = self._queue.popleft()
        if isinstance(item, _Head):
            self._write(item)
        else:
            self._free(item.first, item.end)

    def _free(self, first: int, end: int) -> None:
        """Free the objects that the base has in this range."""
        if self._base is None:
            return
        for index in sorted(i for i in self._base.numbers() if first // SLOTS <= i <= (end - 1) // SLOTS):
            for number in sorted(self._base.dnodes(index)):
                if first <= number < end:
                    self._writer.free(number)

    # One object

    def _write(self, head: _Head) -> None:
        change = head.change
        if head.end is None:
            raise BadStream(f"nothing says where object {change.number} ends", head.at, "OBJECT")
        # What the base has under this number, and whether it is the same object as far as blocks are concerned.
        held = self._held(change.number)
        # A group later the object goes on: its shape was settled when it began.
        if not head.begun:
            if held is not None and self._keeps_small_blocks(head, held):
                change.blksz = held.dnode.blksz
            change.last = -(-head.end // change.blksz) - 1
        change.keep = head.begun or self._lives_on(change, held)
        stays = head.has_spill or not self._spills_flagged  # senders that do not tell send a spill block if it changed
        if change.spill is None and stays and change.keep and held is not None and len(held.spill):
            change.spill = "keep"
        # The blocks are read from the stream while the writer asks for them: an object may be larger than memory.
        kept: BlockSource = NothingKept()
        if change.keep and held is not None and self._base is not None:
            kept = _KeptBlocks(self._base, held)
        blocks = self._blocks_of(head, kept)
        change.blocks = blocks if is_encrypted(change.type) else only_numbers(change, blocks, head.at)
        head.begun = True
        self._writer.write(change)

    def _keeps_small_blocks(self, head: _Head, held: VerifiedObject) -> bool:
        """Whether it is a file that only seems to have larger blocks, as the streams before were sent without -L."""
        change, was = head.change, held.dnode
        files = change.type == was.type == ObjectType.PLAIN_FILE
        if not files or was.maxblkid == 0 or change.blksz == was.blksz:
            return False
        # Without -L blocks are cut to 128 KiB; an object with other blocks than that was made again, and comes whole.
        if min(change.blksz, was.blksz) != OLD_MAX_BLOCK or _generation(change.bonus) != _generation(was.bonus):
            return False
        if change.blksz < was.blksz:
            if self._begin.features & Feature.LARGE_BLOCKS:
                return False
            raise BadStream(f"the blocks of object {change.number} become smaller: send with -L", head.at, "OBJECT")
        return True

    def _held(self, number: int) -> VerifiedObject | None:
        return self._base.dnodes(number // SLOTS).get(number) if self._base is not None else None

    def _lives_on(self, change: ObjectChange, held: VerifiedObject | None) -> bool:
        """Whether blocks of the object that had this number stay. If not, all that it has is in the stream."""
        if held is None:
            return False
        # As a receiving kernel: another shape, or a dnode with room for fewer pointers, loses its blocks.
        mine = change.type, change.bonustype, change.blksz, change.slots
        theirs = held.dnode.type, held.dnode.bonustype, held.dnode.blksz, held.dnode.slots
        pointers = pointers_beside(change.bonustype, len(change.bonus), change.slots)
        return mine == theirs and pointers >= held.dnode.nblkptr

    def _blocks_of(self, head: _Head, kept: BlockSource) -> Iterator[Block]:
        """Its blocks, taken from the stream as they are asked for."""
        change = head.change
        assert head.end is not None
        joiner = BlockJoiner(change.blksz, head.end, kept)
        self._blocks = MOST_BLOCKS
        while (record := self._records.peek()) is not None:
            if record.type not in _DATA or record.fields[0] != change.number:
                break
            # The group is full: the object ends here for now, but a spill block belongs to what was written.
            if (self._room <= 0 or self._blocks <= 0) and record.type != RecordType.SPILL:
                self._cut = head
                yield from joiner.flush()
                return
            yield from self._take(head, joiner, record)
        if self._records.broken is not None:
            yield from joiner.flush()
            return
        yield from joiner.end()
        if head.has_spill and change.spill is None:
            raise BadStream(f"the spill block of object {change.number} is missing", head.at, "OBJECT")

    def _take(self, head: _Head, joiner: BlockJoiner, record: StreamRecord) -> Iterator[Block]:
        # What was left out of a redacted stream is not there: a hole, as in a raw stream of the kernel's own.
        if record.type == RecordType.REDACT:
            self.redacted += 1
            record = record._replace(type=RecordType.FREE)
        # A spill block is the object's own, not part of its data; some senders mark it by an impossible offset.
        if record.type == RecordType.SPILL or (
            record.type == RecordType.WRITE_EMBEDDED and record.fields[1] >= NO_OFFSET
        ):
            self._spill(head, record)
            return
        # When the room is used up, the transaction group ends and is committed, so that memory stays bounded.
        self._room -= len(record.payload)
        self.bytes += len(record.payload)
        self._blocks -= 1
        # Where a resumed stream has to begin, if this one breaks off.
        if record.type != RecordType.FREE:
            self.point = record.fields[0], record.fields[1]
        yield from joiner.add(record)
        self._records.take()

    def _spill(self, head: _Head, record: StreamRecord) -> None:
        """Take a spill block; one that did not change stays as the base has it, if that has it."""
        change = head.change
        # A broken sender makes a WRITE_EMBEDDED of a spill block that compresses well; it is put back where it belongs.
        if record.type == RecordType.WRITE_EMBEDDED:
            content: bytes | None = embedded_content(record)
            self.mended += 1
        else:
            content = bytes(record.payload)
        flagged = self._spills_flagged and record.type == RecordType.SPILL
        unmodified = flagged and record.fields[2] & RecordFlag.SPILL_UNMODIFIED
        held = self._held(change.number) if unmodified else None
        if not (held is not None and len(held.spill) and self._lives_on(change, held)):
            change.spill = content
        head.has_spill = True
        self._records.take()


def _generation(bonus: bytes) -> int:
    """ZPL_GEN, by which a file differs from others that had its object number before.

        0     4       6       8            8 * words    + 16
        +-----+-------+-------+-- - - - ---+--- ... -----+------------+
        |magic|layout |lengths of others   | mode, size  | generation |
        +-----+-------+-------+-- - - - ---+--- ... -----+------------+
               upper 6 bits: words of this header

    Source: OpenZFS include/sys/zfs_sa.h SA_GEN_OFFSET; include/sys/sa_impl.h SA_HDR_SIZE.
    """
    at = (int.from_bytes(bonus[4:6], "little") >> 10) * 8 + 16
    return int.from_bytes(bonus[at : at + 8], "little")


class _KeptBlocks:
    """The blocks of an object of the base."""

    def __init__(self, base: OpenSnapshot, held: VerifiedObject) -> None:
        self._base, self._held = base, held

    def content(self, number: int) -> bytes | None:
        try:
            for leaves in self._base.blocks.leaves(self._held, number, number + 1):
                for _, content in self._base.blocks.contents(self._held.dnode.type, leaves):
                    return bytes(content)
            return None
        except NotHere as error:
            raise Refused(f"a part of a block changes, and {error}; or send with -L") from None

    def live(self, first: int, end: int) -> Iterator[int]:
        for leaves in self._base.blocks.leaves(self._held, first, end):
            yield from (leaves["offset"] // np.uint64(self._held.dnode.blksz)).tolist()
