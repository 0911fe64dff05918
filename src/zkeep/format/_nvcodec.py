"""The two encodings of nvlists. Each codec has both directions, pair by pair, in the same order of fields.

Both begin with four bytes (encoding, 1 if the packing host is little-endian, 0, 0), then version and flags, 4 bytes
each, then pairs. Numbers of XDR are big-endian, those of native in the packing host's byte order.

    native     i32 size | i16 name size | i16 0 | i32 values | i32 type | name, \\0, padded to 8 | value, padded to 8
               ... and behind the last pair an i32 of 0. Arrays of strings and lists have 8 bytes for a pointer per
               value in front of them. An embedded list's struct (24 bytes) is the value; its pairs follow its pair.

    XDR        i32 packed size | i32 size in memory | u32 name size, name, padded to 4 | i32 type | i32 values | value
               ... and behind the last pair 8 bytes of 0. Each number takes 4 bytes (or 8); arrays begin with a count,
               but a BYTE_ARRAY is just its bytes. An embedded list is the value: version, flags, pairs.

Source: OpenZFS module/nvpair/nvpair.c, nvs_native_nvp_op(), nvs_xdr_nvp_op() and the comments above them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from zkeep.format._nvpairs import (
    MAX_DEPTH,
    MAX_PAIRS,
    UNIQUE_NAME_TYPE,
    BadNvlist,
    Encoding,
    NvForm,
    NvList,
    NvType,
    Pair,
    Value,
)

_SCALAR = {
    NvType.BYTE: "B", NvType.INT8: "b", NvType.UINT8: "B", NvType.INT16: "h", NvType.UINT16: "H",
    NvType.INT32: "i", NvType.UINT32: "I", NvType.INT64: "q", NvType.UINT64: "Q", NvType.HRTIME: "q",
    NvType.BOOLEAN_VALUE: "I", NvType.DOUBLE: "d",
}  # fmt: skip
_ARRAY = {
    NvType.INT8_ARRAY: "b", NvType.INT16_ARRAY: "h", NvType.UINT16_ARRAY: "H", NvType.INT32_ARRAY: "i",
    NvType.UINT32_ARRAY: "I", NvType.INT64_ARRAY: "q", NvType.UINT64_ARRAY: "Q", NvType.BOOLEAN_ARRAY: "I",
    NvType.BYTE_ARRAY: "B", NvType.UINT8_ARRAY: "B",
}  # fmt: skip
_BYTES = (NvType.BYTE_ARRAY, NvType.UINT8_ARRAY)
_PAIR_HEAD = 16
"struct nvpair: size, name_sz, reserve, nelem, type."
_LIST_HEAD = 24
"struct nvlist, as a native embedded list has it."


_ARRAYS = frozenset(kind for kind in NvType if kind.name.endswith("_ARRAY"))
_KINDS = {int(kind): kind for kind in NvType}
_WIDTH = {code: struct.calcsize("=" + code) for code in "bBhHiIqQd"}
_WIDE = {code: struct.Struct(">" + code) for code in "qQd"}
_ONE, _TWO = struct.Struct(">I"), struct.Struct(">ii")
LARGE = 64 << 10
"If a packed list has more bytes than this, embedded lists are only checked at first, and decoded when used."
# Looked up once: in Python 3.11 a member of an enum takes as long as a call.
_BOOLEAN, _STRING, _STRING_ARRAY = NvType.BOOLEAN, NvType.STRING, NvType.STRING_ARRAY
_NVLIST, _NVLIST_ARRAY = NvType.NVLIST, NvType.NVLIST_ARRAY


def _align(size: int, to: int) -> int:
    return -size % to + size


def decode_list(data: bytes) -> NvList:
    if len(data) < 12:
        raise BadNvlist("it is cut short", len(data))
    # | encoding 0/1 | 1: little-endian host | 0 | 0 | version, i32 | flags, u32 | pairs ...
    if data[0] not in (0, 1) or data[1] not in (0, 1):
        raise BadNvlist(f"there is no encoding {data[0]}/{data[1]}", 0)
    # The first bytes say which codec reads the rest.
    form = NvForm(Encoding(data[0]), data[1] == 1)
    codec: _Codec = _Xdr(form, data) if form.encoding == Encoding.XDR else _Native(form, data)
    codec.at = 4
    root = codec.start(NvList(form=form))
    codec.pairs(root, 0)
    # What lies behind the last pair is kept, so that an unchanged list is encoded to the same bytes.
    root.padding = data[codec.at :]
    root.align = 8 if form.encoding == Encoding.XDR and len(data) % 8 == 0 else 1
    root.head = data[:4]
    return root


def encode_list(root: NvList) -> bytes:
    form = root.form
    codec: _Codec = _Xdr(form, b"") if form.encoding == Encoding.XDR else _Native(form, b"")
    packed = bytearray(root.head or bytes((form.encoding, form.little, 0, 0)))
    packed += codec.packed_start(root) + codec.packed_pairs(root)
    packed += bytes(-len(packed) % root.align) if root.changed else root.padding
    return bytes(packed)


class _Codec:
    """The part that both encodings share: a cursor that never leaves the data, and the walk over pairs."""

    def __init__(self, form: NvForm, data: bytes) -> None:
        self.form = form
        self.data = data
        self.at = 0
        self.count = 0
        self.order = "<" if form.little and form.encoding == Encoding.NATIVE else ">"

    def take(self, size: int) -> bytes:
        # Nothing is read outside of the data, whatever sizes it names.
        if size < 0 or size > len(self.data) - self.at:
            raise BadNvlist("it is cut short", self.at)
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, code: str, size: int) -> tuple[Any, ...]:
        return struct.unpack(self.order + code, self.take(size))

    def start(self, nvlist: NvList) -> NvList:
        nvlist.version, nvlist.flags = self.numbers("iI", 8)
        if nvlist.version != 0:
            raise BadNvlist(f"version {nvlist.version} is unknown", self.at - 8)
        return nvlist

    def packed_start(self, nvlist: NvList) -> bytes:
        return struct.pack(self.order + "iI", nvlist.version, nvlist.flags)

    is_checked = False
    "Whether all of the data was checked before: then only a part of it is decoded now."

    def pairs(self, nvlist: NvList, depth: int) -> None:
        for start, pair in self.walk(nvlist, depth):
            pair.keep(self.form, self.data, start, self.at)
            nvlist.pairs.append(pair)
        nvlist.loaded()

    def walk(self, nvlist: NvList, depth: int) -> Iterator[tuple[int, Pair]]:
        """Each pair, and the byte at which it begins. Pairs are counted and names compared, unless they were before."""
        seen: set[object] = set()
        while True:
            start = self.at
            pair = self.pair(depth)
            if pair is None:
                break
            if self.is_checked:
                yield start, pair
                continue
            # First time through: count the pair, and refuse a name that occurs twice.
            self.counted()
            key: object = (pair.name, pair.type) if nvlist.flags & UNIQUE_NAME_TYPE else pair.name
            if key in seen:  # whatever the flags say: a kernel would find the last, we the first
                raise BadNvlist("a name occurs twice", start)
            seen.add(key)
            yield start, pair

    def counted(self) -> None:
        self.count += 1
        if self.count > MAX_PAIRS:
            raise BadNvlist(f"it has more than {MAX_PAIRS} pairs", self.at)

    def packed_pairs(self, nvlist: NvList) -> bytes:
        packed = [kept if (kept := pair.kept(self.form)) is not None else self.packed(pair) for pair in nvlist.pairs]
        return b"".join(packed) + self.terminator

    terminator = b""

    def pair(self, depth: int) -> Pair | None:
        raise NotImplementedError

    def packed(self, pair: Pair) -> bytes:
        raise NotImplementedError

    def embedded(self, nvlist: NvList, depth: int) -> NvList:
        if depth >= MAX_DEPTH:
            raise BadNvlist(f"it is nested deeper than {MAX_DEPTH}", self.at)
        self.counted()
        self.pairs(nvlist, depth + 1)
        return nvlist

    def kind(self, number: int) -> NvType:
        kind = _KINDS.get(number)
        if kind is None:
            raise BadNvlist(f"there is no type {number}", self.at)
        return kind

    def elements(self, kind: NvType, nelem: int) -> int:
        """Check a pair's number of values: right for its type, and not more than there are bytes left."""
        right = nelem >= 0 if kind in _ARRAYS else nelem == (0 if kind == _BOOLEAN else 1)
        if not right:
            raise BadNvlist(f"{kind.name} cannot have {nelem} values", self.at)
        if nelem > len(self.data) - self.at:
            raise BadNvlist("it is cut short", self.at)
        return nelem


class _Native(_Codec):
    terminator = bytes(4)

    def pair(self, depth: int) -> Pair | None:
        # 0         4        6     8        12      16           to 8         size
        # | size    | name   | 0   | values | type  | name, \0   | value ...   |
        # |         | size   |     |        |       |            |             |
        start = self.at
        (size,) = self.numbers("i", 4)
        if size == 0:
            return None
        self.at = start
        if size < _PAIR_HEAD or size > len(self.data) - start:
            raise BadNvlist(f"a pair of {size} bytes does not fit", start)
        name_size, _, nelem, number = struct.unpack_from(self.order + "hhii", self.data, start + 4)
        end = start + size
        name = self.data[start + _PAIR_HEAD : start + _PAIR_HEAD + name_size]
        if name_size <= 0 or len(name) < name_size or name.find(b"\0") != name_size - 1:
            raise BadNvlist("a name is not terminated", start)
        self.at = start + _align(_PAIR_HEAD + name_size, 8)
        if self.at > end:
            raise BadNvlist("a name is longer than its pair", start)
        kind = self.kind(number)
        self.elements(kind, nelem)
        value = self.value(kind, nelem, end, depth)
        return Pair(_text(name[:-1]), kind, value)

    def value(self, kind: NvType, nelem: int, end: int, depth: int) -> Value:
        """Decode a value. It lies within its pair, except for the pairs of embedded lists, which follow it."""
        if kind == _NVLIST:
            inner = self.inner(self.at, end)
            self.at = end
            return self.embedded(inner, depth)
        if kind == _NVLIST_ARRAY:
            first = self.at + 8 * nelem
            inners = [self.inner(first + i * _LIST_HEAD, end) for i in range(nelem)]
            self.at = end
            return tuple(self.embedded(inner, depth) for inner in inners)
        value = self.plain(kind, nelem, self.data[self.at : end])
        self.at = end
        return value

    def inner(self, at: int, end: int) -> NvList:
        head = self.data[at : min(at + _LIST_HEAD, end)]
        if len(head) < _LIST_HEAD:
            raise BadNvlist("an embedded list does not fit its pair", at)
        nvlist = NvList(form=self.form)
        nvlist.version, nvlist.flags = struct.unpack_from(self.order + "iI", head)
        nvlist.head = head
        return nvlist

    def plain(self, kind: NvType, nelem: int, data: bytes) -> Value:
        if kind == _BOOLEAN:
            return True
        if kind in (_STRING, _STRING_ARRAY):
            pointers = 8 * nelem if kind == _STRING_ARRAY else 0
            texts = data[pointers:].split(b"\0", nelem)
            if len(texts) <= nelem:
                raise BadNvlist("a string is not terminated", self.at)
            strings = tuple(_text(text) for text in texts[:nelem])
            return strings if kind == _STRING_ARRAY else strings[0]
        code = _SCALAR.get(kind) or _ARRAY[kind]
        size = nelem * struct.calcsize("=" + code)
        if size > len(data):
            raise BadNvlist("a value does not fit its pair", self.at)
        if kind in _BYTES:
            return data[:nelem]
        return _python(kind, struct.unpack_from(f"{self.order}{nelem}{code}", data))

    def packed(self, pair: Pair) -> bytes:
        name = _bytes(pair.name) + b"\0"
        value, nelem, tail = self.packed_value(pair)
        start = _align(_PAIR_HEAD + len(name), 8)
        size = _align(start + len(value), 8)
        head = struct.pack(self.order + "ihhii", size, len(name), 0, nelem, pair.type)
        return (head + name).ljust(start, b"\0") + value.ljust(size - start, b"\0") + tail

    def packed_value(self, pair: Pair) -> tuple[bytes, int, bytes]:
        lists = pair.lists()
        if pair.type in (_NVLIST, _NVLIST_ARRAY):
            # In memory a list in a list is a struct with a pointer; both travel, the pointer without meaning.
            pointers = bytes(8 * len(lists)) if pair.type == _NVLIST_ARRAY else b""
            heads = b"".join(inner.head or self.packed_start(inner).ljust(_LIST_HEAD, b"\0") for inner in lists)
            return pointers + heads, len(lists), b"".join(self.packed_pairs(inner) for inner in lists)
        values = _values(pair)
        if pair.type == _BOOLEAN:
            return b"", 0, b""
        if pair.type in (_STRING, _STRING_ARRAY):
            pointers = bytes(8 * len(values)) if pair.type == _STRING_ARRAY else b""
            return pointers + b"".join(_bytes(text) + b"\0" for text in values), len(values), b""
        code = _SCALAR.get(pair.type) or _ARRAY[pair.type]
        return struct.pack(f"{self.order}{len(values)}{code}", *values), len(values), b""


class _Xdr(_Codec):
    terminator = bytes(8)
    def two(self) -> tuple[int, int]:
        at = self.at
        if at + 8 > len(self.data):
            raise BadNvlist("it is cut short", at)
        self.at = at + 8
        first, second = _TWO.unpack_from(self.data, at)
        return first, second

    def embedded(self, nvlist: NvList, depth: int, end: int | None = None) -> NvList:
        """`end`: the end of the pair, if this list is all that it holds."""
        if len(self.data) <= LARGE:
            return super().embedded(nvlist, depth)
        # A large list is checked now and decoded when it is used: a header of a million snapshots takes little
        # memory.
        at = self.at
        if self.is_checked and end is not None:
            self.at = end  # it was checked before: skip it
        else:
            if depth >= MAX_DEPTH:
                raise BadNvlist(f"it is nested deeper than {MAX_DEPTH}", at)
            self.counted()
            for _ in self.walk(nvlist, depth + 1):
                pass
        nvlist.postpone(self, at)
        return nvlist

    def load(self, nvlist: NvList, at: int) -> None:
        self._again(at).pairs(nvlist, 0)

    def each(self, nvlist: NvList, at: int) -> Iterator[Pair]:
        return (pair for _, pair in self._again(at).walk(nvlist, 0))

    def _again(self, at: int) -> _Xdr:
        codec = _Xdr(self.form, self.data)
        codec.is_checked, codec.at = True, at
        return codec

    def pair(self, depth: int) -> Pair | None:
        # 0          4           8            to 4     +4       +8
        # | packed   | size in   | name size, | type   | values | value ...
        # | size     | memory    | name       |        |        |
        start = self.at
        encoded, decoded = self.two()
        if decoded == 0:
            if encoded:
                raise BadNvlist(f"a pair of {encoded} bytes says it has none decoded", start)
            return None
        name = self.string()
        if not name or b"\0" in name:
            raise BadNvlist("a name is empty or holds a zero", start)
        number, nelem = self.two()
        kind = self.kind(number)
        value = self.value(kind, self.elements(kind, nelem), depth, start + encoded)
        # nvpair.c counts an empty array's count, and does not write it
        spare = 4 if nelem == 0 and kind in _ARRAY and kind != NvType.BYTE_ARRAY else 0
        if encoded < 0 or self.at not in (start + encoded, start + encoded - spare):
            raise BadNvlist(f"a pair of {self.at - start} bytes says it has {encoded}", start)
        return Pair(_text(name), kind, value)

    def string(self) -> bytes:
        at = self.at + 4
        if at > len(self.data):
            raise BadNvlist("it is cut short", self.at)
        (size,) = _ONE.unpack_from(self.data, self.at)
        after = at + size + -size % 4
        if after > len(self.data):
            raise BadNvlist("it is cut short", at)
        self.at = after
        return self.data[at : at + size]

    def value(self, kind: NvType, nelem: int, depth: int, end: int) -> Value:
        if kind == _NVLIST:
            return self.embedded(self.start(NvList(form=self.form)), depth, end)
        if kind == _NVLIST_ARRAY:
            return tuple(self.embedded(self.start(NvList(form=self.form)), depth) for _ in range(nelem))
        if kind == _STRING:
            return _text(self.string())
        if kind == _STRING_ARRAY:
            return tuple(_text(self.string()) for _ in range(nelem))
        return self.array(kind, nelem) if kind in _ARRAY else self.scalar(kind)

    def scalar(self, kind: NvType) -> Value:
        if kind == _BOOLEAN:
            return True
        code, at = _SCALAR[kind], self.at
        if _WIDTH[code] == 8:
            if at + 8 > len(self.data):
                raise BadNvlist("it is cut short", at)
            self.at = at + 8
            return _python(kind, _WIDE[code].unpack_from(self.data, at))
        return _python(kind, _narrow(code, self.numbers("I", 4)))

    def array(self, kind: NvType, nelem: int) -> Value:
        """An array: its count, then each value in 4 or 8 bytes. An empty array does not even have its count."""
        if kind == NvType.BYTE_ARRAY:
            return self.take(_align(nelem, 4))[:nelem]
        if nelem == 0:
            return b"" if kind in _BYTES else ()
        (again,) = self.numbers("I", 4)
        if again != nelem:
            raise BadNvlist(f"an array of {nelem} values says it has {again}", self.at - 4)
        code = _ARRAY[kind]
        if struct.calcsize("=" + code) == 8:
            return self.numbers(f"{nelem}{code}", 8 * nelem)
        values = _narrow(code, self.numbers(f"{nelem}I", 4 * nelem))
        return bytes(values) if kind in _BYTES else _python(kind, values)

    def packed(self, pair: Pair) -> bytes:
        value, nelem = self.packed_value(pair)
        body = self.packed_string(pair.name) + struct.pack(">ii", pair.type, nelem) + value
        spare = 4 if nelem == 0 and pair.type in _ARRAY and pair.type != NvType.BYTE_ARRAY else 0
        return struct.pack(">ii", 8 + len(body) + spare, _native_size(pair)) + body

    def packed_string(self, text: str) -> bytes:
        data = _bytes(text)
        return struct.pack(">I", len(data)) + data.ljust(_align(len(data), 4), b"\0")

    def packed_value(self, pair: Pair) -> tuple[bytes, int]:
        lists = pair.lists()
        if pair.type in (_NVLIST, _NVLIST_ARRAY):
            return b"".join(self.packed_start(inner) + self.packed_pairs(inner) for inner in lists), len(lists)
        values = _values(pair)
        if pair.type == _BOOLEAN:
            return b"", 0
        if pair.type in (_STRING, _STRING_ARRAY):
            return b"".join(self.packed_string(text) for text in values), len(values)
        if pair.type == NvType.BYTE_ARRAY:
            return bytes(values).ljust(_align(len(values), 4), b"\0"), len(values)
        code = _SCALAR.get(pair.type) or _ARRAY[pair.type]
        if struct.calcsize("=" + code) == 8:
            words = struct.pack(f">{len(values)}{code}", *values)
        else:
            struct.pack(f">{len(values)}{code}", *values)
            words = struct.pack(f">{len(values)}I", *(int(value) & 0xFFFFFFFF for value in values))
        count = struct.pack(">I", len(values)) if pair.type in _ARRAY and len(values) else b""
        return count + words, len(values)


def _narrow(code: str, words: tuple[int, ...]) -> tuple[int, ...]:
    """Small integers from XDR's 32-bit words."""
    # XDR has no small integers: they travel in 32 bits, and only the low ones count.
    bits = 8 * struct.calcsize("=" + code)
    sign = 1 << bits - 1 if code.islower() else 0
    mask = (1 << bits) - 1
    return tuple(((word & mask) ^ sign) - sign for word in words)


def _python(kind: NvType, values: tuple[Any, ...]) -> Value:
    if kind == NvType.BOOLEAN_ARRAY:
        return tuple(int(bool(value)) for value in values)
    if kind in _ARRAY:
        return values
    value: Value = bool(values[0]) if kind == NvType.BOOLEAN_VALUE else values[0]
    return value


def _values(pair: Pair) -> tuple[Any, ...]:
    value = pair.value
    if isinstance(value, bytes | tuple):
        return tuple(value)
    return (value,)


def _native_size(pair: Pair) -> int:
    """Bytes that the pair takes in memory, which an XDR pair has beside its packed size (NVP_SIZE_CALC)."""
    values = _values(pair)
    if pair.type in (_STRING, _STRING_ARRAY):
        pointers = 8 * len(values) if pair.type == _STRING_ARRAY else 0
        value = pointers + sum(len(_bytes(text)) + 1 for text in values)
    elif pair.type in (_NVLIST, _NVLIST_ARRAY):
        value = len(values) * (_LIST_HEAD + (8 if pair.type == _NVLIST_ARRAY else 0))
    elif pair.type == _BOOLEAN:
        value = 0
    else:
        value = len(values) * struct.calcsize("=" + (_SCALAR.get(pair.type) or _ARRAY[pair.type]))
    return _align(_PAIR_HEAD + len(_bytes(pair.name)) + 1, 8) + _align(value, 8)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
