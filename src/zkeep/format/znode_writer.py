"""Writing the attributes that a filesystem keeps for each file: the twin of format/znode.py.

Source: OpenZFS include/sys/zfs_znode.h (flags), include/sys/zfs_acl.h; module/os/linux/zfs/zfs_znode_os.c zfs_mknode(),
module/os/linux/zfs/zfs_acl.c acl_trivial_access_masks().
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from zkeep.format import sa_writer as sa
from zkeep.format.nvlist import Encoding, NvForm, NvList, NvType, encode
from zkeep.format.znode import ACL_AUTO_INHERIT, ACL_TRIVIAL, HAS_PROJID, IS_XATTR

ARCHIVE, MODIFIED = 1 << 35, 1 << 42
NO_EXECS_DENIED = 0x100
MAX_XATTR_VALUE = 32_768
MAX_XATTRS = 64 << 10
"Bytes of all extended attributes of a file, packed, that lie among its system attributes."

_READ, _WRITE, _WRITE_FOLDER, _EXECUTE = 0x1, 0x6, 0x46, 0x20
_ALWAYS, _OWNER_ALWAYS = 0x120088, 0xC0110
_OWNER, _GROUP, _EVERYONE = 0x1000, 0x2040, 0x4000
_ALLOW, _DENY = 0, 1
_SECOND = 1_000_000_000


@dataclass(slots=True)
class FileFields:
    """The attributes of one file; times in nanoseconds since 1970, `rdev` as major << 20 | minor.

    `size` of a folder is the number of its entries and 2, of a link the bytes of its target.
    """

    mode: int
    uid: int
    gid: int
    size: int
    links: int
    atime: int
    mtime: int
    ctime: int
    crtime: int
    parent: int
    generation: int
    "Not 0: a kernel takes that for a file that is gone."
    rdev: int = 0
    target: bytes | None = None
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    xattr_folder: int = 0
    flags: int = 0
    "IMMUTABLE, APPEND_ONLY, NO_DUMP, IS_XATTR."


def encode_file(fields: FileFields) -> tuple[bytes, bytes | None]:
    """The bonus buffer, and the spill block's content or None.

    Raises:
        ValueError: its attributes do not fit (see MAX_XATTRS, sa_writer.MAX_ATTRIBUTE).
    """
    # Attributes that every file has.
    mode, aces = fields.mode, trivial_acl(fields.mode)
    flags = fields.flags | ARCHIVE | MODIFIED | ACL_TRIVIAL
    flags |= HAS_PROJID if _has_project(mode) else 0
    flags |= ACL_AUTO_INHERIT if stat.S_ISDIR(mode) and not fields.flags & IS_XATTR else 0
    flags |= NO_EXECS_DENIED if mode & 0o111 == 0o111 else 0
    # Most files and folders have no more than that.
    if _has_project(mode) and not (fields.xattrs or fields.xattr_folder or fields.target is not None):
        numbers = mode, fields.size, fields.generation, fields.uid, fields.gid, fields.parent, flags
        changed = *divmod(fields.atime, _SECOND), *divmod(fields.mtime, _SECOND)
        made = *divmod(fields.ctime, _SECOND), *divmod(fields.crtime, _SECOND)
        return sa.encode_plain((*numbers, *changed, *made, fields.links), aces), None
    values = {
        sa.MODE: _u64(mode),
        sa.SIZE: _u64(fields.size),
        sa.GEN: _u64(fields.generation),
        sa.UID: _u64(fields.uid),
        sa.GID: _u64(fields.gid),
        sa.PARENT: _u64(fields.parent),
        sa.FLAGS: _u64(flags),
        sa.ATIME: _time(fields.atime),
        sa.MTIME: _time(fields.mtime),
        sa.CTIME: _time(fields.ctime),
        sa.CRTIME: _time(fields.crtime),
        sa.LINKS: _u64(fields.links),
        sa.DACL_COUNT: _u64(len(aces) // 8),
        sa.DACL_ACES: aces,
    }
    # Those that depend on its kind, or that it may have.
    if _has_project(mode):
        values[sa.PROJID] = _u64(0)
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        values[sa.RDEV] = _u64(fields.rdev)
    if fields.target is not None:
        values[sa.SYMLINK] = fields.target
    if fields.xattr_folder:
        values[sa.XATTR] = _u64(fields.xattr_folder)
    if fields.xattrs:
        values[sa.DXATTR] = pack_xattrs(fields.xattrs)
    return sa.encode(values)


def pack_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """Extended attributes by their full names (user.x, security.capability), as one packed list."""
    packed = NvList(form=NvForm(Encoding.XDR, little=True))
    for name, value in sorted(xattrs.items()):
        packed.set(name.decode("utf-8", "surrogateescape"), value, NvType.BYTE_ARRAY)
    return encode(packed)


@lru_cache(1024)
def trivial_acl(mode: int) -> bytes:
    """The ACL that means the same as a mode: entries of type, who and mask, 8 bytes each.

    A mode's classes exclude each other, but the entries of an ACL add up, first come first served. So a class that may
    do less than a later one needs an entry that denies the difference; where the owner may do what the group is denied,
    an entry before that allows it.

        0        2        4        8
        +--------+--------+--------+
        | type   | who    | mask   |       allow or deny; owner, group or everyone; what is allowed or denied
        +--------+--------+--------+
    """
    folder = stat.S_ISDIR(mode)
    owner, group, other = (_mask(mode >> shift & 7, folder) for shift in (6, 3, 0))
    deny_owner = (group | other) & ~owner
    deny_group = other & ~group
    allow_owner = owner & ~group & other
    # What is denied comes before what is allowed to a later class; the owner's exception comes before both.
    entries = [(_ALLOW, _OWNER, allow_owner)] if allow_owner else []
    entries += [(_DENY, _OWNER, deny_owner)] if deny_owner else []
    entries += [(_DENY, _GROUP, deny_group)] if deny_group else []
    entries += [
        (_ALLOW, _OWNER, owner | _ALWAYS | _OWNER_ALWAYS),
        (_ALLOW, _GROUP, group | _ALWAYS),
        (_ALLOW, _EVERYONE, other | _ALWAYS),
    ]
    return b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _mask(bits: int, folder: bool) -> int:
    write = _WRITE_FOLDER if folder else _WRITE
    return (_READ if bits & 4 else 0) | (write if bits & 2 else 0) | (_EXECUTE if bits & 1 else 0)


def _has_project(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


_u64 = struct.Struct("<Q").pack
_time_pair = struct.Struct("<qQ").pack


def _time(nanoseconds: int) -> bytes:
    return _time_pair(*divmod(nanoseconds, _SECOND))
