"""A real sshd on loopback with a pool, and `zkeep server` as the forced command of alice's key."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

HISTORY = Path(__file__).parent / "data" / "histories" / "rs512b.tar.xz"
SSHD, SSH, KEYGEN = (shutil.which(name, path="/usr/sbin:/usr/bin:/bin") for name in ("sshd", "ssh", "ssh-keygen"))
ZKEEP = Path(sys.executable).with_name("zkeep")
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/pid
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
"""


def stream(name: str) -> bytes:
    with tarfile.open(HISTORY) as tar:
        held = tar.extractfile(f"rs512b.{name}.zfs")
        assert held is not None
        return held.read()


@dataclass(frozen=True)
class Answer:
    status: int
    out: bytes
    err: str


class Host:
    """An sshd of this user's own, with the pool `vault`; alice's key is confined to vault/alice."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.env = {**os.environ, "ZKEEP_HOME": str(folder / "home")}
        for name in ("host", "alice"):
            self._run(str(KEYGEN), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        self.zkeep("pool", "create", "vault", str(folder / "pool"))
        self.zkeep("create", "vault/alice")
        self.allow("receive,list")
        (folder / "config").write_text(CONFIG.format(port=port, folder=folder))
        self.sshd = subprocess.Popen(
            [str(SSHD), "-D", "-f", str(folder / "config"), "-E", str(folder / "log")], env=self.env
        )

    def allow(self, roles: str, *words: str) -> None:
        """Write authorized_keys as the administrator does."""
        key = self.folder / "alice.pub"
        lines = self.zkeep(
            *("server", "--root", "vault/alice", "--allow", roles, *words, "--print-authorized-keys", str(key))
        )
        (self.folder / "authorized_keys").write_bytes(lines)

    def zkeep(self, *words: str) -> bytes:
        return self._run(str(ZKEEP), *words)

    def _run(self, *words: str) -> bytes:
        return subprocess.run(words, check=True, env=self.env, stdout=subprocess.PIPE).stdout

    def ssh(self, line: str, stdin: bytes = b"") -> Answer:
        options = ["-F", "/dev/null", "-i", str(self.folder / "alice"), "-p", str(self.port), "-o", "LogLevel=ERROR"]
        options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
        command = [str(SSH), *options, "127.0.0.1", *([line] if line else [])]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    def is_up(self) -> bool:
        for _ in range(100):
            if self.sshd.poll() is not None:
                return False
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as there:
                if there.recv(4) == b"SSH-":
                    return True
            with suppress(subprocess.TimeoutExpired):
                self.sshd.wait(0.05)
        return False


def started(folder: Path) -> Iterator[Host]:
    """For a fixture: the host; the test is skipped where there is none."""
    if not (SSHD and SSH and KEYGEN and ZKEEP.exists()):
        pytest.skip("needs OpenSSH's sshd, ssh and ssh-keygen")
    if os.geteuid() == 0:
        with suppress(OSError):
            os.makedirs("/run/sshd", 0o755, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host = Host(folder, port)
    try:
        if not host.is_up():
            pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-300:]}")
        yield host
    finally:
        host.sshd.terminate()
        host.sshd.wait()
