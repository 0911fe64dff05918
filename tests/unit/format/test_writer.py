from __future__ import annotations

from pathlib import Path

import pytest
from streamkit import STREAMS, begin, keydata, made, one_range, raw_object, read, transcribe

from zkeep.format.events import Batch, SubBegin
from zkeep.format.nvlist import NvList
from zkeep.format.reader import Reader
from zkeep.format.records import Begin, End, Write
from zkeep.format.writer import Writer


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_what_was_read_is_written_as_it_was(path: Path) -> None:
    assert transcribe(path.read_bytes(), "little") == path.read_bytes()


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_there_and_back_again(path: Path) -> None:
    assert transcribe(transcribe(path.read_bytes(), "big"), "little") == path.read_bytes()


def test_records_are_stamped_where_they_lie() -> None:
    data = made(one_range(), raw_object(1), raw_object(2))
    writer, out = Writer(), bytearray()
    for event in Reader().feed(data):
        if isinstance(event, SubBegin):
            out += writer.begin(event.begin, event.payload)
        elif isinstance(event, Batch):
            copy = bytearray(event.buffer)
            for start in event.offsets.tolist():
                copy[start + 280 : start + 312] = bytes(32)
            writer.stamp(copy, event.offsets, event.lengths, event.sums)
            out += copy
    assert out + writer.end() == data


def test_a_payload_must_be_what_its_header_says() -> None:
    writer = Writer()
    writer.begin(begin())
    for size in (0, 508, 513, 1024):
        with pytest.raises(ValueError, match="not the payload"):
            writer.record(Write(object=1, logical_size=512), bytes(size))
    assert len(writer.record(Write(object=1, logical_size=512), bytes(512))) == 312 + 512


def test_calls_out_of_order_are_refused() -> None:
    writer = Writer()
    compound = Begin(versioninfo=2)
    for call in (writer.end, writer.package_end, lambda: writer.record(one_range())):
        with pytest.raises(ValueError, match=r"substream|compound"):
            call()
    writer.package(compound, NvList())
    with pytest.raises(ValueError, match="outer header"):
        writer.package(compound, NvList())
    writer.begin(begin())
    with pytest.raises(ValueError, match="substream begins"):
        writer.begin(begin())
    with pytest.raises(ValueError, match="calls of their own"):
        writer.record(End())
    with pytest.raises(ValueError, match="no compound"):
        writer.package_end()
    writer.end()
    writer.package_end()


def test_an_outer_header_may_have_no_list() -> None:
    writer = Writer()
    data = writer.package(Begin(versioninfo=2, toname=b"t/a@b"), NvList())
    assert len(data) == 2 * 312
    data += writer.begin(begin(), keydata()) + writer.end() + writer.package_end()
    kinds = [event[0] for event in read(data)]
    assert kinds == ["package", "begin", "end", "package end"]
    assert transcribe(data, "little") == data
