"""What others may do with a dataset that is mounted, also before its first commit; and what a failed commit leaves."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from livekit import OWNER, answering, live, operations

from zkeep.cli.mount import live as mount_live
from zkeep.cli.mount.live import commit_mounted
from zkeep.errors import Refused, TryAgain
from zkeep.live import base as live_base
from zkeep.live import dataset as live_dataset
from zkeep.live import protocol
from zkeep.live.files import LiveFiles
from zkeep.live.fuse import Operations
from zkeep.live.protocol import Op, Request
from zkeep.pool.datasets import head

Zkeep = Callable[..., int]


def make(files: LiveFiles, name: bytes) -> None:
    files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), b"content of " + name, 0)


def names(tmp_path: Path) -> list[bytes]:
    with live(tmp_path) as files:
        return sorted(files.dataset.folders.entries(files.dataset.root))


def ask(operations: Operations, op: Op, body: bytes) -> int:
    """The errno that an operation on the root folder fails with; 0: it does not."""
    answer = operations.answer(Request(op, 1, protocol.ROOT, *OWNER, memoryview(body)))
    assert answer is not None
    return answer[0]


def create(operations: Operations, name: bytes) -> int:
    return ask(operations, Op.CREATE, protocol.CREATE_IN.pack(os.O_RDWR, stat.S_IFREG | 0o644, 0o22, 0) + name + b"\0")


def test_a_first_mount_that_committed_nothing_yet_is_seen(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    assert zkeep("snapshot", "v/home@a") == 0
    with live(tmp_path) as files:
        make(files, b"one")
        assert zkeep("snapshot", "v/home@b") == 5, "its mount does not answer: there is no process"
        assert zkeep("snapshot", "--from", str(tmp_path / "source"), "v/home@b") == 5
        assert zkeep("destroy", "-r", "v/home") == 5
        assert zkeep("rollback", "v/home@a") == 5, "likewise"
        assert "it is mounted" in capsys.readouterr().err
    assert names(tmp_path) == [b"one"]


def test_the_base_of_a_first_mount_may_be_destroyed(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("snapshot", "v/home@a") == 0
    with live(tmp_path) as files:
        make(files, b"one")
        assert zkeep("destroy", "v/home@a") == 0
    assert names(tmp_path) == [b"one"]
    assert zkeep("pool", "scrub", "v") == 0


def test_what_is_written_before_a_first_commit_is_in_the_snapshot(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("snapshot", "v/home@a") == 0
    with answering(tmp_path) as files:
        make(files, b"one")
        assert zkeep("snapshot", "v/home@b") == 0
    assert zkeep("cat", "-L", f"file://{tmp_path / 'key'}", "v/home@b", "one") == 0


def test_snapshots_are_taken_while_nothing_changes(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("snapshot", "v/home@a") == 0
    with answering(tmp_path) as files:
        assert zkeep("snapshot", "v/home@b") == 0
        assert zkeep("snapshot", "v/home@c") == 0
        make(files, b"one")
    assert names(tmp_path) == [b"one"]
    assert zkeep("pool", "scrub", "v") == 0


def test_nothing_is_written_any_more_once_nothing_can_be_committed(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert zkeep("snapshot", "v/home@a") == 0
    mount = live(tmp_path)
    files = mount.__enter__()
    answers = operations(files)
    assert create(answers, b"one") == 0
    with monkeypatch.context() as patched:  # something writes all the same
        patched.setattr(mount_live, "is_mounted", lambda pool, dataset: False)
        patched.setattr(head, "not_mounted", lambda pool, dataset, cannot: nullcontext())
        assert zkeep("snapshot", "v/home@b") == 0
    assert create(answers, b"two") == 0
    for _ in range(2):
        assert ask(answers, Op.FSYNC, bytes(protocol.FSYNC_IN.size)) == errno.EIO
    assert create(answers, b"three") == errno.EIO
    with pytest.raises(Refused):
        mount.__exit__(None, None, None)


def test_a_last_commit_that_fails_is_told_and_one_that_is_disturbed_is_tried_again(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, busy = live_dataset.commit_head, [TryAgain("busy"), TryAgain("busy")]

    def disturbed(*arguments: object) -> object:
        if busy:
            raise busy.pop()
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(live_dataset, "RETRY", 0)
    with live(tmp_path) as files:
        make(files, b"one")
        monkeypatch.setattr(live_dataset, "commit_head", disturbed)
    assert names(tmp_path) == [b"one"]
    busy += [Refused("the quota is used up")]  # type: ignore[list-item]
    lost: list[Exception] = []
    mount = live(tmp_path)
    files = mount.__enter__()
    files.dataset._on_lost = lost.append
    make(files, b"two")
    with pytest.raises(Refused):
        mount.__exit__(None, None, None)
    assert [str(error) for error in lost] == ["the quota is used up"]


def test_what_cannot_be_committed_is_not_unmounted(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = live_dataset.commit_head

    def fails(*arguments: object) -> object:
        raise Refused("the quota is used up")

    with answering(tmp_path) as files:
        make(files, b"one")
        pool = files.dataset.pool
        monkeypatch.setattr(live_dataset, "commit_head", fails)
        with pytest.raises(TryAgain, match="the quota is used up"):
            commit_mounted(pool, pool.dataset(files.dataset.name), "cannot unmount v/home")
        monkeypatch.setattr(live_dataset, "commit_head", real)
        commit_mounted(pool, pool.dataset(files.dataset.name), "cannot unmount v/home")
        assert not files.dataset.is_dirty
    assert names(tmp_path) == [b"one"]


def test_a_dataset_that_is_mounted_is_renamed_and_goes_on(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("create", "v/home/child") == 0
    with answering(tmp_path, "v/home/child") as files:
        make(files, b"one")
        assert zkeep("rename", "v/home/child", "v/home/other") == 0
        files.dataset.commit()
        make(files, b"two")
        assert zkeep("rename", "v/home", "v/house") == 0
        assert zkeep("create", "v/home") == 0
        assert zkeep("snapshot", "v/house/other@a") == 0
        make(files, b"three")
    with live(tmp_path, "v/house/other") as files:
        assert sorted(files.dataset.folders.entries(files.dataset.root)) == [b"one", b"three", b"two"]
    assert zkeep("cat", "-L", f"file://{tmp_path / 'key'}", "v/house/other@a", "two") == 0


def test_names_that_are_swapped_while_a_commit_is_written(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written never goes into the dataset that has the old name now."""
    real, swaps = live_dataset.commit_head, [("rename", "v/home", "v/new"), ("create", "v/home")]

    def swapped(*arguments: object) -> object:
        while swaps:
            assert zkeep(*swaps.pop(0)) == 0
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(live_dataset, "RETRY", 0)
    with live(tmp_path) as files:
        make(files, b"one")
        monkeypatch.setattr(live_dataset, "commit_head", swapped)
        files.dataset.commit_soon()
        make(files, b"two")
        assert not swaps
    with live(tmp_path, "v/new") as files:
        assert sorted(files.dataset.folders.entries(files.dataset.root)) == [b"one", b"two"]


def test_a_base_that_could_not_be_opened_is_opened_later(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = live_base.OpenSnapshot

    def fails(*arguments: object, **more: object) -> object:
        raise OSError(errno.EMFILE, "too many open files")

    with live(tmp_path) as files:
        make(files, b"one")
        monkeypatch.setattr(live_base, "OpenSnapshot", fails)
        files.dataset.commit()
        with pytest.raises(OSError, match="too many"):
            files.read(files.lookup(b"one"), 0, 10)
        monkeypatch.setattr(live_base, "OpenSnapshot", real)
        assert files.read(files.lookup(b"one"), 0, 20) == b"content of one"
        make(files, b"two")
    assert names(tmp_path) == [b"one", b"two"]


def test_a_pool_with_a_mounted_dataset_is_neither_exported_nor_destroyed(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with live(tmp_path) as files:
        assert zkeep("pool", "export", "v") == 5
        assert zkeep("pool", "destroy", "-f", "v") == 5
        assert "v/home is mounted" in capsys.readouterr().err
        make(files, b"one")
    assert names(tmp_path) == [b"one"]
    assert zkeep("pool", "export", "v") == 0


def test_a_snapshot_is_taken_from_another_session(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "first session"
    runtime.mkdir(mode=0o700)
    with answering(tmp_path, runtime=str(runtime)) as files:
        make(files, b"one")
        with monkeypatch.context() as another:
            another.setenv("XDG_RUNTIME_DIR", str(tmp_path / "another"))
            assert zkeep("snapshot", "v/home@a") == 0
    assert zkeep("cat", "-L", f"file://{tmp_path / 'key'}", "v/home@a", "one") == 0


@pytest.mark.parametrize("mode", [0o722, 0o777, 0o1777])
def test_a_socket_in_a_folder_that_is_open_to_others_is_not_asked(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    with answering(tmp_path, runtime=str(runtime)) as files:
        runtime.chmod(mode)
        make(files, b"one")
        assert zkeep("snapshot", "v/home@a") == 5
        assert "open to others" in capsys.readouterr().err
        runtime.chmod(0o700)
        assert zkeep("snapshot", "v/home@a") == 0


def test_a_socket_behind_a_link_is_not_asked(zkeep: Zkeep, tmp_path: Path) -> None:
    runtime, link = tmp_path / "runtime", tmp_path / "link"
    runtime.mkdir(mode=0o700)
    with answering(tmp_path, runtime=str(runtime)) as files:
        pool = files.dataset.pool
        link.symlink_to(runtime)
        with pool.transaction() as t:
            pool.update_dataset(t, pool.dataset(files.dataset.name), runtime=str(link))
        assert zkeep("snapshot", "v/home@a") == 5
