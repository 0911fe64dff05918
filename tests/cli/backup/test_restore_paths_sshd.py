"""zkeep restore of one file over a real sshd: what comes over the line is a small part of the backup."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshkit import SSH, ZKEEP, Host, started

COUNTING = """#!/bin/sh
# All that comes from the server is counted.
{ssh} "$@" | tee -a {bytes}
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    yield from started(tmp_path)


def test_one_of_500_files_costs_less_than_a_twentieth(host: Host) -> None:
    host.allow("receive,list,send")
    docs, key = host.folder / "docs", host.folder / "docs.key"
    chance = random.Random(3)
    for number in range(500):
        folder = docs / f"f{number % 20}" / f"g{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"n{number}").write_bytes(chance.randbytes(chance.choice([100, 5000, 20_000])))
    (host.folder / "bin").mkdir()
    (host.folder / "bin" / "ssh").write_text(COUNTING.format(bytes=host.folder / "bytes", ssh=SSH))
    (host.folder / "bin" / "ssh").chmod(0o755)
    own = {**os.environ, "ZKEEP_HOME": str(host.folder / "own"), "TMPDIR": str(host.folder)}
    env = {**own, "PATH": f"{host.folder / 'bin'}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(host.folder)}
    place = f"ssh://127.0.0.1:{host.port}/vault/alice/docs"
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    ssh = ["--sshkey", str(host.folder / "alice"), *(word for text in options for word in ("--ssh-option", text))]

    def run(*words: str) -> str:
        done = subprocess.run([str(ZKEEP), *words], env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stderr

    run("backup", *ssh, "--yes", "--key-file", str(key), str(docs), place)
    (host.folder / "bytes").unlink()
    env["ZKEEP_HOME"] = str(host.folder / "another")
    said = run("restore", "-v", *ssh, "-L", key.as_uri(), "-C", str(host.folder / "new"), place, "f3/g3/n3")
    assert "fetched " in said
    new = host.folder / "new"
    found = [path for path in new.rglob("*") if path.is_file()]
    assert [path.relative_to(new) for path in found] == [Path("f3/g3/n3")]
    assert found[0].read_bytes() == (docs / "f3/g3/n3").read_bytes()
    whole = sum(path.stat().st_size for path in docs.rglob("*") if path.is_file())
    assert (host.folder / "bytes").stat().st_size < whole / 20
    assert not [name for name in os.listdir(host.folder) if name.startswith("zkeep-")]
