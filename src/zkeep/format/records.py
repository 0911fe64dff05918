"""The records of a send stream, each declared once.

A record is a header of 312 bytes, in the sender's byte order, and then its payload:

    0        4                  8                                   280                    312
    +--------+------------------+-----------------------------------+----------------------+---------
    |type u32| payloadlen, u32  | body: object, offset, length, ... | running fletcher-4   | payload
    +--------+------------------+-----------------------------------+----------------------+---------

The running sum covers all bytes of the substream before it. (A BEGIN has none: its body goes on to byte 312.)
From a declaration below both directions, both byte orders and the columnar (numpy) view derive, and its size is
checked when the module is imported.

Source: OpenZFS include/sys/zfs_ioctl.h, struct dmu_replay_record.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import struct
import sys
from collections.abc import Callable
from enum import IntEnum, IntFlag
from functools import cache, partial
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    dataclass_transform,
)

if TYPE_CHECKING:
    import numpy as np

HEADER = 312
"Bytes of a record without its payload."
CHECKSUM = 280
"Where a record's own checksum starts: 4 words of 8 bytes, to the end of the header."
MAX_PAYLOAD = 16 << 20
"The largest block, hence the largest payload of any record but BEGIN."
MAGIC = 0x2F5BACBAC
"First word of a BEGIN's body, from which the stream's byte order follows."

ByteOrder = Literal["little", "big"]
NATIVE: ByteOrder = sys.byteorder


def other(byteorder: ByteOrder) -> ByteOrder:
    return "big" if byteorder == "little" else "little"


class RecordType(IntEnum):
    """drr_type."""

    BEGIN = 0
    OBJECT = 1
    FREEOBJECTS = 2
    WRITE = 3
    FREE = 4
    END = 5
    WRITE_BYREF = 6
    SPILL = 7
    WRITE_EMBEDDED = 8
    OBJECT_RANGE = 9
    REDACT = 10


class HeaderType(IntEnum):
    """Whether a BEGIN starts a substream or a compound stream: the low two bits of drr_versioninfo."""

    SUBSTREAM = 1
    COMPOUND = 2


class Feature(IntFlag):
    """Feature flags of a stream: bits 2..57 of drr_versioninfo (DMU_BACKUP_FEATURE_*)."""

    DEDUP = 1 << 0
    DEDUPPROPS = 1 << 1
    SA_SPILL = 1 << 2
    EMBED_DATA = 1 << 16
    LZ4 = 1 << 17
    LARGE_BLOCKS = 1 << 19
    RESUMING = 1 << 20
    REDACTED = 1 << 21
    COMPRESSED = 1 << 22
    LARGE_DNODE = 1 << 23
    RAW = 1 << 24
    ZSTD = 1 << 25
    HOLDS = 1 << 26
    SWITCH_TO_LARGE_BLOCKS = 1 << 27
    LONGNAME = 1 << 28
    LARGE_MICROZAP = 1 << 29


DEDUPLICATED = Feature.DEDUP | Feature.DEDUPPROPS
SUPPORTED = Feature(sum(feature for feature in Feature if not feature & DEDUPLICATED))
"Features that a receiver understands (DMU_BACKUP_FEATURE_MASK); a stream with another bit is refused."


class BeginFlag(IntFlag):
    """drr_flags of a BEGIN."""

    CLONE = 1 << 0
    CI_DATA = 1 << 1
    FREERECORDS = 1 << 2
    SPILL_BLOCK = 1 << 3


class RecordFlag(IntFlag):
    """drr_flags of WRITE, SPILL, OBJECT, WRITE_BYREF and OBJECT_RANGE records."""

    CHECKSUM_DEDUP = 1 << 0
    RAW_BYTESWAP = 1 << 1
    OBJECT_SPILL = 1 << 2
    SPILL_UNMODIFIED = 1 << 2


# A field's annotation says how it lies in the record: a struct code, with the padding that follows it.
U8 = Annotated[int, "B"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
Words = tuple[int, int, int, int]
Sum = Annotated[Words, "4Q"]
Salt = Annotated[bytes, "8s"]
Iv = Annotated[bytes, "12s"]
Mac = Annotated[bytes, "16s"]

_ZERO: Words = (0, 0, 0, 0)
_PREFIX = struct.calcsize("=II")
_CODE = re.compile(r"(\d*)([BIQs])(?:(\d+)x)?")


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    offset: int
    count: int
    code: str

    def dtype(self, order: str) -> Any:
        base = {"B": "u1", "s": "u1", "I": order + "u4", "Q": order + "u8"}[self.code]
        if self.code == "s" and self.count > 64:
            return f"S{self.count}"
        return base if self.count == 1 else (base, (self.count,))


_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _value(cls: type[_T]) -> type[_T]:
    """Make a class of annotated fields one of values, which the type checker lets nobody change."""
    return dataclasses.dataclass(slots=True, kw_only=True, eq=False, repr=False)(cls)


@_value
class Layout:
    """A record's header. `payloadlen` is drr_payloadlen: it is the payload's size only in a BEGIN.

    Nothing guards its fields at run time: headers are made by the million, and that would take twice as long.
    """

    RTYPE: ClassVar[RecordType]
    _codes: ClassVar[str]
    _fields: ClassVar[tuple[_Field, ...]]
    _values: ClassVar[Callable[[Any], tuple[Any, ...]]]
    "Gives `payloadlen` and all fields."
    _sum_at: ClassVar[int]
    "Which of them is a tuple; -1: none."

    payloadlen: int = 0

    # Written once here: a dataclass would compile a copy for each record whenever a process starts.

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and type(self)._values(other) == type(self)._values(self)

    def __hash__(self) -> int:
        return hash((self.RTYPE, type(self)._values(self)))

    def __repr__(self) -> str:
        names = ("payloadlen", *(field.name for field in self._fields))
        values = zip(names, type(self)._values(self), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values)})"

    def pack(self, byteorder: ByteOrder = NATIVE) -> bytes:
        """The 312 bytes, with a checksum field of zeros (BEGIN has none)."""
        values = type(self)._values(self)
        # struct.pack() takes the words of a sum one by one.
        at = self._sum_at
        if at >= 0:
            values = (*values[:at], *values[at], *values[at + 1 :])
        return _padded(self._codes, byteorder).pack(self.RTYPE, *values)

    @classmethod
    def packer(cls, byteorder: ByteOrder = NATIVE) -> Callable[..., bytes]:
        """What packs headers whose fields are given in order, `payloadlen` first, and words of a sum one by one."""
        return partial(_padded(cls._codes, byteorder).pack, cls.RTYPE)

    @classmethod
    def unpack(cls, header: bytes | memoryview, byteorder: ByteOrder = NATIVE) -> Self:
        """Read a header. Padding and checksum are not kept.

        Raises:
            ValueError: the header is of another record type.
        """
        rtype, payloadlen, *values = _packer(cls._codes, byteorder).unpack_from(header)
        if rtype != cls.RTYPE:
            raise ValueError(f"record type {rtype} is not {cls.RTYPE.name}")
        named: dict[str, Any] = {}
        at = 0
        for field in cls._fields:
            width = field.count if field.code != "s" else 1
            named[field.name] = values[at] if width == 1 else tuple(values[at : at + width])
            at += width
        if "toname" in named:
            named["toname"] = named["toname"].rstrip(b"\0")
        return cls(payloadlen=payloadlen, **named)

    @classmethod
    def dtype(cls, byteorder: ByteOrder = NATIVE) -> np.dtype[np.void]:
        """The header as a numpy structured type of 312 bytes: the fields, and rtype, payloadlen, checksum."""
        return _dtype(cls.RTYPE, byteorder)


@cache
def _packer(codes: str, byteorder: ByteOrder) -> struct.Struct:
    return struct.Struct(("<" if byteorder == "little" else ">") + "II" + codes)


@cache
def _padded(codes: str, byteorder: ByteOrder) -> struct.Struct:
    packer = _packer(codes, byteorder)
    return struct.Struct(f"{packer.format}{HEADER - packer.size}x")


@cache
def _dtype(rtype: RecordType, byteorder: ByteOrder) -> np.dtype[np.void]:
    import numpy as np

    cls = LAYOUTS[rtype]
    order = "<" if byteorder == "little" else ">"
    # The same fields as columns of many headers: numpy reads them in place.
    names = ["rtype", "payloadlen", *(field.name for field in cls._fields)]
    formats: list[Any] = [order + "u4", order + "u4", *(field.dtype(order) for field in cls._fields)]
    offsets = [0, 4, *(field.offset for field in cls._fields)]
    if cls.RTYPE != RecordType.BEGIN:
        names.append("checksum")
        formats.append((order + "u8", (4,)))
        offsets.append(CHECKSUM)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": HEADER})


LAYOUTS: dict[RecordType, type[Layout]] = {}
"Every record's declaration, by type."


_L = TypeVar("_L", bound=Layout)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def layout(rtype: RecordType, size: int) -> Callable[[type[_L]], type[_L]]:
    """Turn a class of annotated fields into a record of this type, whose struct in C has `size` bytes."""

    def declare(cls: type[_L]) -> type[_L]:
        # Only its own annotations: those of the base as well, for each record, would be most of the start of a process.
        own = inspect.get_annotations(cls, eval_str=True)
        made = _value(cls)
        made.RTYPE = rtype
        # The annotations say how each field lies in C; where their sizes do not add up to the struct's, import fails.
        made._codes, made._fields = _place({name: hint.__metadata__[0] for name, hint in own.items()})
        made._values = attrgetter("payloadlen", *(field.name for field in made._fields))
        sums = [at for at, field in enumerate(made._fields, start=1) if field.count > 1 and field.code != "s"]
        made._sum_at = sums[0] if sums else -1
        if struct.calcsize("=" + made._codes) != size or len(sums) > 1:
            raise TypeError(f"{cls.__name__} does not have {size} bytes, or has more than one sum")
        LAYOUTS[rtype] = made
        return made

    return declare


def _place(codes: dict[str, str]) -> tuple[str, tuple[_Field, ...]]:
    """The struct code of a whole body, and where each field lies in the header."""
    fields = []
    offset = _PREFIX
    for name, code in codes.items():
        match = _CODE.fullmatch(code)
        if match is None:
            raise TypeError(f"{name}: no field code: {code}")
        fields.append(_Field(name, offset, int(match[1] or 1), match[2]))
        offset += struct.calcsize("=" + code)
    return "".join(codes.values()), tuple(fields)


_RAW = int(Feature.RAW)


@layout(RecordType.BEGIN, size=304)
class Begin(Layout):
    """DRR_BEGIN: a substream, or the outer header of a compound stream. An nvlist may follow.

    Source: OpenZFS include/sys/zfs_ioctl.h, struct drr_begin; this and all below.
    """

    # 8       16            24              32    36     40       48         56                     312
    # | magic | versioninfo | creation_time | type| flags| toguid | fromguid | toname, 256 bytes     |
    #           ^ features << 2 | 1 substream, 2 compound
    magic: U64 = MAGIC
    versioninfo: U64 = HeaderType.SUBSTREAM
    creation_time: U64 = 0
    type: U32 = 0
    "2: filesystem, 3: volume (dmu_objset_type_t)."
    flags: U32 = 0
    toguid: U64 = 0
    fromguid: U64 = 0
    toname: Annotated[bytes, "256s"] = b""
    "Without the zeros that fill it; not trusted to end at the first zero."

    @property
    def hdrtype(self) -> int:
        return self.versioninfo & 3

    @property
    def features(self) -> Feature:
        return Feature(self.versioninfo >> 2 & (1 << 56) - 1)

    @property
    def raw(self) -> bool:
        return bool(self.versioninfo >> 2 & _RAW)  # asked twenty times for a snapshot: Feature's & takes longer

    @property
    def name(self) -> bytes:
        """toname up to its first zero, as C reads it."""
        return self.toname.split(b"\0", 1)[0]


@layout(RecordType.OBJECT, size=56)
class Object(Layout):
    """DRR_OBJECT: a dnode. Its bonus buffer follows (raw: encrypted)."""

    # 8       16    20        24     28        32    33    34     35     36            40      48         56
    # | object| type| bonustype| blksz| bonuslen| csum| comp| slots| flags| raw_bonuslen| toguid| ind, lvl,| maxblkid
    # |
    #                                                                                         | nblkptr  |
    object: U64 = 0
    type: U32 = 0
    bonustype: U32 = 0
    blksz: U32 = 0
    bonuslen: U32 = 0
    checksumtype: U8 = 0
    compress: U8 = 0
    dn_slots: U8 = 0
    "512-byte slots the dnode takes; 0 from old senders means 1."
    flags: U8 = 0
    raw_bonuslen: U32 = 0
    "Bytes of payload in a raw stream; else 0, and the payload is bonuslen rounded up to 8."
    toguid: U64 = 0
    indblkshift: U8 = 0
    nlevels: U8 = 0
    nblkptr: Annotated[int, "B5x"] = 0
    maxblkid: U64 = 0


@layout(RecordType.FREEOBJECTS, size=24)
class FreeObjects(Layout):
    """DRR_FREEOBJECTS: no object lives in [firstobj, firstobj + numobjs)."""

    firstobj: U64 = 0
    numobjs: U64 = 0
    toguid: U64 = 0


@layout(RecordType.WRITE, size=132)
class Write(Layout):
    """DRR_WRITE: one block of one object. The block itself follows."""

    # 8       16    24      32            40      48 49 50    56             88        96              104
    # | object| type| offset| logical_size| toguid| c| f| comp| key_checksum | key_prop| compressed_size |
    # 104: salt (8) | iv (12) | mac (16)
    object: U64 = 0
    type: Annotated[int, "I4x"] = 0
    offset: U64 = 0
    "Bytes from the start of the object."
    logical_size: U64 = 0
    "Bytes after decompression; the payload's size too when compressiontype is 0."
    toguid: U64 = 0
    checksumtype: U8 = 0
    flags: U8 = 0
    compressiontype: Annotated[int, "B5x"] = 0
    key_checksum: Sum = _ZERO
    "The sender's block checksum (ddt_key_t); cryptographic if flags has CHECKSUM_DEDUP."
    key_prop: U64 = 0
    compressed_size: U64 = 0
    salt: Salt = bytes(8)
    iv: Iv = bytes(12)
    mac: Mac = bytes(16)


@layout(RecordType.FREE, size=32)
class Free(Layout):
    """DRR_FREE: a hole. A length of 2^64-1 means to the end of the object."""

    object: U64 = 0
    offset: U64 = 0
    length: U64 = 0
    toguid: U64 = 0


@layout(RecordType.END, size=40)
class End(Layout):
    """DRR_END: the end of a substream, of a compound stream's outer header, or (all zero) of the whole."""

    body_checksum: Sum = _ZERO
    "The running fletcher-4 before this record."
    toguid: U64 = 0


@layout(RecordType.WRITE_BYREF, size=104)
class WriteByRef(Layout):
    """DRR_WRITE_BYREF: a copy of a block sent earlier, in deduplicated streams (gone since OpenZFS 2.0)."""

    object: U64 = 0
    offset: U64 = 0
    length: U64 = 0
    toguid: U64 = 0
    refguid: U64 = 0
    refobject: U64 = 0
    refoffset: U64 = 0
    checksumtype: U8 = 0
    flags: Annotated[int, "B6x"] = 0
    key_checksum: Sum = _ZERO
    key_prop: U64 = 0


@layout(RecordType.SPILL, size=80)
class Spill(Layout):
    """DRR_SPILL: an object's spill block. The block itself follows."""

    object: U64 = 0
    length: U64 = 0
    "Bytes after decompression; the payload's size too when compressed_size is 0."
    toguid: U64 = 0
    flags: U8 = 0
    compressiontype: Annotated[int, "B6x"] = 0
    compressed_size: U64 = 0
    salt: Salt = bytes(8)
    iv: Iv = bytes(12)
    mac: Mac = bytes(16)
    type: U32 = 0


@layout(RecordType.WRITE_EMBEDDED, size=48)
class WriteEmbedded(Layout):
    """DRR_WRITE_EMBEDDED: a block kept in its block pointer. psize bytes, padded to 8, follow."""

    object: U64 = 0
    offset: U64 = 0
    length: U64 = 0
    toguid: U64 = 0
    compression: U8 = 0
    etype: Annotated[int, "B6x"] = 0
    lsize: U32 = 0
    psize: U32 = 0


@layout(RecordType.OBJECT_RANGE, size=64)
class ObjectRange(Layout):
    """DRR_OBJECT_RANGE: salt, IV and MAC of one block of dnodes, in raw streams."""

    # 8         16        24      32      40       52        68
    # | firstobj| numslots| toguid| salt  | iv     | mac     | flags |      the MAC covers all 32 dnodes of the block
    firstobj: U64 = 0
    numslots: U64 = 0
    toguid: U64 = 0
    salt: Salt = bytes(8)
    iv: Iv = bytes(12)
    mac: Mac = bytes(16)
    flags: Annotated[int, "B3x"] = 0


@layout(RecordType.REDACT, size=32)
class Redact(Layout):
    """DRR_REDACT: a range that was left out of a redacted stream."""

    object: U64 = 0
    offset: U64 = 0
    length: U64 = 0
    toguid: U64 = 0
