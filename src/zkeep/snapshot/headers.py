"""Headers of the records that are made by the million: the same bytes as those of format/records.py, without an object.

A header of records.py costs three times as much as its bytes, and each small file has three of them.
"""

from __future__ import annotations

from zkeep.format.dnode import Dnode
from zkeep.format.limits import TO_THE_END
from zkeep.format.records import Free, Object, RecordFlag, Write

_write = Write.packer("little")
_object = Object.packer("little")
_free = Free.packer("little")
DECIDED_BY_KERNEL = 7
"The checksum of blocks (fletcher-4): it is not authenticated, and a receiver makes its own."


def write_header(
    number: int,
    kind: int,
    block: int,
    sizes: tuple[int, int],
    toguid: int,
    compression: int,
    cipher: tuple[bytes, bytes, bytes],
) -> bytes:
    """A WRITE. `block`: its number; `sizes`: before compression, and as it is stored; `cipher`: salt, IV and MAC."""
    logical, stored = sizes
    offset, salt, iv, mac = block * logical, *cipher
    # payloadlen, flags, the words of key_checksum and key_prop are 0
    return _write(
        *(0, number, kind, offset, logical, toguid, DECIDED_BY_KERNEL, 0, compression),
        *(0, 0, 0, 0, 0, stored, salt, iv, mac),
    )


def object_header(dnode: Dnode, toguid: int, room: int) -> bytes:
    """An OBJECT. `room`: bytes of the bonus buffer that follows."""
    return _object(
        *(0, dnode.number, dnode.type, dnode.bonustype, dnode.blksz, dnode.bonuslen, dnode.checksum, dnode.compress),
        *(dnode.slots, RecordFlag.OBJECT_SPILL if dnode.has_spill else 0, room, toguid),
        *(dnode.indblkshift, dnode.nlevels, dnode.nblkptr, dnode.maxblkid),
    )


def free_to_the_end(dnode: Dnode, toguid: int) -> bytes:
    """The FREE behind an OBJECT: it tells a receiver that nothing lives behind the last block."""
    return _free(0, dnode.number, (dnode.maxblkid + 1) * dnode.blksz, TO_THE_END, toguid)
