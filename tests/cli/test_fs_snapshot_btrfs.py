"""zkeep snapshot --from --fs-snapshot, on a real btrfs in a loop device."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import keykit
from zkeep.capture.previous import CLOCK_TICK
from zkeep.cli.main import run

Output = pytest.CaptureFixture[str]
private = pytest.fixture(autouse=True)(keykit.private)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mounted btrfs."""
    if os.geteuid() != 0 or "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs root and a kernel with btrfs")
    if not all(map(shutil.which, ("mkfs.btrfs", "btrfs", "mount"))):
        pytest.skip("needs btrfs-progs")
    folder = tmp_path_factory.mktemp("btrfs")
    image, point = folder / "image", folder / "mnt"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    point.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", "-m", "single", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield point
    subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def docs(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in a subvolume of its own, and a dataset v/ds."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "agent"))
    top = volume / "sub"
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(top)], check=True)
    (top / "docs").mkdir()
    for number in range(20):
        (top / "docs" / f"file-{number}").write_bytes(bytes([number]) * 5000)
    key = keykit.write(tmp_path / "key", bytes(32))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    assert run(["create", *["-o", "encryption=on", "-o", "keyformat=raw", "-o"], f"keylocation={key}", "v/ds"]) == 0
    yield top / "docs"
    run(["unload-key", "-a"])
    for name in subvolumes(volume):
        subprocess.run(["btrfs", "-q", "subvolume", "delete", str(volume / name)], check=True)


def subvolumes(volume: Path) -> list[str]:
    """Deepest first."""
    listed = subprocess.run(["btrfs", "subvolume", "list", str(volume)], check=True, capture_output=True, text=True)
    return sorted((line.partition(" path ")[2] for line in listed.stdout.splitlines()), key=len, reverse=True)


def taken(capfd: Output, docs: Path, name: str, *words: str, kind: str = "auto", status: int = 0) -> str:
    capfd.readouterr()
    assert run(["snapshot", "--from", str(docs), "--fs-snapshot", kind, "-v", *words, f"v/ds@{name}"]) == status
    out, err = capfd.readouterr()
    return str(out + err)


def test_files_are_read_in_a_snapshot_and_keep_their_objects(docs: Path, volume: Path, capfd: Output) -> None:
    first = taken(capfd, docs, "one")
    assert "+\tfile-7" in first
    assert "warning" not in first
    assert subvolumes(volume) == ["sub"]
    (docs / "file-7").write_bytes(b"changed")
    # What changed within a tick of the clock before a scan is read again by the next: let that pass.
    while time.time_ns() <= (docs / "file-7").stat().st_ctime_ns + CLOCK_TICK:
        pass
    second = taken(capfd, docs, "two", kind="btrfs")
    assert [line for line in second.splitlines() if line[1:2] == "\t"] == ["M\tfile-7"]
    # Without a snapshot in between, and again with one: device numbers differ, files do not.
    assert "took v/ds@three: 0 objects written" in taken(capfd, docs, "three", kind="none")
    assert "took v/ds@four: 0 objects written" in taken(capfd, docs, "four")
    assert run(["cat", "v/ds@four", "file-7"]) == 0
    assert capfd.readouterr().out == "changed"


def test_the_pool_itself_is_not_stored(docs: Path, capfd: Output) -> None:
    assert run(["pool", "create", "w", str(docs / "pool")]) == 0
    (docs.parent.parent / "key").write_bytes(bytes(32))
    (docs.parent.parent / "key").chmod(0o600)
    key = f"keylocation=file://{docs.parent.parent}/key"
    assert run(["create", *["-o", "encryption=on", "-o", "keyformat=raw", "-o"], key, "w/ds"]) == 0
    assert run(["snapshot", "--from", str(docs), "--fs-snapshot", "btrfs", "w/ds@one"]) == 0
    capfd.readouterr()
    run(["ls", "w/ds@one"])
    assert "pool" not in capfd.readouterr().out


def test_what_a_snapshot_would_lack_is_not_lost(docs: Path, capfd: Output) -> None:
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(docs / "inner")], check=True)
    (docs / "inner" / "file").write_bytes(b"inner")
    assert "is another file system" in taken(capfd, docs, "one", kind="btrfs", status=1)
    assert "files are read as they are" in taken(capfd, docs, "one")
    capfd.readouterr()
    assert run(["cat", "v/ds@one", "inner/file"]) == 0
    assert capfd.readouterr().out == "inner"
    assert "M\tinner" not in taken(capfd, docs, "two", "--one-file-system", kind="btrfs")


def test_an_error_and_a_signal_leave_nothing(docs: Path, volume: Path, capfd: Output) -> None:
    os.mkdir(docs / "none")
    taken(capfd, docs, "one", "-L", "file:///nowhere", status=1)
    assert subvolumes(volume) == ["sub"]
    (docs / "large").write_bytes(os.urandom(10 << 20))
    words = ["snapshot", "--from", str(docs), "--fs-snapshot", "btrfs", "v/ds@two"]
    with subprocess.Popen([sys.executable, "-m", "zkeep", *words], stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(subvolumes(volume)) == 1:
            pass
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert process.returncode == 5
    assert subvolumes(volume) == ["sub"]


def test_a_leftover_is_named(docs: Path, volume: Path, capfd: Output) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = docs.parent / f".zkeep-snapshot-{gone.pid}-00c0ffee"
    subprocess.run(["btrfs", "-q", "subvolume", "snapshot", "-r", str(docs.parent), str(left)], check=True)
    said = taken(capfd, docs, "one")
    assert f"btrfs subvolume delete {left}" in said
    assert len(subvolumes(volume)) == 2


def test_an_image_is_read_in_a_snapshot(docs: Path, volume: Path, capfd: Output, tmp_path: Path) -> None:
    image = docs / "disk.img"
    image.write_bytes(os.urandom(1 << 20))
    key = f"keylocation=file://{tmp_path}/key"
    assert run(["create", "-V", "1M", *["-o", "encryption=on", "-o", "keyformat=raw", "-o"], key, "v/disk"]) == 0
    assert run(["snapshot", "--from", str(image), "--fs-snapshot", "auto", "v/disk@one"]) == 0
    assert subvolumes(volume) == ["sub"]
    assert run(["extract", "-C", str(tmp_path / "out"), "v/disk@one"]) == 0
    assert (tmp_path / "out" / "disk.img").read_bytes() == image.read_bytes()
