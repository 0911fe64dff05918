"""zkeep backup over a real sshd on loopback, to `zkeep server` as the forced command of the user's key."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshkit import ZKEEP, Host, started


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    yield from started(tmp_path)


def backup(host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    options = [f"IdentityFile={host.folder / 'alice'}", "StrictHostKeyChecking=no", "LogLevel=ERROR"]
    options += ["UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes"]
    ssh = [word for option in options for word in ("--ssh-option", option)]
    to = f"ssh://127.0.0.1:{host.port}/vault/alice/docs"
    home = host.folder / "laptop"
    env = {**os.environ, "ZKEEP_HOME": str(home), "XDG_RUNTIME_DIR": str(host.folder)}
    first = ["--yes", "--key-file", str(host.folder / "key")]
    command = [str(ZKEEP), "backup", *first, *ssh, *words, str(host.folder / "docs"), to]
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def test_a_folder_over_real_ssh(host: Host) -> None:
    docs = host.folder / "docs"
    docs.mkdir()
    (docs / "a").write_bytes(os.urandom(300_000))
    first = backup(host)
    assert (first.returncode, first.stderr) == (0, "")
    (docs / 'it\'s a "b" $HOME').write_bytes(b"second")
    second = backup(host, "--retention", "daily=30")
    assert second.returncode == 0
    assert "warning: cannot set retention" in second.stderr  # a client that only appends may not
    names = host.zkeep("list", "-H", "-o", "name", "-t", "snapshot", "-r", "vault").decode().split()
    assert len(names) == 2
    into = host.folder / "out"
    host.zkeep("extract", "-L", (host.folder / "key").as_uri(), "-C", str(into), names[-1])
    assert {path.name: path.read_bytes() for path in into.iterdir()} == {p.name: p.read_bytes() for p in docs.iterdir()}
    host.sshd.terminate()
    host.sshd.wait()
    gone = backup(host)
    assert (gone.returncode, "cannot reach 127.0.0.1" in gone.stderr, gone.stderr.count("\n")) == (5, True, 1)
