"""Lists of typed pairs in memory: what nvlist.decode() returns and encode() takes.

A pair remembers the bytes that it was decoded from, so that what is not changed is encoded by copying.

Source: OpenZFS include/sys/nvpair.h.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeGuard, Union

from zkeep.names import MAX_UINT64

MAX_SIZE = 64 << 20
"libzfs takes no larger one (libzfs_max_nvlist)."
MAX_DEPTH = 20
"The kernel's own bound (nvpair_max_recursion)."
MAX_PAIRS = 1 << 20
UNIQUE_NAME, UNIQUE_NAME_TYPE = 1, 2


class NvType(IntEnum):
    """data_type_t."""

    BOOLEAN = 1
    BYTE = 2
    INT16 = 3
    UINT16 = 4
    INT32 = 5
    UINT32 = 6
    INT64 = 7
    UINT64 = 8
    STRING = 9
    BYTE_ARRAY = 10
    INT16_ARRAY = 11
    UINT16_ARRAY = 12
    INT32_ARRAY = 13
    UINT32_ARRAY = 14
    INT64_ARRAY = 15
    UINT64_ARRAY = 16
    STRING_ARRAY = 17
    HRTIME = 18
    NVLIST = 19
    NVLIST_ARRAY = 20
    BOOLEAN_VALUE = 21
    INT8 = 22
    UINT8 = 23
    BOOLEAN_ARRAY = 24
    INT8_ARRAY = 25
    UINT8_ARRAY = 26
    DOUBLE = 27


class Encoding(IntEnum):
    NATIVE = 0
    XDR = 1


class BadNvlist(ValueError):
    """Bytes are no nvlist, or one beyond the limits; `offset` counts from the list's first byte."""

    def __init__(self, reason: str, offset: int) -> None:
        self.reason = reason
        self.offset = offset
        super().__init__(f"bad nvlist at byte {offset}: {reason}")


@dataclass(frozen=True, slots=True)
class NvForm:
    """How a list is, or will be, packed. `little`: the packing host's byte order (which XDR only notes)."""

    encoding: Encoding = Encoding.XDR
    little: bool = sys.byteorder == "little"


Value = Union[bool, int, float, str, bytes, tuple[int, ...], tuple[str, ...], "NvList", tuple["NvList", ...]]


def is_uint64(value: object) -> TypeGuard[int]:
    """Whether a value can be that of a UINT64: neither a boolean, which is an int to Python, nor negative."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_UINT64


class Pair:
    """One name and its value; with the bytes it was decoded from, if it was."""

    __slots__ = ("_end", "_form", "_source", "_start", "name", "type", "value")

    def __init__(self, name: str, kind: NvType, value: Value) -> None:
        self.name = name
        self.type = kind
        self.value = value
        self._form: NvForm | None = None
        self._source = b""
        self._start = self._end = 0

    def keep(self, form: NvForm, source: bytes, start: int, end: int) -> None:
        self._form, self._source, self._start, self._end = form, source, start, end

    def kept(self, form: NvForm) -> bytes | None:
        """The bytes as they came, if this pair still has the value in them."""
        # An unchanged pair is copied: what zkeep does not understand comes out as it came in.
        if self._form != form or any(inner.changed for inner in self.lists()):
            return None
        return self._source[self._start : self._end]

    def lists(self) -> tuple[NvList, ...]:
        if self.type == NvType.NVLIST and isinstance(self.value, NvList):
            return (self.value,)
        if self.type == NvType.NVLIST_ARRAY and isinstance(self.value, tuple):
            return tuple(inner for inner in self.value if isinstance(inner, NvList))
        return ()

    def __repr__(self) -> str:
        return f"Pair({self.name!r}, {self.type.name}, {self.value!r})"


class PackedSource(Protocol):
    """A decoder that keeps the packed bytes, to decode embedded lists when they are first used."""

    def load(self, nvlist: NvList, at: int) -> None:
        """Decode the pairs of a list that begin at byte `at`."""
        ...

    def each(self, nvlist: NvList, at: int) -> Iterator[Pair]:
        """Decode the pairs one by one, and keep none."""
        ...


class NvList(MutableMapping[str, Value]):
    """An ordered list of pairs, read and changed like a dict.

    BYTE and UINT8 arrays are bytes, other arrays tuples, BOOLEAN (present, without a value) is True. Text
    that is not UTF-8 keeps its bytes as surrogates.
    """

    __slots__ = (
        *("_index", "_indexed", "_later", "_own_changes", "_pairs"),
        *("align", "flags", "form", "head", "padding", "version"),
    )

    def __init__(self, flags: int = UNIQUE_NAME, form: NvForm | None = None) -> None:
        self.version = 0
        self.flags = flags
        self.form = form or NvForm()
        self.padding = b""
        self.align = 1
        self._pairs: list[Pair] | None = []
        self._later: tuple[PackedSource, int] | None = None
        self.head = b""  # as packed: the first 4 bytes, or a native embedded list's nvlist_t
        self._own_changes = True
        self._index: dict[str, Pair] | None = None
        self._indexed = 0

    @property
    def pairs(self) -> list[Pair]:
        if self._pairs is None:
            assert self._later is not None
            source, at = self._later
            self._pairs = []
            source.load(self, at)
        return self._pairs

    @pairs.setter
    def pairs(self, pairs: list[Pair]) -> None:
        self._pairs = pairs

    def postpone(self, source: PackedSource, at: int) -> None:
        """Leave the pairs undecoded until they are first used. They were checked before."""
        self._pairs, self._later, self._own_changes = None, (source, at), False

    def each(self) -> Iterator[Pair]:
        """The pairs, for reading. If they are not decoded yet, they are decoded one at a time and not kept."""
        if self._pairs is None and self._later is not None:
            source, at = self._later
            return source.each(self, at)
        return iter(self.pairs)

    @property
    def changed(self) -> bool:
        """Whether this list, or one in it, is not as it was decoded."""
        if self._own_changes or self._pairs is None:
            return self._own_changes
        return any(inner.changed for pair in self._pairs for inner in pair.lists())

    def find(self, name: str) -> Pair | None:
        # The index is built at the first search, and again when pairs were appended since.
        if self._index is None or self._indexed != len(self.pairs):
            self._index, self._indexed = {}, len(self.pairs)
            for pair in self.pairs:
                self._index.setdefault(pair.name, pair)
        return self._index.get(name)

    def __getitem__(self, name: str) -> Value:
        pair = self.find(name)
        if pair is None:
            raise KeyError(name)
        return pair.value

    def __setitem__(self, name: str, value: Value) -> None:
        self.set(name, value)

    def set(self, name: str, value: Value, kind: NvType | None = None) -> None:
        """Replace or append; the type is the one that was there, or follows from the value."""
        old = self.find(name)
        if kind is None:
            # A new value may keep the type that was there if it is of the same family: integers, bytes, text ...
            inferred = _infer(value)
            kind = old.type if old and _family(old.type) == _family(inferred) else inferred
        pair = Pair(name, kind, value)
        self._own_changes = True
        if old:
            self.pairs[self.pairs.index(old)] = pair
            self._index = None
        elif self._index is not None:
            self.pairs.append(pair)
            self._index[name] = pair
            self._indexed += 1

    def __delitem__(self, name: str) -> None:
        if self.find(name) is None:
            raise KeyError(name)
        self.pairs = [pair for pair in self.pairs if pair.name != name]
        self._own_changes, self._index = True, None

    def remove(self, name: str) -> None:
        """Delete a pair if it is there."""
        if self.find(name) is not None:
            del self[name]

    def loaded(self) -> None:
        """Decoding is done; what changes from now on is a change."""
        self._own_changes = False

    def __iter__(self) -> Iterator[str]:
        return (pair.name for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"NvList({ {pair.name: pair.value for pair in self.pairs} })"


def _infer(value: Value) -> NvType:
    if isinstance(value, tuple):
        first = value[0] if value else 0
        if isinstance(first, str):
            return NvType.STRING_ARRAY
        return NvType.NVLIST_ARRAY if isinstance(first, NvList) else NvType.UINT64_ARRAY
    kinds = ((bool, NvType.BOOLEAN_VALUE), (int, NvType.UINT64), (float, NvType.DOUBLE), (str, NvType.STRING))
    for python, kind in kinds:
        if isinstance(value, python):
            return kind
    return NvType.UINT8_ARRAY if isinstance(value, bytes) else NvType.NVLIST


def _family(kind: NvType) -> str:
    if kind in (NvType.BYTE_ARRAY, NvType.UINT8_ARRAY):
        return "bytes"
    if kind in (NvType.STRING, NvType.STRING_ARRAY, NvType.NVLIST, NvType.NVLIST_ARRAY, NvType.DOUBLE):
        return kind.name
    if kind in (NvType.BOOLEAN, NvType.BOOLEAN_VALUE):
        return kind.name
    return "integers" if kind.name.endswith("_ARRAY") else "integer"
