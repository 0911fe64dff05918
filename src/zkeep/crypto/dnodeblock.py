"""A block of dnodes: one MAC over all of them, and their bonus buffers sealed together.

What is authenticated, slot by slot: the dnode's core, its pointers (with the MACs of what they point to), its spill
pointer, and its bonus buffer if that is of a type that is not encrypted. The other bonus buffers, back to back, are
the ciphertext.

Source: OpenZFS module/os/linux/zfs/zio_crypt.c zio_crypt_init_uios_dnode(), zio_crypt_do_objset_hmacs().
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from zkeep.crypto.block import MAC, BlockKeys, Forged
from zkeep.format.dnode import SLOT, SLOTS, Dnode, core_of
from zkeep.format.objtypes import ObjectType, is_encrypted
from zkeep.format.records import ByteOrder


@dataclass(frozen=True, slots=True)
class Seal:
    """Salt, IV and MAC of a block."""

    salt: bytes
    iv: bytes
    mac: bytes


class Stretch(NamedTuple):
    """Dnodes in slots that follow one another, from object number `first` up to, not with, `end`.

    `aad` are their cores, each with the 32 authenticated bytes of its pointers, and of its spill pointer if it has one,
    and with its bonus buffer if that lies open; `sealed` are the other bonus buffers.
    """

    first: int
    end: int
    aad: bytes | memoryview
    sealed: bytes | memoryview


def stretch_of(dnode: Dnode, pointers: bytes, spill: bytes) -> Stretch:
    """Of one dnode.

    Raises:
        Forged: its bonus buffer is not as long as its shape says.
    """
    bonus = dnode.bonus or bytes(dnode.bonus_room)
    if len(bonus) != dnode.bonus_room:
        raise Forged
    end = dnode.number + dnode.slots
    aad = dnode.core() + pointers + spill
    if has_sealed_bonus(dnode):
        return Stretch(dnode.number, end, aad, bonus)
    return Stretch(dnode.number, end, aad + bonus, b"")


def open_dnodes(keys: BlockKeys, seal: Seal, first: int, stretches: Iterable[Stretch]) -> bytes:
    """The encrypted bonus buffers, back to back, of a block whose slots begin with object number `first`.

    Raises:
        Forged: the MAC of the block does not match, or the dnodes do not fit in it.
    """
    aad, sealed = _covered(first, stretches)
    return keys.open(seal.salt, seal.iv, seal.mac, sealed, aad)


def encrypt_dnodes(
    keys: BlockKeys, salt: bytes, iv: bytes, first: int, stretches: Iterable[Stretch]
) -> tuple[bytes, bytes]:
    """Encrypt a block of dnodes: the encrypted bonus buffers, back to back, and the MAC over the whole block.

    `stretches` hold plain bonus buffers, each filled with zeros to its room.
    """
    aad, plain = _covered(first, stretches)
    made = keys.encrypt(salt, iv, plain, aad)
    return made[:-MAC], made[-MAC:]


def _covered(first: int, stretches: Iterable[Stretch]) -> tuple[bytes, bytes]:
    """What the MAC of a block covers in clear, slot by slot (free slots are zeros), and its bonus buffers."""
    aad: list[bytes | memoryview] = []
    bonuses: list[bytes | memoryview] = []
    at = first
    for each in stretches:
        if each.first < at:
            raise Forged
        aad += [bytes((each.first - at) * SLOT), each.aad]
        bonuses.append(each.sealed)
        at = each.end
    if at > first + SLOTS:
        raise Forged
    aad.append(bytes((first + SLOTS - at) * SLOT))
    return b"".join(aad), b"".join(bonuses)


def has_sealed_bonus(dnode: Dnode) -> bool:
    return dnode.bonuslen != 0 and is_encrypted(dnode.bonustype)


@dataclass(frozen=True, slots=True)
class Metadnode:
    """The shape of the object that holds all dnodes, as the stream's BEGIN tells it."""

    indblkshift: int
    nlevels: int
    nblkptr: int
    checksum: int
    compress: int
    maxblkid: int

    def core(self) -> bytes:
        shape = (ObjectType.DNODE, self.indblkshift, self.nlevels, self.nblkptr, 0, self.checksum, self.compress)
        order: ByteOrder = "little"
        return core_of(*shape, 0, SLOTS, 0, 0, self.maxblkid, byteorder=order)


def portable_mac(keys: BlockKeys, objset_type: int, metadnode: Metadnode, pointers: bytes) -> bytes:
    """The MAC of a whole object set; `objset_type` 2 is a filesystem, 3 a volume.

    All of it is little-endian but the type, which goes in byte-swapped.
    """
    head = objset_type.to_bytes(8, "big") + bytes(8)
    return keys.digest(head, metadnode.core(), pointers)[:32]
