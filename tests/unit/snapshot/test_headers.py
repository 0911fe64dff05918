"""Headers made without an object are those that records.py makes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zkeep.format.dnode import Dnode
from zkeep.format.limits import TO_THE_END
from zkeep.format.records import Free, Object, RecordFlag, Write
from zkeep.snapshot.headers import free_to_the_end, object_header, write_header

U64, U32, U8 = (st.integers(0, (1 << bits) - 1) for bits in (64, 32, 8))
CIPHERS = st.tuples(*(st.binary(min_size=size, max_size=size) for size in (8, 12, 16)))


@given(U64, U32, st.integers(0, 1 << 30), st.tuples(U32, U32), U64, U8, CIPHERS)
def test_a_write(
    number: int,
    kind: int,
    block: int,
    sizes: tuple[int, int],
    toguid: int,
    compression: int,
    cipher: tuple[bytes, bytes, bytes],
) -> None:
    salt, iv, mac = cipher
    record = Write(
        object=number,
        type=kind,
        offset=block * sizes[0],
        logical_size=sizes[0],
        toguid=toguid,
        checksumtype=7,
        compressiontype=compression,
        compressed_size=sizes[1],
        salt=salt,
        iv=iv,
        mac=mac,
    )
    assert write_header(number, kind, block, sizes, toguid, compression, cipher) == record.pack("little")


@given(st.tuples(st.integers(0, 1 << 40), *[U8] * 2, st.integers(512, 1 << 24), *[U8] * 4), st.booleans(), U64, U32)
def test_an_object_and_the_free_behind_it(
    numbers: tuple[int, ...], has_spill: bool, toguid: int, room: int
) -> None:
    shape = 17, 2, 1, 1 << 20
    dnode = Dnode(*numbers, has_spill, *shape, "little", b"")
    record = Object(
        **dict(zip(("object", "type", "bonustype", "blksz", "bonuslen"), numbers[:5], strict=True)),
        **dict(zip(("dn_slots", "checksumtype", "compress"), numbers[5:], strict=True)),
        **dict(zip(("indblkshift", "nlevels", "nblkptr", "maxblkid"), shape, strict=True)),
        flags=RecordFlag.OBJECT_SPILL if has_spill else 0,
        raw_bonuslen=room,
        toguid=toguid,
    )
    assert object_header(dnode, toguid, room) == record.pack("little")
    tail = Free(object=dnode.number, offset=((1 << 20) + 1) * dnode.blksz, length=TO_THE_END, toguid=toguid)
    assert free_to_the_end(dnode, toguid) == tail.pack("little")
