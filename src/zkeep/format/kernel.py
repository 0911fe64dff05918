"""Loops over whole buffers, and over many short reads: compiled if possible, else in numpy with the same results.

The compiled kernel (_kernel.c) releases the GIL while it works. ZKEEP_KERNEL=numpy forces the numpy twin. Offsets,
types and lengths are numpy arrays; a `state` is a running fletcher-4 sum, uint64[4].

A record's `check` is one word that depends on all of it but the running checksum in its header, so that it stays the
same wherever the record is stored and whichever records come before it:
mix(fletcher4(header[0:280] || payload)), where mix(a, b, c, d) = a*K1 + b*K2 + c*K3 + d*K4 mod 2^64.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zkeep.format import _kernel_numpy
from zkeep.format._kernel_numpy import BAD_ALIGNMENT, BAD_LENGTH, BAD_TYPE
from zkeep.format.records import HEADER, MAX_PAYLOAD, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Offsets = NDArray[np.int64]
    Lengths = NDArray[np.int64]
    Types = NDArray[np.uint8]
    State = NDArray[np.uint64]
    Checks = NDArray[np.uint64]
    Sums = NDArray[np.uint64]
    Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]

REASONS = {
    BAD_TYPE: "there is no such record type",
    BAD_LENGTH: "the payload is larger than any block",
    BAD_ALIGNMENT: "the payload's size is not a multiple of 4",
}


class Walk(NamedTuple):
    """Whole records that were found in a buffer."""

    offsets: Offsets
    types: Types
    lengths: Lengths
    "Bytes of header and payload."
    stop: int
    "The first byte behind them."
    error: tuple[int, int] | None
    "Where a record begins that cannot be right, and one of REASONS."


def _compiled() -> ModuleType | None:
    if os.environ.get("ZKEEP_KERNEL") == "numpy":
        return None
    try:
        from zkeep.format import _kernel  # type: ignore[attr-defined]
    except ImportError:
        return None
    kernel: ModuleType = _kernel
    return kernel


_backend = _compiled() or _kernel_numpy
NAME = "compiled" if _backend.__name__.endswith("._kernel") else "numpy"


def zero_state() -> State:
    return np.zeros(4, np.uint64)


def walk(
    buffer: Buffer,
    start: int,
    end: int,
    swap: bool,
    max_payload: int = MAX_PAYLOAD,
    max_begin: int = 64 << 20,
) -> Walk:
    """Find the whole records in buffer[start:end], up to and with the next BEGIN or END.

    `max_begin` bounds the payload of a BEGIN, `max_payload` that of all others.
    """
    most = max(0, end - start) // HEADER
    offsets, types, lengths = np.empty(most, np.int64), np.empty(most, np.uint8), np.empty(most, np.int64)
    n, stop, at, code = _backend.walk(buffer, start, end, swap, max_payload, max_begin, offsets, types, lengths)
    return Walk(offsets[:n], types[:n], lengths[:n], stop, (at, code) if code else None)


def verify(
    buffer: Buffer, offsets: Offsets, lengths: Lengths, swap: bool, state: State
) -> tuple[State, int, Checks, Sums]:
    """Sum contiguous records onto `state`, comparing each record's embedded checksum.

    Returns the new state, the first record that differs (or -1), the checks and the payloads' own sums. After
    a difference nothing is computed: the state is that before the bad record, the rest of the arrays is zero.
    A checksum field of zeros is not compared (senders before 2014, and OpenZFS's receive_read() alike): it is
    still part of the sum that the next record carries.
    """
    checks, sums = np.zeros(len(offsets), np.uint64), np.zeros((len(offsets), 4), np.uint64)
    after = state.copy()
    bad = _backend.verify(buffer, _i64(offsets), _i64(lengths), swap, after, checks, sums)
    return after, bad, checks, sums


def check(buffer: Buffer, offsets: Offsets, lengths: Lengths, swap: bool) -> tuple[Checks, Sums]:
    """The checks and payload sums of records anywhere in the buffer."""
    checks, sums = np.zeros(len(offsets), np.uint64), np.zeros((len(offsets), 4), np.uint64)
    _backend.check(buffer, _i64(offsets), _i64(lengths), swap, checks, sums)
    return checks, sums


def stamp(buffer: Buffer, offsets: Offsets, lengths: Lengths, sums: Sums, swap: bool, state: State) -> State:
    """Write the running checksum into each record, in the given order, and return the new state.

    Only headers are touched, a payload enters through its sum. A BEGIN has no checksum field; an END's body
    gets the state before it too.
    """
    after = state.copy()
    _backend.stamp(buffer, _i64(offsets), _i64(lengths), np.ascontiguousarray(sums, np.uint64), swap, after)
    return after


def gather(fd: int, places: Offsets, sizes: Lengths, out: Buffer, to: Offsets) -> int:
    """Read stretches of a file, each to its place in `out`. Returns the first that the file is too short for, or -1.

    Raises:
        OSError: one could not be read.
    """
    return int(_backend.gather(fd, _i64(places), _i64(sizes), out, _i64(to)))


def fletcher4(buffer: Buffer, state: Words, swap: bool) -> Words:
    """Add a buffer to a running sum."""
    after = np.array(state, np.uint64)
    _backend.fletcher4(buffer, swap, after)
    a, b, c, d = after.tolist()
    return a, b, c, d


def _i64(array: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.ascontiguousarray(array, np.int64)
