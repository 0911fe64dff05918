"""Compressions that a stream may have on its way: undone, or done, within this process and in bounded memory.

Raw streams do not compress, so these are for tools that compress by default.
"""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from zkeep.errors import BadStream, ZkeepError

PIECE = 1 << 20
"Bytes that are unpacked at most at a time, however little they came from."
MEMORY = 1 << 27
"Bytes of the window that a packed stream may ask for; more than the programs' own highest levels use."
_ANY = ((), ("-c",))
_DECOMPRESS = (("-d",), ("-dc",), ("-c", "-d"), ("-dfc",), ("-cd",))


def _each(kind: str, *calls: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    return {letters: kind for call in calls for letters in call}


DECOMPRESSORS = {
    **{name: _each("gzip", _DECOMPRESS) for name in ("gzip", "pigz")},
    **{name: _each("gzip", _ANY) for name in ("zcat", "gunzip", "gzcat", "unpigz")},
    **{name: _each("zstd", _DECOMPRESS) for name in ("zstd", "pzstd", "zstdmt")},
    "zstdcat": _each("zstd", _ANY),
    "xz": _each("xz", _DECOMPRESS),
    "xzdec": _each("xz", _ANY),
    **{name: _each("lz4", _DECOMPRESS) for name in ("lz4", "lz4c")},
    **{name: _each("bzip2", _DECOMPRESS) for name in ("bzip2", "pbzip2")},
    "lzop": _each("lzop", _DECOMPRESS),
}
"By program and sorted options, those of levels and threads left out: the compression that it undoes."
COMPRESSORS = {
    **{name: _each("gzip", _ANY) for name in ("gzip", "pigz")},
    **{name: _each("zstd", _ANY) for name in ("zstd", "pzstd", "zstdmt")},
    **{name: _each("lz4", _ANY) for name in ("lz4", "lz4c")},
}
_LZOP = "/usr/bin/lzop"
"The one program that is run, with fixed arguments: Python has no such decompressor."


@dataclass(frozen=True)
class Filter:
    """What happens to a stream on its way: a compression is done or undone, the rate is limited (0: it is not).

    `packing`: the name of the compression, or nothing. `rate`: bytes a second.
    """

    packing: str = ""
    rate: int = 0


def available(name: str) -> bool:
    """Whether to answer that the program is here."""
    if name == "lzop":
        return os.access(_LZOP, os.X_OK)
    return name in ("mbuffer", "pv") or name in DECOMPRESSORS or name in COMPRESSORS


def unpacked(source: BinaryIO, packing: str) -> BinaryIO:
    """Decompress a stream as it comes."""
    if packing == "lzop":
        # It reads standard input itself, and ends when that ends or its output is closed.
        command = [_LZOP, "-dc"]
        null = subprocess.DEVNULL
        run = subprocess.Popen(command, stdin=0, stdout=subprocess.PIPE, stderr=null, env={})  # noqa: S603
        return cast(BinaryIO, _Program(run))
    return cast(BinaryIO, _Unpacked(_READERS[packing](source), packing))


class _Unpacked(io.RawIOBase):
    """A decompressed stream, whose errors are those of a bad stream."""

    def __init__(self, reader: Any, packing: str) -> None:
        self._reader = reader
        self._packing = packing
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        view = memoryview(room).cast("B")
        try:
            # Never more than a piece at a time: a few bytes can unpack to gigabytes.
            piece = self._reader.read1(min(len(view), PIECE))
        except Exception as error:
            if isinstance(error, ZkeepError) or not isinstance(error, _errors()):
                raise
            raise BadStream(f"its {self._packing} data are damaged or cut short: {error}", self._at) from None
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _errors() -> tuple[type[Exception], ...]:
    """What the libraries raise for data that are not theirs."""
    import lzma
    import zlib

    import zstandard

    own = lzma.LZMAError, zlib.error, zstandard.ZstdError
    return EOFError, MemoryError, RuntimeError, ValueError, OSError, *own


class _Program(io.RawIOBase):
    """The output of a program, which must have ended well."""

    def __init__(self, run: subprocess.Popen[bytes]) -> None:
        self._run = run

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        assert self._run.stdout is not None
        piece = self._run.stdout.read1(min(len(room), PIECE))  # type: ignore[attr-defined]
        if not piece and self._run.wait() != 0:
            raise BadStream("its lzop data are damaged or cut short", 0)
        room[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed and self._run.poll() is None:
            self._run.kill()
            self._run.wait()
        super().close()


def _lzma() -> Any:
    import lzma

    return lzma.LZMADecompressor(memlimit=MEMORY)


class _Xz:
    """Reads several xz streams in a row, within MEMORY."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._unpacker = _lzma()
        self._left = b""
        self._begun = False

    def read1(self, size: int) -> bytes:
        while True:
            # One stream ended: another may follow it without a gap, as `cat a.xz b.xz` makes them.
            if self._unpacker.eof:
                self._left = self._unpacker.unused_data
                self._unpacker, self._begun = _lzma(), False
            # Compressed bytes are read only when those before are used up.
            if not self._left and self._unpacker.needs_input:
                self._left = self._source.read(1 << 16)
                if not self._left:
                    if self._begun:
                        raise EOFError("it ends too early")
                    return b""
            # At most `size` bytes come out; the decompressor keeps the rest of its input.
            piece, self._left, self._begun = self._left, b"", True
            found: bytes = self._unpacker.decompress(piece, size)
            if found:
                return found


def _gzip(source: BinaryIO) -> Any:
    import gzip

    return gzip.GzipFile(fileobj=cast(Any, source), mode="rb")


def _bzip2(source: BinaryIO) -> Any:
    import bz2

    return bz2.BZ2File(cast(Any, source))


def _zstd(source: BinaryIO) -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=MEMORY).stream_reader(source, read_across_frames=True)


def _lz4(source: BinaryIO) -> Any:
    import lz4.frame

    return lz4.frame.LZ4FrameFile(source)


_READERS: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "xz": _Xz,
    "zstd": _zstd,
    "lz4": _lz4,
}


def packer(packing: str) -> Any:
    """An object with compress(piece) and flush(), for a stream that goes out."""
    # Level 1 everywhere: encrypted blocks do not shrink, only headers do.
    if packing == "gzip":
        import zlib

        return zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    if packing == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(1).compressobj()
    import lz4.frame

    return _Lz4Packer(lz4.frame.LZ4FrameCompressor())


class _Lz4Packer:
    """LZ4 with the interface of the others: the frame's header comes with the first bytes."""

    def __init__(self, packer: Any) -> None:
        self._packer = packer
        self._begun = False

    def compress(self, piece: Any) -> bytes:
        head: bytes = b"" if self._begun else self._packer.begin()
        self._begun = True
        return head + bytes(self._packer.compress(bytes(piece)))

    def flush(self) -> bytes:
        return (b"" if self._begun else bytes(self._packer.begin())) + bytes(self._packer.flush())
