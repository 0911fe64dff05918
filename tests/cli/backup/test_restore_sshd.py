"""zkeep backup and restore over a real sshd on loopback, with connections that die at random bytes."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshkit import SSH, ZKEEP, Host, started

DYING = """#!/bin/sh
# What is sent ends after as many bytes as the first line of the file says.
for line; do :; done
case "$line" in *" send "*) if [ -s {cuts} ]; then
    size=$(head -n 1 {cuts}); sed -i 1d {cuts}
    {ssh} "$@" | head -c "$size"; exit 255
fi ;; esac
exec {ssh} "$@"
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    yield from started(tmp_path)


def test_what_is_backed_up_comes_back(host: Host) -> None:
    host.allow("receive,list,send")
    docs, key = host.folder / "docs", host.folder / "docs.key"
    docs.mkdir()
    (docs / "large").write_bytes(random.Random(2).randbytes(900_000))
    (docs / "link").symlink_to("large")
    (host.folder / "bin").mkdir()
    (host.folder / "bin" / "ssh").write_text(DYING.format(cuts=host.folder / "cuts", ssh=SSH))
    (host.folder / "bin" / "ssh").chmod(0o755)
    own = {**os.environ, "ZKEEP_HOME": str(host.folder / "own"), "TMPDIR": str(host.folder)}
    env = {**own, "PATH": f"{host.folder / 'bin'}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(host.folder)}
    place = f"ssh://127.0.0.1:{host.port}/vault/alice/docs"
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    ssh = ["--sshkey", str(host.folder / "alice"), *(word for text in options for word in ("--ssh-option", text))]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(ZKEEP), *words], env=env, capture_output=True, text=True, check=False, timeout=120)

    done = run("backup", *ssh, "--yes", "--key-file", str(key), str(docs), place)
    assert done.returncode == 0, done.stderr
    chance = random.Random(int.from_bytes(os.urandom(4), "big"))
    sizes = [chance.randrange(900_000) for _ in range(3)]
    (host.folder / "cuts").write_text("".join(f"{size}\n" for size in sizes))
    done = run("restore", *ssh, "-L", key.as_uri(), "-C", str(host.folder / "new"), place)
    assert done.returncode == 0, (sizes, done.stderr)
    assert (host.folder / "new" / "large").read_bytes() == (docs / "large").read_bytes()
    assert os.readlink(host.folder / "new" / "link") == "large"
    assert not [name for name in os.listdir(host.folder) if name.startswith("zkeep-")]
