"""System attributes: a file's mode, owner, times and so on, in a bonus buffer or a spill block.

    | magic, u32 | layout number 10 bits, header size / 8 6 bits | sizes of attributes that vary, u16 each | attributes

A layout is a list of attributes. Which attributes and layouts there are, each dataset has in two ZAPs, its registry
and its layouts.

Source: OpenZFS include/sys/sa_impl.h sa_hdr_phys_t; module/zfs/sa.c sa_attr_iter(), sa_attr_table_setup().
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

from zkeep.format.records import ByteOrder
from zkeep.format.zap import ZapEntry

MAGIC = 0x2F505A
_LITTLE = MAGIC.to_bytes(4, "little")
MAX_ATTRIBUTES = 1024
LAYOUT_DIGITS = 4
"Digits of a layout's number at most: a buffer's header has ten bits for it."
BEGINNINGS = 4096
"Kinds of buffer beginnings that are cached: a dataset has about ten."

LEGACY = (
    ("ZPL_ATIME", 16),
    ("ZPL_MTIME", 16),
    ("ZPL_CTIME", 16),
    ("ZPL_CRTIME", 16),
    ("ZPL_GEN", 8),
    ("ZPL_MODE", 8),
    ("ZPL_SIZE", 8),
    ("ZPL_PARENT", 8),
    ("ZPL_LINKS", 8),
    ("ZPL_XATTR", 8),
    ("ZPL_RDEV", 8),
    ("ZPL_FLAGS", 8),
    ("ZPL_UID", 8),
    ("ZPL_GID", 8),
    ("ZPL_PAD", 32),
    ("ZPL_ZNODE_ACL", 88),
)
"A znode before ZPL version 5 is these fields in a row. Every registry begins with them, under the same numbers."


class BadAttributes(ValueError):
    """A buffer, a registry or a layout makes no sense."""


Attributes = dict[str, bytes]
NANO = "+"
"A suffix: a time's name alone means its seconds, with this its nanoseconds."


@dataclass(frozen=True, slots=True)
class _Layout:
    """The attributes of a layout: names, and sizes (0: varies)."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def begins(self, at: int, order: ByteOrder, columns: Sequence[str]) -> _Beginning:
        """Prepare to unpack the layout's first attributes, as far as they are numbers or times, in one go."""
        # The first attributes of every file are numbers and times: one struct unpacks them all at once.
        count = next((i for i, size in enumerate(self.sizes) if size not in (8, 16)), len(self.sizes))
        names: list[str] = []
        for name, size in zip(self.names[:count], self.sizes, strict=False):
            names += [name] if size == 8 else [name, name + NANO]
        shape = "".join("Q" if size == 8 else "qq" for size in self.sizes[:count])
        fields = struct.Struct(("<" if order == "little" else ">") + shape)
        places = dict(zip(names, range(len(names)), strict=True))
        pick = itemgetter(*(places.get(column, len(names)) for column in columns))
        rest = _Layout(self.names[count:], self.sizes[count:])
        late = any(column in rest.names for column in columns)
        return _Beginning(at, at + fields.size, order, fields, pick, rest, late)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """How to unpack the numbers and times with which buffers of one layout begin, from `at` to `end`."""

    at: int
    end: int
    order: ByteOrder
    fields: struct.Struct
    pick: Callable[[tuple[int, ...]], tuple[int, ...]]
    "The columns, from the fields and a zero behind them."
    rest: _Layout
    late: bool
    "Whether some columns are among the rest."


class Schema:
    """A dataset's attributes and layouts, from the entries of its REGISTRY and LAYOUTS.

    `columns`: the numbers and times that decode_numbers() gives, two columns or more. A time is two: the name alone for
    its seconds, with NANO behind it for its nanoseconds.

    Raises:
        BadAttributes: they contradict themselves.
    """

    def __init__(self, registry: Iterable[ZapEntry], layouts: Iterable[ZapEntry], columns: Sequence[str]) -> None:
        self._columns = columns
        self._attributes: dict[int, tuple[str, int]] = dict(enumerate(LEGACY))
        for entry in registry:
            # A registry entry: attribute's number in 16 bits, how to swap it in 8, its size in 16 (0: it varies).
            value = entry.number
            self._attributes[value & 0xFFFF] = entry.name.decode("latin-1"), value >> 24 & 0xFFFF
        self._begins: dict[bytes, _Beginning] = {}
        self._layouts = {
            int(entry.name): self._layout(entry.numbers)
            for entry in layouts
            if entry.name.isdigit() and len(entry.name) <= LAYOUT_DIGITS
        }

    @cached_property
    def laid_out(self) -> set[str]:
        """The names of all attributes that any file may have."""
        return {name for layout in self._layouts.values() for name in layout.names}

    def _layout(self, numbers: tuple[int, ...]) -> _Layout:
        if len(numbers) > MAX_ATTRIBUTES or any(number not in self._attributes for number in numbers):
            raise BadAttributes("a layout names an attribute that is not registered")
        known = [self._attributes[number] for number in numbers]
        return _Layout(tuple(name for name, _ in known), tuple(size for _, size in known))

    def decode(self, buffer: bytes) -> tuple[Attributes, ByteOrder]:
        """The attributes in a bonus buffer or spill block of type SA, and the byte order of their numbers."""
        index, at, order = self._head(buffer)
        return _split(buffer, self._layouts[index], at, order), order

    def decode_numbers(self, buffer: bytes) -> tuple[tuple[int, ...], Attributes, ByteOrder]:
        """Decode a buffer faster than decode(), for there are millions of files, and few layouts.

        Returns the columns (0 for those that are missing), the attributes from the first one on that is neither a
        number nor a time, and the byte order.
        """
        # Buffers with equal first six bytes have the same layout, header size and byte order.
        begins = self._begins.get(buffer[:6]) or self._begin(buffer)
        if begins.end > len(buffer):
            raise BadAttributes(f"its attributes do not fit in a buffer of {len(buffer)} bytes")
        # One struct call for all leading numbers; the 0 behind them stands for columns that are not there.
        numbers = begins.pick((*begins.fields.unpack_from(buffer, begins.at), 0))
        rest = _split(buffer, begins.rest, begins.end, begins.order) if begins.rest.names else {}
        if begins.late:
            found = columns_of(rest, self._columns, begins.order)
            numbers = tuple(late or early for late, early in zip(found, numbers, strict=True))
        return numbers, rest, begins.order

    def _begin(self, buffer: bytes) -> _Beginning:
        index, at, order = self._head(buffer)
        # No zkeep.cache.Cache: this is looked up for every file, and hardly ever full.
        if len(self._begins) >= BEGINNINGS:
            self._begins.clear()
        begins = self._begins[buffer[:6]] = self._layouts[index].begins(at, order, self._columns)
        return begins

    def _head(self, buffer: bytes) -> tuple[int, int, ByteOrder]:
        """The number of a buffer's layout, where its attributes begin, and its byte order."""
        order: ByteOrder = "little" if buffer[:4] == _LITTLE else "big"
        if len(buffer) < 8 or int.from_bytes(buffer[:4], order) != MAGIC:
            raise BadAttributes("a buffer does not begin as system attributes do")
        # 0        4            6                 8
        # | magic  | size, layout| first size, ... | attributes ...
        #            ^ header size / 8 in 6 bits, the layout's number in 10
        info = int.from_bytes(buffer[4:6], order)
        index = info & 0x3FF or 1
        if index not in self._layouts:
            raise BadAttributes(f"layout {info & 0x3FF} is not registered")
        return index, (info >> 10) * 8, order


def _split(buffer: bytes, layout: _Layout, at: int, order: ByteOrder) -> Attributes:
    found: Attributes = {}
    varying = 0
    for name, fixed in zip(layout.names, layout.sizes, strict=True):
        # Sizes of those that vary stand in the header, in the order of the layout; each attribute ends on 8 bytes.
        size = fixed
        if not size:
            size = int.from_bytes(buffer[6 + 2 * varying : 8 + 2 * varying], order)
            varying += 1
        if at + size > len(buffer):
            raise BadAttributes(f"{name} does not fit in a buffer of {len(buffer)} bytes")
        found[name] = buffer[at : at + size]
        at += (size + 7) & ~7
    return found


def decode_legacy(bonus: bytes, order: ByteOrder) -> Attributes:
    """Decode a znode from before ZPL version 5, in this byte order; a symbolic link's target may follow it."""
    if len(bonus) < sum(size for _, size in LEGACY):
        raise BadAttributes(f"a znode of {len(bonus)} bytes")
    found: Attributes = {}
    at = 0
    for name, size in LEGACY:
        found[name] = bonus[at : at + size]
        at += size
    # A short link's target lies right behind the znode.
    mode = int.from_bytes(found["ZPL_MODE"], order)
    if mode & 0o170000 == 0o120000:
        found["ZPL_SYMLINK"] = bonus[at:]
    return found


def columns_of(attributes: Mapping[str, bytes], columns: Iterable[str], order: ByteOrder) -> tuple[int, ...]:
    """Numbers and times as Schema.decode_numbers() gives them."""
    return tuple(_column(attributes, name, order) for name in columns)


def _column(attributes: Mapping[str, bytes], name: str, order: ByteOrder) -> int:
    value = attributes.get(name.removesuffix(NANO), b"")
    if name.endswith(NANO):
        return int.from_bytes(value[8:16], order, signed=True)
    return int.from_bytes(value[:8], order, signed=len(value) == 16)
