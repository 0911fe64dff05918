"""A block of dnodes: one MAC over all of them, and their bonus buffers encrypted together.

One AEAD call covers 32 slots of 512 bytes. What goes into it, dnode by dnode in the order of slots:

    authenticated (AAD)                                                         encrypted
    core 64 | pointers 32 each | spill pointer 32 | bonus, if not encrypted     bonus, of an encrypted type
    free slots: 512 zeros each

Of each pointer, the 32 bytes are what is authenticated of it: its properties, and the MAC of what it points to. Bonus
buffers count with all the room that the dnode has for them.

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
    """Dnodes in consecutive slots: what they add to the MAC, for object numbers first <= n < end.

    `aad`: their cores, pointers and bonus buffers of types that are not encrypted, as the picture above has them.
    `bonuses`: the other bonus buffers back to back, ciphertext before decryption, plain before encryption.
    """

    first: int
    end: int
    aad: bytes | memoryview
    bonuses: bytes | memoryview


def stretch_of(dnode: Dnode, pointers: bytes, spill: bytes) -> Stretch:
    """The stretch that consists of one dnode.

    Raises:
        Forged: its bonus buffer is not as long as its shape says.
    """
    # A dnode without bonus counts with zeros for all its room.
    bonus = dnode.bonus or bytes(dnode.bonus_room)
    if len(bonus) != dnode.bonus_room:
        raise Forged
    end = dnode.number + dnode.slots
    aad = dnode.core() + pointers + spill
    if has_encrypted_bonus(dnode):
        return Stretch(dnode.number, end, aad, bonus)
    return Stretch(dnode.number, end, aad + bonus, b"")


def decrypt_dnodes(keys: BlockKeys, seal: Seal, first: int, stretches: Iterable[Stretch]) -> bytes:
    """Check a block of dnodes, and return its decrypted bonus buffers, back to back. `first`: its first object number.

    Raises:
        Forged: the MAC of the block does not match, or the dnodes do not fit in it.
    """
    aad, ciphertext = _covered(first, stretches)
    return keys.decrypt(seal.salt, seal.iv, seal.mac, ciphertext, aad)


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
    """The AAD of a whole block, with zeros for its free slots, and its encrypted bonus buffers."""
    aad: list[bytes | memoryview] = []
    bonuses: list[bytes | memoryview] = []
    # slots       | 0 dnode | 1 free | 2 dnode of two slots | 4 free ... 31 |
    # goes in as  | aad     | 512 x 0| aad                  | 28 x 512 x 0  |
    at = first
    for each in stretches:
        if each.first < at:
            raise Forged
        aad += [bytes((each.first - at) * SLOT), each.aad]
        bonuses.append(each.bonuses)
        at = each.end
    if at > first + SLOTS:
        raise Forged
    aad.append(bytes((first + SLOTS - at) * SLOT))
    return b"".join(aad), b"".join(bonuses)


def has_encrypted_bonus(dnode: Dnode) -> bool:
    return dnode.bonuslen != 0 and is_encrypted(dnode.bonustype)


@dataclass(frozen=True, slots=True)
class Metadnode:
    """The shape of the object that holds all dnodes, as the stream's BEGIN has it."""

    indblkshift: int
    nlevels: int
    nblkptr: int
    checksum: int
    compress: int
    maxblkid: int

    def core(self) -> bytes:
        # The metadnode is a dnode of 16 KiB blocks, which has no bonus and is not in any block of dnodes itself.
        shape = (ObjectType.DNODE, self.indblkshift, self.nlevels, self.nblkptr, 0, self.checksum, self.compress)
        order: ByteOrder = "little"
        return core_of(*shape, 0, SLOTS, 0, 0, self.maxblkid, byteorder=order)


def portable_mac(keys: BlockKeys, objset_type: int, metadnode: Metadnode, pointers: bytes) -> bytes:
    """The portable MAC of an object set: its type and its metadnode, and so all dnodes.

    All of it is little-endian, but for the type, which OpenZFS byte-swaps.
    """
    # | type, u64 big-endian | flags, always 0 here | core of the metadnode, 64 | its pointers, 32 each | ->
    # HMAC-SHA512, 32 bytes
    head = objset_type.to_bytes(8, "big") + bytes(8)
    return keys.digest(head, metadnode.core(), pointers)[:32]
