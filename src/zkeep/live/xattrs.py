"""Extended attributes and POSIX ACLs of a mounted dataset. The kernel enforces the ACLs."""

from __future__ import annotations

import errno
import stat
import time

from zkeep.format import posix_acl
from zkeep.format.posix_acl import ACCESS, DEFAULT, BadPosixAcl, PosixEntry
from zkeep.live.dataset import LiveDataset
from zkeep.live.errors import fail
from zkeep.live.inode import Inode

CREATE, REPLACE = 1, 2
"Flags of setxattr(2)."
USER = b"user."
NAMESPACES = (USER, b"trusted.", b"security.")
CAPABILITIES = b"security.capability"
MAX_VALUE = 64 << 10
MAX_NAMES = 64 << 10
"Bytes of all names of a file's extended attributes, each with a zero byte: as many as a kernel lists."
MAX_ALL = 1 << 20
"Bytes of all extended attributes of a file."


class Xattrs:
    """`acls`: the property acltype is posix. Raises OSError with the errno that the system call fails with."""

    def __init__(self, dataset: LiveDataset, *, acls: bool) -> None:
        self._dataset = dataset
        self._asked = acls
        "The kernel asks for ACLs; it would take an error for a file that nobody may use."
        self.acls = acls
        self.has_user = True
        "There are attributes that users name (property xattr)."

    def use(self, *, acls: bool, has_user: bool) -> None:
        """Let properties hold. ACLs cannot begin where the mount began without them."""
        self.acls, self.has_user = acls and self._asked, has_user

    def names(self, inode: Inode) -> list[bytes]:
        hidden = (() if self.acls else (ACCESS, DEFAULT)), (() if self.has_user else (USER,))
        return [n for n in self._dataset.xattrs(inode) if n not in hidden[0] and not n.startswith(hidden[1])]

    def get(self, inode: Inode, name: bytes) -> bytes:
        self._check_name(inode, name, errno.ENODATA)
        found = self._dataset.xattrs(inode).get(name)
        if found is None:
            fail(errno.ENODATA)
        return found

    def set(self, inode: Inode, name: bytes, value: bytes, flags: int = 0) -> None:
        self._check_name(inode, name, errno.EACCES)
        every = self._dataset.xattrs(inode)
        if flags & CREATE and name in every:
            fail(errno.EEXIST)
        if flags & REPLACE and name not in every:
            fail(errno.ENODATA)
        if len(value) > MAX_VALUE:
            fail(errno.E2BIG)
        if sum(len(n) + len(v) for n, v in every.items()) + len(value) > MAX_ALL:
            fail(errno.ENOSPC)
        if sum(len(each) + 1 for each in {*every, name}) > MAX_NAMES:
            fail(errno.ENOSPC)
        self._dataset.check_room(len(value))
        if name in (ACCESS, DEFAULT):
            self._set_acl(inode, name, value)
            return
        self._put(inode, {**every, name: value})

    def remove(self, inode: Inode, name: bytes) -> None:
        self._check_name(inode, name, errno.ENODATA)
        every = self._dataset.xattrs(inode)
        if name not in every:
            if name in (ACCESS, DEFAULT):
                return
            fail(errno.ENODATA)
        self._put(inode, {n: v for n, v in every.items() if n != name})

    def _check_name(self, inode: Inode, name: bytes, unfit: int) -> None:
        """`unfit`: the error where such a file cannot have a default ACL."""
        if name in (ACCESS, DEFAULT):
            if not self.acls or stat.S_ISLNK(inode.fields.mode):
                fail(errno.ENODATA if self._asked and unfit == errno.ENODATA else errno.EOPNOTSUPP)
            if name == DEFAULT and not inode.is_folder:
                fail(unfit)
        elif not name.startswith(NAMESPACES) or (name.startswith(USER) and not self.has_user):
            fail(errno.EOPNOTSUPP)
        elif name in NAMESPACES:
            fail(errno.EINVAL)  # it has no name in there

    def _put(self, inode: Inode, every: dict[bytes, bytes]) -> None:
        self._dataset.change_xattrs(inode, every)
        inode.fields.ctime = time.time_ns()

    def drop_capabilities(self, inode: Inode) -> None:
        """A program that is written to loses what it might do."""
        if (inode.fields.xattrs or inode.large is None) and CAPABILITIES in (every := self._dataset.xattrs(inode)):
            self._put(inode, {n: v for n, v in every.items() if n != CAPABILITIES})

    # ACLs

    def _set_acl(self, inode: Inode, name: bytes, value: bytes) -> None:
        try:
            entries = posix_acl.decode(value) if value else []
        except BadPosixAcl:
            fail(errno.EINVAL)
        every = {n: v for n, v in self._dataset.xattrs(inode).items() if n != name}
        if entries and name == ACCESS:
            inode.fields.mode = posix_acl.mode_of(entries, inode.fields.mode)
        if entries and not (name == ACCESS and posix_acl.is_a_mode(entries)):
            every[name] = posix_acl.encode(entries)
        self._put(inode, every)

    def after_chmod(self, inode: Inode) -> None:
        """Let an access ACL say what the new mode does."""
        entries = self._acl(inode, ACCESS)
        if entries:
            changed = posix_acl.encode(posix_acl.with_mode(entries, inode.fields.mode))
            self._put(inode, {**self._dataset.xattrs(inode), ACCESS: changed})

    def default_of(self, folder: Inode) -> list[PosixEntry]:
        """What new files in a folder inherit; nothing if it has no default ACL."""
        return self._acl(folder, DEFAULT)

    def inherit(self, inode: Inode, entries: list[PosixEntry]) -> None:
        """Give a new file the ACLs that its folder hands down, and the mode that follows."""
        access, inode.fields.mode = posix_acl.inherited(entries, inode.fields.mode)
        every = {} if posix_acl.is_a_mode(access) else {ACCESS: posix_acl.encode(access)}
        if inode.is_folder:
            every[DEFAULT] = posix_acl.encode(entries)
        if every:
            self._dataset.change_xattrs(inode, every)

    def _acl(self, inode: Inode, name: bytes) -> list[PosixEntry]:
        value = self._dataset.xattrs(inode).get(name) if self.acls and not stat.S_ISLNK(inode.fields.mode) else None
        try:
            return posix_acl.decode(value) if value else []
        except BadPosixAcl:
            return []
