"""Types of objects: which are sealed, and which are only authenticated.

Source: OpenZFS include/sys/dmu.h dmu_object_type_t, DMU_OT_*; module/zfs/dmu.c dmu_ot[].
"""

from __future__ import annotations

from enum import IntEnum

NEW_TYPE = 0x80
"A type that is made of flags, not of the table."
NEW_ENCRYPTED = 0x20


class ObjectType(IntEnum):
    """The types that are read here."""

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
    SA = 44
    SA_MASTER = 45
    SA_REGISTRY = 46
    SA_LAYOUTS = 47


_ENCRYPTED = frozenset({9, 10, 18, 19, 20, 22, 23, 25, 26, 33, 34, 35, 39, 40, 44, 45, 46, 47, 49})


def is_encrypted(kind: int) -> bool:
    """Whether blocks (or a bonus buffer) of this type are sealed; the others carry an HMAC of what lies open."""
    if kind & NEW_TYPE:
        return bool(kind & NEW_ENCRYPTED)
    return kind in _ENCRYPTED
