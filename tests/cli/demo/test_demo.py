"""zkeep demo: ends well, leaves nothing, and does not pass over a byte that differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zkeep.cli.demo import demo
from zkeep.cli.demo.shell import DemoShell, call
from zkeep.cli.main import run


def test_the_demo_passes_in_a_folder_of_its_own(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "ZKEEP_HOME": str(tmp_path / "home"), "COLUMNS": "80"}
    command = [sys.executable, "-m", "zkeep", "demo"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "12 snapshots, 334K" in done.stdout
    assert "keystatus  unavailable" in done.stdout
    assert "keystatus  available" in done.stdout
    assert "another-file among them" in done.stdout
    assert done.stdout.count("equal to") == 6
    assert "home/encrypted/blanc@migration" in done.stdout
    assert "7 files have the SHA-256 that they had in clear" in done.stdout
    assert "mode 0644" not in done.stdout
    assert "M   orders.db" in done.stdout
    assert "2 objects written" in done.stdout
    assert "every file is as it was" in done.stdout
    assert list(tmp_path.iterdir()) == []


SENT = "send -w --received-name "


@pytest.mark.parametrize("command", ["send -R", f"{SENT}-i @to", f"{SENT}vault/week", f"{SENT}-i @s0"])
def test_one_wrong_bit_is_a_failure(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = DemoShell.run

    def bent(self: DemoShell, asked: str, *rest: Any, **options: Any) -> bytes:
        out = real(self, asked, *rest, **options)
        return out[:5000] + bytes([out[5000] ^ 1]) + out[5001:] if asked.startswith(command) else out

    monkeypatch.setattr(DemoShell, "run", bent)
    assert run(["demo"]) in (1, 3)
    assert capsys.readouterr().err.startswith("zkeep: ")


def test_a_file_that_does_not_come_back_from_a_folder_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = DemoShell.run

    def bent(self: DemoShell, asked: str, *rest: Any, **options: Any) -> bytes:
        out = real(self, asked, *rest, **options)
        if asked.startswith("extract -L") and asked.endswith("vault/site@tuesday"):
            (self.folder / "back" / "orders.db").write_bytes(b"")
        return out

    monkeypatch.setattr(DemoShell, "run", bent)
    assert run(["demo"]) == 3
    assert "orders.db is not what it was" in capsys.readouterr().err


@pytest.mark.parametrize("word", [b"ledger.csv", b""], ids=["left", "never"])
def test_what_is_in_clear_after_the_migration_is_a_failure(
    word: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file's name is left in a pool, or what was in clear at first was not found at all."""
    real = DemoShell.run

    def bent(self: DemoShell, asked: str, *rest: Any, **options: Any) -> bytes:
        if asked.startswith("destroy -r home"):
            (self.folder / "home-pool" / "tmp" / "left").write_bytes(b"...ledger.csv")
        return real(self, asked, *rest, **options)

    monkeypatch.setattr(DemoShell, "run", bent)
    if not word:
        monkeypatch.setattr(demo, "_holding", lambda folder, word: [])
    assert run(["demo"]) == 3
    assert "in clear" in capsys.readouterr().err


def test_verbs_run_inside_the_process_with_their_streams() -> None:
    done = call("dump", demo.stream("week-inc-s5-s6"))
    assert done.status == 0
    assert b"toname = tank/rs512b@s6" in done.out
    assert call("dump", b"nonsense").status == 1
