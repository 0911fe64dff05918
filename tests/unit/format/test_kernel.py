"""The compiled kernel and its numpy twin are the same function."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.format import _kernel_numpy, kernel
from zkeep.format.checksum import fletcher4
from zkeep.format.fletcher import MIX, combine
from zkeep.format.records import HEADER, NATIVE, RecordType, other

try:
    from zkeep.format import _kernel
except ImportError:
    _kernel = None

compiled = pytest.mark.skipif(_kernel is None, reason="the compiled kernel was not built")
BACKENDS = [pytest.param(_kernel_numpy, id="numpy"), pytest.param(_kernel, id="compiled", marks=compiled)]


def slow_fletcher4(data: bytes, order: str = "<") -> tuple[int, int, int, int]:
    """The definition, word by word."""
    a = b = c = d = 0
    for (word,) in struct.iter_unpack(order + "I", data):
        a += word
        b += a
        c += b
        d += c
    return tuple(x & (1 << 64) - 1 for x in (a, b, c, d))  # type: ignore[return-value]


def make_records(seed: int, count: int, swap: bool, huge: bool = False) -> tuple[bytearray, list[int]]:
    """Contiguous records of random types, contents and sizes; not yet stamped."""
    rng = random.Random(seed)
    order = ">" if (sys.byteorder == "little") == swap else "<"
    out, starts = bytearray(), []
    for _ in range(count):
        rtype = rng.choice([RecordType.OBJECT, RecordType.WRITE, RecordType.FREE, RecordType.SPILL, RecordType.END])
        words = rng.choice([0, 1, 2, 128, 1000, 70000 if huge else 300])
        header = bytearray(rng.randbytes(HEADER))
        struct.pack_into(order + "I", header, 0, rtype)
        if rtype == RecordType.WRITE:
            header[50] = 1
            struct.pack_into(order + "Q", header, 96, 4 * words)
        elif rtype == RecordType.OBJECT:
            words &= ~1
            struct.pack_into(order + "I", header, 36, 0)
            struct.pack_into(order + "I", header, 28, max(0, 4 * words - rng.randrange(8)) if words else 0)
        elif rtype == RecordType.SPILL:
            words = max(words, 1)
            struct.pack_into(order + "Q", header, 40, 4 * words)
        else:
            words = 0
        starts.append(len(out))
        out += header + rng.randbytes(4 * words)
    return out, starts


def walk_all(backend: ModuleType, data: bytes, swap: bool) -> tuple[list[int], list[int], list[int]]:
    offsets: list[int] = []
    types: list[int] = []
    lengths: list[int] = []
    at = 0
    while at < len(data):
        room = len(data) // HEADER
        o, t, n = np.empty(room, np.int64), np.empty(room, np.uint8), np.empty(room, np.int64)
        count, at, where, code = backend.walk(data, at, len(data), swap, 16 << 20, 64 << 20, o, t, n)
        assert (where, code) == (0, 0)
        assert count
        offsets += o[:count].tolist()
        types += t[:count].tolist()
        lengths += n[:count].tolist()
    return offsets, types, lengths


def run(backend: ModuleType, data: bytearray, swap: bool, damage: int | None) -> Any:
    """Everything a backend says about some records: walked, checked, stamped, damaged, verified."""
    data = bytearray(data)
    offsets, types, lengths = walk_all(backend, data, swap)
    o, n = np.array(offsets, np.int64), np.array(lengths, np.int64)
    checks, sums = np.zeros(len(o), np.uint64), np.zeros((len(o), 4), np.uint64)
    backend.check(data, o, n, swap, checks, sums)
    state = np.array([1, 2, 3, 1 << 63], np.uint64)
    backend.stamp(data, o, n, sums, swap, state)
    if damage is not None:
        data[damage % len(data)] ^= 0x40
    after = np.array([1, 2, 3, 1 << 63], np.uint64)
    checks2, sums2 = np.zeros(len(o), np.uint64), np.zeros((len(o), 4), np.uint64)
    bad = backend.verify(data, o, n, swap, after, checks2, sums2)
    columns = [x.tolist() for x in (checks, sums, state, after, checks2, sums2)]
    return offsets, types, lengths, bytes(data), bad, columns


@compiled
@given(st.integers(0, 1 << 32), st.integers(1, 12), st.booleans(), st.none() | st.integers(0, 1 << 20))
def test_both_kernels_agree(seed: int, count: int, swap: bool, damage: int | None) -> None:
    assert _kernel is not None
    data, _ = make_records(seed, count, swap)
    assert run(_kernel, data, swap, damage) == run(_kernel_numpy, data, swap, damage)


@compiled
def test_both_kernels_agree_on_payloads_larger_than_a_piece() -> None:
    assert _kernel is not None
    data, _ = make_records(3, 20, False, huge=True)
    assert len(data) > 1 << 19
    assert run(_kernel, data, False, None) == run(_kernel_numpy, data, False, None)


@compiled
@given(st.binary(max_size=2000), st.integers(0, 11), st.booleans(), st.sampled_from([0, 64, 1 << 24]))
def test_both_kernels_walk_garbage_alike(data: bytes, rtype: int, swap: bool, most: int) -> None:
    assert _kernel is not None
    data = rtype.to_bytes(4, NATIVE if not swap else other(NATIVE)) + data
    found = []
    for backend in (_kernel, _kernel_numpy):
        room = len(data) // HEADER
        o, t, n = np.zeros(room, np.int64), np.zeros(room, np.uint8), np.zeros(room, np.int64)
        found.append((backend.walk(data, 0, len(data), swap, most, most, o, t, n), o.tolist(), t.tolist(), n.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("swap", [False, True])
def test_sums_are_those_of_the_definition(backend: ModuleType, swap: bool) -> None:
    data, starts = make_records(5, 9, swap)
    order = ">" if (sys.byteorder == "little") == swap else "<"
    *_, bad, columns = run(backend, data, swap, None)
    ends = [*starts[1:], len(data)]
    assert bad == -1
    for start, end, check, total in zip(starts, ends, columns[0], columns[1], strict=True):
        assert tuple(total) == slow_fletcher4(bytes(data[start + HEADER : end]), order)
        content = slow_fletcher4(bytes(data[start : start + 280] + data[start + HEADER : end]), order)
        assert check == sum(x * k for x, k in zip(content, MIX, strict=True)) & (1 << 64) - 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_byte_is_found_at_the_record_or_the_next(backend: ModuleType) -> None:
    data, starts = make_records(7, 10, False)
    ends = [*starts[1:], len(data)]
    for damage in range(0, ends[-2], 97):
        *_, bad, _ = run(backend, data, False, damage)
        hit = next(i for i, end in enumerate(ends) if damage < end)
        assert bad in (hit, hit + 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("offset", "length"), [(-8, 312), (0, 311), (0, 316), (312, 312), (1 << 62, 312), (0, 1 << 62)]
)
def test_nothing_outside_the_buffer_is_touched(backend: ModuleType, offset: int, length: int) -> None:
    data = bytearray(HEADER)
    o, n = np.array([offset], np.int64), np.array([length], np.int64)
    checks, sums, state = np.zeros(1, np.uint64), np.zeros((1, 4), np.uint64), np.zeros(4, np.uint64)
    with pytest.raises(ValueError, match="outside"):
        backend.check(data, o, n, False, checks, sums)
    with pytest.raises(ValueError, match="outside"):
        backend.verify(data, o, n, False, state, checks, sums)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_record_type_or_length_that_cannot_be_stops_the_walk(backend: ModuleType) -> None:
    def walk(header: bytearray) -> tuple[int, int, int, int]:
        o, t, n = np.empty(1, np.int64), np.empty(1, np.uint8), np.empty(1, np.int64)
        found: tuple[int, int, int, int] = backend.walk(header, 0, HEADER, False, 1 << 24, 1 << 26, o, t, n)
        return found

    def header(rtype: int, at: int, value: int) -> bytearray:
        made = bytearray(HEADER)
        struct.pack_into("=I", made, 0, rtype)
        struct.pack_into("=Q", made, at, value)
        return made

    assert walk(header(11, 8, 0)) == (0, 0, 0, _kernel_numpy.BAD_TYPE)
    assert walk(header(RecordType.WRITE, 32, (1 << 24) + 4)) == (0, 0, 0, _kernel_numpy.BAD_LENGTH)
    assert walk(header(RecordType.WRITE, 32, 1 << 63)) == (0, 0, 0, _kernel_numpy.BAD_LENGTH)
    assert walk(header(RecordType.SPILL, 16, 514)) == (0, 0, 0, _kernel_numpy.BAD_ALIGNMENT)
    assert walk(header(RecordType.WRITE, 32, 512)) == (0, 0, 0, 0)
    assert walk(header(RecordType.FREE, 32, 512)) == (1, HEADER, 0, 0)


@given(
    st.binary(max_size=600).map(lambda b: b[: len(b) & ~3]),
    st.binary(max_size=600).map(lambda b: b[: len(b) & ~3]),
)
def test_the_sum_of_two_parts_follows_from_theirs(first: bytes, second: bytes) -> None:
    both = fletcher4(first + second)
    assert both == combine(fletcher4(first), fletcher4(second), len(second)) == fletcher4(second, fletcher4(first))
    if sys.byteorder == "little":
        assert both == slow_fletcher4(first + second)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fletcher4_of_any_length_anywhere_in_memory(backend: ModuleType) -> None:
    noise = random.Random(3).randbytes(9000)
    ones = b"\xff" * 9000
    for size in [*range(0, 600, 4), 2048, 4092, 8964]:
        for at, data in ((0, noise), (1, noise), (3, ones), (16, noise)):
            state = np.array([1, 2, 3, 1 << 63], np.uint64)
            backend.fletcher4(memoryview(data)[at : at + size], False, state)
            slow = combine((1, 2, 3, 1 << 63), slow_fletcher4(data[at : at + size], "="), size)
            assert tuple(state.tolist()) == slow


def test_a_checksum_of_zeros_is_not_compared_but_still_counts() -> None:
    data, starts = make_records(11, 4, False)
    walk = kernel.walk(data, 0, len(data), False)
    while walk.stop < len(data):
        data, starts = make_records(random.randrange(1 << 30), 4, False)
        walk = kernel.walk(data, 0, len(data), False)
    _, sums = kernel.check(data, walk.offsets, walk.lengths, False)
    kernel.stamp(data, walk.offsets, walk.lengths, sums, False, kernel.zero_state())
    last = starts[-1]
    data[last + 280 : last + 312] = bytes(32)
    assert kernel.verify(data, walk.offsets, walk.lengths, False, kernel.zero_state())[1] == -1
    first = starts[0]
    data[first + 280 : first + 312] = bytes(32)
    assert kernel.verify(data, walk.offsets, walk.lengths, False, kernel.zero_state())[1] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_stretches_of_a_file_are_gathered(backend: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4)
    out = bytearray(b"-" * 16)

    def gather(places: list[int], sizes: list[int], to: list[int]) -> int:
        with path.open("rb") as file:
            columns = [np.array(column, np.int64) for column in (places, sizes, to)]
            return int(backend.gather(file.fileno(), columns[0], columns[1], out, columns[2]))

    assert gather([], [], []) == -1
    assert gather([1000, 5, 7], [3, 0, 2], [10, 16, 0]) == -1
    assert out == bytes([7, 8]) + b"--------" + bytes([232, 233, 234]) + b"---"
    assert gather([0, 1023, 1 << 62], [1, 2, 1], [0, 1, 0]) == 1
    for places, sizes, to in ([-1], [1], [0]), ([0], [-1], [0]), ([0], [1], [16]), ([0], [17], [0]), ([0, 0], [1], [0]):
        with pytest.raises(ValueError, match="reads that do not fit"):
            gather(places, sizes, to)
    with pytest.raises(OSError, match="descriptor"):
        backend.gather(-1, np.zeros(1, np.int64), np.ones(1, np.int64), out, np.zeros(1, np.int64))
