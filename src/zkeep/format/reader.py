"""Reading send streams: bytes in, verified events out. No I/O here.

    reader = Reader()
    while n := source.readinto(reader.space()):
        reader.filled(n)
        for event in reader.events(): ...
    reader.finish()

A record's checksum field covers what came *before* it, the previous payload included:

    | header 1 | payload 1 | header 2 ... checksum |      the checksum in header 2 proves record 1

So a record is yielded only when the header after it has been read and agrees (as in dmu_recv.c,
receive_read_record()).

The fuller the space is when events() is called, the less a record costs: batches are cut where the data ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum, auto
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from zkeep.errors import BadStream
from zkeep.format import kernel
from zkeep.format.events import Batch, Event, Package, PackageEnd, SubBegin, SubEnd
from zkeep.format.limits import Limits, refuse_begin
from zkeep.format.nvlist import BadNvlist, NvList, decode
from zkeep.format.order import Order
from zkeep.format.records import (
    HEADER,
    MAGIC,
    MAX_PAYLOAD,
    NATIVE,
    Begin,
    ByteOrder,
    End,
    HeaderType,
    RecordType,
    Words,
    other,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUFFER = 8 << 20
SMALL = 1 << 20
"Bytes of records up to which a substream is small."
RESTING = 3
"Buffers that are kept unchanged after use."
MAX_SUBSTREAM_NVLIST = 1 << 20
"The payload of a substream's BEGIN takes about 1 KiB."
MAX_PACKAGE_NVLIST = 64 << 20
"The largest that libzfs takes (libzfs_max_nvlist)."
_MAX_BUFFER = HEADER + MAX_PACKAGE_NVLIST + HEADER
_MAGIC_AT = 8
_MAGICS = (MAGIC.to_bytes(8, "little"), MAGIC.to_bytes(8, "big"))
_NO_STREAM = "it does not begin like a send stream"


def _may_begin(head: bytes) -> bool:
    """Whether a stream may begin with these bytes, which are fewer than those of its first record."""
    magic = head[_MAGIC_AT : _MAGIC_AT + 8]
    return not any(head[:4]) and any(known.startswith(magic) for known in _MAGICS)


class _Stage(Enum):
    """Where in a stream the next byte belongs."""

    START = auto()
    BETWEEN = auto()
    "Between two substreams of a compound stream."
    INSIDE = auto()
    "Inside a substream: behind its BEGIN."
    DONE = auto()


class _Fault(NamedTuple):
    """An error that was found, and where in the buffer."""

    at: int
    reason: str


class Reader:
    """A push parser with its own buffer. After an error it stays in error."""

    def __init__(self, size: int = BUFFER, *, several: bool = False) -> None:
        """`several`: several streams follow one another; it stops at the end of each, begin_again() goes on."""
        self._several = several
        self._size = max(size, 2 * HEADER)
        self._memory = np.empty(self._size, np.uint8).data
        self._resting: deque[memoryview] = deque()
        self._start = self._end = 0
        self._base = 0
        self._stage = _Stage.START
        self._compound = False
        self._byteorder: ByteOrder = NATIVE
        self._state = kernel.zero_state()
        self._begin = Begin()
        self._limits = Limits(self._begin)
        self._order = Order(self._begin.raw)
        self._error: BadStream | None = None

    # buffer

    @property
    def position(self) -> int:
        """Bytes of the stream received so far."""
        return self._base + self._end

    @property
    def consumed(self) -> int:
        """Bytes of the stream that events have covered: where the first record not yet yielded begins."""
        return self._base + self._start

    @property
    def is_done(self) -> bool:
        """Whether the end of the stream was reached."""
        return self._stage == _Stage.DONE

    @property
    def has_more(self) -> bool:
        """Whether there are bytes that no event has covered yet."""
        return self._start < self._end

    def begin_again(self) -> None:
        """Read another stream from here on; positions go on."""
        self._stage, self._compound = _Stage.START, False

    def space(self, minimum: int = 1) -> memoryview:
        """Room to read into, of at least `minimum` bytes.

        The memory of a batch is used again RESTING + 1 calls later; until then the batch stays as it is.
        """
        left = self._end - self._start
        if self._start:
            # Change to the buffer that was unused longest, with the bytes that are left: batches that were yielded
            # stay as they are.
            rested = self._resting.popleft() if len(self._resting) >= RESTING else None
            if rested is None or len(rested) < max(self._size, left):
                rested = np.empty(max(self._size, left), np.uint8).data
            rested[:left] = self._memory[self._start : self._end]
            self._resting.append(self._memory)
            self._memory = rested
            self._base += self._start
            self._start, self._end = 0, left
        # Grow by half, as the buffer is full: memory follows what was received, not the size that a record claims.
        if len(self._memory) - left < minimum:
            size = max(left + minimum, min(len(self._memory) * 3 // 2, _MAX_BUFFER))
            memory = np.empty(size, np.uint8).data
            memory[: self._end] = self._memory[: self._end]
            self._memory = memory
        return self._memory[left:]

    def filled(self, count: int) -> None:
        """Say that `count` bytes were read into the space."""
        if not 0 <= count <= len(self._memory) - self._end:
            raise ValueError("more than there was space for")
        self._end += count

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Event]:
        """Copy data in, piece by piece, and yield the events; use each before the next is asked for."""
        view = memoryview(data)
        while view.nbytes:
            space = self.space()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            self.filled(count)
            view = view[count:]
            yield from self.events()

    # events

    def events(self) -> Iterator[Event]:
        """The events that the bytes received so far complete.

        Raises:
            BadStream: names the byte and the record; all records before it have been yielded.
        """
        if self._error is not None:
            raise self._error
        try:
            before = -1
            while before != self._start and not (self._several and self.is_done):
                before = self._start
                yield from self._inside() if self._stage == _Stage.INSIDE else self._outside()
        except BadStream as error:
            self._error = error
            raise

    def finish(self) -> None:
        """Say that the stream has ended.

        Raises:
            BadStream: it is not complete.
        """
        if self._error is not None:
            raise self._error
        if self._stage == _Stage.DONE and self._start == self._end:
            return
        if self._start == self._end:
            reason = "it ends before its END" if self.position else "it is empty"
            raise BadStream(reason, self.position, ends_early=True)
        if self._stage == _Stage.START and not _may_begin(bytes(self._memory[self._start : self._end])):
            raise BadStream(_NO_STREAM, self._base + self._start)
        reason = f"the stream ends in it or before the record that vouches for it, at byte {self.position}"
        raise BadStream(reason, self._base + self._start, self._name(self._start), ends_early=True)

    def _bad(self, at: int, reason: str) -> BadStream:
        return BadStream(reason, self._base + at, self._name(at))

    def _name(self, at: int) -> str:
        if self._end - at < 4 or self._stage == _Stage.DONE:
            return ""
        number = int.from_bytes(self._memory[at : at + 4], self._byteorder)
        return _NAMES.get(number, "")

    # between substreams

    def _outside(self) -> Iterator[Event]:
        if self._start == self._end:
            return
        if self._stage == _Stage.DONE:
            raise self._bad(self._start, "there is data after the end of the stream")
        if self._end - self._start < HEADER:
            return
        self._find_byteorder()
        if self._stage == _Stage.BETWEEN and self._name(self._start) == "END":
            # The last record of a compound stream is zero but for its type (libzfs_sendrecv.c,
            # send_conclusion_record()).
            at = self._start
            if any(self._memory[at + 4 : at + HEADER]):
                raise self._bad(at, "the END of the whole stream is not empty")
            self._start, self._stage = at + HEADER, _Stage.DONE
            yield PackageEnd(self._base + at)
            return
        begin = Begin.unpack(self._header(self._start), self._byteorder)
        if begin.hdrtype == HeaderType.COMPOUND and self._stage == _Stage.START:
            yield from self._package(begin)
        elif begin.hdrtype == HeaderType.SUBSTREAM:
            yield from self._substream(begin)
        else:
            raise self._bad(self._start, f"header type {begin.hdrtype} cannot stand here")

    def _find_byteorder(self) -> None:
        header = self._header(self._start)
        # The magic number reads right in only one of the two orders.
        for order in (NATIVE, other(NATIVE)):
            rtype = int.from_bytes(header[:4], order)
            magic = int.from_bytes(header[_MAGIC_AT : _MAGIC_AT + 8], order)
            if rtype == RecordType.BEGIN and magic == MAGIC:
                self._byteorder = order
                return
        if self._stage == _Stage.START:
            raise BadStream(_NO_STREAM, self._base + self._start)
        if self._name(self._start) != "END":
            raise self._bad(self._start, "a BEGIN or the END of the whole must stand here")

    def _header(self, at: int) -> bytes:
        return bytes(self._memory[at : at + HEADER])

    def _opening(self, max_payload: int) -> tuple[int, kernel.State] | None:
        """A whole BEGIN: where it ends, and the running sum there. None if it is not all received yet."""
        walk = kernel.walk(self._memory, self._start, self._end, self._swap, MAX_PAYLOAD, max_payload)
        if walk.error:
            raise self._bad(walk.error[0], kernel.REASONS[walk.error[1]])
        # The header behind the BEGIN must be there, too: its checksum proves the BEGIN.
        if not len(walk.offsets) or self._end - walk.stop < HEADER:
            return None
        state, *_ = kernel.verify(self._memory, walk.offsets, walk.lengths, self._swap, kernel.zero_state())
        return walk.stop, state

    @property
    def _swap(self) -> bool:
        return self._byteorder != NATIVE

    def _package(self, begin: Begin) -> Iterator[Event]:
        opening = self._opening(MAX_PACKAGE_NVLIST)
        if opening is None:
            return
        stop, state = opening
        if self._name(stop) != "END":
            raise self._bad(stop, "the outer header of a compound stream must end here")
        # | BEGIN, type 2 | nvlist | END with the sum of both | BEGIN of the first substream ... | END, all zeros |
        end = End.unpack(self._header(stop), self._byteorder)
        if end.body_checksum != _words(state) or self._differs(stop, state):
            raise self._bad(stop, _CHECKSUM)
        nvlist = self._decode(begin, stop)
        raw = bytes(self._memory[self._start : stop + HEADER])
        package = nvlist if nvlist is not None else NvList()
        event = Package(begin, package, raw, self._byteorder, self._base + self._start)
        self._start, self._stage, self._compound = stop + HEADER, _Stage.BETWEEN, True
        yield event

    def _substream(self, begin: Begin) -> Iterator[Event]:
        opening = self._opening(MAX_SUBSTREAM_NVLIST)
        if opening is None:
            return
        stop, state = opening
        if self._differs(stop, state):
            raise self._bad(stop, _CHECKSUM)
        nvlist = self._decode(begin, stop)
        header, payload = self._header(self._start), bytes(self._memory[self._start + HEADER : stop])
        offset, empty = self._base + self._start, self._name(stop) == "END"
        event = SubBegin(begin, header, payload, nvlist, self._byteorder, offset, empty, self._is_small(stop))
        self._begin, self._state = begin, state
        self._limits, self._order = Limits(begin), Order(begin.raw)
        self._start, self._stage = stop, _Stage.INSIDE
        yield event

    def _is_small(self, start: int) -> bool:
        """Whether a substream's records, which begin here, and its END are all here, and not more than SMALL bytes."""
        walk = kernel.walk(self._memory, start, min(self._end, start + SMALL), self._swap)
        return not walk.error and len(walk.types) > 0 and bool(walk.types[-1] == RecordType.END)

    def _decode(self, begin: Begin, stop: int) -> NvList | None:
        """Decode a BEGIN's nvlist, and check both."""
        payload = self._memory[self._start + HEADER : stop]
        try:
            nvlist = decode(payload) if len(payload) else None
        except BadNvlist as bad:
            raise self._bad(self._start, f"its nvlist, at byte {bad.offset} of it: {bad.reason}") from bad
        refusal = refuse_begin(begin, nvlist)
        if refusal:
            raise self._bad(self._start, refusal)
        return nvlist

    # inside a substream

    def _inside(self) -> Iterator[Event]:
        """One batch, then the substream's end or an error.

        The state is brought up to date before the first event is yielded, so that it is right whatever callers do.
        """
        # 1. Find whole records, and the header that follows them: its checksum proves the last of them.
        walk = kernel.walk(self._memory, self._start, self._end, self._swap)
        count, follower, ended = self._split(walk)
        if self._end - follower < HEADER:
            return
        # 2. Keep those whose checksums agree, then those that are within the limits and in a legal order.
        batch, fault = self._verified(walk, count, follower)
        if batch is not None:
            batch, fault = self._legal(batch, fault)
        # 3. All of them are right: is what follows something that can follow?
        if fault is None and not ended:
            if walk.error and walk.error[0] == follower:
                fault = _Fault(follower, kernel.REASONS[walk.error[1]])
            elif self._name(follower) == "BEGIN":
                fault = _Fault(follower, "it stands where its substream has no END yet")
        # 4. Note what was consumed, and read the END if that follows; only now yield.
        error = self._bad(*fault) if fault else None
        self._start += len(batch.buffer) if batch is not None else 0
        end, error = self._sub_end() if ended and error is None else (None, error)
        if batch is not None and len(batch):
            yield batch
        if error is not None:
            raise error
        if end is not None:
            yield end

    def _split(self, walk: kernel.Walk) -> tuple[int, int, bool]:
        """How many records can be yielded, where the header after them is, and whether it is an END."""
        count = len(walk.offsets)
        if count and walk.types[-1] in (RecordType.BEGIN, RecordType.END):
            return count - 1, int(walk.offsets[-1]), bool(walk.types[-1] == RecordType.END)
        if count and self._end - walk.stop < HEADER:
            return count - 1, int(walk.offsets[-1]), False
        return count, walk.stop, False

    def _legal(self, batch: Batch, fault: _Fault | None) -> tuple[Batch, _Fault | None]:
        """The records before the first that breaks a rule, and which rule that is."""
        for check in (self._limits.check, self._order.check):
            found = check(batch)
            if found is not None:
                fault = _Fault(self._start + int(batch.offsets[found.index]), found.reason)
                batch = batch.head(found.index)
        return batch, fault

    def _verified(self, walk: kernel.Walk, count: int, follower: int) -> tuple[Batch | None, _Fault | None]:
        """The records whose checksums agree, and what is wrong with the first that does not."""
        offsets, lengths = walk.offsets[:count], walk.lengths[:count]
        state, bad, checks, sums = kernel.verify(self._memory, offsets, lengths, self._swap, self._state)
        fault = None
        # A checksum that differs says that its header or the record before it is damaged: neither is yielded.
        if bad >= 0:
            fault, count = _Fault(int(offsets[bad]), _CHECKSUM), max(0, bad - 1)
        elif self._differs(follower, state):
            fault, count = _Fault(follower, _CHECKSUM), max(0, count - 1)
        else:
            self._state = state
        if not count:
            return None, fault
        batch = Batch(
            buffer=self._memory[self._start : follower].toreadonly(),
            offset=self._base + self._start,
            offsets=offsets - self._start,
            types=walk.types[: len(offsets)],
            lengths=lengths,
            checks=checks,
            sums=sums,
            byteorder=self._byteorder,
        )
        return (batch.head(count) if fault else batch), fault

    def _differs(self, at: int, state: kernel.State) -> bool:
        """Whether the header there disagrees with the running sum before it."""
        where, size = np.array([at], np.int64), np.array([HEADER], np.int64)
        return kernel.verify(self._memory, where, size, self._swap, state)[1] >= 0

    def _sub_end(self) -> tuple[SubEnd | None, BadStream | None]:
        at = self._start
        header = self._header(at)
        end = End.unpack(header, self._byteorder)
        state = _words(self._state)
        # END has the sum twice: as its body, and like any record in its checksum field.
        if end.body_checksum != state:
            return None, self._bad(at, "the checksum of the whole substream differs")
        if end.toguid != self._begin.toguid:
            reason = f"toguid {end.toguid:#x} is not that of its BEGIN, {self._begin.toguid:#x}"
            return None, self._bad(at, reason)
        self._start = at + HEADER
        self._stage = _Stage.BETWEEN if self._compound else _Stage.DONE
        return SubEnd(end, header, self._base + at, state, self._compound and self._small_follows()), None

    def _small_follows(self) -> bool:
        """Whether a whole small substream comes next. It may still be damaged, or refused."""
        opening = kernel.walk(self._memory, self._start, self._end, self._swap, MAX_PAYLOAD, MAX_SUBSTREAM_NVLIST)
        begins = not opening.error and len(opening.types) == 1 and bool(opening.types[0] == RecordType.BEGIN)
        return begins and self._is_small(opening.stop)


_NAMES = {int(rtype): rtype.name for rtype in RecordType}
_CHECKSUM = "the checksum differs: this header, or what lies between it and the one before, is damaged"


def _words(state: NDArray[np.uint64]) -> Words:
    a, b, c, d = state.tolist()
    return a, b, c, d


def read_events(source: BinaryIO, size: int = BUFFER) -> Iterator[Event]:
    """All events of a stream read from a file or pipe; raises BadStream as Reader does."""
    reader = Reader(size)
    more, begun = True, False
    while more:
        more = fill(reader, source, once=not begun)
        for event in reader.events():
            begun = True  # read little until then: a sender that is refused at its BEGIN need not send more
            yield event
    reader.finish()


def read_streams(source: BinaryIO, size: int = BUFFER) -> Iterator[Iterator[Event]]:
    """The events of each of several streams in a row. Use up those of one stream before asking for the next."""
    reader = Reader(size, several=True)
    while True:
        yield _stream(reader, source)
        if not reader.has_more and not fill(reader, source, once=True):
            return
        reader.begin_again()


def _stream(reader: Reader, source: BinaryIO) -> Iterator[Event]:
    begun = False
    for event in reader.events():
        begun = True
        yield event
    while not reader.is_done:
        more = fill(reader, source, once=not begun)
        for event in reader.events():
            begun = True
            yield event
        if not more and not reader.is_done:
            reader.finish()


def fill(reader: Reader, source: BinaryIO, *, once: bool = False) -> bool:
    """Read until the reader's space is full, or `once`; False at the end of the source."""
    space = reader.space()
    while len(space):
        # A pipe may give less than was asked for: read until the space is full, because full batches cost least.
        count = source.readinto(space)  # type: ignore[attr-defined]
        if not count:
            return False
        reader.filled(count)
        space = space[:0] if once else space[count:]
    return True
