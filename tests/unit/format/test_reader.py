from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from streamkit import (
    GUID,
    RAW,
    STREAMS,
    attempt,
    begin,
    boundaries,
    keydata,
    made,
    one_range,
    raw_object,
    read,
    restamp,
    stream,
    transcribe,
)

from zkeep.errors import BadStream
from zkeep.format.reader import Reader
from zkeep.format.records import HEADER, LAYOUTS, MAGIC, ByteOrder, Feature, RecordType, Write
from zkeep.format.writer import Writer

SMALL = [path for path in STREAMS if path.stat().st_size < 25_000]


def ids(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", STREAMS, ids=ids)
def test_every_record_of_a_real_stream_is_handed_out(path: Path) -> None:
    data = path.read_bytes()
    found = read(data)
    names = {"package": 2, "begin": 1, "end": 1, "package end": 1}
    assert len(boundaries(data)) == sum(names.get(event[0], 1) for event in found)
    whole = b"".join(event[2] for event in found if isinstance(event[0], RecordType))
    assert all(whole[i : i + 16] in data for i in range(0, len(whole), 9999))


@pytest.mark.parametrize("path", STREAMS, ids=ids)
@pytest.mark.parametrize("seed", range(3))
def test_how_a_stream_is_cut_does_not_matter(path: Path, seed: int) -> None:
    data = path.read_bytes()
    rng = random.Random(seed)
    pieces = [rng.choice([1, 7, 280, 312, 313, 5000, 70000]) for _ in range(60)]
    assert read(data, pieces, size=1024) == read(data)


@pytest.mark.parametrize("path", SMALL, ids=ids)
def test_byte_by_byte_gives_the_same(path: Path) -> None:
    data = path.read_bytes()
    assert read(data, [1] * len(data), size=700) == read(data)


@pytest.mark.parametrize("path", STREAMS, ids=ids)
def test_the_other_byte_order_says_the_same(path: Path) -> None:
    data = path.read_bytes()
    swapped = transcribe(data, "big")
    here, there = read(data), read(swapped)
    assert len(swapped) == len(data)
    assert [event[0] for event in here] == [event[0] for event in there]
    for mine, yours in zip(here, there, strict=True):
        if isinstance(mine[0], RecordType):
            layout = LAYOUTS[mine[0]]
            assert layout.unpack(mine[2], "little") == layout.unpack(yours[2], "big")
            assert mine[2][HEADER:] == yours[2][HEADER:]


def test_columns_are_in_this_machines_byte_order_whatever_the_streams() -> None:
    data = transcribe(stream("inc-w"), "big")
    numbers = []
    for event in Reader().feed(data):
        if hasattr(event, "select"):
            index, headers = event.select(RecordType.OBJECT)
            assert len(index) == len(headers)
            numbers += headers["object"].tolist()
    assert numbers[:3] == [1, 2, 3]


def cut(data: bytes, length: int) -> BadStream:
    found, error = attempt(data[:length])
    assert isinstance(error, BadStream), length
    whole = read(data)
    assert found == whole[: len(found)]
    return error


@pytest.mark.parametrize("path", SMALL, ids=ids)
def test_a_cut_anywhere_near_a_record_is_an_error_and_keeps_what_was_before(path: Path) -> None:
    data = path.read_bytes()
    for offset, _ in boundaries(data):
        for length in {max(0, offset + near) for near in (-5, -1, 0, 1, 4, 280, 311)}:
            cut(data, min(length, len(data) - 1))


def test_an_error_names_byte_and_record() -> None:
    data = stream("inc-w")
    offset = next(offset for offset, rtype in boundaries(data) if rtype == RecordType.WRITE)
    error = cut(data, offset + HEADER + 10)
    assert (error.offset, error.record) == (offset, "WRITE")
    assert "\n" not in str(error)


def test_a_flipped_byte_in_any_field_is_seen() -> None:
    data = stream("inc-w")
    whole = read(data)
    for offset, rtype in boundaries(data):
        for field in (*LAYOUTS[RecordType(rtype)]._fields, None):
            at = offset + (field.offset if field else 280)
            damaged = bytearray(data)
            damaged[at] ^= 0x10
            found, error = attempt(bytes(damaged))
            assert isinstance(error, BadStream), (offset, field)
            assert error.offset <= max(at + HEADER + 140_000, 0)
            assert found == whole[: len(found)]


def test_a_flipped_byte_with_right_checksums_is_an_error_or_legal() -> None:
    data = stream("inc-w")
    refused = 0
    for offset, rtype in boundaries(data)[1:]:
        for field in LAYOUTS[RecordType(rtype)]._fields:
            damaged = bytearray(data)
            damaged[offset + field.offset] ^= 0x81
            _, error = attempt(bytes(restamp(damaged)))
            assert error is None or isinstance(error, BadStream)
            refused += error is not None
    assert refused > 200


def test_nothing_follows_the_end() -> None:
    for name in ("inc-w", "full-Rw"):
        found, error = attempt(stream(name) + b"\0")
        assert "after the end" in str(error)
        assert found == read(stream(name))


def test_a_stream_that_is_none_is_refused_at_once() -> None:
    for data in (b"\0" * HEADER, b"PK\3\4" * 100, stream("inc-w")[HEADER:]):
        _, error = attempt(data)
        assert isinstance(error, BadStream)
    _, error = attempt(b"")
    assert "empty" in str(error)


def test_an_error_stays() -> None:
    reader = Reader()
    with pytest.raises(BadStream):
        list(reader.feed(b"\1" * 400))
    with pytest.raises(BadStream):
        list(reader.events())
    with pytest.raises(BadStream):
        reader.finish()


def test_the_largest_block_is_read_through_a_small_buffer() -> None:
    size = 16 << 20
    write = Write(
        object=1,
        type=19,
        logical_size=size,
        compressed_size=size,
        compressiontype=2,
        checksumtype=7,
        toguid=GUID,
    )
    block = random.Random(1).randbytes(1 << 16) * 256
    data = made(one_range(), raw_object(1, blksz=size), (write, block))
    found = read(data, [1 << 20] * 20, size=4096)
    assert [event[0] for event in found][1:-1] == [9, 1, 3]
    assert found[3][2][HEADER:] == block


def test_a_block_that_is_announced_and_does_not_come_takes_no_memory() -> None:
    header = bytearray(Write(object=1, logical_size=1 << 24, compressed_size=1 << 24, compressiontype=2).pack())
    data = made(one_range(), raw_object(1))[:-HEADER] + bytes(header)
    reader = Reader(4096)
    list(reader.feed(data + bytes(5000)))
    assert len(reader.space()) < 1 << 16


@pytest.mark.parametrize("length", [(16 << 20) + 4, 1 << 40, (1 << 64) - 4, 514])
def test_a_length_that_cannot_be_is_refused_before_its_bytes_come(length: int) -> None:
    whole = made(one_range(), raw_object(1))
    header = Write(object=1, logical_size=length, compressed_size=length, compressiontype=2, toguid=GUID).pack()
    body = bytearray(whole[:-HEADER] + header)
    _, error = attempt(bytes(body))
    assert isinstance(error, BadStream)
    assert error.offset == len(whole) - HEADER


def test_a_begin_with_a_huge_nvlist_is_refused() -> None:
    header = bytearray(begin().pack())
    struct.pack_into("=I", header, 4, 1 << 31)
    _, error = attempt(bytes(header))
    assert "larger" in str(error)


def test_a_begin_inside_a_substream_is_refused() -> None:
    data = made(one_range())
    writer = Writer()
    inner = writer.begin(begin(), keydata())
    damaged = bytearray(data[:-HEADER] + inner + data[-HEADER:])
    _, error = attempt(bytes(damaged))
    assert isinstance(error, BadStream)


def test_deduplicated_streams_get_the_hint() -> None:
    for features in (RAW | Feature.DEDUP, Feature.DEDUP | Feature.DEDUPPROPS):
        _, error = attempt(made(features=features))
        assert "zstream redup" in str(error)


@pytest.mark.parametrize(
    ("features", "fields", "reason"),
    [
        (RAW | Feature(1 << 40), {}, "not known: 0x10000000000"),
        (RAW, {"type": 6}, "no dataset type 6"),
        (RAW | Feature.EMBED_DATA, {}, "embedded"),
        (RAW, {"flags": 0}, "SPILL_BLOCK"),
        (RAW | Feature.RESUMING, {}, "without resume_object"),
        (Feature.RESUMING, {}, "without resume_object"),
    ],
)
def test_a_begin_that_no_receiver_takes_is_refused(features: Feature, fields: dict[str, int], reason: str) -> None:
    found, error = attempt(made(features=features, **fields))
    assert isinstance(error, BadStream)
    assert reason in str(error)
    assert not found


def test_a_raw_stream_needs_its_keys() -> None:
    writer = Writer()
    _, error = attempt(writer.begin(begin()) + writer.end())
    assert "crypt_keydata" in str(error)


def test_an_end_of_another_snapshot_is_refused() -> None:
    data = bytearray(made(one_range()))
    struct.pack_into("=Q", data, len(data) - HEADER + 40, GUID + 1)
    _, error = attempt(bytes(restamp(data)))
    assert "is not that of its BEGIN" in str(error)


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_the_magic_number_tells_the_byte_order(byteorder: ByteOrder) -> None:
    data = made(one_range(), raw_object(1), byteorder=byteorder)
    assert int.from_bytes(data[8:16], byteorder) == MAGIC
    assert read(data)[0][5] == byteorder
