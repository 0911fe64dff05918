"""Files with send streams: as they are or compressed, one stream after another, from a disk or from a pipe."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from zkeep.errors import Refused
from zkeep.format.records import HEADER, MAGIC
from zkeep.names import shown

STDIN = "-"
HEAD = 16
PIECE = 4096
"Bytes that are unpacked at a time: a few can be very many."
XZ_MEMORY = 1 << 30
ZSTD_WINDOW = 1 << 31


class Packing(NamedTuple):
    """A compression by the bytes with which its files begin. `make`: something to unpack one stream of it."""

    name: str
    magic: tuple[bytes, ...]
    make: Callable[[], Any]


def _gzip() -> Any:
    import zlib

    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _xz() -> Any:
    import lzma

    return lzma.LZMADecompressor(memlimit=XZ_MEMORY)


def _bzip2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()


def _lz4() -> Any:
    import lz4.frame

    return lz4.frame.LZ4FrameDecompressor()


_SKIPPABLE = tuple(bytes((0x50 + number, 0x2A, 0x4D, 0x18)) for number in range(16))
"Frames of zstd that hold no data, with which pzstd begins its files."
PACKINGS = (
    Packing("gzip", (b"\x1f\x8b",), _gzip),
    Packing("xz", (b"\xfd7zXZ\0",), _xz),
    Packing("lzma", (b"\x5d\0\0",), _xz),
    Packing("bzip2", (b"BZh",), _bzip2),
    Packing("zstd", (b"\x28\xb5\x2f\xfd", *_SKIPPABLE), _zstd),
    Packing("lz4", (b"\x04\x22\x4d\x18",), _lz4),
)


def packing_of(head: bytes) -> Packing | None:
    return next((packing for packing in PACKINGS if head.startswith(packing.magic)), None)


def begins_a_stream(head: bytes) -> bool:
    return MAGIC in (int.from_bytes(head[8:16], "little"), int.from_bytes(head[8:16], "big"))


class Unpacked(io.RawIOBase):
    """What a compressed file holds; several compressed streams in it are one after another.

    Raises:
        Refused: it is cut short, or no such compression.
    """

    def __init__(self, source: BinaryIO, packing: Packing, name: str) -> None:
        self._source = source
        self._packing = packing
        self._name = name
        self._unpacker = packing.make()
        self._left = b""
        self._ready = memoryview(b"")
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        while not self._ready:
            # Several compressed files may follow one another: what is left of one begins the next.
            piece = self._left or self._source.read(PIECE)
            self._left = b""
            if not piece:
                # The end of the file within its compressed data is no end of the stream.
                if self._begun:
                    raise Refused(f"cannot read {self._name}: it is cut short within its {self._packing.name} data")
                return 0
            self._ready = memoryview(self._unpacked(piece))
        # Hand out what was unpacked, in the pieces that the reader asks for.
        count = min(len(room), len(self._ready))
        room[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpacked(self, piece: bytes) -> bytes:
        try:
            self._begun = True
            found: bytes = self._unpacker.decompress(piece)
            if self._unpacker.eof:
                self._left = self._unpacker.unused_data or b""
                self._unpacker, self._begun = self._packing.make(), False
        except MemoryError:
            raise
        except Exception as error:  # each library has errors of its own
            reason = " ".join(str(error).split())
            raise Refused(f"cannot read {self._name}: its {self._packing.name} data is damaged: {reason}") from None
        return found


class _Headed(io.RawIOBase):
    """A file of which the first bytes were read already.

    Raises:
        Refused: the rest cannot be read.
    """

    def __init__(self, head: bytes, rest: BinaryIO, name: str) -> None:
        self._head = memoryview(head)
        self._rest = rest
        self._name = name

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        if not self._head:
            with _reading(self._name):
                return self._rest.readinto(room)  # type: ignore[attr-defined,no-any-return]
        count = min(len(room), len(self._head))
        room[:count] = self._head[:count]
        self._head = self._head[count:]
        return count


@contextmanager
def opened_stream(text: str) -> Iterator[BinaryIO]:
    """A file with a stream, or standard input for `-`, unpacked.

    Raises:
        Refused: it cannot be read, or is none; says what it is.
    """
    name = "standard input" if text == STDIN else shown(text)
    if text == STDIN and sys.stdin.isatty():
        raise Refused("cannot read: a stream is not read from a terminal; name a file, or redirect standard input")
    with ExitStack() as stack:
        with _reading(name):  # only this: what the caller then does may fail, too, as writing does
            source = stack.enter_context(open(0 if text == STDIN else text, "rb", buffering=0, closefd=text != STDIN))
            # A pipe gives what it has: read until there is enough to tell what it is.
            head = b""
            while len(head) < HEAD and (more := source.read(HEAD - len(head))):
                head += more
        plain = cast(BinaryIO, _Headed(head, cast(BinaryIO, source), name))
        packing = packing_of(head)
        yield cast(BinaryIO, Unpacked(plain, packing, name)) if packing else plain


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None


# What an argument is


def is_stream(text: str) -> bool:
    """Whether an argument is a file with a stream, compressed or not, a pipe, or `-` for standard input.

    Nothing is read of a pipe, as it could not be read again.
    """
    if text == STDIN:
        return True
    try:
        mode = os.stat(text).st_mode
        if stat.S_ISREG(mode):
            with open(text, "rb") as source:
                # The first bytes tell: of a packing, or a BEGIN record in either byte order.
                head = source.read(HEADER)
            return packing_of(head) is not None or (len(head) == HEADER and begins_a_stream(head))
    except (OSError, ValueError):
        return False
    # A pipe cannot be looked into without taking from it; nobody names one that is none.
    return stat.S_ISFIFO(mode)


def why_no_stream(text: str) -> str:
    """What is wrong with a file that an argument seems to name; nothing if it seems to name none."""
    # A word without a slash is taken for the name of a dataset, and there is nothing to say.
    is_path = text.startswith(("/", "./", "../"))
    try:
        mode = os.stat(text).st_mode
        if stat.S_ISREG(mode):
            with open(text, "rb") as source:
                return _why(source.read(HEADER))
    except OSError as error:
        return str(error.strerror) if is_path else ""
    except ValueError:
        return ""
    return ("it is a folder" if stat.S_ISDIR(mode) else "it is no file") if is_path else ""


def _why(head: bytes) -> str:
    if not head:
        return "it is empty"
    if begins_a_stream(head):
        return f"it is cut short: it ends after {len(head)} bytes, within its first record"
    return "it does not begin like a send stream, nor like one that gzip, xz, bzip2, zstd or lz4 has compressed"
