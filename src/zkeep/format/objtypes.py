"""Types of object sets and of objects, and which object types are encrypted; the others are only authenticated.

Source: OpenZFS include/sys/dmu.h dmu_object_type_t, DMU_OT_*; module/zfs/dmu.c dmu_ot[].
"""

from __future__ import annotations

from enum import IntEnum

NEW_TYPE = 0x80
"This bit marks a type that consists of flags; others are numbers in a table."
NEW_METADATA = 0x40
NEW_ENCRYPTED = 0x20
UINT64_METADATA = NEW_TYPE | NEW_METADATA | 3
"DMU_OTN_UINT64_METADATA."


class ObjsetType(IntEnum):
    """dmu_objset_type_t, as a BEGIN has it."""

    FILESYSTEM = 2
    VOLUME = 3


class ObjectType(IntEnum):
    """dmu_object_type_t: the types that are read here."""

    NONE = 0
    DNODE = 10
    ZNODE = 17
    OLD_ACL = 18
    PLAIN_FILE = 19
    DIRECTORY = 20
    MASTER_NODE = 21
    DELETE_QUEUE = 22
    ZVOL = 23
    ZVOL_PROP = 24
    ACL = 33
    SYSACL = 34
    FUID_SIZE = 36
    SA = 44
    SA_MASTER = 45
    SA_REGISTRY = 46
    SA_LAYOUTS = 47


_ENCRYPTED = frozenset({9, 10, 18, 19, 20, 22, 23, 25, 26, 33, 34, 35, 39, 40, 44, 45, 46, 47, 49})


def is_encrypted(kind: int) -> bool:
    """Whether blocks and bonus buffers of this type are encrypted; the others are stored as they are, with an HMAC."""
    if kind & NEW_TYPE:
        return bool(kind & NEW_ENCRYPTED)
    return kind in _ENCRYPTED
