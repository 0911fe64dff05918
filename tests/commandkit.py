"""The command zkeep as tests call it: in a process of its own, or within the test's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import keykit
from zkeep.cli.main import run
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry


class Command:
    """Calls zkeep with a line of words, in a process of its own."""

    def run(self, line: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "zkeep", *line.split()]
        return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)

    def __call__(self, line: str, stdin: bytes = b"", says: str = "") -> bytes:
        """Standard output of a call that must succeed, with `says` on standard error."""
        answer = self.run(line, stdin)
        assert answer.returncode == 0, answer.stderr
        assert says in answer.stderr.decode()
        return answer.stdout

    def text(self, line: str, stdin: bytes = b"") -> str:
        return self(line, stdin).decode()

    def refuses(self, line: str, *why: str, status: int = 1, stdin: bytes = b"") -> None:
        """The call must fail with one line on standard error that says all of `why`, and print nothing else."""
        answer = self.run(line, stdin)
        assert (answer.returncode, answer.stdout) == (status, b""), answer
        assert answer.stderr.startswith(b"zkeep: ")
        assert answer.stderr.count(b"\n") == 1
        for part in why:
            assert part in answer.stderr.decode()


class Vault(Command):
    """The command with an empty pool `vault`; ZKEEP_HOME must be `path / "home"`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        Pool.create(path / "vault", "vault").close()
        Registry(path / "home").add("vault", path / "vault")


def own_state(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all state and the agent of loaded keys lie in a folder."""
    monkeypatch.setenv("ZKEEP_HOME", str(path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path / "run"))
    (path / "run").mkdir(mode=0o700)


def create_encrypted(path: Path, dataset: str, *settings: str) -> None:
    """Make a pool `v` with an encrypted dataset, whose key is in `path / "key"` and loaded. `settings`: NAME=VALUE."""
    location = keykit.write(path / "key", bytes(range(32)))
    assert run(["pool", "create", "v", str(path / "pool")]) == 0
    options = ("encryption=on", "keyformat=raw", f"keylocation={location}", *settings)
    assert run(["create", *(word for option in options for word in ("-o", option)), dataset]) == 0
