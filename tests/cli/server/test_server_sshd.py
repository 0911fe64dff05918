"""zkeep server as the forced command of a real sshd, on loopback."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshkit import SSH, Answer, Host, started, stream


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    yield from started(tmp_path)


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
    assert listed == Answer(0, b"vault\nvault/alice\nvault/alice/home\nvault/alice/home@s0\nvault/alice/home@s1\n", "")
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
    assert "the other side neither sent nor took anything for 0.5 seconds" in said
    assert "Partially received snapshot is saved" in said
    host.allow("receive,list")
    assert host.ssh("zkeep receive -s vault/alice/home", full).status == 0
