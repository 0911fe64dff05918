"""What a tar archive says of files, and what tar and bsdtar make of it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from zkeep.format.nvlist import NvList, NvType, Pair, encode
from zkeep.format.znode import Znode
from zkeep.restore.files.tar import write_tar
from zkeep.tree.filesystem import Extent, Filesystem, Name, NoSuchFile

ROOT = 34
TAR = ["tar", "--acls", "-xpf", "-"]
TAR_XATTRS = ["tar", "--xattrs", "--xattrs-include=*", "--acls", "-xpf", "-"]
BSDTAR = ["bsdtar", "--acls", "--xattrs", "-xpf", "-"]
ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"


class Tree(Filesystem):
    """Files that are told, not stored: paths, and objects of which each path is one."""

    root = ROOT

    def __init__(self) -> None:
        super().__init__(cast(Any, None))
        self.nodes: dict[int, Znode] = {}
        self.folders: dict[int, dict[bytes, int]] = {}
        self.attributes: dict[int, dict[bytes, bytes]] = {}
        self.content: dict[int, bytes] = {}
        self.folder(b"", number=ROOT)

    def _node(self, path: bytes, mode: int, number: int, mtime: int = 0, target: bytes | None = None) -> int:
        above, _, name = path.rpartition(b"/")
        parent = self.lookup(above).number if path else ROOT
        size = len(self.content.get(number, b""))
        times = (0, mtime, 0, 0)
        owner = os.getuid(), os.getgid()
        self.nodes[number] = Znode(number, mode, *owner, size, 1, *times, parent, 0, 1, 0, 0, 0, target)
        if path:
            self.folders[parent][name] = number
        return number

    def _new(self) -> int:
        return len(self.nodes) + ROOT

    def folder(self, path: bytes, number: int = 0, mode: int = 0o755) -> int:
        number = number or self._new()
        self.folders[number] = {}
        return self._node(path, stat.S_IFDIR | mode, number)

    def file(self, path: bytes, content: bytes = b"", mtime: int = 0, mode: int = 0o644) -> int:
        number = self._new()
        self.content[number] = content
        return self._node(path, stat.S_IFREG | mode, number, mtime)

    def symlink(self, path: bytes, target: bytes) -> int:
        return self._node(path, stat.S_IFLNK | 0o777, self._new(), target=target)

    def link(self, path: bytes, number: int) -> None:
        above, _, name = path.rpartition(b"/")
        self.folders[self.lookup(above).number][name] = number
        self.nodes[number] = self.nodes[number]._replace(links=self.nodes[number].links + 1)

    def znode(self, number: int) -> Znode:
        return self.nodes[number]._replace(packed_xattrs=packed(self.attributes.get(number, {})))

    def names(self, folder: int) -> list[Name]:
        return [Name(name, number, 0) for name, number in self.folders[folder].items()]

    def find(self, folder: int, name: bytes) -> Name | None:
        number = self.folders[folder].get(name)
        return None if number is None else Name(name, number, 0)

    def extents(self, node: Znode) -> Iterator[Extent]:
        yield Extent(0, self.content[node.number])


def packed(attributes: dict[bytes, bytes]) -> bytes:
    """Extended attributes as they lie among the system attributes."""
    nvlist = NvList()
    for name, value in attributes.items():
        nvlist.pairs.append(Pair(name.decode("utf-8", "surrogateescape"), NvType.BYTE_ARRAY, value))
    return encode(nvlist) if attributes else b""


def archived(tree: Tree, *paths: bytes) -> bytes:
    sink = io.BytesIO()
    write_tar(tree, paths or [b""], sink)
    return sink.getvalue()


def members(archive: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return opened.getmembers()


def names(archive: bytes) -> list[str]:
    return [member.name for member in members(archive)]


def extracted(command: list[str], archive: bytes, folder: Path) -> Path:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not here")
    folder.mkdir()
    done = subprocess.run(command, input=archive, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


# POSIX ACLs


def posix_acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
NAMED = posix_acl((1, 6, NOBODY), (2, 7, 1001), (4, 4, NOBODY), (8, 0, 1002), (16, 7, NOBODY), (32, 4, NOBODY))
TEXT = "user::rw-,user:1001:rwx,group::r--,group:1002:---,mask::rwx,other::r--"


def with_acls() -> Tree:
    tree = Tree()
    tree.attributes[tree.folder(b"folder", mode=0o674)] = {ACCESS: NAMED, DEFAULT: NAMED}
    tree.attributes[tree.file(b"file", mode=0o674)] = {ACCESS: NAMED}
    return tree


def test_posix_acls_are_written_as_text_too() -> None:
    _, folder, file = members(archived(with_acls()))
    assert folder.pax_headers["SCHILY.acl.access"] == folder.pax_headers["SCHILY.acl.default"] == TEXT
    assert file.pax_headers["SCHILY.acl.access"] == TEXT
    assert "SCHILY.acl.default" not in file.pax_headers
    assert "SCHILY.xattr.system.posix_acl_access" in file.pax_headers


@pytest.mark.parametrize("value", [b"", NAMED[:-1], b"\1" + NAMED[1:], posix_acl((3, 7, 0)), posix_acl()])
def test_what_is_no_posix_acl_is_an_extended_attribute_only(value: bytes) -> None:
    tree = Tree()
    tree.attributes[tree.file(b"file")] = {ACCESS: value}
    found = members(archived(tree))[1].pax_headers
    assert "SCHILY.xattr.system.posix_acl_access" in found
    assert "SCHILY.acl.access" not in found


@pytest.mark.skipif(shutil.which("getfacl") is None, reason="getfacl is not here")
@pytest.mark.parametrize("command", [TAR, TAR_XATTRS, BSDTAR], ids=["tar", "tar-xattrs", "bsdtar"])
def test_posix_acls_are_restored(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    try:
        os.setxattr(tmp_path / "probe", ACCESS, NAMED)
    except OSError:
        pytest.skip("there are no ACLs here")
    out = extracted(command, archived(with_acls()), tmp_path / "out")
    wanted = TEXT.replace(",", "\n") + "\n\n"
    assert getfacl(out / "file") == wanted
    assert getfacl(out / "folder") == wanted
    assert getfacl(out / "folder", "--default") == wanted


def getfacl(path: Path, what: str = "--access") -> str:
    command = ["getfacl", "--numeric", "--omit-header", "--no-effective", "--absolute-names", what, str(path)]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode()


# Paths


def with_links() -> Tree:
    tree = Tree()
    number = tree.file(b"hard-a", b"same")
    tree.folder(b"names")
    tree.link(b"names/hard-c", number)
    tree.file(b"names/other")
    tree.symlink(b"way", b"names")
    return tree


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([b"hard-a", b"hard-a"], ["./hard-a"]),
        ([b"names", b"hard-a", b"names/hard-c"], ["./names", "./names/hard-c", "./names/other", "./hard-a"]),
        ([b"names/hard-c", b"names"], ["./names", "./names/hard-c", "./names/other"]),
        ([b"hard-a", b"", b"names"], [".", "./hard-a", "./names", "./names/hard-c", "./names/other", "./way"]),
        ([b"names/../hard-a", b"way/../hard-a", b"hard-a"], ["./hard-a"]),
        ([b"names/..", b"names/other"], [".", "./hard-a", "./names", "./names/hard-c", "./names/other", "./way"]),
        ([b"../../names/other", b"way/other"], ["./names/other"]),
        ([b"way", b"way/other"], ["./way", "./names/other"]),
    ],
)
def test_each_path_is_there_once_and_by_its_own_name(wanted: list[bytes], found: list[str], tmp_path: Path) -> None:
    archive = archived(with_links(), *wanted)
    assert names(archive) == found
    links = [member for member in members(archive) if member.islnk()]
    assert all(member.linkname != member.name and member.linkname in found for member in links)
    extracted(["tar", "-xpf", "-"], archive, tmp_path / "out")


def test_a_file_of_two_names_is_content_once_and_a_link() -> None:
    first, second = members(archived(with_links(), b"hard-a", b"names/hard-c", b"hard-a"))
    assert (first.isreg(), first.size) == (True, 4)
    assert (second.islnk(), second.linkname, second.size) == (True, "./hard-a", 0)


@pytest.mark.parametrize("path", [b"missing", b"names/missing", b"missing/..", b"hard-a/x"])
def test_what_is_not_there_is_told_of(path: bytes) -> None:
    with pytest.raises(NoSuchFile):
        archived(with_links(), path)


# Times, names, sizes


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (-500_000_000, "-0.500000000"),
        (-1_250_000_000, "-1.250000000"),
        (-1, "-0.000000001"),
        (-2_000_000_000, "-2.000000000"),
        (0, "0.000000000"),
        (1_500_000_000, "1.500000000"),
        (4_000_000_000_123_456_789, "4000000000.123456789"),
    ],
)
def test_times_are_written_with_one_sign(nanoseconds: int, text: str, tmp_path: Path) -> None:
    tree = Tree()
    tree.file(b"file", mtime=nanoseconds)
    archive = archived(tree)
    assert f" mtime={text}\n".encode() in archive
    out = extracted(["tar", "-xpf", "-"], archive, tmp_path / "out")
    assert (out / "file").stat().st_mtime_ns == nanoseconds


ODD = {b"user.a=b": b"1", b"user.50%": b"2", b"user.%3D": b"3", b"user.=%=": b"\0\xff\n", b"user.\xff": b"4"}


def test_names_of_attributes_are_encoded_as_gnu_tar_does() -> None:
    tree = Tree()
    tree.attributes[tree.file(b"file")] = ODD
    archive = archived(tree)
    assert b" SCHILY.xattr.user.a%3Db=1\n" in archive
    assert b" SCHILY.xattr.user.%253D=3\n" in archive


def test_gnu_tar_restores_attributes_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    try:
        os.setxattr(tmp_path / "probe", b"user.probe", b"")
    except OSError:
        pytest.skip("there are no extended attributes here")
    tree = Tree()
    tree.attributes[tree.file(b"file")] = ODD
    out = extracted(TAR_XATTRS, archived(tree), tmp_path / "out")
    found = {os.fsencode(name): os.getxattr(out / "file", name) for name in os.listxattr(out / "file")}
    assert found == ODD


@pytest.mark.parametrize("command", [["tar", "-xpf", "-"], ["bsdtar", "-xpf", "-"]], ids=["tar", "bsdtar"])
def test_what_does_not_fit_into_a_header_is_restored(command: list[str], tmp_path: Path) -> None:
    tree = Tree()
    paths = [b"n" * size for size in (99, 100, 101, 255)]
    paths += [b"\xc3\xa9" * 100, b"\xff" * 120, "e\u0301".encode(), "\xe9".encode(), b"f" * 99 + b"/" + b"g" * 200]
    for size in (99, 100):
        tree.folder(b"f" * size)
    for path in paths:
        tree.file(path, path)
    tree.symlink(b"link", b"t" * 1000)
    out = extracted(command, archived(tree), tmp_path / "out")
    for path in paths:
        assert (out / os.fsdecode(path)).read_bytes() == path
    assert (out / ("f" * 100)).is_dir()
    assert os.readlink(out / "link") == "t" * 1000


def test_numbers_of_any_size_are_kept() -> None:
    tree = Tree()
    number = tree.file(b"file")
    tree.nodes[number] = tree.nodes[number]._replace(uid=0xFFFFFFFE, gid=8**7)
    found = members(archived(tree))[1]
    assert (found.uid, found.gid) == (0xFFFFFFFE, 8**7)
