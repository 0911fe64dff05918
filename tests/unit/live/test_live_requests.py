"""What is answered to single requests of the kernel, where the pool fails or somebody tries what is not theirs."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from livekit import ByPath, live

from zkeep.errors import TryAgain
from zkeep.format import posix_acl
from zkeep.live import base as live_base
from zkeep.live import dataset as live_dataset
from zkeep.live import protocol as p
from zkeep.live.control_folder import FIRST_NODE
from zkeep.live.device import Device
from zkeep.live.files import LiveFiles
from zkeep.live.fuse import Operations
from zkeep.live.protocol import Op, Request
from zkeep.live.settings import Settings

Zkeep = Callable[..., int]
USER = 1000


class Kernel:
    """Asks as a kernel does."""

    def __init__(self, files: ByPath, snapshots: Any = None) -> None:
        self.log: list[str] = []
        self.files = files
        calls = LiveFiles(files.dataset, Settings(acls=True))
        self.operations = Operations(calls, self.log.append, lambda: None, acls=True, snapshots=snapshots)
        flags = p.SETXATTR_EXT | p.HANDLE_KILLPRIV_V2 | p.POSIX_ACL
        self.ask(Op.INIT, p.INIT_IN.pack(p.MAJOR, 40, 1 << 17, flags))

    def ask(self, op: Op, body: bytes = b"", node: int = p.ROOT, uid: int = USER) -> tuple[int, bytes]:
        found = self.operations.answer(Request(op, 1, node, uid, uid, memoryview(body)))
        assert found is not None
        return found[0], bytes(found[1])

    def create(self, name: bytes, mode: int = 0o644, uid: int = USER) -> int:
        status, body = self.ask(Op.CREATE, p.CREATE_IN.pack(0, stat.S_IFREG | mode, 0, 0) + name + b"\0", uid=uid)
        assert status == 0
        return int(p.ENTRY_OUT.unpack_from(body)[0])

    def write(self, node: int, data: bytes) -> int:
        return self.ask(Op.WRITE, p.WRITE_IN.pack(0, 0, len(data), 0, 0, 0, 0) + data, node)[0]

    def set_xattr(self, node: int, name: bytes, value: bytes, kills: int = 0) -> int:
        head = p.SETXATTR_IN.pack(len(value), 0, kills, 0)
        return self.ask(Op.SETXATTR, head + name + b"\0" + value, node)[0]

    def lookup(self, name: bytes) -> tuple[int, bytes]:
        return self.ask(Op.LOOKUP, name + b"\0")

    def mode(self, node: int) -> int:
        return self.files.dataset.inode(node).fields.mode


@pytest.fixture
def kernel(zkeep: Zkeep, tmp_path: Path) -> Iterator[Kernel]:
    with live(tmp_path) as files:
        kernel = Kernel(files)
        yield kernel
        kernel.operations.end()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "too many"), FileNotFoundError(errno.ENOENT, "gone")])
def test_what_waits_is_kept_while_the_pool_cannot_be_read(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, error: OSError, tmp_path: Path
) -> None:
    node = kernel.create(b"file")
    assert kernel.ask(Op.FSYNC, p.FSYNC_IN.pack(0, 0, 0), node)[0] == 0

    def broken(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(live_base, "OpenSnapshot", broken)
        kernel.files.dataset._base.close()
        assert kernel.write(node, b"acknowledged") == 0
        assert kernel.lookup(b"elsewhere") == (errno.EIO, b"") or kernel.files.dataset.root.complete
        assert kernel.ask(Op.GETATTR)[0] in (0, errno.EIO)
        assert kernel.ask(Op.FSYNC, p.FSYNC_IN.pack(0, 0, 0), node)[0] == errno.EIO
    assert kernel.log
    assert kernel.ask(Op.FSYNC, p.FSYNC_IN.pack(0, 0, 0), node)[0] == 0
    assert kernel.files.read(kernel.files.lookup(b"file"), 0, 100) == b"acknowledged"


def test_what_waits_is_committed_whatever_ends_a_mount(zkeep: Zkeep, tmp_path: Path) -> None:
    def fails() -> None:
        with live(tmp_path) as files:
            kernel = Kernel(files)
            kernel.write(kernel.create(b"file"), b"acknowledged")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    with live(tmp_path) as files:
        assert files.read(files.lookup(b"file"), 0, 100) == b"acknowledged"


@pytest.mark.parametrize(("kills", "stays"), [(p.ACL_KILLS_SGID, False), (0, True)])
def test_p4_an_acl_of_a_stranger_to_the_group_takes_set_group_id(kernel: Kernel, kills: int, stays: bool) -> None:
    node = kernel.create(b"program", 0o2744)
    acl = posix_acl.encode(posix_acl.decode(ACL))
    assert kernel.set_xattr(node, posix_acl.ACCESS, acl, kills) == 0
    assert bool(kernel.mode(node) & stat.S_ISGID) == stays
    assert kernel.mode(node) & 0o777 == 0o774


ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, who)
    for tag, bits, who in [(1, 7, 2**32 - 1), (2, 7, 65534), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 4, 2**32 - 1)]
)


@pytest.mark.parametrize(("uid", "mode"), [(USER, 0o777), (0, 0o6777)])
def test_p4_what_another_user_punches_into_a_program_takes_set_user_id(kernel: Kernel, uid: int, mode: int) -> None:
    node = kernel.create(b"program", 0o6777)
    assert kernel.ask(Op.FALLOCATE, p.FALLOCATE_IN.pack(0, 0, 10, 3, 0), node, uid=uid)[0] == 0
    assert kernel.mode(node) & 0o7777 == mode


def test_extended_attributes_count_and_do_not_hold_up_the_others(
    kernel: Kernel, zkeep: Zkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = kernel.create(b"file")
    answers = {kernel.set_xattr(node, b"user.%d" % number + b"n" * 200, b"v" * 50) for number in range(400)}
    assert answers == {0, errno.ENOSPC}, "names are bounded"
    assert kernel.ask(Op.LISTXATTR, p.XATTR_IN.pack(1 << 16, 0), node)[0] == 0
    monkeypatch.setattr(live_dataset, "MAX_DIRTY", 1 << 18)
    monkeypatch.setattr(kernel.files.dataset.room, "_left", 3 << 20)
    others = [kernel.create(b"other%d" % number) for number in range(10)]
    commits = []
    genuine = kernel.files.dataset.commit
    monkeypatch.setattr(kernel.files.dataset, "commit", lambda **words: (commits.append(1), genuine(**words)))
    assert {kernel.set_xattr(other, b"user.x", os.urandom(60_000)) for other in others} == {0}
    assert commits, "what waits is bounded"


def test_a_sync_waits_for_another_process(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    node = kernel.create(b"file")
    genuine, tries = live_dataset.commit_head, []

    def busy(*words: Any) -> object:
        tries.append(1)
        if len(tries) < 3:
            raise TryAgain("busy")
        return genuine(*words)

    monkeypatch.setattr(live_dataset, "commit_head", busy)
    monkeypatch.setattr(live_dataset, "RETRY", 0.0)
    assert kernel.ask(Op.FSYNC, p.FSYNC_IN.pack(0, 0, 0), node)[0] == 0
    assert len(tries) == 3


def test_nobody_gives_a_file_the_name_of_the_control_folder(kernel: Kernel) -> None:
    node = kernel.create(b"file")
    control = b".zfs\0"
    asked = [
        kernel.ask(Op.MKDIR, p.MKDIR_IN.pack(0o755, 0) + control),
        kernel.ask(Op.CREATE, p.CREATE_IN.pack(0, stat.S_IFREG | 0o644, 0, 0) + control),
        kernel.ask(Op.SYMLINK, control + b"target\0"),
        kernel.ask(Op.LINK, p.OFFSET.pack(node) + control),
        kernel.ask(Op.RENAME2, p.RENAME2_IN.pack(p.ROOT, 0, 0) + b"file\0" + control),
    ]
    assert {status for status, _ in asked} == {errno.EEXIST}


class Shown:
    """One snapshot with a file of 100 bytes."""

    version = 1

    def operations(self) -> Shown:
        return self

    def getattr(self, path: str) -> dict[str, int]:
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_blksize", "st_atime", "st_mtime", "st_ctime")
        return {**dict.fromkeys(names, 0), "st_mode": stat.S_IFREG | 0o444, "st_size": 100, "st_blocks": 1}

    def rest(self) -> None:
        self.rested = True


def test_files_of_snapshots_can_be_copied_and_a_name_given_again_is_another_file(zkeep: Zkeep, tmp_path: Path) -> None:
    shown = Shown()
    with live(tmp_path) as files:
        kernel = Kernel(files, shown)
        top = int(p.ENTRY_OUT.unpack_from(kernel.lookup(b".zfs")[1])[0])
        node, again = (int(p.ENTRY_OUT.unpack_from(kernel.ask(Op.LOOKUP, b"f\0", top)[1])[0]) for _ in range(2))
        assert node == again >= FIRST_NODE

        def seek(offset: int, whence: int) -> tuple[int, bytes]:
            return kernel.ask(Op.LSEEK, p.LSEEK_IN.pack(0, offset, whence, 0), node)

        assert [seek(7, 3), seek(7, 4)] == [(0, p.OFFSET.pack(7)), (0, p.OFFSET.pack(100))]
        assert seek(100, 3)[0] == errno.ENXIO
        assert kernel.ask(Op.STATFS, node=node)[0] == 0
        shown.version = 2
        assert int(p.ENTRY_OUT.unpack_from(kernel.ask(Op.LOOKUP, b"f\0", top)[1])[0]) != node
        assert kernel.ask(Op.GETATTR, node=node)[0] == 0, "who has it open still asks"
        kernel.operations._control.rest()
        assert shown.rested


def test_one_entry_that_cannot_be_read_hides_no_other(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b"a", b"bad", b"c"):
        kernel.create(name)
    genuine = kernel.files.dataset.folders.find

    def find(folder: Any, name: bytes) -> object:
        if name == b"bad":
            raise OSError(errno.EIO, "damaged")
        return genuine(folder, name)

    monkeypatch.setattr(kernel.files.dataset.folders, "find", find)
    status, body = kernel.ask(Op.READDIRPLUS, p.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0))
    assert status == 0
    assert all(name in body for name in (b"a", b"bad", b"c"))


def test_an_answer_that_the_kernel_does_not_take_is_an_error_for_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    def refuse(fd: int, parts: list[bytes]) -> int:
        raise OSError(errno.EINVAL, "invalid")

    monkeypatch.setattr(os, "writev", refuse)
    monkeypatch.setattr(os, "write", lambda fd, data: sent.append(bytes(data)) or len(data))
    Device(99, "/nowhere")._write(7, 0, b"odd")
    assert p.HEADER_OUT.unpack(sent[0]) == (p.HEADER_OUT.size, -errno.EIO, 7)
