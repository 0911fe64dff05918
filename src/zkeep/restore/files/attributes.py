"""What only some filesystems keep of a file: NFSv4 ACLs, and the number of its project.

Source: Linux include/uapi/linux/fs.h struct fsxattr, FS_IOC_FSGETXATTR; OpenZFS module/os/linux/zfs/zpl_file.c
zpl_ioctl_setxattr().
"""

from __future__ import annotations

import struct

from zkeep.format.acl import BadAcl, as_xattrs, decode
from zkeep.format.znode import PROJINHERIT, Znode
from zkeep.restore.files.target import Skipped, takes_xattr

_FSXATTR = struct.Struct("=5I8x")
"xflags, extsize, nextents, projid, cowextsize."
_GET, _SET = 0x801C581F, 0x401C5820
_INHERIT = 0x200


def set_acl(place: int | bytes, folder: int | None, node: Znode, skipped: Skipped) -> None:
    """To be done last, as changing a mode may change the ACL."""
    try:
        choices = as_xattrs(decode(node.acl, node.order), node.acl_state)
    except BadAcl:
        skipped.add("broken NFSv4 ACLs")
        return
    if not any(takes_xattr(place, folder, name, value) for name, value in choices.items()):
        skipped.add("NFSv4 ACLs")


def set_project(place: int | bytes, node: Znode, skipped: Skipped) -> None:
    """Of files and folders, which alone can be opened."""
    if not isinstance(place, int):
        skipped.add("project numbers")
        return
    import fcntl

    try:
        flags, extsize, nextents, _, cowextsize = _FSXATTR.unpack(fcntl.ioctl(place, _GET, bytes(_FSXATTR.size)))
        flags = flags | _INHERIT if node.flags & PROJINHERIT else flags & ~_INHERIT
        fcntl.ioctl(place, _SET, _FSXATTR.pack(flags, extsize, nextents, node.project, cowextsize))
    except OSError:
        skipped.add("project numbers")
