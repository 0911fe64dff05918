"""Set the attributes of extracted files: owner, extended attributes, ACLs, times, mode, project number, flags.

An attribute that the target cannot take is reported; all others are set nevertheless.

Source: Linux include/uapi/linux/fs.h struct fsxattr, FS_IOC_FSGETXATTR; include/uapi/linux/posix_acl_xattr.h; OpenZFS
module/os/linux/zfs/zpl_file.c zpl_ioctl_setxattr().
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Iterable

from zkeep.errors import ZkeepError
from zkeep.format.acl import BadAcl, as_xattrs, decode
from zkeep.format.znode import LINUX_FLAGS, PROJINHERIT, Znode
from zkeep.names import printable_path
from zkeep.restore.files.report import NotTaken, RestoreReport
from zkeep.restore.files.target import change_mode

_FSXATTR = struct.Struct("=5I8x")
"xflags, extsize, nextents, projid, cowextsize."
_GET, _SET = 0x801C581F, 0x401C5820
_INHERIT = 0x200
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_LEAVE = 0xFFFFFFFF
"chown() takes this number as: leave it as it is. No owner has it."
_ACTS_FOR_OWNER = stat.S_ISUID | stat.S_ISGID
_CAPABILITY = b"security.capability"
_ACCESS_ACL = b"system.posix_acl_access"
_ACL_GROUP, _ACL_MASK = 0x04, 0x10
_ERRORS = (OSError, OverflowError, ValueError)
"Python raises the latter two for numbers that are too large for the system call; they mean the same as an OSError."

Xattrs = Iterable[tuple[bytes, bytes | ZkeepError]]


class TargetFile:
    """A new file that gets its attributes: by its descriptor, or by its name if it cannot be opened (a link, a device).

    `path` is its name in reports.
    """

    def __init__(self, path: bytes, fd: int | None, name: bytes = b"", folder: int = -1) -> None:
        self.path = path
        self.fd = fd
        self.name = name
        self.folder = folder

    def status(self) -> os.stat_result:
        if self.fd is not None:
            return os.fstat(self.fd)
        return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)

    def set_owner(self, uid: int, gid: int) -> None:
        if self.fd is not None:
            os.fchown(self.fd, uid, gid)
        else:
            os.chown(self.name, uid, gid, dir_fd=self.folder, follow_symlinks=False)

    def set_times(self, atime: int, mtime: int) -> None:
        if self.fd is not None:
            os.utime(self.fd, ns=(atime, mtime))
        else:
            os.utime(self.name, ns=(atime, mtime), dir_fd=self.folder, follow_symlinks=False)

    def set_mode(self, mode: int) -> None:
        if self.fd is not None:
            os.fchmod(self.fd, mode)
        else:
            change_mode(self.name, self.folder, mode)

    def set_xattr(self, name: bytes, value: bytes) -> None:
        if not hasattr(os, "setxattr"):
            raise OSError("this system's Python sets none")
        if self.fd is not None:
            os.setxattr(self.fd, name, value)
        else:
            os.setxattr(b"/proc/self/fd/%d/%s" % (self.folder, self.name), name, value, follow_symlinks=False)


def dress(target: TargetFile, node: Znode, xattrs: Xattrs, report: RestoreReport) -> None:
    """Set owner, extended attributes, times, mode and NFSv4 ACL, in an order in which none undoes another.

    If the stored owner cannot be set, the file must not act for the wrong one: no setuid, setgid or capabilities.
    """
    mode = stat.S_IMODE(node.mode)
    owned = _set_owner(target, node)
    if not owned:
        report.add("owners", target.path)
        mode &= ~_ACTS_FOR_OWNER
    for name, value in xattrs:
        if name == _CAPABILITY and not owned:
            report.add("capabilities", target.path)
        elif not _set_xattr(target, name, value, report) and name == _ACCESS_ACL and isinstance(value, bytes):
            mode = without_acl(mode, value)
    try:
        target.set_times(node.atime, node.mtime)
    except _ERRORS:
        report.add("times", target.path)
    _set_mode(target, node, mode, report)
    if node.has_acl:
        set_acl(target, node, report)  # last, as changing a mode may change the ACL


def _set_owner(target: TargetFile, node: Znode) -> bool:
    """Set owner and group; returns whether the file has them now. Some filesystems report success and do nothing."""
    if _LEAVE in (node.uid, node.gid):
        return False
    try:
        target.set_owner(node.uid, node.gid)
        if node.mode & _ACTS_FOR_OWNER or node.packed_xattrs or node.xattr_folder:
            found = target.status()
            return (found.st_uid, found.st_gid) == (node.uid, node.gid)
    except _ERRORS:
        return False
    return True


def _set_mode(target: TargetFile, node: Znode, mode: int, report: RestoreReport) -> None:
    if node.is_link:
        return
    try:
        target.set_mode(mode)
    except _ERRORS:
        report.add("modes", target.path)


def _set_xattr(target: TargetFile, name: bytes, value: bytes | ZkeepError, report: RestoreReport) -> bool:
    try:
        if isinstance(value, ZkeepError):
            raise value
        target.set_xattr(name, value)
    except _ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
        report.lacks(target.path, name, NotTaken(f"extended attribute {printable_path(name)}: {reason}"))
    except ZkeepError as error:
        report.lacks(target.path, name, error)
    else:
        return True
    return False


def without_acl(mode: int, acl: bytes) -> int:
    """The safe mode of a file that lost its POSIX ACL: with one, the group bits of a mode are the ACL's mask."""
    if len(acl) % 8 != 4:
        return mode & ~stat.S_IRWXG
    entries: dict[int, int] = {tag: access for tag, access, _ in struct.iter_unpack("<HHI", acl[4:])}
    allowed = entries.get(_ACL_GROUP, 0) & entries.get(_ACL_MASK, 7)
    return mode & (~stat.S_IRWXG | (allowed & 7) << 3)


def set_acl(target: TargetFile, node: Znode, report: RestoreReport) -> None:
    """Set the NFSv4 ACL, under the first name that the target takes."""
    try:
        # Linux has no attribute of its own for NFSv4 ACLs: ZFS of TrueNAS takes one name, NFS mounts another.
        choices = as_xattrs(decode(node.acl, node.order), node.acl_state)
    except BadAcl:
        report.add("broken NFSv4 ACLs", target.path)
        return
    # The first filesystem attribute that is accepted is enough.
    for name, value in choices.items():
        try:
            target.set_xattr(name, value)
        except _ERRORS:
            continue
        return
    report.add("NFSv4 ACLs", target.path)


def set_project(target: TargetFile, node: Znode, report: RestoreReport) -> None:
    """Set the project number. Only files that can be opened, and folders, have one."""
    if target.fd is None:
        report.add("project numbers", target.path)
        return
    import fcntl

    try:
        # Only the number and the inherit flag are ours: keep the rest of the struct as the kernel gave it.
        flags, extsize, nextents, _, cowextsize = _FSXATTR.unpack(fcntl.ioctl(target.fd, _GET, bytes(_FSXATTR.size)))
        flags = flags | _INHERIT if node.flags & PROJINHERIT else flags & ~_INHERIT
        fcntl.ioctl(target.fd, _SET, _FSXATTR.pack(flags, extsize, nextents, node.project, cowextsize))
    except (*_ERRORS, struct.error):
        report.add("project numbers", target.path)


def linux_flags(node: Znode) -> int:
    """The flags of a file, as chattr sets them: immutable, append only, no dump."""
    return sum(flag for flag, stored in LINUX_FLAGS.items() if node.flags & stored)


def set_flags(target: TargetFile, node: Znode, report: RestoreReport) -> None:
    """Set the flags of a file that has its name already, and all other attributes: an immutable one takes no more.

    Only root may set the first two, and only files that can be opened, and folders, have any.
    """
    wanted = linux_flags(node)
    if not wanted:
        return
    import fcntl

    try:
        if target.fd is None:
            raise OSError
        # Add to the flags that are set: those of the target's own filesystem stay.
        now = int.from_bytes(fcntl.ioctl(target.fd, _GET_FLAGS, bytes(8))[:4], sys.byteorder)
        fcntl.ioctl(target.fd, _SET_FLAGS, (now | wanted).to_bytes(4, sys.byteorder) + bytes(4))
    except _ERRORS:
        report.add("file flags", target.path)
