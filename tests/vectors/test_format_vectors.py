"""All the streams of the big set: none is refused, each is written as it was read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.errors import BadStream
from zkeep.format.events import Batch, Package, PackageEnd, SubBegin, SubEnd
from zkeep.format.nvlist import encode
from zkeep.format.reader import Reader
from zkeep.format.records import HEADER
from zkeep.format.writer import Writer

WHERE = os.environ.get("ZKEEP_VECTORS", "")
STREAMS = sorted(Path(WHERE).glob("*/*.zfs")) if WHERE else []

pytestmark = pytest.mark.skipif(not STREAMS, reason="ZKEEP_VECTORS names no folder with */*.zfs")


def rewritten(data: bytes, reader: Reader) -> Iterator[bytes]:
    """Read, strip every checksum, stamp them again."""
    writer = Writer()
    for event in reader.feed(data):
        match event:
            case Package():
                assert (encode(event.nvlist) if event.nvlist else b"") == event.raw[HEADER:-HEADER]
                yield writer.package(event.header, event.nvlist)
            case SubBegin():
                yield writer.begin(event.begin, event.payload)
            case Batch():
                copy = bytearray(event.buffer)
                for start in event.offsets.tolist():
                    copy[start + 280 : start + 312] = bytes(32)
                writer.stamp(copy, event.offsets, event.lengths, event.sums)
                yield bytes(copy)
            case SubEnd():
                yield writer.end()
            case PackageEnd():
                yield writer.package_end()


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_real_stream_is_taken_and_written_as_it_was(path: Path) -> None:
    data = path.read_bytes()
    reader = Reader()
    made = b"".join(rewritten(data, reader))
    if path.stem.endswith("-part"):
        assert data.startswith(made)
        assert len(made) > len(data) * 0.9
        with pytest.raises(BadStream, match="the stream ends in it"):
            reader.finish()
    else:
        reader.finish()
        assert made == data
