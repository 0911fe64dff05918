"""What every store keeps, whatever it is made of. A new implementation adds a line to STORES."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zkeep.errors import Damaged, TryAgain
from zkeep.pool.store import staging
from zkeep.pool.store.disk import Disk, DiskEntry
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.port import Store


class NoLinks(Disk):
    """A file system without hard links, as exFAT or some FUSE ones."""

    def link(self, source: DiskEntry, target: DiskEntry) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")


class ShortWrites(Disk):
    """A disk that takes a few bytes at a time, as any may."""

    def write(self, fd: int, offset: int, buffers: object) -> int:
        first = next((b for b in buffers if memoryview(b).nbytes), b"")  # type: ignore[attr-defined]
        return os.pwrite(fd, memoryview(first).cast("B")[:3], offset)


class Picky(Disk):
    """A disk that takes nothing past the cache, though the system promised it."""

    def write(self, fd: int, offset: int, buffers: object) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "not here")
        return super().write(fd, offset, buffers)  # type: ignore[arg-type]


STORES: dict[str, Callable[[Path], Store]] = {
    "local": LocalStore,
    "local, no hard links": lambda path: LocalStore(path, NoLinks()),
    "local, picky": lambda path: LocalStore(path, Picky()),
    "local, short writes": lambda path: LocalStore(path, ShortWrites()),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path)


def test_put_then_get(store: Store) -> None:
    store.put("a/b/c", b"content")
    assert store.get("a/b/c") == b"content"
    assert store.size("a/b/c") == 7
    assert store.exists("a/b/c")


def test_put_is_create_only(store: Store) -> None:
    store.put("x", b"first")
    with pytest.raises(FileExistsError):
        store.put("x", b"second")
    assert store.get("x") == b"first"


def test_several_are_put_or_none(store: Store) -> None:
    store.put_all([("a/1", [b"one", memoryview(b"two")]), ("b/2", []), ("a/3", [b"x" * 5000])])
    assert [store.get(name) for name in ("a/1", "b/2", "a/3")] == [b"onetwo", b"", b"x" * 5000]
    with pytest.raises(FileExistsError):
        store.put_all([("a/4", [b"new"]), ("b/2", [b"second"]), ("a/5", [b"new"])])
    assert store.names("a") == ["a/1", "a/3"]
    assert store.get("b/2") == b""
    assert store.names("tmp") == []
    store.put_all([])


def test_put_takes_empty_content_and_any_buffer(store: Store) -> None:
    store.put("empty", b"")
    store.put("view", memoryview(bytearray(b"0123456789"))[2:5])
    assert store.get("empty") == b""
    assert store.get("view") == b"234"


def test_absent_names(store: Store) -> None:
    assert not store.exists("nothing")
    for call in (store.get, store.open, store.size):
        with pytest.raises(FileNotFoundError):
            call("nothing")
    store.delete("nothing")
    assert store.names("folder") == []


def test_delete(store: Store) -> None:
    store.put("a/x", b"1")
    store.delete("a/x")
    assert not store.exists("a/x")
    store.put("a/x", b"2")
    assert store.get("a/x") == b"2"


def test_names_are_sorted_and_whole(store: Store) -> None:
    for name in ("s/b", "s/a", "s/t/c", "other/d"):
        store.put(name, b"")
    assert store.names("s") == ["s/a", "s/b", "s/t/c"]


@pytest.mark.parametrize("name", ["", "/a", "a/", "../a", "a/../b", "a/./b", "a\0b", "a b", "a//b", "é"])
def test_names_that_lead_out_are_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        store.put(name, b"")


def test_blob_reads_ranges(store: Store) -> None:
    store.put("blob", bytes(range(200)))
    with store.open("blob") as blob:
        assert blob.size == 200
        assert blob.read(10, 5) == bytes(range(10, 15))
        first, second = bytearray(3), bytearray(4)
        blob.readinto(100, first, second)
        assert bytes(first + second) == bytes(range(100, 107))


def test_blob_that_ends_early_is_damaged(store: Store) -> None:
    store.put("blob", b"12345")
    with store.open("blob") as blob:
        with pytest.raises(Damaged, match="ends at byte 5"):
            blob.read(3, 3)
        with pytest.raises(Damaged, match="ends at byte 5"):
            blob.readinto(0, bytearray(6))


def test_many_short_stretches_are_read_each_to_its_place(store: Store) -> None:
    store.put("a", bytes(range(200)))
    out = bytearray(b"-" * 12)
    with store.open("a") as blob:
        blob.readinto_each(np.array([150, 0, 3]), np.array([2, 0, 4]), memoryview(out), np.array([8, 2, 0]))
        assert out == bytes([3, 4, 5, 6]) + b"----" + bytes([150, 151]) + b"--"
        with pytest.raises(Damaged, match="a ends before byte 202"):
            blob.readinto_each(np.array([0, 198]), np.array([4, 4]), memoryview(out), np.array([0, 4]))


def test_open_blob_survives_delete(store: Store) -> None:
    store.put("blob", b"12345")
    with store.open("blob") as blob:
        store.delete("blob")
        assert blob.read(0, 5) == b"12345"


def test_draft_is_invisible_until_published(store: Store) -> None:
    with store.draft("d") as draft:
        draft.write(b"one", memoryview(b"two"), b"")
        draft.write(*[b"x"] * 3000)
        assert draft.size == 3006
        assert store.names("segments") == []
        draft.publish("segments/1")
    assert store.get("segments/1") == b"onetwo" + b"x" * 3000
    assert store.drafts() == []


def test_draft_is_gone_on_with(store: Store) -> None:
    with store.draft("d") as draft:
        draft.write(b"abcdef")
        draft.sync()
    assert store.drafts() == ["d"]
    with store.draft("d") as draft:
        assert draft.size == 6
        buffer = bytearray(3)
        draft.readinto(1, buffer)
        assert buffer == b"bcd"
        draft.truncate(4)
        draft.write(b"XY")
        draft.publish("done")
    assert store.get("done") == b"abcdXY"


def test_draft_is_discarded(store: Store) -> None:
    draft = store.draft("d")
    draft.write(b"abc")
    draft.discard()
    assert store.drafts() == []


def test_publish_is_create_only(store: Store) -> None:
    store.put("taken", b"first")
    with store.draft("d") as draft:
        draft.write(b"second")
        with pytest.raises(FileExistsError):
            draft.publish("taken")
    assert store.get("taken") == b"first"


def test_append_grows(store: Store) -> None:
    assert store.append("log/1", b"one\n") == 4
    assert store.append("log/1", b"two\n") == 8
    assert store.get("log/1") == b"one\ntwo\n"


def test_lock_excludes_and_lets_go(store: Store) -> None:
    with store.lock("x"):
        with pytest.raises(TryAgain, match="somebody is at it"), store.lock("x", busy="somebody is at it"):
            pass
        with store.lock("y"):
            pass
    with store.lock("x"):
        pass


def test_shared_locks_go_together(store: Store) -> None:
    with store.lock("x", shared=True), store.lock("x", shared=True), pytest.raises(TryAgain), store.lock("x"):
        pass


def test_lock_waits_for_its_turn(store: Store) -> None:
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock("x"):
            held.set()
            let_go.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.1, let_go.set).start()
    with store.lock("x", wait=10):
        pass
    thread.join()


def test_a_large_draft_is_what_was_written_whatever_the_pieces(store: Store) -> None:
    if isinstance(store, LocalStore) and isinstance(store.disk, ShortWrites):
        pytest.skip("three bytes at a time would take minutes")
    noise = os.urandom(1 << 20) * 11
    pieces = [noise[at : at + size] for at, size in ((0, 64), (64, 3 << 20), (64 + (3 << 20), 7 << 20))]
    with store.draft("large") as draft:
        draft.write(*pieces)
        assert draft.size == sum(map(len, pieces))
        head = bytearray(5 << 20)
        draft.readinto(3, head)
        draft.write(b"tail", soon=True)
        draft.write(noise)
        draft.publish("large")
    whole = b"".join(pieces)
    assert head == whole[3 : 3 + len(head)]
    assert store.get("large") == whole + b"tail" + noise


def test_a_draft_that_is_left_keeps_all_of_it(store: Store) -> None:
    with store.draft("left") as draft:
        draft.write(b"one")
    with store.draft("left") as draft:
        assert draft.size == 3
        draft.write(b"two")
        draft.publish("left")
    assert store.get("left") == b"onetwo"


@pytest.mark.parametrize("soon", [True, False])
def test_a_draft_of_which_a_write_failed_is_never_published(
    store: Store, soon: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "STAGE", 64)
    draft = store.draft("d")
    draft.write(b"first" * 20, soon=soon)

    def fails(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fails)
        patch.setattr(os, "pwrite", fails)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            draft.write(b"second" * 20, soon=soon)
    draft.write(b"third" * 20, soon=soon)
    with pytest.raises(OSError, match="a write to it failed before"):
        draft.publish("whole")
    assert not store.exists("whole")
    draft.discard()
    assert store.drafts() == []
