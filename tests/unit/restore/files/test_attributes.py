"""What the target does not keep is reported."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

import pytest

from zkeep.format.acl import OWNER
from zkeep.format.znode import Znode
from zkeep.restore.files import attributes
from zkeep.restore.files.attributes import TargetFile
from zkeep.restore.files.report import RestoreReport

ACL = struct.pack("<HHI", 0, OWNER, 0x1F01FF)


def node(acl: bytes = ACL) -> Znode:
    numbers = dict.fromkeys(("uid", "gid", "size", "atime", "mtime", "ctime", "crtime", "parent", "flags"), 0)
    numbers |= dict.fromkeys(("generation", "rdev", "xattr_folder"), 0)
    return Znode(number=5, mode=0o100644, links=1, project=77, acl=acl, **numbers)  # type: ignore[arg-type]


NODE = node()
PLAIN = node(b"")


@pytest.fixture
def file(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)


class Picky(TargetFile):
    """Takes one extended attribute only."""

    def __init__(self, taken: bytes) -> None:
        super().__init__(b"file", None)
        self.taken = taken
        self.asked: list[bytes] = []

    def set_xattr(self, name: bytes, value: bytes) -> None:
        self.asked.append(name)
        if name != self.taken:
            raise OSError(errno.EOPNOTSUPP, "not here")


def test_an_acl_is_set_under_the_first_name_that_is_taken() -> None:
    target, report = Picky(b"system.nfs4_acl"), RestoreReport()
    attributes.set_acl(target, NODE, report)
    assert target.asked == [b"system.nfs4_acl_xdr", b"system.nfs4_acl"]
    assert not report.counts


def test_an_acl_that_the_target_cannot_have_is_counted(file: int) -> None:
    report = RestoreReport()
    attributes.set_acl(TargetFile(b"file", file), NODE, report)
    attributes.set_acl(TargetFile(b"file", file), node(ACL[:5]), report)
    assert report.counts == {"NFSv4 ACLs": 1, "broken NFSv4 ACLs": 1}


def test_a_project_number_is_kept_or_counted(file: int) -> None:
    import fcntl

    report = RestoreReport()
    attributes.set_project(TargetFile(b"file", file), NODE, report)
    if not report.counts:
        content = fcntl.ioctl(file, attributes._GET, bytes(28))
        assert struct.unpack_from("=5I", content)[3] == 77
    attributes.set_project(TargetFile(b"link", None, b"link", -1), NODE, report)
    assert report.counts["project numbers"] in (1, 2)


class Silent(TargetFile):
    """A filesystem that takes every owner and keeps none."""

    def set_owner(self, uid: int, gid: int) -> None:
        pass


@pytest.mark.parametrize("uid", [12345, 0xFFFFFFFF])
def test_a_file_of_another_owner_never_acts_for_its_owner(uid: int, tmp_path: Path) -> None:
    """uid 0xFFFFFFFF is chown()'s word for: leave it as it is."""
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    target = Silent(b"file", fd) if uid == 12345 else TargetFile(b"file", fd)
    report = RestoreReport()
    capabilities = b"security.capability", bytes(20)
    attributes.dress(target, PLAIN._replace(uid=uid, mode=0o106755), [capabilities], report)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o755
    assert report.counts == {"owners": 1, "capabilities": 1}
    assert "security.capability" not in os.listxattr(fd)


def test_a_mode_without_its_acl_gives_the_group_no_more() -> None:
    """With an ACL the group's bits of a mode are the mask."""
    acl = struct.pack("<I", 2)
    for tag, access in ((1, 6), (2, 7), (4, 4), (16, 7), (32, 0)):
        acl += struct.pack("<HHI", tag, access, 1001)
    assert attributes.without_acl(0o670, acl) == 0o640
    assert attributes.without_acl(0o670, acl[:-1]) == 0o600


def test_numbers_that_the_system_has_no_room_for_are_counted(file: int) -> None:
    report = RestoreReport()
    odd = PLAIN._replace(mtime=1 << 100, uid=os.geteuid(), gid=os.getegid())
    attributes.dress(TargetFile(b"file", file), odd, [], report)
    assert report.counts == {"times": 1}
