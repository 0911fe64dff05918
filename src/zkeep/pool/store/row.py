"""A row of the index: a document's kind, key and JSON, and the CRC-32 of them.

The index may be hostile, or damaged: nothing of a row counts until the CRC and the shape of the document are checked.
"""

from __future__ import annotations

import json
import zlib
from contextlib import suppress

from zkeep.errors import Damaged
from zkeep.names import shown
from zkeep.pool.store.shapes import fault
from zkeep.pool.types import Doc

Stored = tuple[str, str, str | bytes, int]
"Kind, key, the JSON (compressed where it is long), and the CRC."
REMEDY = "`zkeep pool scrub --rebuild-catalog` rebuilds it"
MOST = 256 << 20
"The most bytes that a document may have."
_SMALL, _MANY = 16 << 10, 256
"Characters of a document that is remembered, at most, and how many are."


class Malformed(Damaged):
    """A document that is whole, and not what one of its kind is: forged, or written by a faulty version."""


def sum_of(*parts: str) -> int:
    """The checksum of a row: of kind, key and value; or of kind and key, by which a row is found."""
    return zlib.crc32("\0".join(parts).encode())


def text_of(kind: str, key: str, value: str | bytes, total: int) -> str:
    """The JSON of a document. Raises Damaged: it is not what was stored."""
    with suppress(zlib.error, UnicodeDecodeError, AttributeError, TypeError):
        text = value if isinstance(value, str) else _unpacked(value)
        if sum_of(kind, key, text) == total:
            return text
    raise Damaged(f"catalog: {_without_quotes(kind)} {_without_quotes(key)} is not what was stored; {REMEDY}")


def _without_quotes(text: object) -> str:
    return shown(str(text))[1:-1]


def _unpacked(value: bytes) -> str:
    unpacker = zlib.decompressobj()
    # Bounded: a few bytes could unpack to gigabytes.
    text = unpacker.decompress(value, MOST)
    if not unpacker.eof:
        raise zlib.error("it is longer than a document, or has no end")
    return text.decode()


def checked(kind: str, key: str, value: str | bytes, total: int) -> Doc:
    """The document of a row. Raises Damaged: it is not what was stored, or not what one of its kind is."""
    return _document(kind, key, text_of(kind, key, value, total))


def _document(kind: str, key: str, text: str) -> Doc:
    """The document of a JSON. Raises Damaged: it is not what one of its kind is."""
    try:
        # The CRC shows damage, the shape shows a forgery that is otherwise whole.
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Damaged(f"catalog: {_without_quotes(kind)} {_without_quotes(key)} is no document; {REMEDY}")
    if wrong := fault(kind, key, document):
        way = "; give it up with zkeep receive -A" if kind == "receive" else ""
        raise Malformed(
            f"catalog: {_without_quotes(kind)} {_without_quotes(key)} {wrong}: it is not what was stored{way}"
        )
    return document


class KnownRows:
    """The last rows that were found sound: the same few are read again and again while snapshots are received."""

    def __init__(self) -> None:
        self._texts: dict[Stored, str] = {}

    def document(self, row: Stored) -> Doc:
        """The document of a row, a new one each time. Raises Damaged: see checked()."""
        text = self._texts.get(row)
        if text is not None:
            known: Doc = json.loads(text)
            return known
        text = text_of(*row)
        document = _document(row[0], row[1], text)
        if len(text) <= _SMALL:
            if len(self._texts) >= _MANY:
                self._texts.clear()
            self._texts[row] = text
        return document
