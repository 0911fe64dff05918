"""Clones of datasets that were made here: written to, mounted, snapshotted, sent, promoted; with their origin's key."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, ZKEEP, live

from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View

Zkeep = Callable[..., int]


def write(tmp_path: Path, name: bytes, dataset: str = "v/home", content: bytes = b"content") -> None:
    with live(tmp_path, dataset) as files:
        files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), content, 0)


def names(tmp_path: Path, dataset: str = "v/home") -> list[bytes]:
    with live(tmp_path, dataset) as files:
        return sorted(files.dataset.folders.entries(files.dataset.root))


def get(tmp_path: Path, dataset: str, name: str) -> object:
    with Pool.open(tmp_path / "pool") as pool:
        return View(pool).get(pool.dataset(DatasetName(dataset)), name).value


@pytest.fixture
def cloned(zkeep: Zkeep, tmp_path: Path) -> Zkeep:
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    write(tmp_path, b"two")
    assert zkeep("clone", "v/home@a", "v/try") == 0
    return zkeep


def verified(zkeep: Zkeep, tmp_path: Path, *snapshots: str) -> None:
    for snapshot in snapshots:
        assert zkeep("verify", "-L", f"file://{tmp_path / 'key'}", snapshot) == 0
    assert zkeep("pool", "scrub", "v") == 0


def test_a_clone_holds_what_the_snapshot_holds_and_goes_its_own_way(cloned: Zkeep, tmp_path: Path) -> None:
    assert names(tmp_path, "v/try") == [b"one"], "mounted and nothing written"
    write(tmp_path, b"three", "v/try")
    assert names(tmp_path, "v/try") == [b"one", b"three"]
    assert names(tmp_path) == [b"one", b"two"]
    assert cloned("snapshot", "v/try@b") == 0
    assert cloned("snapshot", "v/home@b") == 0
    assert cloned("pool", "compact", "v") == 0
    verified(cloned, tmp_path, "v/home@a", "v/home@b", "v/try@b")
    assert get(tmp_path, "v/try", "origin") == "v/home@a"


def test_a_snapshot_of_a_clone_that_nothing_was_written_to(cloned: Zkeep, tmp_path: Path) -> None:
    assert cloned("snapshot", "v/try@same") == 0
    assert names(tmp_path, "v/try") == [b"one"]
    verified(cloned, tmp_path, "v/try@same")


def test_what_was_written_to_a_clone_outlives_its_snapshots(cloned: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"three", "v/try")
    assert cloned("snapshot", "v/try@b") == 0
    assert cloned("destroy", "v/try@b") == 0
    assert names(tmp_path, "v/try") == [b"one", b"three"]


def test_a_folder_is_stored_into_a_clone(cloned: Zkeep, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "one").write_bytes(b"content")
    (source / "four").write_bytes(b"4")
    assert cloned("snapshot", "--from", str(source), "v/try@c") == 0
    assert names(tmp_path, "v/try") == [b"four", b"one"]
    verified(cloned, tmp_path, "v/try@c")


def test_a_clone_is_promoted_with_the_key(cloned: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"three", "v/try")
    assert get(tmp_path, "v/try", "encryptionroot") == "v/home"
    assert cloned("promote", "v/try") == 0
    assert get(tmp_path, "v/home", "origin") == "v/try@a"
    assert get(tmp_path, "v/home", "encryptionroot") == get(tmp_path, "v/try", "encryptionroot") == "v/try"
    assert get(tmp_path, "v/try", "keylocation") == f"file://{tmp_path / 'key'}"
    assert names(tmp_path, "v/try") == [b"one", b"three"]
    assert names(tmp_path) == [b"one", b"two"]
    assert cloned("snapshot", "v/home@b") == 0
    assert cloned("snapshot", "v/try@b") == 0
    verified(cloned, tmp_path, "v/try@a", "v/home@b", "v/try@b")
    assert cloned("destroy", "v/home@b") == 0
    assert names(tmp_path) == [b"one", b"two"]
    assert cloned("destroy", "-r", "v/home") == 0
    verified(cloned, tmp_path, "v/try@a", "v/try@b")


def test_a_promoted_clones_key_stays_loaded(cloned: Zkeep, tmp_path: Path) -> None:
    assert cloned("load-key", "v/home") in (0, 1), "creating it may have loaded it"
    assert cloned("promote", "v/try") == 0
    assert cloned("unload-key", "v/try") == 0


def test_what_lies_below_keeps_its_root_when_a_clone_is_promoted(cloned: Zkeep, tmp_path: Path) -> None:
    assert cloned("create", "v/home/mail") == 0
    assert cloned("create", "v/try/notes") == 0
    write(tmp_path, b"letter", "v/home/mail")
    assert cloned("snapshot", "v/home/mail@a") == 0
    assert get(tmp_path, "v/try/notes", "encryptionroot") == "v/home"
    assert cloned("promote", "v/try") == 0
    for name in ("v/home/mail", "v/try/notes"):
        assert get(tmp_path, name, "encryptionroot") == "v/try"
    (tmp_path / "new").write_bytes(bytes(32))
    new = ("-o", "keyformat=raw", "-o", f"keylocation=file://{tmp_path / 'new'}")
    assert cloned("change-key", *new, "v/try") == 0
    assert cloned("verify", "-L", f"file://{tmp_path / 'new'}", "v/home/mail@a") == 0
    assert cloned("rename", "v/home/mail", "v/try/mail") == 0, "it stays below its root"


def test_what_a_clone_was_made_of_does_not_leave_its_root(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("create", "v/home/low") == 0
    write(tmp_path, b"one", "v/home/low")
    assert zkeep("snapshot", "v/home/low@a") == 0
    assert zkeep("clone", "v/home/low@a", "v/high") == 0
    assert zkeep("rename", "v/home/low", "v/high/low") == 1, "it would leave its root"
    assert get(tmp_path, "v/high", "encryptionroot") == "v/home"


def test_a_changed_key_is_the_clones_key_too(cloned: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"three", "v/try")
    assert cloned("snapshot", "v/try@b") == 0
    (tmp_path / "new").write_bytes(bytes(32))
    new = ("-o", "keyformat=raw", "-o", f"keylocation=file://{tmp_path / 'new'}")
    assert cloned("change-key", *new, "v/try") == 1, "a clone has its origin's key"
    assert cloned("change-key", *new, "v/home") == 0
    assert cloned("forget-keys", "-f", "v/home") == 0
    for name in ("v/home@a", "v/try@b"):
        assert cloned("verify", "-L", f"file://{tmp_path / 'new'}", name) == 0
        assert cloned("verify", "-L", f"file://{tmp_path / 'key'}", name) != 0


def test_the_stream_of_a_clone(cloned: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"three", "v/try", bytes(100_000))
    assert cloned("snapshot", "v/try@b") == 0
    assert cloned("pool", "create", "w", str(tmp_path / "other")) == 0
    streams = {"a": ["v/home@a"], "b": ["-i", "v/home@a", "v/try@b"], "full": ["v/try@b"]}
    for name, words in streams.items():
        with open(tmp_path / name, "wb") as out:
            assert redirected(out.fileno(), 1, "send", "-w", *words) == 0
    for name, *words in (("a", "w/home"), ("b", "-o", "origin=w/home@a", "w/try"), ("full", "w/full")):
        with open(tmp_path / name, "rb") as source:
            assert redirected(source.fileno(), 0, "receive", *words) == 0
    for name in ("w/home@a", "w/try@b", "w/full@b"):
        assert cloned("verify", "-L", f"file://{tmp_path / 'key'}", name) == 0


def redirected(fd: int, to: int, *words: str) -> int:
    """`to`: 0, the file is read; 1, it is written."""
    files = {"stdin" if to == 0 else "stdout": fd}
    return subprocess.run([*ZKEEP, *words], check=False, **files).returncode


def test_what_is_refused(cloned: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, why in (
        (("v/home@a", "v/try"), "dataset already exists"),
        (("v/home@none", "v/new"), "snapshot does not exist"),
        (("v/home@a", "w/new"), "not in the same pool"),
        (("v/home@a", "v/none/new"), "parent does not exist"),
        (("-o", "encryption=off", "v/home@a", "v/new"), "encryption"),
    ):
        assert cloned("clone", *words) == 1
        assert why in capsys.readouterr().err
    assert cloned("clone", "-p", "v/home@a", "v/try") == 0
    assert cloned("clone", "-p", "-o", "atime=off", "v/home@a", "v/more/new") == 0
    assert get(tmp_path, "v/more/new", "atime") == "off"
    assert cloned("destroy", "v/home@a") == 1
    assert "dependent clones" in capsys.readouterr().err


def test_the_catalog_is_rebuilt_with_a_clone(cloned: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"three", "v/try")
    assert cloned("pool", "scrub", "--rebuild-catalog", "v") == 0
    assert names(tmp_path, "v/try") == [b"one", b"three"]


def test_a_clone_of_a_volume(zkeep: Zkeep, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 256)
    assert zkeep("create", "-V", "64K", "v/home/disk") == 0
    assert zkeep("snapshot", "--from", str(image), "v/home/disk@a") == 0
    assert zkeep("clone", "v/home/disk@a", "v/copy") == 0
    assert zkeep("snapshot", "v/copy@same") == 0
    assert zkeep("extract", "-C", str(tmp_path / "out"), "v/copy@same") == 0
    (made,) = (tmp_path / "out").iterdir()
    assert made.read_bytes() == image.read_bytes()
    verified(zkeep, tmp_path, "v/copy@same")
