"""POSIX ACLs, as Linux keeps them in extended attributes, and what they have to do with a file's mode.

    0         4                       entries of 8 bytes
    +---------+-------------------------------------------------
    | u32: 2  | u16 tag, u16 permissions, u32 user or group  ...
    +---------+-------------------------------------------------

Source: Linux include/uapi/linux/posix_acl_xattr.h; fs/posix_acl.c posix_acl_create_masq(), posix_acl_equiv_mode(),
__posix_acl_chmod_masq(), posix_acl_valid().
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import NamedTuple

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
OWNER, USER, GROUP, NAMED_GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
"Tags."
_VERSION = 2
_ONCE = {OWNER, GROUP, OTHER}
_SHIFTS = {OWNER: 6, GROUP: 3, MASK: 3, OTHER: 0}


class BadPosixAcl(ValueError):
    """It is no POSIX ACL that Linux would take."""


class PosixEntry(NamedTuple):
    tag: int
    permissions: int
    who: int


def decode(data: bytes) -> list[PosixEntry]:
    """Raises BadAcl."""
    if len(data) < 4 or (len(data) - 4) % 8 or struct.unpack_from("<I", data)[0] != _VERSION:
        raise BadPosixAcl("it is not as long as an ACL is")
    found = [PosixEntry(*entry) for entry in struct.iter_unpack("<HHI", data[4:])]
    counts = Counter(entry.tag for entry in found)
    if any(entry.permissions > 7 for entry in found) or set(counts) - {*_SHIFTS, USER, NAMED_GROUP}:
        raise BadPosixAcl("an entry makes no sense")
    if any(counts[tag] != 1 for tag in _ONCE) or counts[MASK] > 1:
        raise BadPosixAcl("an entry is missing, or there twice")
    if counts[USER] + counts[NAMED_GROUP] and not counts[MASK]:
        raise BadPosixAcl("it names users or groups, and has no mask")
    return found


def encode(entries: list[PosixEntry]) -> bytes:
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def is_a_mode(entries: list[PosixEntry]) -> bool:
    """Whether the bits of a mode say the same."""
    return all(entry.tag in _ONCE for entry in entries)


def mode_of(entries: list[PosixEntry], mode: int) -> int:
    """The mode that a file with such an access ACL has: its group bits are the mask, if there is one."""
    for entry in sorted(entries, key=lambda entry: entry.tag):  # a mask comes behind the group
        if entry.tag in _SHIFTS:
            shift = _SHIFTS[entry.tag]
            mode = mode & ~(7 << shift) | entry.permissions << shift
    return mode


def with_mode(entries: list[PosixEntry], mode: int) -> list[PosixEntry]:
    """An access ACL after chmod(2)."""
    classes = {OWNER, OTHER, MASK if any(entry.tag == MASK for entry in entries) else GROUP}
    return [
        entry._replace(permissions=mode >> _SHIFTS[entry.tag] & 7) if entry.tag in classes else entry
        for entry in entries
    ]


def inherited(entries: list[PosixEntry], mode: int) -> tuple[list[PosixEntry], int]:
    """The access ACL and the mode of a new file in a folder with such a default ACL; `mode`: what was asked for."""
    classes = {OWNER, OTHER, MASK if any(entry.tag == MASK for entry in entries) else GROUP}
    found = []
    for entry in entries:
        if entry.tag in classes:
            shift = _SHIFTS[entry.tag]
            permissions = entry.permissions & mode >> shift & 7
            mode = mode & ~(7 << shift) | permissions << shift
            found.append(entry._replace(permissions=permissions))
        else:
            found.append(entry)
    return found, mode
