"""Decompression of blocks, for all algorithms of OpenZFS. Each result has exactly the size that was asked for.

The size of a result is bounded before anything is allocated. A block that is cut short, too long or nonsense is an
error, never a shorter result.

Source: OpenZFS include/sys/zio_compress.h; module/zfs/lz4_zfs.c, lzjb.c, zle.c, gzip.c; module/zstd/zfs_zstd.c.
"""

from __future__ import annotations

import zlib
from enum import IntEnum
from functools import cache
from typing import Any

from zkeep.format.records import MAX_PAYLOAD

Buffer = bytes | bytearray | memoryview


class Compression(IntEnum):
    """zio_compress; 5 to 13 are gzip-1 to gzip-9."""

    INHERIT = 0
    ON = 1
    OFF = 2
    LZJB = 3
    EMPTY = 4
    GZIP_1 = 5
    GZIP_9 = 13
    ZLE = 14
    LZ4 = 15
    ZSTD = 16


class BadCompression(ValueError):
    """A block does not decompress, or not to the size that it should have."""


PLAIN = (int(Compression.INHERIT), int(Compression.OFF))


def decompress(data: Buffer, compression: int, size: int) -> Buffer:
    """Decompress a block to `size` bytes; one that is not compressed is returned as it is.

    Raises:
        BadCompression: it is not `size` bytes, or not of this compression.
    """
    if size > MAX_PAYLOAD:
        raise BadCompression(f"{size} bytes are more than any block has")
    # Each branch gives at most `size` bytes; what it really gave is compared at the end.
    if compression in PLAIN:
        result = data
    elif compression == Compression.EMPTY:
        result = bytes(size)
    elif compression == Compression.LZ4:
        result = _lz4(data, size)
    elif compression == Compression.ZSTD:
        result = _zstd(data, size)
    elif Compression.GZIP_1 <= compression <= Compression.GZIP_9:
        result = _gzip(data, size)
    elif compression == Compression.LZJB:
        result = lzjb(bytes(data), size)
    elif compression == Compression.ZLE:
        result = zle(bytes(data), size)
    else:
        raise BadCompression(f"there is no compression {compression}")
    if len(result) != size:
        raise BadCompression(f"{len(result)} bytes where {size} should be")
    return result


def _lz4(data: Buffer, size: int) -> bytes:
    import lz4.block

    try:
        view = memoryview(data)
        length = int.from_bytes(view[:4], "big")
        if len(view) < 4 or length > len(view) - 4:
            raise BadCompression(f"{length} bytes are said to lie in {len(view)}")
        result: bytes = lz4.block.decompress(view[4 : 4 + length], uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise BadCompression(f"lz4: {error}") from None
    return result


def _gzip(data: Buffer, size: int) -> bytes:
    """A zlib stream; what lies behind its end fills a sector."""
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(data, size)
    except zlib.error as error:
        raise BadCompression(f"gzip: {error}") from None
    return result


def _zstd(data: Buffer, size: int) -> bytes:
    """Length (big-endian), version and level, then a frame without its magic number."""
    # 0              4                        8
    # | length, u32  | version << 8 | level    | frame without its magic number | zeros to the sector's end
    #   big-endian
    view = memoryview(data)
    length = int.from_bytes(view[:4], "big")
    if len(view) < 8 or length > len(view) - 8:
        raise BadCompression(f"{length} bytes are said to lie in {len(view)}")
    frame = view[8 : 8 + length]
    zstandard = _zstandard()
    _check_frame(frame, size)
    decompressor = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    try:
        result: bytes = decompressor.decompress(frame, max_output_size=size)
    except zstandard.ZstdError as error:
        raise BadCompression(f"zstd: {error}") from None
    return result


def _check_frame(frame: memoryview, size: int) -> None:
    """Check the content size that a frame names: zstd allocates it, whatever limit the decompressor is given."""
    zstandard = _zstandard()
    try:
        claimed = zstandard.get_frame_parameters(frame, format=zstandard.FORMAT_ZSTD1_MAGICLESS).content_size
    except zstandard.ZstdError as error:
        raise BadCompression(f"zstd: {error}") from None
    if claimed not in (size, zstandard.CONTENTSIZE_UNKNOWN):
        raise BadCompression(f"zstd: {claimed} bytes where {size} should be")


@cache
def _zstandard() -> Any:
    import zstandard

    return zstandard


_MATCH_BITS, _MATCH_MIN = 6, 3
_OFFSET_MASK = (1 << 16 - _MATCH_BITS) - 1


def lzjb(data: bytes, size: int) -> bytes:
    """Eight items behind a byte of flags: a literal, or a match (6 bits of length, 10 bits of distance back)."""
    out = bytearray()
    at, flags, bit = 0, 0, 8
    try:
        while len(out) < size:
            # Every eight items begin with a byte of flags: is the item a match (1) or a literal (0)?
            if bit == 8:
                flags, bit, at = data[at], 0, at + 1
            if flags >> bit & 1:
                length = (data[at] >> 8 - _MATCH_BITS) + _MATCH_MIN
                back = (data[at] << 8 | data[at + 1]) & _OFFSET_MASK
                at += 2
                _repeat(out, back, min(length, size - len(out)))
            else:
                out.append(data[at])
                at += 1
            bit += 1
    except IndexError:
        raise BadCompression(f"lzjb: cut short after {len(out)} bytes") from None
    return bytes(out)


def _repeat(out: bytearray, back: int, length: int) -> None:
    start = len(out) - back
    if back == 0 or start < 0:
        raise BadCompression(f"lzjb: a match {back} bytes back, after {len(out)}")
    piece = bytes(out[start : start + length])
    # A match may reach into what it makes itself (back < length): then the piece repeats.
    while len(piece) < length:
        piece += piece
    out += piece[:length]


_ZLE_LITERALS = 64


def zle(data: bytes, size: int) -> bytes:
    """Runs, each behind one byte n: n + 1 literals if n < 64, else n - 63 zeros."""
    out = bytearray()
    at, end = 0, len(data)
    while at < end and len(out) < size:
        length = data[at] + 1
        at += 1
        if length <= _ZLE_LITERALS:
            out += data[at : at + length]
            at += length
        else:
            out += bytes(length - _ZLE_LITERALS)
    if at > end:
        raise BadCompression("zle: cut short")
    return bytes(out)
