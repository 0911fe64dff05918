"""What health, notices, the status of a pool and errors say of a disk that became read-only, or fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zkeep.cli.common.terminal import explained
from zkeep.cli.main import run
from zkeep.pool.store.disk import write_fault

Shell = Callable[..., str]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, for root where one can be mounted."""
    where = tmp_path / "disk"
    where.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(where)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))

    def call(*words: str, status: int = 0) -> str:
        capfd.readouterr()
        found = run(list(words))
        said = "".join(capfd.readouterr())
        assert found == status, said
        return said

    return call


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def test_a_disk_that_became_read_only_is_no_healthy_one(shell: Shell, disk: Path) -> None:
    shell("pool", "create", "v", str(disk / "v"))
    shell("health")
    remount(disk, "ro")
    found = json.loads(shell("health", "-j", status=1))
    assert [problem["kind"] for problem in found["pools"]["v"]["problems"]] == ["unwritable"]
    assert "UNWRITABLE: nothing can be written to its disk: Read-only file system" in shell("health", status=1)
    assert 'zkeep_problem{kind="unwritable",name="v"} 1.0' in shell("metrics").splitlines()
    remount(disk, "rw")
    shell("health")


def test_somebody_is_told_though_the_pool_takes_no_note(shell: Shell, disk: Path, tmp_path: Path) -> None:
    shell("pool", "create", "v", str(disk / "v"))
    shell("set", f"notify=exec:/usr/bin/tee -a {tmp_path / 'told'}", "v")
    remount(disk, "ro")
    assert "is reported again" in shell("health", "--notify", status=1)
    assert "unwritable" in (tmp_path / "told").read_text()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_only_an_attempt_tells_of_a_file_system_that_gave_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert write_fault(tmp_path) == ""

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    assert write_fault(tmp_path) == os.strerror(number)


def test_who_may_not_write_is_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", fail)
    assert write_fault(tmp_path) == ""


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_errors_of_a_disk_say_where_to_look(number: int) -> None:
    error = OSError(number, os.strerror(number), "/srv/pool/journal")
    assert explained(error).startswith(f"/srv/pool/journal: {os.strerror(number)}; the disk ")
    assert explained(error).endswith("says more" if number == errno.EIO else "says why")


def test_a_pool_on_a_disk_that_fails_is_not_to_be_rebuilt(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("pool", "create", "v", str(tmp_path / "v"))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(tmp_path / "v" / "POOL"))

    monkeypatch.setattr("zkeep.pool.datasets.registry.Registry.open", fail)
    said = shell("pool", "status", "v")
    assert "state: UNAVAIL" in said
    assert f"{tmp_path}/v/POOL: Input/output error" in " ".join(said.split())
    assert not any(word in said for word in ("rebuild", "[Errno"))
