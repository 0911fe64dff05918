"""A segment: one immutable file with records and their table of contents.

    head     64 bytes: magic, version, flags, the running fletcher-4 before the first record, a digest
    body     records with their payloads, back to back, as they came; each carries the running fletcher-4, so that a
             body can be read and verified from its start like a stream
    pages    the rows of the table (table.py), table after table, in pages of 256 rows
    footer   JSON: where body and tables lie, and for each page its CRC-32 and the first key on it
    trail    32 bytes: length and digest of the footer, magic

    0        64                         start of pages                            size-32   size
    | head   | record | record | ... |  ranges | objects | blocks | ... | footer  | trail  |
               ^ `pos` of a row                                           ^ its length is in the trail

The pages serve both ways to read: in key order, slice by slice, and one key here and there; either way no row is used
whose page's CRC does not match.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from zkeep.cache import Cache
from zkeep.errors import Damaged
from zkeep.format.records import HEADER, MAX_PAYLOAD, RecordType
from zkeep.pool.store.port import Blob, Buffer
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import DTYPES, NOTHING, Table

MAGIC = b"zkeepseg"
VERSION = 1
BARE_VERSION = 2
"The version of a segment that may hold WRITEs without their payloads, as rows that are `bare` say."
BIG_ENDIAN = 1
"Flag: the records are in big-endian byte order."
PAGE_ROWS = 256
PAGES_AT_ONCE = 64
SMALL = 64 << 10
"Bytes of tables that are cached as a whole."
RECENT = 4 << 20
"Bytes of memory for what is cached."
_BASE_WEIGHT = 4 << 10
MAX_FILE = 1 << 62
"No segment is this large, and no row points beyond it."
TARGET = 64 << 20
"A segment is closed when its body has this many bytes, at the next record that allows it."

_HEAD = struct.Struct("<8sHH4x4Q16s")
_TRAIL = struct.Struct("<Q16s8s")
HEAD_SIZE = _HEAD.size
TRAIL_SIZE = _TRAIL.size
WANT = np.dtype([("object", "<u8"), ("start", "<u8"), ("to_object", "<u8"), ("to", "<u8")])
"Keys from (object, start) up to, not with, (to_object, to)."
State = tuple[int, int, int, int]
Key = tuple[int, int]
"(object, offset)"


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def head(state: State, *, big_endian: bool, bare: bool = False) -> bytes:
    """The first bytes of a segment whose first record continues the running fletcher-4 `state`.

    `bare`: it may hold WRITEs without their payloads.
    """
    version = BARE_VERSION if bare else VERSION
    fields = _HEAD.pack(MAGIC, version, BIG_ENDIAN if big_endian else 0, *state, bytes(16))[:-16]
    return fields + _digest(fields)


def read_head(content: bytes, name: str) -> tuple[State, bool]:
    """The running fletcher-4 before the first record, and whether records are big-endian."""
    if len(content) < HEAD_SIZE or _digest(content[: HEAD_SIZE - 16]) != content[HEAD_SIZE - 16 : HEAD_SIZE]:
        raise Damaged(f"{name}: the head of the segment is damaged")
    # 0        8        10     12    16                            48        64
    # | magic  | version| flags| pad | running fletcher-4: 4 words | digest |
    #                                                               ^ BLAKE2b-128 of the 48 bytes before it
    magic, version, flags, a, b, c, d, _ = _HEAD.unpack(content[:HEAD_SIZE])
    if magic != MAGIC or version not in (VERSION, BARE_VERSION):
        raise Damaged(f"{name}: not a segment of version {VERSION} or {BARE_VERSION}")
    return (a, b, c, d), bool(flags & BIG_ENDIAN)


def first_keys(name: str, rows: Array) -> tuple[Array, Array]:
    """The two columns by which a table is sorted; see DTYPES for the tables' names."""
    if name in ("ranges", "objects", "spills"):
        return rows["object"], np.zeros(len(rows), np.uint64)
    if name == "blocks":
        return rows["object"], rows["offset"]
    return rows["object"], rows["start"]


class SegmentSink(Protocol):
    """The part of a draft that finish() needs."""

    @property
    def size(self) -> int: ...

    def write(self, *buffers: Buffer, soon: bool = False) -> None: ...


def finish(draft: SegmentSink, table: Table, state: State, records: int) -> dict[str, Any]:
    """Write pages, footer and trail behind the body that `draft` holds; returns the footer.

    `state` is the running fletcher-4 after the last record, `records` how many the body holds (some may have no row).
    """
    start = draft.size
    tables: dict[str, Any] = {}
    for name in DTYPES:
        rows = getattr(table, name)
        if not len(rows):
            continue
        # One row a line, as DTYPES says: pages are cut by rows, never inside one.
        content = np.ascontiguousarray(rows).tobytes()
        page = PAGE_ROWS * rows.dtype.itemsize
        crcs = [zlib.crc32(content[i : i + page]) for i in range(0, len(content), page)]
        # The first key on each page is enough to find any row: binary search here, then one page is read.
        objects, offsets = first_keys(name, rows[::PAGE_ROWS])
        tables[name] = {
            "at": draft.size,
            "rows": len(rows),
            "crc": _pack(np.array(crcs, "<u4")),
            "keys": _pack(np.stack([objects, offsets], axis=1).astype("<u8")),
        }
        draft.write(content, soon=True)
    footer = {
        "body": [HEAD_SIZE, start],
        "records": records,
        "state": [f"{word:x}" for word in state],
        "stored": table.stored,
        "logical": table.logical,
        "bare": int(np.count_nonzero(table.blocks["bare"])),
        "objects": list(table.hull),
        "tables": tables,
    }
    # | pages ... | {"body":[64,n], ... } | length (8) | digest of the JSON (16) | "zkeepseg" |
    #                                    ^ a reader starts here, at the end of the file
    text = json.dumps(footer, separators=(",", ":")).encode()
    draft.write(text, _TRAIL.pack(len(text), _digest(text), MAGIC), soon=True)
    return footer


def _pack(values: Array) -> str:
    return base64.b64encode(values.tobytes()).decode()


@dataclass(frozen=True)
class Part:
    """Where the rows of one table lie, and how its pages begin."""

    at: int
    rows: int
    crc: Array
    keys: Array

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Part:
        crc = np.frombuffer(base64.b64decode(entry["crc"]), "<u4")
        pairs = np.frombuffer(base64.b64decode(entry["keys"]), "<u8").reshape(-1, 2)
        return cls(entry["at"], entry["rows"], crc, sp.keys(pairs[:, 0], pairs[:, 1]))


def _makes_sense(footer: dict[str, Any], parts: dict[str, Part], size: int) -> bool:
    """Whether everything that a footer names lies inside of a file of `size` bytes."""
    counts = [*(footer[name] for name in ("records", "stored", "logical")), footer.get("bare", 0)]
    places = [number for part in parts.values() for number in (part.at, part.rows)]
    numbers = [*counts, *places, *footer["body"], *footer["objects"]]
    start, end = footer["body"]
    # The footer is JSON from a store that need not be ours: `True` is an int, and -1 an offset, if nobody looks.
    if not all(type(n) is int and n >= 0 for n in numbers) or not HEAD_SIZE <= start <= end <= size:
        return False
    inside = all(part.at + part.rows * DTYPES[name].itemsize <= size for name, part in parts.items())
    pages = [(len(part.crc), len(part.keys), -(-part.rows // PAGE_ROWS)) for part in parts.values()]
    fixed = len(footer["objects"]) == 2 and len([int(word, 16) for word in footer["state"]]) == 4
    return inside and fixed and all(crcs == keys == count for crcs, keys, count in pages)


_KINDS = {
    "blocks": [RecordType.WRITE, RecordType.WRITE_EMBEDDED, RecordType.REDACT],
    "spills": [RecordType.SPILL, RecordType.WRITE_EMBEDDED],
}


def _is_possible(name: str, rows: Array) -> bool:
    """Whether rows are in order, and records of their kind can lie where they say; an object without one has size 0."""
    # Searches rely on the order; a table out of order would hide rows instead of failing.
    number, at = first_keys(name, rows)
    same = number[1:] == number[:-1]
    later = (number[1:] > number[:-1]) | (same & (at[1:] > at[:-1]))
    if name == "blocks":  # a shorter one leaves the end of an older one alive
        later |= same & (at[1:] == at[:-1]) & (rows["length"][1:] < rows["length"][:-1])
    if not later.all():
        return False
    if "pos" not in (rows.dtype.names or ()):
        return not (rows["start"] >= rows["end"]).any()
    # A record is a header of 312 bytes and at most MAX_PAYLOAD of payload, in multiples of 4.
    sizes = rows["size"]
    wrong = (sizes % 4 > 0) | (sizes > HEADER + MAX_PAYLOAD) | (sizes < HEADER) | (rows["pos"] >= MAX_FILE)
    if name == "objects":
        wrong = (wrong | (rows["blksz"] == 0)) & (sizes > 0)
    if name in _KINDS:
        wrong |= ~np.isin(rows["kind"], _KINDS[name])
        bare = rows["bare"] > 0
        wrong |= bare & ((rows["kind"] != RecordType.WRITE) | (sizes != HEADER))
    return not wrong.any()


@dataclass(frozen=True)
class Contents:
    """What a segment's file says, verified: its footer, where its tables lie, and the tables themselves if they are
    small; `segment` of their rows has no meaning yet. `ids`: of a summary."""

    footer: dict[str, Any]
    parts: dict[str, Part]
    tables: dict[str, Array] | None = None
    ids: list[str] = field(default_factory=list)

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        rows = sum(table.nbytes for table in self.tables.values()) if self.tables is not None else 0
        return _BASE_WEIGHT + rows + sum(part.keys.nbytes for part in self.parts.values()) + 64 * len(self.ids)


class RecentContents:
    """A cache of what segments say, by their names: each receive of a package looks at much of what the one before
    read or wrote. A segment is never changed, so what is known of it stays true as long as a document names it.
    """

    def __init__(self) -> None:
        self._cache: Cache[str, Contents] = Cache(RECENT, lambda contents: contents.weight)
        self.names: dict[tuple[str, ...], Any] = {}
        """The names of summaries, by the keys of datasets, as the timeline groups them. Others may have written or
        deleted some since: what is missing is not asked, or found to be missing."""

    def get(self, name: str) -> Contents | None:
        return self._cache.get(name)

    def put(self, name: str, contents: Contents) -> None:
        self._cache.put(name, contents)

    def wrote(self, name: str, footer: dict[str, Any], table: Table) -> None:
        """Note a segment that was just published; `footer` as finish() returned it."""
        parts = {kind: Part.of(entry) for kind, entry in footer["tables"].items()}
        if is_small(parts):
            rest = {key: value for key, value in footer.items() if key != "tables"}
            self.put(name, Contents(rest, parts, {kind: getattr(table, kind) for kind in parts}))


def _picked(name: str, rows: Array, lows: Array, highs: Array) -> Array:
    """The rows inside a wanted range, and the row just before each (it may reach into the range). `lows` and `highs`:
    the keys at which the ranges begin, and end, sorted."""
    keys = sp.keys(*first_keys(name, rows))
    inside: Array = lows.searchsorted(keys, "right") > highs.searchsorted(keys, "right")
    before = keys.searchsorted(lows, "right") - 1
    inside[before[before >= 0]] = True
    return rows[inside]


def is_small(parts: dict[str, Part]) -> bool:
    """Whether the tables are cached as a whole."""
    return sum(part.rows * DTYPES[name].itemsize for name, part in parts.items()) <= SMALL


class Segment:
    """A published segment. `number` is what its rows carry in `segment`.

    `opened` returns its file; it is called for each access, so that it may close files that were not used for long.
    `recent`: what is known of segments without reading them; this adds to it.
    """

    def __init__(
        self, opened: Callable[[], Blob], name: str, number: int = 0, recent: RecentContents | None = None
    ) -> None:
        self._opened = opened
        self._recent = recent
        self.name = name
        self.number = number

    @property
    def blob(self) -> Blob:
        return self._opened()

    @property
    def footer(self) -> dict[str, Any]:
        """The footer without its tables; see parts."""
        return self._contents.footer

    @property
    def parts(self) -> dict[str, Part]:
        """The tables that have rows, by name."""
        return self._contents.parts

    @cached_property
    def _contents(self) -> Contents:
        if self._recent is None:
            return Contents(*self._read_footer())
        if (known := self._recent.get(self.name)) is not None:
            return known
        footer, parts = self._read_footer()
        tables = None
        if is_small(parts):
            tables = {name: self._read_rows(name, part, 0, None) for name, part in parts.items()}
        contents = Contents(footer, parts, tables, self._listed(footer))
        self._recent.put(self.name, contents)
        return contents

    def _listed(self, footer: dict[str, Any]) -> list[str]:
        """The ids that the body lists; a summary has some."""
        return []

    def _read_footer(self) -> tuple[dict[str, Any], dict[str, Part]]:
        text = self._footer()
        try:
            footer: dict[str, Any] = json.loads(text)
            parts = {name: Part.of(entry) for name, entry in footer.pop("tables").items()}
            if _makes_sense(footer, parts, self.blob.size):
                return footer, parts
        except (AttributeError, KeyError, TypeError, ValueError):
            pass
        raise Damaged(f"{self.name}: the footer of the segment makes no sense")

    def _footer(self) -> bytes:
        size = self.blob.size
        if size < HEAD_SIZE + _TRAIL.size:
            raise Damaged(f"{self.name}: cut short at byte {size}")
        # From the end backwards: the trail says how long the footer is, and what its digest must be.
        length, digest, magic = _TRAIL.unpack(self.blob.read(size - _TRAIL.size, _TRAIL.size))
        if magic != MAGIC or length > size - HEAD_SIZE - _TRAIL.size:
            raise Damaged(f"{self.name}: the end of the segment is damaged")
        text = self.blob.read(size - _TRAIL.size - length, length)
        if _digest(text) != digest:
            raise Damaged(f"{self.name}: the footer of the segment is damaged")
        return text

    @property
    def footer_size(self) -> int:
        """Bytes of the footer, which ends where the trail begins."""
        size = self.blob.size
        return int(_TRAIL.unpack(self.blob.read(size - TRAIL_SIZE, TRAIL_SIZE))[0])

    @cached_property
    def head(self) -> tuple[State, bool]:
        return read_head(self.blob.read(0, min(HEAD_SIZE, self.blob.size)), self.name)

    @property
    def big_endian(self) -> bool:
        return self.head[1]

    @property
    def bare(self) -> int:
        """How many of its records are WRITEs without their payloads. Then each of its records has a row."""
        return int(self.footer.get("bare", 0))

    @property
    def body(self) -> tuple[int, int]:
        """First byte of the body and the one after its last."""
        start, end = self.footer["body"]
        return start, end

    @property
    def end_state(self) -> State:
        a, b, c, d = (int(word, 16) for word in self.footer["state"])
        return a, b, c, d

    @property
    def hull(self) -> tuple[int, int]:
        """The smallest and the largest object number that any row touches; (1, 0) if there is no row."""
        low, high = self.footer["objects"]
        return low, high

    def rows(self, name: str, first_page: int = 0, end_page: int | None = None) -> Array:
        """The rows on some pages of one table, verified.

        Raises:
            Damaged: a page's CRC does not match.
        """
        return self._placed(self.stored_rows(name, first_page, end_page))

    def _placed(self, rows: Array) -> Array:
        if len(rows) and "segment" in (rows.dtype.names or ()):
            self.place(rows)
        return rows

    def place(self, rows: Array) -> None:
        """Set `segment` of rows to this segment's number."""
        rows["segment"] = self.number

    def stored_rows(self, name: str, first_page: int = 0, end_page: int | None = None) -> Array:
        """The rows as stored, verified; `segment` has no meaning yet."""
        part = self.parts.get(name)
        if part is None:
            return np.empty(0, DTYPES[name])
        if (tables := self._contents.tables) is not None:
            end_row = part.rows if end_page is None else end_page * PAGE_ROWS
            return tables[name][first_page * PAGE_ROWS : end_row].copy()
        return self._read_rows(name, part, first_page, end_page)

    def _read_rows(self, name: str, part: Part, first_page: int, end_page: int | None) -> Array:
        end_page = len(part.crc) if end_page is None else min(end_page, len(part.crc))
        # Rows have one width, so a page number gives the byte; the last page may be short.
        first_row = first_page * PAGE_ROWS
        count = min(end_page * PAGE_ROWS, part.rows) - first_row
        if count <= 0:
            return np.empty(0, DTYPES[name])
        width = DTYPES[name].itemsize
        content = bytearray(count * width)
        self.blob.readinto(part.at + first_row * width, content)
        # No row is looked at before the CRC of its page matches.
        page = PAGE_ROWS * DTYPES[name].itemsize
        view = memoryview(content)
        for i, at in enumerate(range(0, len(content), page), first_page):
            if zlib.crc32(view[at : at + page]) != part.crc[i]:
                raise Damaged(f"{self.name}: page {i} of its table of {name} is damaged")
        rows = np.frombuffer(content, DTYPES[name])
        if not _is_possible(name, rows):
            raise Damaged(f"{self.name}: its table of {name} makes no sense")
        return rows

    def nearby(self, wanted: dict[str, Array]) -> Table:
        """What near() finds of each wanted table, as one Table."""
        found = {name: self.near(name, rows) for name, rows in wanted.items() if name in self.parts and len(rows)}
        found = {name: rows for name, rows in found.items() if len(rows)}
        return replace(NOTHING, **found) if found else NOTHING

    def near(self, name: str, wanted: Array) -> Array:
        """The rows of one table whose keys lie in any of `wanted` (rows of WANT), and the one before each."""
        part = self.parts.get(name)
        # Most segments have nothing of the objects in question: the footer's hull says so without reading a page.
        if part is not None and name != "freed":
            first_object, last_object = self.hull
            wanted = wanted[(wanted["to_object"] >= first_object) & (wanted["object"] <= last_object)]
        if part is None or not len(wanted):
            return np.empty(0, DTYPES[name])
        lows = np.sort(sp.keys(wanted["object"], wanted["start"]))
        highs = np.sort(sp.keys(wanted["to_object"], wanted["to"]))
        if (tables := self._contents.tables) is not None:
            return self._placed(_picked(name, tables[name], lows, highs))
        # A wanted range begins on the last page whose first key is not behind it, and ends before the first page
        # whose
        # first key is not in it.
        first = np.maximum(np.searchsorted(part.keys, lows, "right") - 1, 0)
        last = np.maximum(np.searchsorted(part.keys, highs, "left"), 1)
        pages = sp.union(sp.lines(first.astype(np.uint64), last.astype(np.uint64)))
        found = []
        for stretch in pages:
            for page in range(int(stretch["start"]), int(stretch["end"]), PAGES_AT_ONCE):
                rows = self.rows(name, page, min(page + PAGES_AT_ONCE, int(stretch["end"])))
                found.append(_picked(name, rows, lows, highs))
        return sp.join(found)

    def between(self, name: str, low: Key, high: Key) -> Array:
        """At least the rows of one table with low <= key < high, and one page before them."""
        part = self.parts.get(name)
        if part is None:
            return np.empty(0, DTYPES[name])
        ends = sp.keys(*np.array([low, high], np.uint64).T)
        first, last = np.searchsorted(part.keys, ends)
        return self.rows(name, max(int(first) - 1, 0), int(last))

    def table(self) -> Table:
        """The whole table."""
        return Table(**{name: self.rows(name) for name in DTYPES})
