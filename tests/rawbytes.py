"""All bytes of a pool's files, with what gzip, zlib and base64 hide in them, for tests of what must be nowhere."""

from __future__ import annotations

import base64
import gzip
import re
import zlib
from pathlib import Path

_BASE64 = re.compile(rb"[A-Za-z0-9+/]{500,}={0,2}")
_ZLIB = re.compile(rb"\x78[\x01\x9c\xda]")
"Also pages of SQLite that nothing uses any more have documents, most of them compressed."


def everything(pool: Path) -> bytes:
    """Everything that is in a pool's folder, or was and is still there to be read."""
    found = []
    for path in pool.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found += [content, *_inflated(content, sql="sqlite" in path.name, gz=path.suffix == ".gz")]
    text = b"\0".join(found)
    return text + b"\0".join(base64.b64decode(piece[: len(piece) // 4 * 4]) for piece in _BASE64.findall(text))


def _inflated(content: bytes, *, sql: bool, gz: bool) -> list[bytes]:
    if gz:
        return [gzip.decompress(content)]
    return [_prefix(content[found.start() :]) for found in _ZLIB.finditer(content)] if sql else []


def _prefix(content: bytes) -> bytes:
    """The content, as far as it can be decompressed."""
    unpacker, text = zlib.decompressobj(), b""
    for at in range(0, min(len(content), 1 << 16), 256):
        try:
            text += unpacker.decompress(content[at : at + 256])
        except zlib.error:
            break
    return text
