"""An empty path, mostly a variable that was never set, is refused: it is neither this folder nor everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from commandkit import Vault
from zkeep.cli.main import run

CALLS = [
    "pool create other <>",
    "pool import <>",
    "pool compact <>",
    "shim <>",
    "help --man-pages <>",
    "help --man-pages=<>",
    "metrics -o <>",
    "mount vault@s <>",
    "unmount <>",
    "snapshot --from <> vault@s",
    "snapshot --from dir --exclude-from <> vault@s",
    "backup <> vault/b",
    "backup dir <>",
    "backup --key-file <> dir vault/b",
    "schedule --daily 02:30 <> vault/b",
    "restore -C <> vault",
    "restore --spool <> vault",
    "extract -C <> vault@s",
    "extract -C dir vault@s <>",
    "ls <>",
    "ls vault@s <>",
    "cat vault@s <>",
    "verify --base <> dir",
    "dump <>",
    "load-key -L <> vault",
    "key sheet --pdf <> vault",
    "key restore -o key <>",
    "server --root vault <>",
]


@pytest.mark.parametrize("line", CALLS)
def test_p4_an_empty_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    Vault(tmp_path)
    (tmp_path / "here" / "dir").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    status = run([word.replace("<>", "") for word in line.split()])
    out, said = capfd.readouterr()
    assert (status, out) == (2, ""), said
    assert said.startswith("zkeep: ")
    assert "empty" in said
    assert said.count("\n") == 1
    assert os.listdir() == ["dir"]


@pytest.mark.parametrize("line", ["list -o name", "get -H -o value name", "help list", "metrics -o out"])
def test_what_is_empty_nowhere_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    Vault(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(line.split()) == 0
    assert capfd.readouterr().err == ""
