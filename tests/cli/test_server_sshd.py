"""zkeep server as the forced command of a real sshd, on loopback."""

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

HISTORY = Path(__file__).parent.parent / "data" / "histories" / "rs512b.tar.xz"
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


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if not (SSHD and SSH and KEYGEN and ZKEEP.exists()):
        pytest.skip("needs OpenSSH's sshd, ssh and ssh-keygen")
    if os.geteuid() == 0:
        with suppress(OSError):
            os.makedirs("/run/sshd", 0o755, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host = Host(tmp_path, port)
    try:
        if not host.is_up():
            pytest.skip(f"sshd does not start here: {(tmp_path / 'log').read_text()[-300:]}")
        yield host
    finally:
        host.sshd.terminate()
        host.sshd.wait()


def test_a_client_over_real_ssh(host: Host) -> None:
    full, increment = stream("full-s0"), stream("inc-s0-s1")
    # As syncoid says it: probes, then the pipeline.
    assert host.ssh("echo -n") == Answer(0, b"", "")
    assert host.ssh("command -v mbuffer").out == b"/usr/bin/mbuffer\n"
    gone = host.ssh("zfs get -H name 'vault/alice/home'")
    assert gone.err == "cannot open 'vault/alice/home': dataset does not exist\n"
    receive = " mbuffer  -q -s 128k -m 16M 2>/dev/null |  zfs receive -u  -s -F 'vault/alice/home' 2>&1"
    # Interrupted; the token leads on; then an increment.
    cut = host.ssh(receive, full[: len(full) // 2])
    assert cut.status == 1
    assert b"A resuming stream can be generated on the sending system by running:\n    zfs send -t 1-" in cut.out
    token = host.ssh("zfs get -H -o value receive_resume_token vault/alice/home").out.decode().strip()
    assert token.startswith("1-")
    assert host.ssh(receive, full) == Answer(0, b"", "")
    assert host.ssh(receive, increment) == Answer(0, b"", "")
    listed = host.ssh("zfs list -H -o name -t all -r vault")
    assert listed == Answer(
        0, b"vault\nvault/alice\nvault/alice/home\nvault/alice/home@s0\nvault/alice/home@s1\n", ""
    )
    # No role for more, no shell, no other folder.
    for line in ("zfs send -w vault/alice/home@s0", "zfs destroy vault/alice/home@s0", "id", "", "zkeep list; id"):
        assert host.ssh(line).status != 0
    assert b"uid=" not in host.ssh("zkeep list; id").out
    # Back again, with the role for it, and packed on the way.
    host.allow("send")
    assert host.ssh("zkeep send -w --received-name vault/alice/home@s0").out == full
    packed = host.ssh("zfs send -w -i @s0 vault/alice/home@s1 | gzip -3 | mbuffer -q")
    assert subprocess.run(["gzip", "-dc"], input=packed.out, stdout=subprocess.PIPE, check=True).stdout[:1000]


def test_a_silent_client_is_ended_and_what_came_is_kept(host: Host) -> None:
    host.allow("receive,list", "--idle", "0.5")
    options = ["-F", "/dev/null", "-i", str(host.folder / "alice"), "-p", str(host.port), "-o", "LogLevel=ERROR"]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    command = [str(SSH), *options, "127.0.0.1", "zkeep receive -s vault/alice/home"]
    full = stream("full-s0")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stderr is not None
        client.stdin.write(full[: len(full) // 2])
        client.stdin.flush()
        said = client.stderr.read().decode()
        client.stdin.close()
        assert client.wait() == 5
    assert "the other side sent nothing for 0.5 seconds" in said
    assert "Partially received snapshot is saved" in said
    host.allow("receive,list")
    assert host.ssh("zkeep receive -s vault/alice/home", full).status == 0
