"""The attributes that a filesystem keeps for each file, in whichever way they are stored.

Source: OpenZFS include/sys/zfs_znode.h, zfs_sa.h; module/os/linux/zfs/zfs_znode_os.c, zpl_xattr.c.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from zkeep.format import sa
from zkeep.format.nvlist import BadNvlist, decode
from zkeep.format.records import ByteOrder
from zkeep.names import MAX_UINT64

ACL_TRIVIAL, ACL_PROTECTED, ACL_DEFAULTED, ACL_AUTO_INHERIT = 0x4, 0x10, 0x20, 0x40
PROJINHERIT = 0x0000400000000000
IMMUTABLE, APPEND_ONLY, NO_DUMP = 1 << 36, 1 << 38, 1 << 39
LINUX_FLAGS = {0x10: IMMUTABLE, 0x20: APPEND_ONLY, 0x40: NO_DUMP}
"Flags of FS_IOC_GETFLAGS (chattr) that a kernel keeps with a file; the others are the file system's own business."
IS_XATTR = 0x1
HAS_PROJID = 0x0000800000000000
MAX_XATTRS = 1 << 20
_LINUX = ("user.", "trusted.", "security.", "system.")
_HIDDEN = "freebsd:"
_SECOND = 1_000_000_000


class Znode(NamedTuple):
    """Times in nanoseconds; `rdev` as Linux numbers devices inside (major << 20 | minor)."""

    number: int
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
    flags: int
    generation: int
    rdev: int
    xattr_folder: int
    project: int
    target: bytes | None = None
    packed_xattrs: bytes = b""
    acl: bytes = b""
    order: ByteOrder = "little"

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor."""
        return self.rdev >> 20, self.rdev & 0xFFFFF

    @property
    def acl_state(self) -> int:
        """The state of its ACL, in the bits that format.acl.as_xattrs() takes."""
        bits = (ACL_AUTO_INHERIT, 1), (ACL_PROTECTED, 2), (ACL_DEFAULTED, 4)
        return sum(state for flag, state in bits if self.flags & flag)

    @property
    def has_acl(self) -> bool:
        """Whether there is an NFSv4 ACL that says more than the mode."""
        return bool(self.acl) and not self.flags & ACL_TRIVIAL


_NUMBERS = ("ZPL_MODE", "ZPL_UID", "ZPL_GID", "ZPL_SIZE", "ZPL_LINKS")
_TIMES = ("ZPL_ATIME", "ZPL_MTIME", "ZPL_CTIME", "ZPL_CRTIME")
_OTHERS = ("ZPL_PARENT", "ZPL_FLAGS", "ZPL_GEN", "ZPL_RDEV", "ZPL_XATTR", "ZPL_PROJID")
COLUMNS = (*_NUMBERS, *(name + part for name in _TIMES for part in ("", sa.NANO)), *_OTHERS)
"The numbers and times that znode_with() takes, named as format.sa names them."


def znode_of(number: int, attributes: sa.Attributes, order: ByteOrder) -> Znode:
    """Make a Znode of all its attributes."""
    return znode_with(number, sa.columns_of(attributes, COLUMNS, order), attributes, order)


def znode_with(number: int, columns: tuple[int, ...], rest: sa.Attributes, order: ByteOrder) -> Znode:
    """Make a Znode of the COLUMNS, and of the rest of its attributes."""
    mode, uid, gid, size, links, a, a_nano, m, m_nano, c, c_nano, cr, cr_nano, *others = columns
    parent, flags, generation, rdev, xattr_folder, project = others
    # decode gives signed numbers; a size has 64 bits without a sign. A kernel keeps 16 bits of a mode.
    size, mode = size & MAX_UINT64, mode & 0xFFFF
    # A link's target lies among its attributes, or, if it is not here, in its first block.
    target = None
    if stat.S_ISLNK(mode):
        kept = rest.get("ZPL_SYMLINK", b"")
        target = kept[:size] if len(kept) >= size else None
    owner = uid & 0xFFFFFFFF, gid & 0xFFFFFFFF
    times = a * _SECOND + a_nano, m * _SECOND + m_nano, c * _SECOND + c_nano, cr * _SECOND + cr_nano
    head = number, mode, *owner, size, links, *times, parent, flags, generation, rdev, xattr_folder
    tail = rest.get("ZPL_DXATTR", b""), rest.get("ZPL_DACL_ACES", b""), order
    return Znode._make((*head, project if flags & HAS_PROJID else 0, target, *tail))


def unpack_xattrs(packed: bytes) -> dict[bytes, bytes]:
    """Unpack the extended attributes that are stored among the system attributes.

    Raises:
        sa.BadAttributes: it is no list of byte arrays.
    """
    if not packed:
        return {}
    try:
        pairs = decode(packed, MAX_XATTRS).pairs
    except BadNvlist as error:
        raise sa.BadAttributes(f"extended attributes: {error}") from None
    found: dict[bytes, bytes] = {}
    for pair in pairs:
        if not isinstance(pair.value, bytes):
            raise sa.BadAttributes("an extended attribute is not a byte array")
        found[pair.name.encode("utf-8", "surrogateescape")] = pair.value
    return found


def shown_xattr(name: bytes) -> bytes | None:
    """The name under which Linux shows a stored extended attribute; None if it hides it."""
    text = name.decode("utf-8", "surrogateescape")
    if text.startswith(_HIDDEN):
        return None
    return name if text.startswith(_LINUX) else b"user." + name
