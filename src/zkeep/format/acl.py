"""NFSv4 ACLs as ZFS keeps them, as values, as text, and as the extended attributes that other filesystems take.
(POSIX ACLs are ordinary extended attributes.)

Source: OpenZFS include/sys/zfs_acl.h zfs_ace_hdr_t, zfs_ace_t, zfs_object_ace_t, zfs_oldace_t; acl.h ACE_*;
RFC 7530, nfsace4, for the attribute of NFS clients; TrueNAS's nfs41acl.h for that of its ZFS on Linux.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from zkeep.format.records import ByteOrder

OWNER, GROUP, EVERYONE, IDENTIFIER_GROUP = 0x1000, 0x2000, 0x4000, 0x0040
_WHO = OWNER | GROUP | EVERYONE
_OBJECT_TYPES = range(5, 9)
_ACCESS = "rwxpDdaARWcCos"
_BITS = (0x1, 0x2, 0x20, 0x4, 0x40, 0x10000, 0x80, 0x100, 0x8, 0x10, 0x20000, 0x40000, 0x80000, 0x100000)
_FLAGS = (("f", 1), ("d", 2), ("i", 8), ("n", 4), ("S", 0x10), ("F", 0x20), ("I", 0x80))
_TYPES = ("allow", "deny", "audit", "alarm")


class BadAcl(ValueError):
    """An ACL ends in the middle of an entry."""


@dataclass(frozen=True, slots=True)
class Ace:
    """One entry. `who` is -1 for owner@, group@ and everyone@."""

    type: int
    flags: int
    mask: int
    who: int

    def __str__(self) -> str:
        """The text that `ls -V` of illumos and getfacl of FreeBSD print."""
        names = {OWNER: "owner@", GROUP: "group@", EVERYONE: "everyone@"}
        special = names.get(self.flags & _WHO) if self.who < 0 else None
        who = special or f"{'group' if self.flags & IDENTIFIER_GROUP else 'user'}:{self.who}"
        access = "".join(c if self.mask & bit else "-" for c, bit in zip(_ACCESS, _BITS, strict=True))
        flags = "".join(c if self.flags & bit else "-" for c, bit in _FLAGS)
        kind = _TYPES[self.type] if self.type < len(_TYPES) else str(self.type)
        return f"{who}:{access}:{flags}:{kind}"


def decode(data: bytes, order: ByteOrder) -> list[Ace]:
    """Decode ZPL_DACL_ACES.

    Raises:
        BadAcl: it is cut short.
    """
    return list(_entries(data, order))


def _entries(data: bytes, order: ByteOrder) -> Iterator[Ace]:
    # 0      2       4        8                     16
    # | type | flags | mask   | user or group, u64  | 32 bytes more for object types
    #                         ^ missing for owner@, group@ and everyone@
    mark = "<" if order == "little" else ">"
    at = 0
    try:
        while at < len(data):
            kind, flags, mask = struct.unpack_from(mark + "HHI", data, at)
            at += 8
            who = -1
            if not flags & _WHO:
                (who,) = struct.unpack_from(mark + "Q", data, at)
                at += 8 + (32 if kind in _OBJECT_TYPES else 0)
            yield Ace(kind, flags, mask, who)
    except struct.error:
        raise BadAcl(f"an ACL of {len(data)} bytes ends in the middle of an entry") from None


_NFS_FLAGS = 0xFF
"Flags that mean the same in ZFS and NFS."
_SPECIAL = {OWNER: (1, b"OWNER@"), GROUP: (2, b"GROUP@"), EVERYONE: (3, b"EVERYONE@")}


def as_xattrs(entries: list[Ace], state: int) -> dict[bytes, bytes]:
    """The same ACL under each name that some Linux filesystem takes: ZFS of TrueNAS, then an NFSv4 mount.

    `state`: 1 it inherits by itself, 2 it is protected, 4 it is a default. Users and groups are numbers.
    """
    native = [struct.pack(">II", state, len(entries))]
    over_nfs = [struct.pack(">I", len(entries))]
    for ace in entries:
        # TrueNAS numbers owner@, group@, everyone@ 1, 2, 3; NFS names them, and users by their digits.
        special, name = _SPECIAL.get(ace.flags & _WHO, (0, b"")) if ace.who < 0 else (0, b"%d" % ace.who)
        flags, who = ace.flags & _NFS_FLAGS, special or max(ace.who, 0) & 0xFFFFFFFF
        native.append(struct.pack(">5I", ace.type, flags, int(special > 0), ace.mask, who))
        over_nfs.append(struct.pack(">4I", ace.type, flags, ace.mask, len(name)) + name + bytes(-len(name) % 4))
    return {b"system.nfs4_acl_xdr": b"".join(native), b"system.nfs4_acl": b"".join(over_nfs)}
