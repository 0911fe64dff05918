"""Compressing blocks as the kernel stores them: the twin of format/compress.py.

A compressed block is filled with zeros to whole sectors of 512 bytes; where that saves nothing the block is stored as
it is. A block of zeros should be a hole: callers check for that.

Source: OpenZFS module/zfs/zio_compress.c zio_compress_data(); lz4_zfs.c, gzip.c, zle.c; module/zstd/zfs_zstd.c
zfs_zstdhdr_t; include/sys/zio_compress.h.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from threading import local
from typing import Any

from zkeep.format.compress import Compression
from zkeep.format.dnode import SECTOR
from zkeep.zstd_levels import FIRST_FAST, ZSTD_FAST

Buffer = bytes | bytearray | memoryview
Compress = Callable[[Buffer], tuple[Buffer, int]]
"From a block to the bytes to store, a multiple of 512, and the zio_compress code."
CompressEach = Callable[[Sequence[bytes]], list[tuple[Buffer, int]]]
"The same of several blocks."
ZSTD_VERSION = 10405
"The library version written into blocks: every OpenZFS with zstd reads its frames."
_Pack = Callable[[Buffer], tuple[bytes, bytes]]
_PackEach = Callable[[Sequence[bytes]], list[tuple[bytes, bytes]]]
_FAST = re.compile(r"zstd-fast-(\d+)")
SAMPLED, SAMPLE = 32 << 10, 4 << 10
"Bytes of a block from which on samples are worth it, and of each of them."
_MAX_RUN, _MAX_LITERALS = 192, 64


def compressor(setting: str) -> Compress:
    """The compression that a dataset's `compression` property names. May be used by several threads.

    Raises:
        ValueError: there is none of this name that can be written (lzjb).
    """
    if setting in ("on", "lz4"):
        return _WholeSectors(_lz4, Compression.LZ4)
    if setting == "off":
        return lambda block: (block, Compression.OFF)
    if setting == "zle":
        return _WholeSectors(_zle, Compression.ZLE)
    if setting == "gzip" or re.fullmatch(r"gzip-[1-9]", setting):
        level = int(setting.partition("-")[2] or 6)
        return _WholeSectors(lambda block: (b"", zlib.compress(block, level)), Compression.GZIP_1 + level - 1)
    level = _zstd_level(setting)
    zstd = _Zstd(level)
    return _WholeSectors(zstd.compress, Compression.ZSTD, zstd.compress_each if zstd.has_each else None)


def _zstd_level(setting: str) -> int:
    if setting == "zstd":
        return 3
    fast = _FAST.fullmatch(setting)
    if fast:
        return -int(fast[1])
    if setting == "zstd-fast":
        return -1
    plain = re.fullmatch(r"zstd-(\d+)", setting)
    if plain and 1 <= int(plain[1]) <= 19:
        return int(plain[1])
    raise ValueError(f"compression {setting} cannot be written")


def sparing(compress: Compress) -> Compress:
    """The same compression, but for blocks that seem to be as incompressible as those before them.

    After a large block that did not become smaller, only samples of the next one are tried: what is incompressible
    mostly comes in long files (media, archives, ciphertext). Every 8th block is tried as a whole all the same.
    """
    hopeless = 0

    def compress_sparingly(block: Buffer) -> tuple[Buffer, int]:
        nonlocal hopeless  # threads may count wrongly: then one block more or less is tried
        if len(block) < SAMPLED:
            return compress(block)
        if hopeless % 8 and compress(_samples(block))[1] == Compression.OFF:
            hopeless += 1
            return block, Compression.OFF
        found = compress(block)
        hopeless = hopeless + 1 if found[1] == Compression.OFF else 0
        return found

    return compress_sparingly


def _samples(block: Buffer) -> bytes:
    """Some of the beginning, the middle and the end."""
    view, middle = memoryview(block), len(block) // 2
    return b"".join((view[:SAMPLE], view[middle : middle + SAMPLE], view[-SAMPLE:]))


def in_one_call(compress: Compress) -> CompressEach | None:
    """The same compression of many blocks in one call, meanwhile other threads run; None: there is none.

    For a thread beside one that is busy: for each call it would have to wait until that one lets it go on.
    """
    if not isinstance(compress, _WholeSectors) or compress.pack_each is None:
        return None
    return compress.each


class _WholeSectors:
    """Fills with zeros to whole sectors; stores a block compressed only if that saves one.

    `pack` returns what is stored before the compressed bytes, and these; `pack_each` the same of many blocks.
    """

    def __init__(self, pack: _Pack, code: int, pack_each: _PackEach | None = None) -> None:
        self._pack, self._code = pack, code
        self.pack_each = pack_each

    def __call__(self, block: Buffer) -> tuple[Buffer, int]:
        return self._stored(block, *self._pack(block))

    def each(self, blocks: Sequence[bytes]) -> list[tuple[Buffer, int]]:
        assert self.pack_each is not None
        return [self._stored(block, *packed) for block, packed in zip(blocks, self.pack_each(blocks), strict=True)]

    def _stored(self, block: Buffer, head: bytes, packed: bytes) -> tuple[Buffer, int]:
        size = -(-(len(head) + len(packed)) // SECTOR) * SECTOR
        if size >= len(block):
            return block, Compression.OFF
        return b"".join((head, packed)).ljust(size, b"\0"), self._code


def _lz4(block: Buffer) -> tuple[bytes, bytes]:
    """Length (big-endian), and one lz4 block."""
    import lz4.block

    packed: bytes = lz4.block.compress(block, store_size=False)
    return struct.pack(">I", len(packed)), packed


class _Zstd:
    """Compresses with one level; a zstd compressor must not be shared between threads."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._local = local()

    def compress(self, block: Buffer) -> tuple[bytes, bytes]:
        """Length (big-endian), version and level; and a frame without its magic number."""
        packed: bytes = self._compressor().compress(block)
        return self._head(len(packed)), packed

    @property
    def has_each(self) -> bool:
        import zstandard

        return "multi_compress_to_buffer" in zstandard.backend_features

    def compress_each(self, blocks: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """The same of each block."""
        if not blocks:
            return []
        found = self._compressor().multi_compress_to_buffer(list(blocks), threads=1)
        every = [found[at].tobytes() for at in range(len(found))]
        return [(self._head(len(packed)), packed) for packed in every]

    def _head(self, size: int) -> bytes:
        # The level as enum zio_zstd_levels numbers it: the fast ones, which are negative, from 103 on.
        code = self._level if self._level > 0 else FIRST_FAST + ZSTD_FAST.index(-self._level)
        return struct.pack(">II", size, ZSTD_VERSION << 8 | code)

    def _compressor(self) -> Any:
        made = getattr(self._local, "made", None)
        if made is None:
            import zstandard

            parameters = zstandard.ZstdCompressionParameters.from_level(
                self._level, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=True, write_checksum=False
            )
            made = self._local.made = zstandard.ZstdCompressor(compression_params=parameters)
        return made


def _zle(block: Buffer) -> tuple[bytes, bytes]:
    """Runs of zeros and of literals, each behind one byte: up to 64 literals, or up to 192 zeros."""
    data = bytes(block)
    out = bytearray()
    for zeros in re.finditer(rb"(\x00+)|([^\x00]+)", data):
        run = zeros[0]
        if zeros[1]:
            for left in range(len(run), 0, -_MAX_RUN):
                out.append(_MAX_LITERALS - 1 + min(left, _MAX_RUN))
        else:
            for at in range(0, len(run), _MAX_LITERALS):
                part = run[at : at + _MAX_LITERALS]
                out.append(len(part) - 1)
                out += part
    return b"", bytes(out)
