"""zkeep server: one client's verbs, on its own datasets, as sshd calls it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from zkeep.cli.main import run

CHAIN = Path(__file__).parent.parent / "data" / "opened" / "chains"
FULL, INCREMENT = (CHAIN / f"ccm192-lzjb-8k.{name}.zfs" for name in ("full-s0", "inc-s0-s1"))
Output = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run(["pool", "create", "vault", str(tmp_path / "pool")]) == 0
    for name in ("vault/alice", "vault/bob/secret"):
        assert run(["create", "-p", name]) == 0


def ask(line: str, *words: str, stream: Path | None = None, root: str = "vault/alice") -> Answer:
    """What the client gets that sends this line; `words`: more of the forced command."""
    command = [sys.executable, "-m", "zkeep", "server", "--root", root, *words]
    env = {"SSH_ORIGINAL_COMMAND": line}
    with (stream or Path("/dev/null")).open("rb") as source:
        done = subprocess.run(command, stdin=source, capture_output=True, text=True, check=False, env=_environ(env))
    return Answer(done.returncode, done.stdout, done.stderr)


def _environ(more: dict[str, str]) -> dict[str, str]:
    import os

    return {**os.environ, **more}


def test_a_stream_is_received_below_the_root_and_nowhere_else() -> None:
    assert ask("zkeep receive vault/alice/home", stream=FULL) == Answer(0, "", "")
    assert ask("zkeep receive vault/alice/home", stream=INCREMENT) == Answer(0, "", "")
    for name in ("vault/bob/home", "vault/bob/secret", "vault/bob", "vault/carol", "vault", "other/x", "vault/alice2"):
        refused = Answer(1, "", f"zkeep: cannot open {name}: dataset does not exist\n")
        assert ask(f"zkeep receive {name}", stream=FULL) == refused
        assert ask(f"zkeep receive -F {name}", "--allow", "admin", stream=FULL) == refused


def test_only_the_own_tree_is_listed() -> None:
    assert ask("zkeep receive vault/alice/home", stream=FULL).status == 0
    names = "vault\nvault/alice\nvault/alice/home\nvault/alice/home@s0\n"
    assert ask("zkeep list -H -o name -t all") == Answer(0, names, "")
    assert ask("zfs list -H -o name -t all -r vault") == Answer(0, names, "")
    assert ask("zfs list -H -o name -d 1 vault") == Answer(0, "vault\nvault/alice\n", "")


@pytest.mark.parametrize("name", ["vault/bob", "vault/bob/secret", "vault/nobody", "elsewhere/x"])
def test_what_is_not_there_and_what_is_another_s_are_the_same(name: str) -> None:
    gone = Answer(1, "", f"cannot open '{name}': dataset does not exist\n")
    for verb in ("list", "get all", "destroy", "rollback", "promote", "hold x", "holds", "release x", "set quota=1"):
        mark = "@s" if verb.split()[0] in ("rollback", "hold", "holds", "release") else ""
        answer = ask(f"zfs {verb} {name}{mark}", "--allow", "admin")
        assert answer == Answer(1, "", gone.err.replace(name, f"{name}{mark}"))


def test_an_appending_key_destroys_nothing() -> None:
    assert ask("zkeep receive vault/alice/home", stream=FULL).status == 0
    for verb in ("destroy vault/alice/home@s0", "destroy -r vault/alice/home", "rollback vault/alice/home@s0"):
        answer = ask(f"zfs {verb}")
        assert (answer.status, answer.out) == (1, "")
        assert "permission denied: this key may receive, list" in answer.err
    assert ask("zfs destroy vault/alice/home@s0", "--allow", "destroy") == Answer(0, "", "")


def test_a_key_without_a_command_opens_no_shell(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.delenv("SSH_ORIGINAL_COMMAND", raising=False)
    assert run(["server", "--root", "vault/alice"]) == 1
    assert "opens no shell" in capsys.readouterr().err
