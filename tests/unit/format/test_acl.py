"""NFSv4 ACLs: from what ZFS stores to what other filesystems take."""

from __future__ import annotations

import struct

import pytest

from zkeep.format.acl import EVERYONE, GROUP, IDENTIFIER_GROUP, OWNER, Ace, BadAcl, as_xattrs, decode
from zkeep.format.records import ByteOrder

ENTRIES = [
    Ace(0, OWNER, 0x1F01FF, -1),
    Ace(1, IDENTIFIER_GROUP | 0x3, 0x2, 1234),
    Ace(0, GROUP | IDENTIFIER_GROUP, 0x1200A9, -1),
    Ace(0, 0x80, 0x1, 70_000),
    Ace(0, EVERYONE, 0x120088, -1),
]


def stored(order: ByteOrder) -> bytes:
    mark = "<" if order == "little" else ">"
    parts = []
    for ace in ENTRIES:
        parts.append(struct.pack(mark + "HHI", ace.type, ace.flags, ace.mask))
        parts.append(struct.pack(mark + "Q", ace.who) if ace.who >= 0 else b"")
    return b"".join(parts)


@pytest.mark.parametrize("order", ["little", "big"])
def test_stored_entries_are_read(order: ByteOrder) -> None:
    assert decode(stored(order), order) == ENTRIES
    with pytest.raises(BadAcl):
        decode(stored(order)[:-1], order)


def test_they_read_as_getfacl_prints_them() -> None:
    texts = ["owner@:rwxpDdaARWcCos:-------:allow", "group:1234:-w------------:fd-----:deny"]
    assert [str(ace) for ace in ENTRIES[:2]] == texts


def test_the_attribute_of_zfs_has_five_numbers_an_entry() -> None:
    value = as_xattrs(ENTRIES, 2)[b"system.nfs4_acl_xdr"]
    assert struct.unpack_from(">2I", value) == (2, 5)
    assert [struct.unpack_from(">5I", value, 8 + 20 * n) for n in range(5)] == [
        (0, 0, 1, 0x1F01FF, 1),
        (1, 0x43, 0, 0x2, 1234),
        (0, 0x40, 1, 0x1200A9, 2),
        (0, 0x80, 0, 0x1, 70_000),
        (0, 0, 1, 0x120088, 3),
    ]
    assert len(value) == 8 + 5 * 20


def test_the_attribute_of_nfs_names_who_it_is_for() -> None:
    value = as_xattrs(ENTRIES, 0)[b"system.nfs4_acl"]
    (count,), at, names = struct.unpack_from(">I", value), 4, []
    for _ in range(count):
        *_, size = struct.unpack_from(">4I", value, at)
        names.append(value[at + 16 : at + 16 + size])
        at += 16 + (size + 3) // 4 * 4
    assert names == [b"OWNER@", b"1234", b"GROUP@", b"70000", b"EVERYONE@"]
    assert at == len(value)
