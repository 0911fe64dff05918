"""What the target does not keep is told of."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from zkeep.format.acl import OWNER
from zkeep.format.znode import Znode
from zkeep.restore.files import attributes
from zkeep.restore.files.target import Skipped

ACL = struct.pack("<HHI", 0, OWNER, 0x1F01FF)


def node(acl: bytes = ACL) -> Znode:
    numbers = dict.fromkeys(("uid", "gid", "size", "atime", "mtime", "ctime", "crtime", "parent", "flags"), 0)
    numbers |= dict.fromkeys(("generation", "rdev", "xattr_folder"), 0)
    return Znode(number=5, mode=0o100644, links=1, project=77, acl=acl, **numbers)  # type: ignore[arg-type]


NODE = node()


@pytest.fixture
def file(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)


def test_an_acl_is_set_under_the_first_name_that_is_taken(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def takes(place: object, folder: object, name: bytes, value: bytes) -> bool:
        asked.append(name)
        return name == b"system.nfs4_acl"

    monkeypatch.setattr(attributes, "takes_xattr", takes)
    skipped = Skipped()
    attributes.set_acl(file, None, NODE, skipped)
    assert asked == [b"system.nfs4_acl_xdr", b"system.nfs4_acl"]
    assert not skipped.counts


def test_an_acl_that_the_target_cannot_have_is_counted(file: int) -> None:
    skipped = Skipped()
    attributes.set_acl(file, None, NODE, skipped)
    attributes.set_acl(file, None, node(ACL[:5]), skipped)
    assert skipped.counts == {"NFSv4 ACLs": 1, "broken NFSv4 ACLs": 1}


def test_a_project_number_is_kept_or_counted(file: int) -> None:
    import fcntl

    skipped = Skipped()
    attributes.set_project(file, NODE, skipped)
    if not skipped.counts:
        content = fcntl.ioctl(file, attributes._GET, bytes(28))
        assert struct.unpack_from("=5I", content)[3] == 77
    attributes.set_project(b"link", NODE, skipped)
    assert skipped.counts["project numbers"] in (1, 2)
