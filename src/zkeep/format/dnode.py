"""Dnodes and block pointers: the fields that a raw stream carries, as bytes that their MACs cover.

A dnode takes 1 to 32 slots of 512 bytes:

    0    64                 64 + 128 * nblkptr                    end (- 128 if it has a spill block)
    +----+------------------+-------------------------------------+--------+
    |core| block pointers   | bonus                               | spill  |
    +----+------------------+-------------------------------------+--------+

Source: OpenZFS include/sys/dnode.h dnode_phys_t; include/sys/spa.h blkptr_t; module/os/linux/zfs/zio_crypt.c
blkptr_auth_buf_t, zio_crypt_bp_zero_nonportable_blkprop().
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from zkeep.format.objtypes import ObjectType
from zkeep.format.records import MAX_PAYLOAD, ByteOrder, Object, RecordFlag

if TYPE_CHECKING:
    import numpy as np

SLOT = 512
SLOTS = 32
"Slots of a metadnode block."
BLOCK = SLOT * SLOTS
CORE = 64
POINTER = 128
"Bytes of a block pointer, on disk."
SECTOR = 512
MAX_LEVELS = 13
"More than the narrowest tree (4 KiB indirect blocks, 32 pointers each) over 2^64 bytes could have."
MAX_POINTERS = 3
HAS_SPILL = 1 << 2
"dn_flags: the only one that travels, and is authenticated."

_CORE = {order: struct.Struct(mark + "8B2HB3xQQ32x") for order, mark in (("little", "<"), ("big", ">"))}


def pointers_beside(bonustype: int, bonuslen: int, slots: int = 1) -> int:
    """How many block pointers a dnode has beside its bonus buffer.

    Source: OpenZFS module/zfs/dmu_recv.c deduce_nblkptr().
    """
    if bonustype == ObjectType.SA:
        return 1  # the rest of the dnode belongs to the attributes
    return min(MAX_POINTERS, 1 + (slots * SLOT - CORE - POINTER - bonuslen) // POINTER)


class BadDnode(ValueError):
    """A dnode has a shape that no dnode can have."""


class Dnode(NamedTuple):
    """A dnode as its OBJECT record has it. Whether `bonus` is still encrypted, the caller knows.

    In a stream that is not raw, `nlevels` and `nblkptr` are 0 and `maxblkid` is not known.
    """

    number: int
    type: int
    bonustype: int
    blksz: int
    bonuslen: int
    slots: int
    checksum: int
    compress: int
    has_spill: bool
    indblkshift: int
    nlevels: int
    nblkptr: int
    maxblkid: int
    byteorder: ByteOrder
    bonus: bytes

    @classmethod
    def of(cls, header: Object, bonus: bytes, byteorder: ByteOrder) -> Dnode:
        """Make one of an OBJECT record. `byteorder`: that of its metadnode block on the sender's disk."""
        return cls(
            number=header.object,
            type=header.type,
            bonustype=header.bonustype,
            blksz=header.blksz,
            bonuslen=header.bonuslen,
            slots=header.dn_slots or 1,
            checksum=header.checksumtype,
            compress=header.compress,
            has_spill=bool(header.flags & RecordFlag.OBJECT_SPILL),
            indblkshift=header.indblkshift,
            nlevels=header.nlevels,
            nblkptr=header.nblkptr,
            maxblkid=header.maxblkid,
            byteorder=byteorder,
            bonus=bonus,
        )

    @property
    def bonus_room(self) -> int:
        """Bytes between its last block pointer and its spill pointer or end."""
        return self.slots * SLOT - CORE - POINTER * (self.nblkptr + self.has_spill)

    def core(self) -> bytes:
        """The 64 bytes as its block's MAC covers them."""
        return core_of(
            self.type,
            self.indblkshift,
            self.nlevels,
            self.nblkptr,
            self.bonustype,
            self.checksum,
            self.compress,
            HAS_SPILL if self.has_spill else 0,
            self.blksz // SECTOR,
            self.bonuslen,
            self.slots - 1,
            self.maxblkid,
            byteorder=self.byteorder,
        )

    def check_shape(self) -> None:
        """Raises BadDnode if no tree of blocks can have the shape of this raw dnode."""
        # A raw dnode's shape is the sender's word, and decides how large the trees are that are built for its MAC.
        if not 1 <= self.nblkptr <= MAX_POINTERS:
            raise BadDnode(f"object {self.number}: {self.nblkptr} block pointers")
        if not 1 <= self.nlevels <= MAX_LEVELS or not 7 < self.indblkshift <= 20:
            raise BadDnode(f"object {self.number}: {self.nlevels} levels of 2^{self.indblkshift} bytes")
        if self.slots > SLOTS or self.bonus_room < 0 or self.bonuslen > self.bonus_room:
            raise BadDnode(f"object {self.number}: a bonus of {self.bonuslen} bytes in {self.slots} slots")
        if max(self.type, self.bonustype) > 0xFF:
            raise BadDnode(f"object {self.number}: of type {self.type}, its bonus of type {self.bonustype}")
        if self.blksz % SECTOR or not 0 < self.blksz <= MAX_PAYLOAD:
            raise BadDnode(f"object {self.number}: blocks of {self.blksz} bytes")


def core_of(*fields: int, byteorder: ByteOrder) -> bytes:
    """The first 64 bytes of a dnode, with dn_used as zero.

    `fields`: type, indblkshift, nlevels, nblkptr, bonustype, checksum, compress, flags, sectors, bonuslen, extra
    slots, maxblkid.
    """
    # 0    1    2    3    4     5    6    7     8       10       12         16        24       32
    # |type|ind |levl|nblk|bonus|csum|comp|flags|sectors|bonuslen|extra | 0 |maxblkid|used = 0| 32 bytes of 0 |
    # |    |shift     |ptr |type |    |    |     | u16   | u16    |slots |   | u64    | u64    |               |
    return _CORE[byteorder].pack(*fields, 0)


@cache
def core_dtype(byteorder: ByteOrder) -> np.dtype[np.void]:
    """core_of() as a numpy type, for the columns of many dnodes."""
    import numpy as np

    mark = "<" if byteorder == "little" else ">"
    narrow = ("type", "indblkshift", "nlevels", "nblkptr", "bonustype", "checksumtype", "compress", "flags")
    sizes = [("sectors", mark + "u2"), ("bonuslen", mark + "u2"), ("more_slots", "u1"), ("", "V3")]
    return np.dtype([*((name, "u1") for name in narrow), *sizes, ("maxblkid", mark + "u8"), ("unused", "V40")])


def pointer_prop(logical: int, physical: int, compress: int, kind: int, *, little: bool) -> int:
    """The authenticated part of a level 0 block pointer's blk_prop. `little`: the block's own byte order."""
    # 63     62   61      56      48        40        39     32          16           0
    # |order |dedup| 1 |level | type  | checksum|embed |compress| physical   | logical    |
    # |  B   |  D  |   | 0    |       | 0       | 0    |        | size - 1   | size - 1   |
    #
    # Sizes in sectors. Checksum and dedup are not authenticated: a receiver may choose others.
    return (
        (logical // SECTOR - 1)
        | (physical // SECTOR - 1) << 16
        | compress << 32
        | kind << 48
        | 1 << 61
        | (1 << 63 if little else 0)
    )


def physical_size(prop: int) -> int:
    """Bytes of a block as it is stored, from the blk_prop of its pointer."""
    return ((prop >> 16 & 0xFFFF) + 1) * SECTOR


def indirect_prop(indblkshift: int, kind: int, level: int) -> int:
    """The authenticated part of blk_prop in a pointer to an indirect block: what a raw stream does not carry is 0."""
    return ((1 << indblkshift) // SECTOR - 1) | kind << 48 | level << 56 | 1 << 61
