"""zkeep server: one client's verbs, on its own datasets, as sshd calls it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from zkeep.cli.main import run

CHAIN = Path(__file__).parents[2] / "data" / "opened" / "chains"
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


def test_a_key_that_may_all_rolls_back_promotes_and_renames() -> None:
    """In a process of its own, as for sshd: there what decrypts cannot be imported, by whichever verb."""
    for stream in (FULL, INCREMENT):
        assert ask("zkeep receive vault/alice/home", stream=stream).status == 0
    for line in (
        "zkeep rollback -r vault/alice/home@s0",
        "zkeep rename vault/alice/home vault/alice/h",
        "zkeep rollback -R vault/alice/h@s0",
        "zkeep bookmark vault/alice/h@s0 vault/alice/h#b",
    ):
        assert ask(line, "--allow", "admin,hold") == Answer(0, "", ""), line
    assert ask("zkeep promote vault/alice/h", "--allow", "admin").err.endswith(": not a cloned filesystem\n")
    assert "unexpected" not in ask("zkeep snapshot -r vault/alice/h@new", "--allow", "admin").err
    assert ask("zkeep destroy -r vault/alice/h", "--allow", "admin") == Answer(0, "", "")


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


def test_history_says_who_did_what_and_how_it_ended(capfd: Output) -> None:
    size = FULL.stat().st_size
    assert ask("zfs receive -s vault/alice/home", "--client", "laptop", stream=FULL).status == 0
    assert ask("zfs destroy vault/alice/home@s0").status == 1
    assert ask("zfs list").status == 0  # what only looks is not noted
    assert ask("zkeep receive vault/bob/home", "--client", "bob\x1b[31m", root="vault/bob", stream=FULL).status == 0
    capfd.readouterr()
    assert run(["history", "-H", "vault"]) == 0
    lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [(line[1], line[2], line[4], line[7], line[8]) for line in lines] == [
        ("vault/alice", "laptop", str(size), "0", "zfs receive -s --append-only -h -- vault/alice/home"),
        ("vault/alice", "-", "0", "1", "zfs destroy vault/alice/home@s0"),
        ("vault/bob", "bob\\x1b[31m", str(size), "0", "zkeep receive --append-only -h -- vault/bob/home"),
    ]
    assert run(["history", "-H", "vault/bob"]) == 0
    assert capfd.readouterr().out.count("\n") == 1
    own = ask("zkeep history -H").out
    assert own.count("\n") == 2
    assert "bob" not in own + ask("zkeep history -j vault").out
    assert ask("zkeep history vault/bob").err == "zkeep: cannot open vault/bob: dataset does not exist\n"


def test_the_history_of_a_client_is_bounded_and_does_not_push_out_anothers(tmp_path: Path) -> None:
    from dataclasses import replace

    from zkeep.names import DatasetName
    from zkeep.pool.datasets import commands
    from zkeep.pool.datasets.model import Pool

    entry = commands.HistoryEntry(1, "c" * 9999, "p", "alice", "zfs " + "x" * 9999, 0, 0, 0, 0)
    alice, bob = DatasetName("vault/alice"), DatasetName("vault/bob")
    with Pool.open(tmp_path / "pool", "vault") as pool:
        commands.record(pool, bob, replace(entry, root="bob"), refused=False)
        commands.record(pool, alice, entry, refused=False)
        for number in range(commands.MOST["refused"] + 5):
            commands.record(pool, alice, replace(entry, at=number, command=f"{number}"), refused=True)
        found = commands.entries(pool)
        assert len(found) == commands.MOST["refused"] + 2
        assert max(len(entry.command) for _, entry in found) == commands.LONGEST
        assert {name for name, _ in found} == {alice, bob}
        assert max(int(e.command) for _, e in found if e.command.isdecimal()) == commands.MOST["refused"] + 4


def test_idle_and_rate_are_numbers() -> None:
    for words in (("--idle", "soon"), ("--idle", "-1"), ("--idle", "nan"), ("--rate", "fast"), ("--allow", "root")):
        assert ask("zfs list", *words).status == 2
    assert ask("zfs list", "--rate", "10M", "--idle", "0").status == 0


def test_an_appending_key_keeps_what_is_newer_than_its_source() -> None:
    for stream in (FULL, INCREMENT):
        assert ask("zfs receive -F vault/alice/home", stream=stream).status == 0
    assert run(["rename", "vault/alice/home@s1", "vault/alice/home@kept"]) == 0
    other = CHAIN / "ccm192-lzjb-8k.inc-s0-s1.zfs"
    assert ask("zfs receive -F vault/alice/home@other", stream=other).status in (0, 1)
    assert "vault/alice/home@kept" in ask("zfs list -H -o name -t snapshot -r vault/alice").out


@pytest.mark.parametrize("packing", ["gzip", "zstd", "lz4", "xz", "bzip2"])
def test_a_packed_stream_is_unpacked_on_its_way(packing: str, tmp_path: Path) -> None:
    import bz2
    import gzip
    import lzma

    import lz4.frame
    import zstandard

    pack = {
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
        "lz4": lz4.frame.compress,
        "xz": lzma.compress,
        "bzip2": bz2.compress,
    }[packing]
    packed = pack(FULL.read_bytes())
    (tmp_path / "whole").write_bytes(packed)
    (tmp_path / "cut").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "other").write_bytes(b"this is no such thing" * 99)
    line = f"mbuffer -q -s 128k -m 16M 2>/dev/null | {packing} -dc | zfs receive vault/alice/home"
    for bad in ("cut", "other"):
        answer = ask(line, stream=tmp_path / bad)
        assert (answer.status, answer.out) == (1, "")
        assert answer.err.count("\n") == 1
    assert ask(line, stream=tmp_path / "whole") == Answer(0, "", "")


def test_no_key_is_used_for_a_client_and_nothing_is_in_clear_below_what_is_encrypted() -> None:
    plain = CHAIN.parents[1] / "streams" / "plain-blanc-2018.zfs"
    assert ask("zfs receive vault/alice/home", stream=FULL).status == 0
    assert "the stream is not raw and blind=on" in ask("zfs receive vault/alice/plain", stream=plain).err
    assert run(["set", "blind=off", "vault/alice"]) == 0
    assert ask("zfs receive vault/alice/plain", stream=plain).status == 0
    for name in ("vault/alice/home/below", "vault/alice/home/other"):
        answer = ask(f"zfs receive -F {name}", "--allow", "admin", stream=plain)
        assert answer.status == 1
        assert "no key is ever used for clients" in answer.err
    for option in ("-x encryption", "-o encryption=on", "-o keyformat=raw -o keylocation=file:///etc/key"):
        answer = ask(f"zfs receive {option} vault/alice/other", "--allow", "admin", stream=plain)
        assert (answer.status, answer.err.count("no key is ever used here")) == (1, 1)


def test_a_client_says_of_keys_only_what_is_so_anyway(capfd: Output) -> None:
    for option, status in (("prompt", 0), ("file:///etc/key", 1), ("https://host/key", 1), ("none", 1)):
        answer = ask(f"zfs receive -o keylocation={option} vault/alice/{len(option)}", stream=FULL)
        assert (answer.status, "no key is ever used here" in answer.err) == (status, status == 1)
    capfd.readouterr()
    assert run(["get", "-H", "-o", "value,source", "keylocation", "vault/alice/6"]) == 0
    assert capfd.readouterr().out == "prompt\tlocal\n"


def test_a_hold_that_was_set_on_the_server_is_released_there(capfd: Output) -> None:
    assert ask("zfs receive vault/alice/home", stream=FULL).status == 0
    assert run(["hold", "admins", "vault/alice/home@s0"]) == 0
    assert ask("zfs hold own vault/alice/home@s0", "--allow", "hold") == Answer(0, "", "")
    assert ask("zfs release own vault/alice/home@s0", "--allow", "hold") == Answer(0, "", "")
    for allow in ("hold", "admin"):
        answer = ask("zfs release admins vault/alice/home@s0", "--allow", allow)
        assert (answer.status, "permission denied" in answer.err) == (1, True)
        assert ask("zfs destroy vault/alice/home@s0", "--allow", "destroy").status == 1
    assert ask("zfs hold again vault/alice/home@s0", "--allow", "hold").status == 0
    assert run(["release", "again", "vault/alice/home@s0"]) == 0  # and once more, now by the administrator
    assert run(["hold", "again", "vault/alice/home@s0"]) == 0
    assert "permission denied" in ask("zfs release again vault/alice/home@s0", "--allow", "hold").err


def test_tools_see_which_datasets_are_being_received_into() -> None:
    command = [sys.executable, "-m", "zkeep", "server", "--root", "vault/alice"]
    env = _environ({"SSH_ORIGINAL_COMMAND": "zfs receive -s vault/alice/home"})
    full = FULL.read_bytes()
    assert ask("ps -Ao args=") == Answer(0, "", "")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as client:
        assert client.stdin is not None
        client.stdin.write(full[:5000])
        client.stdin.flush()
        for _ in range(100):
            seen = ask("ps -Ao args=")
            if seen.out:
                break
        assert seen == Answer(0, "zfs receive vault/alice/home\n", "")
        assert ask("ps -Ao args=", root="vault/bob") == Answer(0, "", "")
        client.communicate(full[5000:])
        assert client.returncode == 0
    assert ask("ps -Ao args=") == Answer(0, "", "")


def test_no_message_names_a_path_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "pool" / "POOL").rename(tmp_path / "elsewhere")
    for line in ("zfs list", "zkeep get all vault/alice", "zpool status -v", "zfs receive vault/alice/x", "ps -Ao x"):
        answer = ask(line, stream=FULL)
        assert str(tmp_path) not in answer.out + answer.err, line
        assert answer.out + answer.err


def test_a_client_has_so_many_connections_at_once(tmp_path: Path) -> None:
    import time

    from zkeep.pool.datasets.model import Pool

    command = [sys.executable, "-m", "zkeep", "server", "--root", "vault/alice"]
    env = _environ({"SSH_ORIGINAL_COMMAND": "zfs receive vault/alice/home"})
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as waiting:
        assert waiting.stdin is not None
        waiting.stdin.write(FULL.read_bytes()[:5000])
        waiting.stdin.flush()
        with Pool.open(tmp_path / "pool") as pool:
            for _ in range(600):  # until it is at work, and so has its place
                if pool.catalog.scan("receive"):
                    break
                time.sleep(0.05)
        answer = ask("zfs list", "--connections", "1")
        assert answer == Answer(5, "", "zkeep: this client has 1 connection already; end one, or try again\n")
        assert ask("zfs list", "--connections", "2").status == 0
        assert ask("zfs list", "--connections", "1", root="vault/bob").status == 0
        waiting.stdin.close()
        waiting.wait()
    assert ask("zfs list", "--connections", "1").status == 0


def test_what_the_administrator_notes_above_the_root_is_not_told() -> None:
    assert run(["set", "org.example:clients=alice,bob", "vault"]) == 0
    assert run(["set", "org.example:own=1", "vault/alice"]) == 0
    assert ask("zfs receive vault/alice/home", stream=FULL).status == 0
    assert run(["set", "keylocation=file:///root/keys/alice", "vault/alice/home"]) == 0
    assert run(["set", "mountpoint=/srv/clients", "vault"]) == 0
    assert run(["set", "mountpoint=/mine", "vault/alice"]) == 0
    assert ask("zfs list -H -o name,mountpoint vault vault/alice").out == "vault\t/vault\nvault/alice\t/mine\n"
    answer = ask("zfs get -H -r all vault")
    assert "bob" not in answer.out
    assert "/srv/clients" not in answer.out
    assert "/root/keys" not in answer.out
    assert answer.out.count("org.example:own") == 3  # the root, and inherited: a dataset and its snapshot


def test_the_line_for_authorized_keys_runs_in_a_shell(
    tmp_path: Path, capfd: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run it as sshd does: by the shell, with the client's words in the environment alone."""
    import base64
    import os
    import shlex
    import sys

    program = tmp_path / "bin" / "zkeep"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m zkeep "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    blob = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(32)).decode()
    key = tmp_path / "it's a key.pub"
    key.write_text(f"ssh-ed25519 {blob} alice\n")
    assert run(["create", "vault/it is alice's"]) == 1  # no such name
    assert run(["create", "vault/with space"]) == 0
    capfd.readouterr()
    monkeypatch.setenv("TZ", "Europe/Berlin")
    words = ["--root", "vault/with space", "--allow", "list", "--idle", "9", "--rate", "1M", "--connections", "3"]
    assert run(["server", *words, "--client", 'a "b" $c', "--print-authorized-keys", str(key)]) == 0
    line = capfd.readouterr().out
    assert line.endswith(f'",restrict ssh-ed25519 {blob} alice\n')
    command = line[len('command="') :].partition('",restrict ')[0].replace('\\"', '"')
    parsed = shlex.split(command)
    assert parsed[parsed.index("server") + 1 :] == [
        *("--root", "vault/with space", "--allow", "list", "--client", 'a "b" $c'),
        *("--idle", "9", "--rate", "1048576", "--connections", "3", "--timezone", "Europe/Berlin"),
    ]
    env = _environ({"SSH_ORIGINAL_COMMAND": "zfs list -H -o name; exit"})
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "vault\nvault/with space\n")
    assert run(["server", "--root", "vault/alice", "--print-authorized-keys"]) == 2
    assert run(["server", "--root", "vault/alice", "--print-authorized-keys", str(tmp_path / "none")]) == 1
    assert run(["server", "--root", "vault/alice", str(key)]) == 2


def test_the_time_zone_is_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """sshd may pass on a client's TZ; retention counts in days of the local time."""
    assert ask("zkeep receive vault/alice/home", stream=FULL).status == 0
    line = "zfs get -H -o value creation vault/alice/home"
    monkeypatch.delenv("TZ", raising=False)
    own = ask(line)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    assert ask(line) == own
    assert ask(line, "--timezone", "Etc/GMT+11") != ask(line, "--timezone", "Etc/GMT-11")


def test_what_truenas_asks_before_it_sends(tmp_path: Path) -> None:
    for name, value in (("encryption", "off"), ("keyformat", "none")):
        assert ask(f"zfs get -H -p -t filesystem,volume {name} vault").out == f"vault\t{name}\t{value}\tdefault\n"
    # A key of the administrator's, above the root, is not told to a client.
    (tmp_path / "key").write_bytes(bytes(32))
    at = f"keylocation=file://{tmp_path}/key"
    assert run(["create", "-o", "encryption=on", "-o", "keyformat=raw", "-o", at, "vault/locked"]) == 0
    assert run(["create", "vault/locked/carol"]) == 0
    asked = "zfs get -H -o value encryption vault/locked vault/locked/carol"
    assert ask(asked, root="vault/locked/carol").out == "off\naes-256-gcm\n"


def test_a_stream_that_truenas_packs(tmp_path: Path) -> None:
    import lz4.frame

    (tmp_path / "packed").write_bytes(lz4.frame.compress(FULL.read_bytes()))
    programs = ("lz4c -d", "zfs recv -s -F -x mountpoint vault/alice/nas")
    steps = " | ".join(f'{{ {each} 4>&-; echo "pipestatus{at}=$?;" >&4; }}' for at, each in enumerate(programs))
    asked = "; ".join(f"[ $pipestatus{at} -ne 0 ] && exit $pipestatus{at}" for at in (0, 1))
    script = f"exec 3>&1; eval $(exec 4>&1 >&3 3>&-; {steps}); {asked}; exit 0"
    line = shlex.join(["sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin sh -c {shlex.quote(script)}"])
    assert ask(line, stream=tmp_path / "packed") == Answer(0, "", "")
    assert ask("zfs list -H -o name -t snapshot -r vault/alice").out == "vault/alice/nas@s0\n"


@pytest.mark.parametrize(
    "line",
    [
        "; ".join(["echo " + "x" * 4000] * 30),
        "; ".join(["zfs get all vault/alice 2>&1"] * 40),
        "; ".join(["zfs list " + "x" * 280 + " 2>&1"] * 400),
    ],
    ids=["text", "table", "errors"],
)
def test_a_client_that_does_not_read_the_answer_is_ended(line: str) -> None:
    command = [sys.executable, "-m", "zkeep", "server", "--root", "vault/alice", "--idle", "0.2"]
    env = _environ({"SSH_ORIGINAL_COMMAND": line})
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdin=null, stdout=pipe, stderr=pipe, env=env) as server:
        try:
            assert server.wait(60) == (1 if "zfs" in line else 5)
            assert server.stderr is not None
            assert server.stderr.read().count(b"neither sent nor took anything for 0.2 seconds") == ("2>&1" not in line)
        finally:
            server.kill()
