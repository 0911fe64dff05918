"""Properties of a dataset that is mounted: what is set meanwhile, and what they say of the mount."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, ZKEEP, live, mounted

from mountkit import needs_fuse
from zkeep.cli.mount.live import commit_mounted, socket_of
from zkeep.live import protocol as p
from zkeep.live.control import answer_requests, listening
from zkeep.live.files import LiveFiles
from zkeep.live.fuse import Operations
from zkeep.live.protocol import Op, Request
from zkeep.live.settings import Settings

Zkeep = Callable[..., int]
CREATED = p.CREATE_IN.pack(os.O_RDWR, stat.S_IFREG | 0o644, 0o22, 0) + b"new\0"
CALLS = {
    Op.CREATE: CREATED,
    Op.MKDIR: p.MKDIR_IN.pack(0o755, 0o22) + b"folder\0",
    Op.UNLINK: b"file\0",
    Op.SETXATTR: p.XATTR_IN.pack(1, 0) + b"user.a\0x",
}


def ask(operations: Operations, op: Op, body: bytes) -> int:
    answer = operations.answer(Request(op, 1, p.ROOT, *OWNER, memoryview(body)))
    assert answer is not None
    return answer[0]


@pytest.mark.parametrize("op", CALLS)
def test_nothing_changes_once_a_mount_was_told_that_it_is_read_only(zkeep: Zkeep, tmp_path: Path, op: Op) -> None:
    now: list[bool] = []
    with live(tmp_path) as files:
        inode = files.make(b"file", stat.S_IFREG | 0o644, OWNER)
        files.write(inode, b"content", 0)
        calls = LiveFiles(files.dataset, Settings(atime=True), lambda: Settings(atime=True, is_read_only=bool(now)))
        operations = Operations(calls, print, lambda: None, acls=False)
        pool, dataset = files.dataset.pool, files.dataset.dataset
        with listening(socket_of(pool, dataset)) as server:
            answer_requests(server, files.dataset, operations)
            now.append(True)
            commit_mounted(pool, dataset, "readonly is set")
            assert not files.dataset.is_dirty, "what was written before is committed"
            assert ask(operations, op, CALLS[op]) == errno.EROFS
            inode.fields.atime = 1
            assert calls.read(inode, 0, 7) == b"content"
            assert ask(operations, Op.FSYNC, bytes(16)) == 0
            assert not files.dataset.is_dirty, "reading is not noted any more"
            now.clear()
            commit_mounted(pool, dataset, "readonly is inherited")
            assert ask(operations, op, CALLS[op]) == 0


def test_a_property_that_cannot_be_read_stays_as_it_was(zkeep: Zkeep, tmp_path: Path) -> None:
    def fails() -> Settings:
        raise OSError(errno.EIO, "the disk fails")

    with live(tmp_path) as files:
        calls = LiveFiles(files.dataset, look=fails)
        with Operations(calls, print, lambda: None, acls=False).still():
            pass
        assert not calls.is_read_only


@needs_fuse
@pytest.mark.parametrize("name", ["v", "v/home"])
def test_readonly_holds_at_once_and_ends_at_once(zkeep: Zkeep, tmp_path: Path, name: str) -> None:
    with mounted(tmp_path) as (folder, _):
        (folder / "one").write_bytes(b"1")
        assert zkeep("set", "readonly=on", name) == 0
        with pytest.raises(OSError) as error:  # noqa: PT011 (which one is looked at below)
            (folder / "two").write_bytes(b"2")
        assert error.value.errno == errno.EROFS
        assert (folder / "one").read_bytes() == b"1"
        assert zkeep("inherit", "readonly", name) == 0
        (folder / "two").write_bytes(b"2")


def test_mounted_says_whether_it_is_mounted(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> list[str]:
        capsys.readouterr()
        assert zkeep("get", "-H", "-o", "value", "mounted", "v", "v/home", "v/home/below") == 0
        return capsys.readouterr().out.split()

    assert zkeep("create", "v/home/below") == 0
    assert said() == ["no", "no", "no"]
    with live(tmp_path):
        assert said() == ["no", "yes", "no"]
    with live(tmp_path, "v/home/below"):
        assert said() == ["no", "no", "yes"]
    assert said() == ["no", "no", "no"]


@needs_fuse
def test_what_lay_in_a_killed_mount_is_committed_and_named(
    zkeep: Zkeep, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert zkeep("create", "v/home/below") == 0
    with mounted(tmp_path) as (folder, process):
        (folder / "in").mkdir()
        subprocess.run([*ZKEEP, "mount", "v/home/below", folder / "in"], check=True)
        (folder / "in" / "file").write_bytes(b"kept")
        process.kill()
        process.wait()
        subprocess.run([*ZKEEP, "mount", "v/home", folder], check=True)
        assert f"v/home/below was unmounted from {folder}/in as well" in capfd.readouterr().err
        subprocess.run([*ZKEEP, "unmount", folder], check=True)
    with live(tmp_path, "v/home/below") as files:
        assert files.read(files.lookup(b"file"), 0, 9) == b"kept"


@needs_fuse
@pytest.mark.parametrize("options", [[], ["-o", "ro"]])
def test_what_is_mounted_is_kept_from_swap_and_core_files(zkeep: Zkeep, tmp_path: Path, options: list[str]) -> None:
    with mounted(tmp_path) as (folder, _):
        (folder / "file").write_bytes(b"content")
    with mounted(tmp_path, *options) as (folder, process):
        assert (folder / "file").read_bytes() == b"content"
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        locked, used = (int(status[name].split()[0]) for name in ("VmLck", "VmRSS"))
        assert locked >= used if os.geteuid() == 0 else locked > 0
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]
