"""A rollback of a dataset that is mounted: its mount goes on, and shows the snapshot."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from livekit import OWNER, ZKEEP, ByPath, Twins, answering, listing, live, model_listing, mounted, operations

from zkeep.cli.mount.live import held_mounts, rolled_back, socket_of
from zkeep.errors import TryAgain
from zkeep.live import control, kernel_cache, protocol
from zkeep.live.control import rolling_back
from zkeep.live.kernel_cache import KernelCache
from zkeep.live.protocol import Op, Request
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.destroy import DestroyOptions, execute
from zkeep.pool.datasets.head import HeldMounts
from zkeep.pool.datasets.promote import promote
from zkeep.pool.datasets.rollback import plan_rollback
from zkeep.pool.datasets.view import View

Zkeep = Callable[..., int]


def make(files: ByPath, name: bytes, content: bytes = b"content") -> int:
    inode = files.make(name, stat.S_IFREG | 0o644, OWNER)
    files.write(inode, content, 0)
    return inode.number


def content(files: ByPath, name: bytes) -> bytes:
    return files.read(files.lookup(name), 0, 100)


@pytest.mark.parametrize("committed", [True, False])
def test_what_was_written_since_is_dropped(zkeep: Zkeep, tmp_path: Path, committed: bool) -> None:
    with answering(tmp_path) as files:
        make(files, b"kept", b"old")
        make(files, b"removed")
        assert zkeep("snapshot", "v/home@a") == 0
        files.write(files.lookup(b"kept"), b"new and longer", 0)
        files.unlink(b"removed")
        files.make(b"folder", stat.S_IFDIR | 0o755, OWNER)
        make(files, b"folder/added")
        if committed:
            files.dataset.commit()
        assert zkeep("rollback", "v/home@a") == 0
        assert set(listing(files)) == {b"", b"kept", b"removed"}
        assert content(files, b"kept") == b"old"
        make(files, b"later")
    with live(tmp_path) as files:
        assert set(listing(files)) == {b"", b"kept", b"removed", b"later"}
    assert zkeep("pool", "scrub", "v") == 0


def test_newer_snapshots_go_with_r_and_without_nothing_is_dropped(zkeep: Zkeep, tmp_path: Path) -> None:
    with answering(tmp_path) as files:
        make(files, b"one")
        assert zkeep("snapshot", "v/home@a") == 0
        make(files, b"two")
        assert zkeep("snapshot", "v/home@b") == 0
        make(files, b"three")
        assert zkeep("rollback", "v/home@a") == 1, "@b is newer"
        assert set(listing(files)) == {b"", b"one", b"two", b"three"}
        assert zkeep("rollback", "-r", "v/home@a") == 0
        assert set(listing(files)) == {b"", b"one"}
        make(files, b"four")
        assert zkeep("snapshot", "v/home@b") == 0
    assert zkeep("cat", "-L", f"file://{tmp_path / 'key'}", "v/home@b", "four") == 0


def test_a_rollback_that_fails_drops_nothing_and_one_that_is_cut_off_is_seen(zkeep: Zkeep, tmp_path: Path) -> None:
    with answering(tmp_path) as files:
        make(files, b"one")
        assert zkeep("snapshot", "v/home@a") == 0
        make(files, b"two")
        files.dataset.commit()
        make(files, b"three")
        pool, dataset = files.dataset.pool, files.dataset.dataset
        with pytest.raises(InterruptedError), rolling_back(socket_of(pool, dataset), "cannot rollback"):
            raise InterruptedError
        with files.dataset.lock:
            assert set(listing(files)) == {b"", b"one", b"two", b"three"}
        # Killed between the rollback and the word that it is done.
        with suppress(InterruptedError), rolling_back(socket_of(pool, dataset), "cannot rollback"):
            plan = plan_rollback(View(pool), dataset.name.snapshot("a"), DestroyOptions())
            execute(pool, plan, HeldMounts([dataset.id]))
            raise InterruptedError
        with rolling_back(socket_of(pool, dataset), "cannot rollback"):
            assert set(listing(files)) == {b"", b"one"}


def wait_until_free(files: ByPath) -> None:
    """Wait until a mount that held still goes on."""
    with files.dataset.lock:
        return


@pytest.mark.parametrize("verb", ["rollback", "promote"])
def test_what_a_mount_accepted_once_it_went_on_is_kept(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A machine that was suspended, a slow disk: who asked the mount to hold still comes back to it too late."""
    monkeypatch.setattr(control, "STILL", 0.2)
    with answering(tmp_path) as files:
        make(files, b"one")
        assert zkeep("snapshot", "v/home@a") == 0
        assert zkeep("clone", "v/home@a", "v/clone") == 0
        pool, dataset, clone = files.dataset.pool, files.dataset.dataset, DatasetName.parse("v/clone")
        plan = plan_rollback(View(pool), dataset.name.snapshot("a"), DestroyOptions())
        held = rolled_back(pool, dataset, "cannot") if verb == "rollback" else held_mounts(pool, [dataset], "cannot")
        with suppress(TryAgain), held as mounts:
            wait_until_free(files)
            make(files, b"two")
            files.dataset.commit()
            with pytest.raises(TryAgain, match="a mount went on") as caught:
                execute(pool, plan, mounts) if verb == "rollback" else promote(pool, clone, mounts)
            raise caught.value
        make(files, b"three")
        files.dataset.commit()
    with live(tmp_path) as files:
        assert set(listing(files)) == {b"", b"one", b"two", b"three"}
    assert zkeep("pool", "scrub", "v") == 0


def test_a_mount_waits_for_a_rollback_that_has_begun(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "STILL", 0.1)
    remove = destroy._remove

    def slow(*arguments: Any) -> list[str]:
        time.sleep(0.5)
        return remove(*arguments)

    monkeypatch.setattr(destroy, "_remove", slow)
    with answering(tmp_path) as files:
        make(files, b"one")
        assert zkeep("snapshot", "v/home@a") == 0
        make(files, b"two")
        files.dataset.commit()
        assert zkeep("rollback", "v/home@a") == 0
        wait_until_free(files)
        assert set(listing(files)) == {b"", b"one"}
        make(files, b"three")
        files.dataset.commit()
    with live(tmp_path) as files:
        assert set(listing(files)) == {b"", b"one", b"three"}


def test_a_file_that_is_gone_is_stale_for_who_has_it_open_and_its_number_is_not_given_out(
    zkeep: Zkeep, tmp_path: Path
) -> None:
    with answering(tmp_path) as files:
        dataset, answers = files.dataset, operations(files)

        def read(number: int) -> int:
            body = memoryview(protocol.READ_IN.pack(0, 0, 100, 0, 0, 0, 0))
            answer = answers.answer(Request(Op.READ, 1, number, *OWNER, body))
            assert answer is not None
            return answer[0]

        kept = make(files, b"kept")
        removed = make(files, b"removed")
        assert zkeep("snapshot", "v/home@a") == 0
        files.unlink(b"removed")
        files.dataset.commit()
        again, added = make(files, b"again"), make(files, b"added")
        assert again == removed, "the number is another file's now"
        for number in (kept, again, added):
            dataset.use(dataset.inode(number))
        assert zkeep("rollback", "v/home@a") == 0
        assert (read(kept), read(again), read(added)) == (0, errno.ESTALE, errno.ESTALE)
        assert make(files, b"next") not in (kept, again, added)
        dataset.use(files.lookup(b"removed"))  # the kernel learns of the file that has the number
        assert (read(removed), read(added)) == (0, errno.ESTALE)
        dataset.forget(added)
        assert not dataset.gone


def test_all_names_that_the_kernel_may_keep_are_known(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cache, "MAX_ABSENT", 2)
    with live(tmp_path) as files:
        files.make(b"folder", stat.S_IFDIR | 0o755, OWNER)
        make(files, b"folder/seen")
        make(files, b"folder/unseen")
        files.link(b"folder/seen", b"link")
        folder, seen = files.lookup(b"folder"), files.lookup(b"folder/seen")
        for inode in (folder, seen):
            files.dataset.use(inode)
        cache = KernelCache(files.dataset)
        root = protocol.ROOT
        assert [cache.absent(root, name) > 0 for name in (b"x", b"y", b"z")] == [True, True, False]
        cache.present(root, b"y")
        assert sorted(cache.known().names) == sorted(
            [(root, b"folder"), (folder.number, b"seen"), (root, b"link"), (root, b"x")]
        )
        assert set(cache.known().generations) == {files.dataset.root.number, folder.number, seen.number}


@pytest.mark.parametrize("seed", range(2))
def test_a_model_goes_back_as_well(zkeep: Zkeep, tmp_path: Path, seed: int) -> None:
    """Random work, a snapshot, more of it, and back, some times: the same as a folder of which a copy was put back."""
    model, copy = tmp_path / "model", tmp_path / "copy"
    model.mkdir()
    chance = random.Random(seed)
    with answering(tmp_path) as files:
        twins = Twins(files, model, seed)
        for _ in range(3):
            for _ in range(60):
                twins.step()
            assert zkeep("destroy", "v/home@a") in (0, 1)
            assert zkeep("snapshot", "v/home@a") == 0
            subprocess.run(["cp", "-a", str(model), str(copy)], check=True)
            for _ in range(60):
                twins.step()
                if chance.random() < 0.05:
                    files.dataset.commit()
            assert zkeep("rollback", "v/home@a") == 0
            shutil.rmtree(model)
            copy.rename(model)
            assert listing(files) == model_listing(model)
    assert zkeep("pool", "scrub", "v") == 0


def test_programs_see_it_at_once(zkeep: Zkeep, tmp_path: Path) -> None:
    with mounted(tmp_path) as (top, _):
        (top / "a").write_text("old")
        (top / "folder").mkdir()
        (top / "folder/deep").write_text("deep")
        (top / "mapped").write_bytes(bytes(4096))
        assert zkeep("snapshot", "v/home@a") == 0
        assert not (top / "added").exists(), "the kernel keeps that"
        (top / "added").write_text("added")
        (top / "folder/deep").unlink()
        (top / "folder").rename(top / "moved")
        (top / "a").write_text("newer")
        with (top / "added").open() as added, (top / "a").open() as kept, (top / "mapped").open("r+b") as mapped:
            memory = mmap.mmap(mapped.fileno(), 0)
            memory[:3] = b"new"
            assert kept.read() == "newer"
            subprocess.run([*ZKEEP, "rollback", "v/home@a"], check=True)
            assert sorted(os.listdir(top)) == ["a", "folder", "mapped"]
            assert (top / "folder/deep").read_text() == "deep"
            assert not (top / "added").exists()
            assert (top / "a").stat().st_size == 3
            assert os.pread(kept.fileno(), 10, 0) == b"old"
            assert memory[:3] == bytes(3)
            memory.close()
            with pytest.raises(OSError, match="Stale") as caught:
                os.pread(added.fileno(), 10, 0)
            assert caught.value.errno == errno.ESTALE
        assert (top / "mapped").read_bytes() == bytes(4096)
        (top / "added").write_text("again")
        assert (top / "added").read_text() == "again"


def test_a_mounted_dataset_is_destroyed_unless_it_is_in_use(zkeep: Zkeep, tmp_path: Path) -> None:
    with mounted(tmp_path) as (top, process):
        (top / "a").write_text("content")
        assert zkeep("rename", "v/home", "v/house") == 0
        with (top / "a").open() as used:
            assert zkeep("destroy", "v/house") == 5
            assert zkeep("destroy", "-f", "v/house") == 0
            with pytest.raises(OSError, match="not connected"):
                used.read()
        assert process.wait(10) == 0
    assert zkeep("list", "v/house") == 1
    assert zkeep("create", "v/house") == 0
