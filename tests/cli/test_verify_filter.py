"""zkeep verify between a pipe and a pipe."""

from __future__ import annotations

import io
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import keykit
from zkeep.format import kernel
from zkeep.format.events import Batch, Package, SubBegin, SubEnd
from zkeep.format.nvlist import NvList, encode
from zkeep.format.reader import read_events
from zkeep.format.records import RecordType
from zkeep.format.writer import Writer

STORY = Path(__file__).parent.parent / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")
FULL = STORY / "full-Rw.zfs"
INCREMENT = STORY / "inc-w.zfs"
COMMAND = [sys.executable, "-m", "zkeep"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))  # a user's is in TMPDIR where there is none
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)


def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *words], input=stdin, capture_output=True, timeout=60, check=False)


def passed(stream: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return run("verify", *words, "-L", KEY, stdin=stream.read_bytes())


def refused(answer: subprocess.CompletedProcess[bytes], status: int, why: str) -> None:
    assert answer.returncode == status, answer.stderr
    assert answer.stdout == b""
    assert answer.stderr.count(b"\n") == 1
    assert why in answer.stderr.decode()


def top_props(stream: bytes) -> dict[str, object]:
    package = next(iter(read_events(io.BytesIO(stream))))
    assert isinstance(package, Package)
    fss = package.nvlist["fss"]
    assert isinstance(fss, NvList)
    top = next(iter(fss.values()))
    assert isinstance(top, NvList)
    return dict(top["props"])  # type: ignore[call-overload, no-any-return]


def test_what_is_passed_on_is_received_and_is_all_there(tmp_path: Path) -> None:
    full = passed(FULL)
    assert (full.returncode, full.stderr) == (0, b"")
    assert run("pool", "create", "vault", str(tmp_path / "vault")).returncode == 0
    assert run("receive", "vault/j", stdin=full.stdout).returncode == 0
    more = passed(INCREMENT, "--base", "vault/j/blanc@to-remote-server")
    assert (more.returncode, more.stdout) == (0, INCREMENT.read_bytes())
    assert run("receive", "vault/j/blanc", stdin=more.stdout).returncode == 0
    assert run("verify", "-r", "vault/j", "-L", KEY).returncode == 0
    several = run("send", "-Rw", "-I", "@2018", "vault/j/blanc@work-of-the-day").stdout
    again = run("verify", "-v", "-L", KEY, "--base", "vault/j/blanc@2018", stdin=several)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(b": authentic: ") == 5
    assert len(again.stdout) == len(several)


def test_who_stops_reading_gets_one_line_and_may_try_again() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with FULL.open("rb") as source:
        command = [*COMMAND, "verify", "-L", KEY]
        answer = subprocess.run(command, stdin=source, stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    assert (answer.returncode, answer.stderr.count(b"\n")) == (5, 1)
    assert b"nobody reads it" in answer.stderr


@pytest.mark.skipif(not shutil.which("zstream"), reason="zstream is not installed")
def test_zstream_reads_what_is_passed_on() -> None:
    answer = subprocess.run(["zstream", "dump"], input=passed(FULL).stdout, capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_properties_pass_only_where_they_are_allowed() -> None:
    assert top_props(FULL.read_bytes()) == {"mountpoint": "/zdata/jambon"}
    assert top_props(passed(FULL).stdout) == {}
    assert top_props(passed(FULL, "--allow", "mountpoint").stdout) == {"mountpoint": "/zdata/jambon"}
    refused(passed(FULL, "--allow", "colour"), 2, "--allow")


def test_it_tells_what_was_authenticated_and_left_out() -> None:
    told = passed(FULL, "-v").stderr.decode().splitlines()
    assert told[0] == "zdata/encrypted/jambon: mountpoint is left out"
    assert sum(": authentic: " in line for line in told) == 12


def test_an_increment_needs_its_base() -> None:
    refused(passed(INCREMENT), 1, "give it with --base")
    answer = passed(INCREMENT, "-v", "--base", str(FULL))
    assert answer.stdout == INCREMENT.read_bytes()
    assert answer.stderr.startswith(b"zdata/encrypted/jambon/blanc@work-of-the-day: authentic: 19 objects")
    refused(passed(INCREMENT, "--base", "nowhere"), 2, "a base is a stream file or a snapshot")


def test_a_forgery_is_named_by_its_senders_name() -> None:
    answer = run("verify", "-L", KEY, "--base", str(FULL), stdin=forged(INCREMENT.read_bytes()))
    refused(answer, 4, "zkeep: zdata/encrypted/jambon/blanc@work-of-the-day: ")
    assert b"object " in answer.stderr


def forged(stream: bytes, *, wrap: bool = False) -> bytes:
    """The last block's last byte, or one of the wrapped keys, is another; all checksums agree."""
    writer, made = Writer(), b""
    for event in read_events(io.BytesIO(stream), len(stream)):
        if isinstance(event, SubBegin):
            made += writer.begin(event.begin, rewrapped(event) if wrap else event.payload)
        elif isinstance(event, Batch):
            content = bytearray(event.buffer)
            if not wrap:
                last = event.select(RecordType.WRITE)[0][-1]
                content[int(event.offsets[last] + event.lengths[last]) - 1] ^= 1
            _, sums = kernel.check(content, event.offsets, event.lengths, False)
            writer.stamp(content, event.offsets, event.lengths, sums)
            made += bytes(content)
        elif isinstance(event, SubEnd):
            made += writer.end()
    return made


def rewrapped(event: SubBegin) -> bytes:
    assert event.nvlist is not None
    crypt = event.nvlist["crypt_keydata"]
    assert isinstance(crypt, NvList)
    mac = crypt["DSL_CRYPTO_MAC"]
    assert isinstance(mac, bytes)
    crypt["DSL_CRYPTO_MAC"] = bytes([mac[0] ^ 1]) + mac[1:]
    return encode(event.nvlist)


def test_the_key_must_open_the_key_record_of_the_stream_itself() -> None:
    """Another one of the same keys, as the base has, is not what the receiving host gets."""
    answer = run("verify", "-L", KEY, "--base", str(FULL), stdin=forged(INCREMENT.read_bytes(), wrap=True))
    refused(answer, 1, "cannot authenticate zdata/encrypted/jambon/blanc@work-of-the-day: ")


def test_plain_wrong_and_empty_streams_are_refused(tmp_path: Path) -> None:
    refused(passed(STORY / "plain-blanc-2018.zfs"), 4, "it is not raw")
    refused(run("verify", "-L", KEY), 1, "empty")
    keykit.write(tmp_path / "key", bytes(32))
    answer = run("verify", "-L", f"file://{tmp_path}/key", stdin=FULL.read_bytes())
    refused(answer, 1, "cannot authenticate zdata/encrypted/jambon@to-remote-server: ")


def test_words_that_make_no_sense_are_wrong_usage() -> None:
    refused(run("verify", "-r", "-L", KEY, stdin=FULL.read_bytes()), 2, "-r needs a dataset")
    refused(run("verify", str(FULL), "--base", str(FULL), "-L", KEY), 2, "standard input")


def test_terminals_are_told_from_pipes() -> None:
    ours, theirs = pty.openpty()
    try:
        reading = subprocess.run([*COMMAND, "verify", "-L", KEY], stdin=theirs, capture_output=True, check=False)
        refused(reading, 2, "verify needs a snapshot")
        with FULL.open("rb") as source:
            writing = subprocess.run(
                [*COMMAND, "verify", "-L", KEY], stdin=source, stdout=theirs, stderr=subprocess.PIPE, check=False
            )
        assert writing.returncode == 1
        assert b"not written to a terminal" in writing.stderr
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("closed", "status", "why"),
    [("<&-", 2, "or a stream on standard input"), (">&-", 1, "standard output is closed"), ("<&- >&-", 2, "stream")],
)
def test_an_end_that_is_closed_is_told_of(closed: str, status: int, why: str) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "verify", "-L", KEY]
    with FULL.open("rb") as source:
        refused(subprocess.run(command, stdin=source, capture_output=True, check=False, timeout=60), status, why)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    assert passed(FULL).returncode == 0
    assert [path.name for path in tmp_path.glob("zkeep-*")] == []


def test_on_a_terminal_it_shows_how_much_has_come() -> None:
    always = "from zkeep.cli.common import progress; progress.Meter._due = lambda self: 1.0"
    command = [sys.executable, "-c", f"{always}; from zkeep.cli.main import main; main()", "verify", "-v", "-L", KEY]
    ours, theirs = pty.openpty()
    with FULL.open("rb") as source:
        done = subprocess.run(command, stdin=source, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "\rv" not in shown
    assert "to-remote-server: " in shown.split("authentic")[0]
    assert "/s\x1b[K" in shown.split("authentic")[0]
