"""Streams with an end to patience and a limit of speed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from zkeep.errors import TryAgain
from zkeep.server.filters import Filter
from zkeep.server.wire import Pace, Wire, watch


@contextmanager
def standard(fd: int, instead: int) -> Iterator[None]:
    """`instead` stands for a standard stream."""
    saved = os.dup(fd)
    os.dup2(instead, fd)
    try:
        yield
    finally:
        os.dup2(saved, fd)
        os.close(saved)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_a_sender_that_is_silent_is_ended(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    watch(0.05)
    os.write(writing, b"abc")
    with standard(0, reading):
        source = Wire(idle=0.05).source()
        assert source.read(10) == b"abc"
        with pytest.raises(TryAgain, match="the other side neither sent nor took"):
            source.read(10)


def test_a_reader_that_does_not_read_is_ended(pipe: tuple[int, int]) -> None:
    _, writing = pipe
    watch(0.05)
    with standard(1, writing), pytest.raises(TryAgain):
        Wire(idle=0.05).write(bytes(1 << 21))


def test_without_a_limit_nothing_is_waited_for(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    wire = Wire(filters=[Filter()])
    with standard(1, writing):
        wire.write(memoryview(b"abc"))
    assert os.read(reading, 10) == b"abc"
    assert (wire.sent, wire.received) == (3, 0)


def test_the_pace_is_kept() -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(1000, lambda: now[0], sleep)
    for _ in range(10):
        pace.spend(500)
    assert now[0] == pytest.approx(105)
    now[0] += 60  # what was not used is not saved up
    pace.spend(1000)
    pace.spend(1000)
    assert now[0] == pytest.approx(167)
    assert pace.stride == 4096
    assert Pace(0).stride > 1 << 20


@pytest.mark.parametrize("packing", ["gzip", "zstd", "lz4"])
def test_what_goes_out_packed_comes_in_unpacked(packing: str, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    data = b"0123456789" * 1000
    out = Wire(filters=[Filter(packing)])
    with standard(1, writing):
        for at in range(0, len(data), 3000):
            out.write(memoryview(data)[at : at + 3000])
        out.finish()
    size = out.sent
    os.close(writing)
    with standard(0, reading):
        source = Wire(filters=[Filter(packing)]).source()
        found = b""
        while piece := source.read(4096):
            found += piece
    assert found == data
    assert size < len(data)
    os.dup2(reading, writing)  # for the fixture to close


def test_the_slowest_of_several_rates_counts() -> None:
    wire = Wire(rate=10_000_000, filters=[Filter("", 5000), Filter("gzip")])
    assert wire._pace.stride == 5000
