"""zkeep shim: zfs and zpool for tools on the machine itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from zkeep.cli.main import run


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    assert run(["pool", "create", "vault", str(tmp_path / "pool")]) == 0


def test_they_speak_as_zfs_and_zpool_without_any_environment(tmp_path: Path) -> None:
    folder = tmp_path / "with a space" / "bin"
    assert run(["shim", str(folder)]) == 0
    assert run(["shim", str(folder)]) == 0  # again: ours are replaced
    assert sorted(os.listdir(folder)) == ["zfs", "zpool"]

    # Nothing else than what this Python itself needs to find the package, where it is not installed.
    bare = {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}

    def said(name: str, *words: str) -> tuple[int, str]:
        done = subprocess.run([folder / name, *words], env=bare, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert said("zfs", "list", "-H", "-o", "name") == (0, "vault\n")
    assert said("zpool", "list", "-H", "-o", "name") == (0, "vault\n")
    assert said("zfs", "list", "vault/x") == (1, "cannot open 'vault/x': dataset does not exist\n")
    assert said("zfs", "list", "x'y z") != (0, "")


@pytest.mark.parametrize("name", ["zfs", "zpool"])
def test_another_program_is_not_replaced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("#!/bin/sh\n")
    assert run(["shim", str(tmp_path)]) == 1
    assert "another program is there" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "#!/bin/sh\n"
    assert len([p for p in tmp_path.iterdir() if p.name in ("zfs", "zpool")]) == 1
    assert run(["shim", "-f", str(tmp_path)]) == 0
