"""A backup server without a network: a program `ssh` that runs `zkeep server` at once, and may be told to fail."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from zkeep.cli.main import run

ROLES = "receive,list"
ZKEEP = (sys.executable, "-P", "-m", "zkeep")
SSH = """#!/bin/sh
# The last word is the command line; $ZKEEP_SERVER is the server's home. A file `cut` ends streams after its bytes.
for line; do :; done
printf '%s\\n' "$line" >> {log}
if [ -e {folder}/down ]; then echo 'ssh: connect to host box port 22: Connection refused' >&2; exit 255; fi
if [ -e {folder}/answer ]; then . {folder}/answer; fi
export SSH_ORIGINAL_COMMAND="$line" ZKEEP_HOME={server}
case "$line" in
  'zkeep receive'*) if [ -e {folder}/cut ]; then
      head -c "$(cat {folder}/cut)" | {zkeep} server --root {root} --allow {roles} >&2; exit 255; fi ;;
esac
exec {zkeep} server --root {root} --allow {roles}
"""


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    def events(self, what: str) -> list[dict[str, object]]:
        """The JSON objects of this kind."""
        return [found for line in self.out.splitlines() if (found := json.loads(line))["what"] == what]


class Laptop:
    """A user's machine with a folder to back up, and a server; verbs of both run within this process."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], roles: str = ROLES
    ) -> None:
        self.folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd
        self.server, self.source, self.key = folder / "srv", folder / "docs", folder / "key"
        self.home, self._log, self._outs = folder / "home", folder / "log", 0
        (folder / "bin").mkdir()
        self.source.mkdir()
        (self.source / "a").write_bytes(b"first")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        self.write_ssh(roles)
        for words in (("pool", "create", "vault", str(folder / "pv")), ("create", "vault/me")):
            assert self.serve(*words).status == 0

    def write_ssh(self, roles: str, root: str = "vault/me") -> None:
        names = {"zkeep": " ".join(ZKEEP), "server": self.server, "log": self._log, "roles": roles, "root": root}
        program = self.folder / "bin" / "ssh"
        program.write_text(SSH.format(folder=self.folder, **names))
        program.chmod(0o755)

    def run(self, *words: str) -> Done:
        """zkeep on the user's machine."""
        return self._run(self.home, *words)

    def serve(self, *words: str) -> Done:
        """zkeep on the server, as its administrator."""
        return self._run(self.server, *words)

    def _run(self, home: Path, *words: str) -> Done:
        self._monkeypatch.setenv("ZKEEP_HOME", str(home))
        self._capfd.readouterr()
        status = run(list(words))
        out, err = self._capfd.readouterr()
        return Done(status, out, err)

    def backup(self, *words: str, to: str = "ssh://box/vault/me") -> Done:
        return self.run("backup", "--yes", "--key-file", str(self.key), *words, str(self.source), to)

    def said(self) -> list[str]:
        """The command lines that came to the server since this was asked the last time."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return lines

    def snapshots(self, dataset: str = "vault/me") -> list[str]:
        """The guids that the server has, oldest first."""
        return self.serve("list", "-H", "-p", "-o", "guid", "-t", "snapshot", "-s", "createtxg", dataset).out.split()

    def files(self, dataset: str = "vault/me") -> dict[str, bytes]:
        """What its newest snapshot has, opened with the key on the server's pool."""
        names = self.serve("list", "-H", "-o", "name", "-t", "snapshot", "-s", "createtxg", dataset).out.split("\n")
        self._outs += 1
        into = self.folder / f"out-{self._outs}"
        done = self.serve("extract", "-L", self.key.as_uri(), "-C", str(into), names[-2])
        assert done.status == 0, done.err
        return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}
