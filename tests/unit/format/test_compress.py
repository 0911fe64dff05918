"""Every compression undone, and nonsense refused."""

from __future__ import annotations

import random
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.format.compress import BadCompression, Compression, decompress, lzjb, zle
from zkeep.format.compress_writer import compressor, sparing


def test_what_is_not_compressed_is_as_it_is() -> None:
    assert decompress(b"abcd", Compression.OFF, 4) == b"abcd"


def test_gzip_ends_before_the_sector_does() -> None:
    packed = zlib.compress(b"x" * 5000)
    assert decompress(packed + bytes(-len(packed) % 512), 9, 5000) == b"x" * 5000


def test_lz4_and_zstd_tell_their_length_first() -> None:
    import lz4.block
    import zstandard

    text = b"le jambon est bon. " * 100
    packed = lz4.block.compress(text, store_size=False)
    assert decompress(len(packed).to_bytes(4, "big") + packed + bytes(99), Compression.LZ4, len(text)) == text
    settings = zstandard.ZstdCompressionParameters(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    frame = zstandard.ZstdCompressor(compression_params=settings).compress(text)
    packed = len(frame).to_bytes(4, "big") + bytes(4) + frame + bytes(77)
    assert decompress(packed, Compression.ZSTD, len(text)) == text


def test_lzjb_copies_over_itself() -> None:
    assert lzjb(bytes([0b10, ord("a"), (9 - 3) << 2, 1]), 10) == b"a" * 10


def test_zle_counts_literals_and_zeros() -> None:
    assert zle(bytes([1]) + b"ab" + bytes([64 + 2]) + bytes([0]) + b"c", 6) == b"ab\0\0\0c"


@given(st.binary(max_size=300), st.integers(0, 20), st.integers(512, 4096))
def test_nonsense_is_refused_or_has_the_right_size(data: bytes, kind: int, size: int) -> None:
    with suppress(BadCompression):
        assert len(decompress(data, kind, size)) == size


@pytest.mark.parametrize("size", [(16 << 20) + 1, 1 << 40])
def test_no_block_is_larger_than_sixteen_mebibytes(size: int) -> None:
    with pytest.raises(BadCompression):
        decompress(b"", Compression.EMPTY, size)


@pytest.mark.parametrize("setting", ["lz4", "zstd", "gzip-1"])
def test_what_follows_incompressible_blocks_is_compressed_all_the_same(setting: str) -> None:
    compress, spare = compressor(setting), sparing(compressor(setting))
    noise, text = random.Random(1).randbytes(128 << 10), b"some text, again and again " * 4854
    hidden = noise[:50_000] + bytes(20_000) + noise[70_000:]
    for block in [noise, noise, text, noise, noise, text, noise[:4096], bytes(4096)]:
        assert spare(block) == compress(block)
    # What no sample shows is missed at most 7 times in a row.
    assert sum(spare(hidden)[1] != Compression.OFF for _ in range(16)) >= 2
