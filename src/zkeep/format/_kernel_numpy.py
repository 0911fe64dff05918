"""The numpy twin of _kernel.c: same functions, same results, no compiler.

fletcher-4 is four nested prefix sums. They are taken over cache-sized pieces of the buffer and sampled where
a header's sum, a checksum field and a payload end; the sum of any stretch follows from the samples at its two
ends, for all records at once.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zkeep.format.fletcher import MIX, combine, shift
from zkeep.format.records import CHECKSUM, HEADER, RecordType, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    U64s = NDArray[np.uint64]
    I64s = NDArray[np.int64]

_PIECE = 1 << 14
"Words summed at a time: with their four sums they stay in the second-level cache."
_GATHER = 1 << 20
"Bytes of scattered records that are copied together at a time."
_LAST = max(RecordType)
BAD_TYPE, BAD_LENGTH, BAD_ALIGNMENT = 1, 2, 3
"Why walk() stopped at a record."


def _order(swap: bool) -> str:
    return ">" if (sys.byteorder == "little") == swap else "<"


# walk


def walk(
    buffer: Any,
    start: int,
    end: int,
    swap: bool,
    max_payload: int,
    max_begin: int,
    offsets: I64s,
    types: NDArray[np.uint8],
    lengths: I64s,
) -> tuple[int, int, int, int]:
    view = memoryview(buffer).cast("B")
    if not 0 <= start <= end <= len(view):
        raise ValueError("range outside the buffer")
    sizer = _Sizer(_order(swap))
    at, n = start, 0
    while end - at >= HEADER and n < len(offsets):
        # A header says how long its payload is, and so where the next header begins.
        rtype, size = sizer(view, at)
        code = _refuse(rtype, size, max_begin if rtype == RecordType.BEGIN else max_payload)
        if code:
            return n, at, at, code
        if end - at - HEADER < size:
            break
        offsets[n], types[n], lengths[n] = at, rtype, HEADER + size
        at, n = at + HEADER + size, n + 1
        if rtype in (RecordType.BEGIN, RecordType.END):
            break
    return n, at, 0, 0


def _refuse(rtype: int, size: int, most: int) -> int:
    if rtype > _LAST:
        return BAD_TYPE
    if size > most:
        return BAD_LENGTH
    return BAD_ALIGNMENT if size & 3 else 0


class _Sizer:
    """Type and payload size of the record at an offset (zfs_ioctl.h, DRR_*_PAYLOAD_SIZE)."""

    def __init__(self, order: str) -> None:
        self._prefix = struct.Struct(order + "II").unpack_from
        self._u32 = struct.Struct(order + "I").unpack_from
        self._u64 = struct.Struct(order + "Q").unpack_from

    def __call__(self, view: memoryview, at: int) -> tuple[int, int]:
        # Where the size of the payload stands depends on the type (offsets from the record's start):
        #
        # WRITE            96 compressed_size if compressiontype (50) is set, else 32 logical_size
        # OBJECT           36 raw_bonuslen, or 28 bonuslen rounded up to 8
        # SPILL            40 compressed_size, or 16 length
        # WRITE_EMBEDDED   52 psize rounded up to 8
        # BEGIN             4 payloadlen
        rtype, payloadlen = self._prefix(view, at)
        if rtype == RecordType.WRITE:
            return rtype, self._u64(view, at + (96 if view[at + 50] else 32))[0]
        if rtype == RecordType.OBJECT:
            return rtype, self._u32(view, at + 36)[0] or (self._u32(view, at + 28)[0] + 7 & ~7)
        if rtype == RecordType.SPILL:
            return rtype, self._u64(view, at + 40)[0] or self._u64(view, at + 16)[0]
        if rtype == RecordType.WRITE_EMBEDDED:
            return rtype, self._u32(view, at + 52)[0] + 7 & ~7
        return rtype, payloadlen if rtype == RecordType.BEGIN else 0


# sums


def fletcher4(buffer: Any, swap: bool, state: U64s) -> None:
    words = _words(buffer, swap)
    state[:] = _sample(words, np.array([len(words)]), state)[0]


def verify(buffer: Any, offsets: I64s, lengths: I64s, swap: bool, state: U64s, checks: U64s, sums: U64s) -> int:
    n = len(offsets)
    if n == 0:
        return -1
    _validate(buffer, offsets, lengths)
    if (offsets[1:] != offsets[:-1] + lengths[:-1]).any():
        raise ValueError("records are not contiguous")
    start, end = int(offsets[0]), int(offsets[-1] + lengths[-1])
    raw = np.frombuffer(buffer, np.uint8)
    # Sum the whole buffer once; the sum of any stretch of it follows from the sums at both ends.
    states = _states(_words(raw[start:end], swap), offsets - start, lengths, state)
    order = _order(swap)
    # Compare each header's checksum field with the sum before it; a field of zeros, and a BEGIN's, are not compared.
    fields = _rows(raw, offsets + CHECKSUM, 32).view(order + "u8").reshape(-1, 4)
    rtypes = _rows(raw, offsets, 4).view(order + "u4").ravel()
    differ = (fields != states.at_sum).any(axis=1) & fields.any(axis=1) & (rtypes != RecordType.BEGIN)
    found = np.flatnonzero(differ)
    bad = int(found[0]) if len(found) else -1
    good = n if bad < 0 else bad
    _summaries(states, lengths[:good], checks[:good], sums[:good])
    state[:] = states.before[bad] if bad >= 0 else states.after[-1]
    return bad


def check(buffer: Any, offsets: I64s, lengths: I64s, swap: bool, checks: U64s, sums: U64s) -> None:
    _validate(buffer, offsets, lengths)
    raw = np.frombuffer(buffer, np.uint8)
    ends = np.cumsum(lengths)
    first = 0
    while first < len(offsets):
        # The records lie anywhere: copy some together, then they can be summed in one go.
        base = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, base + _GATHER, "right")))
        chosen = slice(first, last)
        places = zip(offsets[chosen].tolist(), lengths[chosen].tolist(), strict=True)
        stretch = np.concatenate([raw[at : at + size] for at, size in places])
        starts = ends[chosen] - lengths[chosen] - base
        states = _states(_words(stretch, swap), starts, lengths[chosen], np.zeros(4, np.uint64))
        _summaries(states, lengths[chosen], checks[chosen], sums[chosen])
        first = last


def _validate(buffer: Any, offsets: I64s, lengths: I64s) -> None:
    size = memoryview(buffer).nbytes
    if len(offsets) != len(lengths):
        raise ValueError("as many lengths as offsets are needed")
    if ((lengths < HEADER) | (lengths & 3 != 0) | (offsets < 0) | (offsets > size - lengths)).any():
        raise ValueError("record outside the buffer")


def _words(buffer: Any, swap: bool) -> NDArray[np.uint32]:
    raw = np.frombuffer(buffer, np.uint8)
    if len(raw) & 3:
        raise ValueError("not a multiple of 4 bytes")
    return raw.view(_order(swap) + "u4")


class _States(NamedTuple):
    """The running sum at each record's start, before and after its checksum field, and at its end."""

    before: U64s
    at_sum: U64s
    at_payload: U64s
    after: U64s


def _states(words: NDArray[np.uint32], starts: I64s, lengths: I64s, state: U64s) -> _States:
    marks = np.empty((len(starts), 3), np.int64)
    marks[:, 0] = starts + CHECKSUM
    marks[:, 1] = starts + HEADER
    marks[:, 2] = starts + lengths
    sampled = _sample(words, marks.ravel() >> 2, state).reshape(-1, 3, 4)
    before = np.concatenate([state[None, :], sampled[:-1, 2]])
    return _States(before, sampled[:, 0], sampled[:, 1], sampled[:, 2])


def _sample(words: NDArray[np.uint32], marks: I64s, state: U64s) -> U64s:
    """The running sum after each of the ascending `marks` (counted in words)."""
    out = np.empty((len(marks), 4), np.uint64)
    state = state.copy()
    # Marks at word 0 are reached before anything is summed.
    done = int(np.searchsorted(marks, 0, "right"))
    out[:done] = state
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE].astype(np.uint64)
        upto = int(np.searchsorted(marks, start + len(piece), "right"))
        places = marks[done:upto] - (start + 1)
        # Four prefix sums over the same piece, each over the result of the one before: a, b, c, d.
        for i in range(4):
            piece[:1] += state[i : i + 1]
            np.cumsum(piece, out=piece)
            out[done:upto, i] = piece[places]
            state[i] = piece[-1]
        done = upto
    return out


def _rows(raw: NDArray[np.uint8], starts: I64s, width: int) -> NDArray[np.uint8]:
    items = np.ndarray((len(raw) - width + 1,), f"V{width}", raw.data, 0, (1,))
    return np.frombuffer(items[starts].tobytes(), np.uint8).reshape(-1, width)


def _summaries(states: _States, lengths: I64s, checks: U64s, sums: U64s) -> None:
    """Each record's check and its payload's own sum, for as many records as there are lengths."""
    good = len(lengths)
    payload = ((lengths - HEADER) >> 2).astype(np.uint64)
    # The header's own sum is that of its 280 bytes, as if the sum had started at zero.
    header = _alone(states.before[:good], states.at_sum[:good], np.full(good, CHECKSUM >> 2, np.uint64))
    sums[:] = _alone(states.at_payload[:good], states.after[:good], payload)
    content = _shift(header, payload) + sums
    checks[:] = (content * np.array(MIX, np.uint64)).sum(axis=1)


def _alone(before: U64s, after: U64s, words: U64s) -> U64s:
    return after - _shift(before, words)


def _shift(state: U64s, n: U64s) -> U64s:
    """fletcher.shift for many states; n counts words."""
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    # n(n+1)/2 and n(n+1)(n+2)/6 mod 2^64: divide first, in the factor that is divisible, or the product wraps.
    t2 = n * (n + one) // two
    t3 = np.where(t2 % three == 0, t2 // three * (n + two), t2 * ((n + two) // three))
    a, b, c, d = state.T
    return np.stack([a, b + n * a, c + n * b + t2 * a, d + n * c + t2 * b + t3 * a], axis=1)


# stamp


def stamp(buffer: Any, offsets: I64s, lengths: I64s, sums: U64s, swap: bool, state: U64s) -> None:
    size = memoryview(buffer).nbytes
    if not len(offsets) == len(lengths) == len(sums):
        raise ValueError("as many lengths and sums as offsets are needed")
    if ((lengths < HEADER) | (lengths & 3 != 0) | (offsets < 0) | (offsets > size - HEADER)).any():
        raise ValueError("record outside the buffer")
    # Only sums are computed with, never payloads: each record costs the same however large it is.
    view = memoryview(buffer).cast("B")
    order = _order(swap)
    words, quads, rtype = struct.Struct(order + "8I"), struct.Struct(order + "4Q"), struct.Struct(order + "I")
    raw = np.frombuffer(buffer, np.uint8)
    heads = _head_sums(raw, offsets, swap)
    a, b, c, d = state.tolist()
    running: Words = (a, b, c, d)
    rows = zip(offsets.tolist(), lengths.tolist(), heads.tolist(), sums.tolist(), strict=True)
    for offset, length, stored, payload in rows:
        # An END's body has the sum before it, so the header's own sum changes with it.
        head = stored
        kind = rtype.unpack_from(view, offset)[0]
        if kind == RecordType.END:
            quads.pack_into(view, offset + 8, *running)
            head = _head_sums(raw, np.array([offset]), swap)[0].tolist()
        # The header up to the checksum field, the field itself (which has the sum so far), the payload.
        running = combine(running, head, CHECKSUM)
        if kind != RecordType.BEGIN:
            quads.pack_into(view, offset + CHECKSUM, *running)
        running = _add(running, words.unpack_from(view, offset + CHECKSUM))
        running = combine(running, payload, length - HEADER)
    state[:] = running


def _head_sums(raw: NDArray[np.uint8], offsets: I64s, swap: bool) -> U64s:
    if not len(offsets):
        return np.zeros((0, 4), np.uint64)
    words = _rows(raw, offsets, CHECKSUM).view(_order(swap) + "u4").astype(np.uint64)
    # The k-th word from the end counts 1, k, k(k+1)/2, k(k+1)(k+2)/6 times in a, b, c, d: a product with a table.
    n = np.uint64(CHECKSUM >> 2) - np.arange(CHECKSUM >> 2, dtype=np.uint64)
    one, two = np.uint64(1), np.uint64(2)
    t2 = n * (n + one) // two
    weights = np.stack([np.ones_like(n), n, t2, t2 * (n + two) // np.uint64(3)], axis=1)
    sums: U64s = words @ weights
    return sums


def _add(state: Words, words: tuple[int, ...]) -> Words:
    a, b, c, d = state
    for word in words:
        a += word
        b += a
        c += b
        d += c
    return shift((a, b, c, d), 0)


# gather


def gather(fd: int, places: I64s, sizes: I64s, out: Any, to: I64s) -> int:
    view = memoryview(out).cast("B")
    if len({len(places), len(sizes), len(to)}) > 1:
        raise ValueError("reads that do not fit")
    if ((places < 0) | (sizes < 0) | (to < 0) | (sizes > len(view)) | (to > len(view) - sizes)).any():
        raise ValueError("reads that do not fit")
    for index, (place, size, at) in enumerate(zip(places.tolist(), sizes.tolist(), to.tolist(), strict=True)):
        rest = view[at : at + size]
        while rest:
            got = os.preadv(fd, [rest], place + size - len(rest))
            if not got:
                return index
            rest = rest[got:]
    return -1
