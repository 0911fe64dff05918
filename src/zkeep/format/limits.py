"""The values that each field of a record may have, whatever came before it.

These are the checks of a receiving kernel, in the order of OpenZFS module/zfs/dmu_recv.c,
recv_check_drr_*(), as tables of rules over whole columns of headers. Deviations: an object type has one byte,
toguid must be that of the BEGIN, and a FREE, WRITE or WRITE_EMBEDDED may end at 2^64 exactly, as senders make
such FREEs where a hole's end overflows. WRITE_BYREF is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zkeep.format.compress import Compression
from zkeep.format.dnode import CORE, MAX_POINTERS, POINTER, SECTOR, SLOT, SLOTS
from zkeep.format.events import Batch
from zkeep.format.nvlist import NvList
from zkeep.format.objtypes import NEW_TYPE, UINT64_METADATA, ObjectType
from zkeep.format.records import (
    DEDUPLICATED,
    MAX_PAYLOAD,
    SUPPORTED,
    Begin,
    BeginFlag,
    Feature,
    RecordFlag,
    RecordType,
)
from zkeep.names import MAX_UINT64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Columns = NDArray[np.void]
    Mask = NDArray[np.bool_]
    I64s = NDArray[np.int64]

MIN_BLOCK = SECTOR
OLD_MAX_BLOCK = 128 << 10
MAX_OBJECT = 1 << 48
"Object numbers are below this (DN_MAX_OBJECT)."
MAX_EMBEDDED = 112
TO_THE_END = MAX_UINT64
"The length of a FREE that reaches to the end of its object."
_OBJSET_TYPES = 6
_OBJECT_TYPES = 54
_BYTESWAPS = 10
_CHECKSUMS = 15
_COMPRESSIONS = 17
REDUP = "the stream is deduplicated: pass it through `zstream redup` first"


@dataclass(frozen=True, slots=True)
class Violation:
    """A record of a batch that breaks a rule, and how."""

    index: int
    reason: str


class FieldRule(NamedTuple):
    reason: str
    "May name header fields in braces."
    broken: Callable[[Columns, Begin], Mask]


def earliest(first: Violation | None, second: Violation | None) -> Violation | None:
    if first is None or second is None:
        return first or second
    return first if first.index <= second.index else second


# columns


def slots(h: Columns) -> I64s:
    """Slots that a dnode takes; old senders write 0 for one."""
    taken: I64s = np.maximum(h["dn_slots"], 1).astype(np.int64)
    return taken


def _bonus_room(h: Columns) -> I64s:
    return slots(h) * SLOT - CORE - POINTER


def _nblkptr(h: Columns) -> I64s:
    return pointers_beside(h["bonustype"], h["bonuslen"], slots(h))


def pointers_beside(bonustype: NDArray[Any], bonuslen: NDArray[Any], dnode_slots: NDArray[Any]) -> I64s:
    """How many block pointers fit beside each bonus buffer, as dnode.pointers_beside() says of one."""
    room = dnode_slots.astype(np.int64) * SLOT - CORE - POINTER
    beside = np.minimum(MAX_POINTERS, 1 + (room - bonuslen.astype(np.int64)) // POINTER)
    return np.where(bonustype == ObjectType.SA, 1, beside)


def _raw_bonus_room(h: Columns) -> I64s:
    # Behind the first block pointer: more pointers, the bonus, and at the very end the spill block's pointer.
    spill = (h["flags"] & RecordFlag.OBJECT_SPILL) != 0
    return _bonus_room(h) - (_nblkptr(h) - 1) * POINTER - np.where(spill, POINTER, 0)


def _bad_type(kind: NDArray[np.uint32]) -> Mask:
    # An old type is a number in a table; a new one has 0x80 set, two flags, and in its low bits how to swap it.
    new = kind & NEW_TYPE != 0
    bad: Mask = (kind > 255) | np.where(new, (kind & 0x1F) >= _BYTESWAPS, kind >= _OBJECT_TYPES)
    return bad


def _bonus_mismatch(h: Columns) -> Mask:
    kind, empty = h["bonustype"], h["bonuslen"] == 0
    may_be_empty = (kind == 0) | (kind == ObjectType.SA) | (kind == UINT64_METADATA)
    mismatch: Mask = np.where(empty, ~may_be_empty, kind == 0)
    return mismatch


def _overflows(offset: NDArray[np.uint64], length: NDArray[np.uint64]) -> Mask:
    """Whether the end lies beyond 2^64."""
    # Unsigned sums wrap: an end before its start passed 2^64. An end of exactly 0 is 2^64 itself.
    end = offset + length
    beyond: Mask = (end < offset) & (end != 0)
    return beyond


def _unadvertised(compression: NDArray[np.uint8], begin: Begin) -> Mask:
    """LZ4 and ZSTD need their feature flag (recv_check_compress_feature())."""
    lz4 = (compression >= Compression.LZ4) & (compression != Compression.ZSTD) & (not begin.features & Feature.LZ4)
    unadvertised: Mask = lz4 | ((compression == Compression.ZSTD) & (not begin.features & Feature.ZSTD))
    return unadvertised


def _lacks(begin: Begin, feature: Feature) -> bool:
    return not begin.features & feature


# rules

_OBJECT_ID = FieldRule(
    "object number {object} is not in 1..2^48-1",
    lambda h, b: (h["object"] == 0) | (h["object"] >= MAX_OBJECT),
)
_TOGUID = FieldRule("toguid {toguid:#x} is not that of the BEGIN", lambda h, b: h["toguid"] != b.toguid)
_TYPE = FieldRule("there is no object type {type}", lambda h, b: _bad_type(h["type"]))

_OBJECT = (
    _TOGUID,
    _OBJECT_ID,
    FieldRule("the object has no type", lambda h, b: h["type"] == 0),
    _TYPE,
    FieldRule("there is no bonus type {bonustype}", lambda h, b: _bad_type(h["bonustype"])),
    FieldRule("bonus type {bonustype} cannot have {bonuslen} bytes", lambda h, b: _bonus_mismatch(h)),
    FieldRule(
        "{dn_slots} dnode slots need the feature LARGE_DNODE",
        lambda h, b: (h["dn_slots"] > 1) & _lacks(b, Feature.LARGE_DNODE),
    ),
    FieldRule(
        "block size {blksz} needs the feature LARGE_BLOCKS",
        lambda h, b: (h["blksz"] > OLD_MAX_BLOCK) & _lacks(b, Feature.LARGE_BLOCKS),
    ),
    FieldRule("there is no checksum type {checksumtype}", lambda h, b: h["checksumtype"] >= _CHECKSUMS),
    FieldRule("there is no compression type {compress}", lambda h, b: h["compress"] >= _COMPRESSIONS),
    FieldRule("block size {blksz} is not a multiple of 512", lambda h, b: h["blksz"] % MIN_BLOCK != 0),
    FieldRule(
        "block size {blksz} is not in 512..16 MiB",
        lambda h, b: (h["blksz"] < MIN_BLOCK) | (h["blksz"] > MAX_PAYLOAD),
    ),
    FieldRule("{dn_slots} dnode slots are more than 32", lambda h, b: h["dn_slots"] > SLOTS),
    FieldRule("a bonus of {bonuslen} bytes does not fit", lambda h, b: h["bonuslen"] > _bonus_room(h)),
    FieldRule(
        "the dnode ends beyond the last object number",
        lambda h, b: h["object"].astype(np.int64) + slots(h) > MAX_OBJECT,
    ),
    FieldRule(
        "it has a spill block, which the BEGIN does not announce",
        lambda h, b: ((h["flags"] & RecordFlag.OBJECT_SPILL) != 0) & (not b.flags & BeginFlag.SPILL_BLOCK),
    ),
)
_RAW_OBJECT = (
    FieldRule(
        "there are no such flags: {flags:#x}",
        lambda h, b: (h["flags"] & ~np.uint8(RecordFlag.OBJECT_SPILL | RecordFlag.RAW_BYTESWAP)) != 0,
    ),
    FieldRule(
        "a raw bonus of {raw_bonuslen} bytes is shorter than the bonus, {bonuslen}",
        lambda h, b: h["raw_bonuslen"] < h["bonuslen"],
    ),
    FieldRule(
        "indirect block shift {indblkshift} is not in 12..17",
        lambda h, b: (h["indblkshift"] != 0) & ((h["indblkshift"] < 12) | (h["indblkshift"] > 17)),
    ),
    FieldRule("{nlevels} levels are not 1..10", lambda h, b: (h["nlevels"] < 1) | (h["nlevels"] > 10)),
    FieldRule(
        "{nblkptr} block pointers do not go with a bonus of type {bonustype} and {bonuslen} bytes",
        lambda h, b: h["nblkptr"] != _nblkptr(h),
    ),
    FieldRule(
        "a raw bonus of {raw_bonuslen} bytes does not fit",
        lambda h, b: h["raw_bonuslen"] > _raw_bonus_room(h),
    ),
)
_PLAIN_OBJECT = (
    FieldRule(
        "there are no such flags: {flags:#x}",
        lambda h, b: (h["flags"] & ~np.uint8(RecordFlag.OBJECT_SPILL)) != 0,
    ),
    FieldRule(
        "raw_bonuslen, nblkptr, indblkshift and nlevels must be zero in a stream that is not raw",
        lambda h, b: (h["raw_bonuslen"] != 0) | (h["nblkptr"] | h["indblkshift"] | h["nlevels"]).astype(bool),
    ),
)
_FREE = (
    _TOGUID,
    _OBJECT_ID,
    FieldRule(
        "offset {offset} and length {length} overflow",
        lambda h, b: (h["length"] != TO_THE_END) & _overflows(h["offset"], h["length"]),
    ),
)
_FREEOBJECTS = (
    _TOGUID,
    FieldRule(
        "first object {firstobj} and count {numobjs} overflow",
        lambda h, b: _overflows(h["firstobj"], h["numobjs"]),
    ),
)
_OBJECT_RANGE = (
    _TOGUID,
    FieldRule("it is only for raw streams", lambda h, b: np.full(len(h), not b.raw)),
    FieldRule("{numslots} slots are not one block of dnodes, 32", lambda h, b: h["numslots"] != SLOTS),
    FieldRule("first object {firstobj} does not begin a block", lambda h, b: h["firstobj"] % SLOTS != 0),
    FieldRule("it extends beyond the last object number", lambda h, b: h["firstobj"] > MAX_OBJECT - SLOTS),
)
def _whole(name: str) -> FieldRule:
    """Whole sectors: a block pointer counts sizes in units of 512 bytes."""
    return FieldRule(
        f"{name.replace('_', ' ')} {{{name}}} is not a multiple of 512", lambda h, b: h[name] % MIN_BLOCK != 0
    )


_SPILL = (
    _TOGUID,
    _OBJECT_ID,
    _TYPE,
    FieldRule(
        "{length} bytes are not in 512..16 MiB",
        lambda h, b: (h["length"] < MIN_BLOCK) | (h["length"] > MAX_PAYLOAD),
    ),
    FieldRule(
        "compressed size {compressed_size} must be zero if, and only if, the stream is not raw",
        lambda h, b: (h["compressed_size"] == 0) == b.raw,
    ),
    FieldRule("there is no compression type {compressiontype}", lambda h, b: h["compressiontype"] >= _COMPRESSIONS),
    FieldRule(
        "compression type {compressiontype} is not announced",
        lambda h, b: _unadvertised(h["compressiontype"], b) & b.raw,
    ),
    FieldRule(
        "{compressed_size} compressed bytes are more than {length}",
        lambda h, b: (h["length"] < h["compressed_size"]) & b.raw,
    ),
    FieldRule(
        "compression type {compressiontype} in a stream that is not raw",
        lambda h, b: (h["compressiontype"] != 0) & (not b.raw),
    ),
    _whole("length"),
    _whole("compressed_size"),
)
_WRITE = (
    _TOGUID,
    _OBJECT_ID,
    FieldRule(
        "{logical_size} bytes are not in 512..16 MiB",
        lambda h, b: (h["logical_size"] < MIN_BLOCK) | (h["logical_size"] > MAX_PAYLOAD),
    ),
    FieldRule(
        "{logical_size} bytes need the feature LARGE_BLOCKS",
        lambda h, b: (h["logical_size"] > OLD_MAX_BLOCK) & _lacks(b, Feature.LARGE_BLOCKS),
    ),
    FieldRule("there is no compression type {compressiontype}", lambda h, b: h["compressiontype"] >= _COMPRESSIONS),
    FieldRule(
        "compression type {compressiontype} is not announced",
        lambda h, b: _unadvertised(h["compressiontype"], b),
    ),
    FieldRule(
        "{compressed_size} compressed bytes are more than {logical_size}",
        lambda h, b: h["compressed_size"] > h["logical_size"],
    ),
    FieldRule(
        "offset {offset} and size {logical_size} overflow",
        lambda h, b: _overflows(h["offset"], h["logical_size"]),
    ),
    _TYPE,
    FieldRule("there is no checksum type {checksumtype}", lambda h, b: h["checksumtype"] >= _CHECKSUMS),
    _whole("logical_size"),
    _whole("compressed_size"),
)
_RAW_WRITE = (
    FieldRule("the compressed size is zero in a raw stream", lambda h, b: h["compressed_size"] == 0),
    FieldRule("the compression type is zero in a raw stream", lambda h, b: h["compressiontype"] == 0),
)
_PLAIN_WRITE = (
    FieldRule(
        "a compressed block needs the feature COMPRESSED",
        lambda h, b: (h["compressiontype"] != 0) & _lacks(b, Feature.COMPRESSED),
    ),
    FieldRule(
        "compressed size {compressed_size} with compression type {compressiontype}",
        lambda h, b: (h["compressed_size"] == 0) != (h["compressiontype"] == 0),
    ),
)
_WRITE_EMBEDDED = (
    _TOGUID,
    FieldRule("it cannot stand in a raw stream", lambda h, b: np.full(len(h), b.raw)),
    FieldRule("it needs the feature EMBED_DATA", lambda h, b: np.full(len(h), _lacks(b, Feature.EMBED_DATA))),
    _OBJECT_ID,
    FieldRule("{length} bytes are more than 16 MiB", lambda h, b: h["length"] > MAX_PAYLOAD),
    FieldRule(
        "{length} bytes need the feature LARGE_BLOCKS",
        lambda h, b: (h["length"] > OLD_MAX_BLOCK) & _lacks(b, Feature.LARGE_BLOCKS),
    ),
    FieldRule("a payload of {psize} bytes is more than 112", lambda h, b: h["psize"] > MAX_EMBEDDED),
    FieldRule("there is no compression type {compression}", lambda h, b: h["compression"] >= _COMPRESSIONS),
    FieldRule("compression type {compression} is not announced", lambda h, b: _unadvertised(h["compression"], b)),
    FieldRule(
        "a payload of {psize} bytes cannot be {lsize} bytes, uncompressed",
        lambda h, b: (h["compression"] == Compression.OFF) & (h["lsize"] != h["psize"]),
    ),
    FieldRule("{psize} compressed bytes are more than {lsize}", lambda h, b: h["lsize"] < h["psize"]),
    FieldRule("{lsize} bytes do not fit a block of {length}", lambda h, b: h["lsize"] > h["length"]),
    FieldRule("offset {offset} and length {length} overflow", lambda h, b: _overflows(h["offset"], h["length"])),
    FieldRule("there is no embedded type {etype}", lambda h, b: h["etype"] >= 3),
)
_BYREF = (FieldRule(REDUP, lambda h, b: np.full(len(h), True)),)


def _rules(raw: bool) -> dict[RecordType, tuple[FieldRule, ...]]:
    return {
        RecordType.OBJECT: _OBJECT + (_RAW_OBJECT if raw else _PLAIN_OBJECT),
        RecordType.FREEOBJECTS: _FREEOBJECTS,
        RecordType.WRITE: _WRITE + (_RAW_WRITE if raw else _PLAIN_WRITE),
        RecordType.FREE: _FREE,
        RecordType.WRITE_BYREF: _BYREF,
        RecordType.SPILL: _SPILL,
        RecordType.WRITE_EMBEDDED: _WRITE_EMBEDDED,
        RecordType.OBJECT_RANGE: _OBJECT_RANGE,
        RecordType.REDACT: _FREE,
    }


class Limits:
    """The rules for one substream."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._rules = _rules(begin.raw)

    def check(self, batch: Batch) -> Violation | None:
        """The first record that breaks a rule."""
        found = None
        # Type by type, rule by rule, over all records of the type at once; the earliest record that breaks one
        # counts.
        for number in np.flatnonzero(np.bincount(batch.types)).tolist():
            rtype = RecordType(number)
            index, headers = batch.select(rtype)
            for rule in self._rules[rtype]:
                broken = rule.broken(headers, self._begin)
                if np.count_nonzero(broken):  # of few, faster than any()
                    i = int(np.argmax(broken))
                    violation = Violation(int(index[i]), rule.reason.format_map(_Row(headers[i])))
                    found = earliest(found, violation)
        return found


class _Row(dict[str, Any]):
    """A header's fields by name, as the reason of a rule names them."""

    def __init__(self, header: np.void) -> None:
        self._header = header

    def __missing__(self, name: str) -> Any:
        return self._header[name].item()


def refuse_begin(begin: Begin, nvlist: NvList | None) -> str | None:
    """Why a BEGIN, of a substream or of a compound stream, cannot be received (dmu_recv_begin_check())."""
    features = begin.features
    if features & DEDUPLICATED:
        return REDUP
    # A feature that is not known may change what records mean, so one unknown bit refuses the stream.
    unknown = int(features) & ~int(SUPPORTED)
    if unknown:
        return f"it needs features that are not known: {unknown:#x}"
    if begin.type >= _OBJSET_TYPES:
        return f"there is no dataset type {begin.type}"
    if begin.raw and (features & Feature.EMBED_DATA):
        return "embedded data cannot stand in a raw stream"
    if begin.raw and not begin.flags & BeginFlag.SPILL_BLOCK:
        return "a raw stream without the flag SPILL_BLOCK: the sender is too old"
    return _missing(begin, nvlist)


def _missing(begin: Begin, nvlist: NvList | None) -> str | None:
    """Why the nvlist lacks something that the stream's features promise; None if nothing is missing."""
    pairs = nvlist if nvlist is not None else NvList()
    if begin.raw and not isinstance(pairs.get("crypt_keydata"), NvList):
        return "a raw stream without crypt_keydata"
    if begin.features & Feature.RESUMING:
        for name in ("resume_object", "resume_offset"):
            if not isinstance(pairs.get(name), int):
                return f"a resumed stream without {name}"
    return None
