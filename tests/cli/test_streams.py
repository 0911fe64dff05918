"""Real streams through the command line: in, listed, checked, and out again."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry

STREAMS = Path(__file__).parent.parent / "data" / "streams"
FULL = (STREAMS / "full-Rw.zfs").read_bytes()
INCREMENT = (STREAMS / "inc-w.zfs").read_bytes()
COMMAND = [sys.executable, "-m", "zkeep"]


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)
    Pool.create(tmp_path / "vault", "vault").close()
    Registry(tmp_path / "home").add("vault", tmp_path / "vault")
    return tmp_path / "vault"


def zkeep(line: str, stream: bytes = b"", status: int = 0) -> bytes:
    """Standard output; or, where a failure is expected, the line about it."""
    answer = subprocess.run([*COMMAND, *line.split()], input=stream, capture_output=True, timeout=60, check=False)
    assert answer.returncode == status, answer.stderr
    if status:
        assert re.fullmatch(rb"(zkeep: [ -~]*\n)+", answer.stderr)
        return answer.stderr
    return answer.stdout


def test_a_tree_is_listed_as_zfs_lists_it(vault: Path) -> None:
    zkeep("receive vault/jambon", FULL)
    zkeep("receive vault/jambon/blanc", INCREMENT)
    columns = "name,encryption,keystatus,encryptionroot,guid"
    lines = zkeep(f"list -r -t all -o {columns} vault/jambon/blanc").decode().splitlines()
    assert lines[0] == (
        "NAME                                ENCRYPTION   KEYSTATUS    ENCROOT                       GUID"
    ).replace("NAME", "NAME ")
    assert lines[2] == (
        "vault/jambon/blanc@2018              aes-256-gcm  unavailable  vault/jambon   2464517386099537575"
    )
    names = [line.split()[0].partition("@")[2] for line in lines[2:]]
    assert names == ["2018", "2019", "2020", "migration", "to-remote-server", "work-of-the-day"]


def test_what_a_blind_server_says_of_keys(vault: Path) -> None:
    zkeep("receive vault/jambon", FULL)
    asked = "get -H -o name,property,value,source encryptionroot,keylocation,keystatus,keyformat"
    assert zkeep(f"{asked} vault/jambon vault/jambon/blanc").decode().splitlines() == [
        "vault/jambon\tencryptionroot\tvault/jambon\t-",
        "vault/jambon\tkeylocation\tprompt\tlocal",
        "vault/jambon\tkeystatus\tunavailable\t-",
        "vault/jambon\tkeyformat\traw\t-",
        "vault/jambon/blanc\tencryptionroot\tvault/jambon\t-",
        "vault/jambon/blanc\tkeylocation\tnone\tdefault",
        "vault/jambon/blanc\tkeystatus\tunavailable\t-",
        "vault/jambon/blanc\tkeyformat\traw\t-",
    ]
    assert b"nothing is written to it here but by 'zkeep receive'" in zkeep("snapshot vault/jambon@now", status=1)


def test_what_came_in_goes_out(vault: Path, tmp_path: Path) -> None:
    zkeep("receive vault/jambon", FULL)
    zkeep("receive vault/jambon/blanc", INCREMENT)
    sent = zkeep("send -w --received-name -i @to-remote-server vault/jambon/blanc@work-of-the-day")
    assert sent == INCREMENT
    (tmp_path / "sent").write_bytes(sent)
    assert zkeep(f"dump {tmp_path / 'sent'}") == zkeep(f"dump {STREAMS / 'inc-w.zfs'}")


def test_the_figures_fall_by_what_a_destroy_reclaims(vault: Path) -> None:
    zkeep("receive vault/jambon", FULL)
    for name in ("2019", "2018,migration", "%2020"):
        before = int(zkeep("get -Hp -o value used vault"))
        told = zkeep(f"destroy -vp vault/jambon/blanc@{name}").split()[-1]
        assert int(zkeep("get -Hp -o value used vault")) == before - int(told)
        assert zkeep("pool scrub vault").endswith(b"no errors\n")
    zkeep("destroy -r vault/jambon")
    assert zkeep("get -Hp -o value used vault") == b"0\n"
    zkeep("pool compact vault")
    assert [p for p in (vault / "segments").rglob("*") if p.is_file()] == []


def test_a_scrub_names_what_is_damaged_and_whom_it_hurts(vault: Path) -> None:
    zkeep("receive vault/jambon", FULL)
    segment = max((vault / "segments").rglob("*.seg"), key=lambda p: p.stat().st_size)
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.chmod(0o600)
    segment.write_bytes(content)
    lines = zkeep("pool scrub vault", status=3).decode().splitlines()
    assert re.fullmatch(r"zkeep: segments/\S+: byte \d+: .*; hurts vault/jambon/blanc@.*", lines[0])
    assert lines[-1].startswith("zkeep: vault: 1 error; ")
    assert b" state: DEGRADED" in zkeep("pool status vault")
    assert b"1 data error:\n        segments/" in zkeep("pool status -v vault")


def test_a_lost_index_is_made_anew_with_all_that_was_set(vault: Path) -> None:
    zkeep("receive vault/jambon", FULL)
    zkeep("hold keep vault/jambon/blanc@2020")
    zkeep("bookmark vault/jambon/blanc@2018 #b")
    zkeep("destroy vault/jambon/blanc@2019")
    zkeep("set x:y=z vault/jambon")
    asked = ["list -Hp -r -t all -o name,used,refer,guid,userrefs,x:y vault", "get -Hp -r all vault/jambon"]
    before = [zkeep(line) for line in asked]
    for path in vault.glob("catalog.sqlite*"):
        path.write_bytes(b"garbage" * 99)
    zkeep("list vault", status=3)
    zkeep("pool scrub --rebuild-catalog vault")
    available = re.compile(rb"available\t\d+")
    assert [available.sub(b"", zkeep(line)) for line in asked] == [available.sub(b"", text) for text in before]


def test_streams_that_are_refused_change_nothing(vault: Path) -> None:
    plain = (STREAMS / "plain-blanc-2018.zfs").read_bytes()
    before = zkeep("list -H -r -t all -o name vault")
    assert b"blind" in zkeep("receive vault/plain", plain, status=1)
    assert b"byte" in zkeep("receive vault/x", b"garbage" * 1000, status=1)
    zkeep("receive vault/x", INCREMENT, status=1)
    zkeep("receive vault/nowhere/x", FULL, status=1)
    assert zkeep("list -H -r -t all -o name vault") == before
    zkeep("create -o blind=off vault/open")
    zkeep("receive vault/open/plain", plain)
    assert b"vault/open/plain@2018\n" in zkeep("list -H -r -t all -o name vault")


@pytest.mark.parametrize("line", ["receive vault/a", "dump", "send -w vault/jambon@to-remote-server"])
def test_nothing_binary_goes_from_or_to_a_terminal(vault: Path, line: str) -> None:
    zkeep("receive vault/jambon", FULL)
    outer, inner = pty.openpty()
    try:
        answer = subprocess.run(
            [*COMMAND, *line.split()], stdin=inner, stdout=inner, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(outer)
        os.close(inner)
    assert answer.returncode == 1
    assert re.fullmatch(rb"zkeep: cannot \w+: a stream is not (read from|written to) a terminal.*\n", answer.stderr)


def test_a_reader_that_goes_away_is_try_again(vault: Path) -> None:
    zkeep("receive vault/jambon", FULL)
    line = [*COMMAND, "send", "-Rw", "vault/jambon@to-remote-server"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == b"zkeep: cannot send: nobody reads the stream any more\n"
    assert process.wait() == 5
    process.stderr.close()
