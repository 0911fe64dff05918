"""Objects that OpenZFS authenticates and does not encrypt: in a plain stream they may hold nothing but their numbers.

They are the master node of a filesystem and the properties of a volume: small ZAPs of names that OpenZFS knows, each
with a number. A forged stream could have anybody's data there, which a pool would then keep in clear.

Source: OpenZFS module/zfs/dmu.c dmu_ot[]; include/sys/zfs_znode.h ZFS_ROOT_OBJ and those beside it;
module/zfs/zfs_quota.c; module/zfs/zvol.c ZVOL_PROP_NAME.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator

from zkeep.errors import BadStream
from zkeep.format.compress import decompress
from zkeep.format.objtypes import ObjectType, is_encrypted
from zkeep.format.zap_layout import MICRO, MICRO_ENTRY
from zkeep.pool.datasets import properties
from zkeep.snapshot.changes import Block, ObjectChange

_CLEAR: dict[int, int] = {ObjectType.MASTER_NODE: 1, ObjectType.ZVOL_PROP: 2}
"The types, and the numbers of the objects that have them."
_NAMES = frozenset({"ROOT", "DELETE_QUEUE", "VERSION", "SA_ATTRS", "SHARES", "FUID", "FSID", "size"})
_QUOTA = re.compile(r"(default)?(user|group|project)(obj)?(used|quota)@?")
_UINT64 = 8
_MOST = 1 << 16
"Flags of normalization, and numbers that tell names of the same hash apart, are less."


def is_none_in_clear(number: int, kind: int, bonustype: int, bonuslen: int) -> bool:
    """Whether what an object holds is encrypted, or it is one of those whose contents only_numbers() checks."""
    bonus = is_encrypted(bonustype) or not bonuslen or (bonustype == ObjectType.FUID_SIZE and bonuslen == _UINT64)
    return bonus and (is_encrypted(kind) or _CLEAR.get(kind) == number)


def only_numbers(change: ObjectChange, blocks: Iterable[Block], at: int) -> Iterator[Block]:
    """The blocks of an object that is not encrypted; `at`: the byte of its OBJECT.

    Raises:
        BadStream: they hold something else.
    """
    for block in blocks:
        content = block.content
        # What is compressed may have anything behind its end, so it is compressed again.
        if content is not None and block.compression is not None:
            content = decompress(content, block.compression, change.blksz)
        if content is not None and (block.number or not _is_plain_table(bytes(content))):
            why = f"object {change.number}, which OpenZFS does not encrypt, holds what none has there"
            raise BadStream(why, at, "OBJECT")
        yield Block(block.number, content)


def _is_plain_table(block: bytes) -> bool:
    """Whether a block is a small ZAP that says nothing but numbers of known names: then those make all of it."""
    order = "<" if block[:_UINT64] == MICRO.to_bytes(_UINT64, "little") else ">"
    head, entry = struct.Struct(f"{order}3Q40x"), struct.Struct(f"{order}QIxx50s")
    if len(block) < head.size or len(block) % MICRO_ENTRY:
        return False
    _, salt, normalization = head.unpack_from(block)
    made = [head.pack(MICRO, salt, min(normalization, _MOST))]
    found = set()
    for value, differs, padded in entry.iter_unpack(block[head.size :]):
        name = padded.rstrip(b"\0").decode("latin-1")
        is_told = _is_known(name) and name not in found and differs < _MOST
        made.append(entry.pack(value, differs, padded) if is_told else bytes(MICRO_ENTRY))
        found.add(name)
    return b"".join(made) == block


def _is_known(name: str) -> bool:
    return name in _NAMES or _QUOTA.fullmatch(name) is not None or name in properties.PROPERTIES
