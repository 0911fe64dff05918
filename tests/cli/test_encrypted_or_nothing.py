"""Who asks for encryption gets it, or an error with the way out: nothing is kept or leaves in clear."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commandkit import create_encrypted, own_state
from zkeep.cli.main import run

STORY = Path(__file__).parent.parent / "data" / "opened" / "story"
FULL, NEXT = STORY / "plain-blanc-2018.zfs", STORY / "plain-blanc-2019.zfs"
WAY_OUT = "-o encryption=on -o keyformat=raw -o keylocation=file:///path"


def given(stream: Path, *words: str) -> tuple[int, bytes, str]:
    """The exit status of a verb that reads a stream, and what it wrote."""
    with stream.open("rb") as source:
        done = subprocess.run([sys.executable, "-m", "zkeep", *words], stdin=source, capture_output=True, check=False)
    error = done.stderr.decode()
    assert error.count("\n") == (1 if done.returncode or "-x" in words else 0), error
    return done.returncode, done.stdout, error


def snapshots(capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert run(["list", "-H", "-o", "name", "-t", "snapshot"]) == 0
    return capsys.readouterr().out.split()


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pool `v` that takes plain streams, with an encrypted dataset v/enc, and others in clear."""
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/enc")
    assert run(["set", "blind=off", "v"]) == run(["create", "v/empty"]) == 0
    yield
    run(["unload-key", "-a"])


@pytest.mark.parametrize("target", ["v/new", "v/empty", "v/no/parent"])
@pytest.mark.parametrize(
    "verb",
    [
        ["encrypt"],
        ["encrypt", "-o", "contents=metadata"],
        ["encrypt", "-o", "encryption=on"],
        ["receive", "-o", "encryption=on"],
        ["receive", "-o", "encryption=aes-128-ccm", "-o", "keylocation=file:///dev/null"],
    ],
)
def test_p1_nothing_is_received_in_clear_where_encryption_was_asked_for(
    target: str, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, error = given(FULL, *verb, target)
    assert (status, out, WAY_OUT in error) == (1, b"", True), error
    assert error.startswith(f"zkeep: cannot {'encrypt into' if verb[0] == 'encrypt' else 'receive'} {target}: ")
    assert snapshots(capsys) == []


@pytest.mark.parametrize("stream", [FULL, NEXT])
def test_p1_what_was_received_in_clear_does_not_leave_by_encrypt(
    stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have come by a mistaken name before: also the same stream again, which is passed over, is refused."""
    assert given(FULL, "receive", "v/clear")[0] == 0
    status, out, error = given(stream, "encrypt", "v/clear")
    assert (status, out) == (1, b"")
    assert "cannot encrypt into v/clear: v/clear is in clear: name another dataset" in error
    status, out, error = given(NEXT, "receive", "-o", "encryption=on", "v/clear")
    assert (status, "v/clear is in clear" in error) == (1, True)
    assert snapshots(capsys) == ["v/clear@2018"]


def test_encrypt_says_that_the_key_is_missing_in_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Also between increments; and it names no way out that would be another task."""
    assert given(FULL, "encrypt", "v/enc/ds")[0] == 0
    assert run(["set", "blind=on", "v"]) == run(["unload-key", "v/enc"]) == 0
    for target, stream, key in (("v/enc/ds", NEXT, "'v/enc'"), ("v/enc/new", FULL, "'v/enc', which it inherits,")):
        done = given(stream, "encrypt", target)
        why = f"the key of {key} is not loaded: zkeep load-key v/enc"
        assert done == (1, b"", f"zkeep: cannot encrypt into {target}: {why}\n")
    assert snapshots(capsys) == ["v/enc/ds@2018"]


def test_encrypt_names_only_ways_out_that_it_has() -> None:
    status, out, error = given(NEXT, "encrypt", "v/enc/new")
    assert (status, out) == (1, b"")
    assert error.startswith("zkeep: cannot encrypt into v/enc/new: its source, guid 0x")
    assert error.endswith(": receive its full stream first\n")
    status, _, error = given(FULL, "encrypt", "-o", "encryption=off", "v/enc/new")
    assert (status, error.startswith("zkeep: cannot encrypt: encryption=off: ")) == (1, True)


def test_a_key_file_that_cannot_be_read_has_no_other_way_out() -> None:
    assert run(["set", "blind=on", "v"]) == 0
    key = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", "keylocation=file:///no/such")
    for verb in ("receive", "encrypt"):
        status, _, error = given(FULL, verb, *key, "v/new")
        assert (status, "zfs send -w" in error, "/no/such" in error) == (1, False, True), error


@pytest.mark.parametrize("letters", [(), ("-F",), ("-s", "-u"), ("-n",)])
def test_without_anything_encrypted_above_x_encryption_says_that_it_does_nothing(
    letters: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts written for zfs go on: it keeps such a stream in clear, too, without a word."""
    for stream in (FULL, NEXT)[: 1 if "-n" in letters else 2]:
        status, _, error = given(stream, "receive", *letters, "-x", "encryption", "v/new")
        assert (status, WAY_OUT in error, "zkeep create" in error) == (0, True, True)
        assert error.startswith("zkeep: warning: -x encryption encrypts nothing here: v/new is in clear")
    assert snapshots(capsys) == ([] if "-n" in letters else ["v/new@2018", "v/new@2019"])


def test_where_x_encryption_encrypts_or_the_pool_refuses_there_is_no_warning() -> None:
    command = [sys.executable, "-m", "zkeep", "receive", "-x", "encryption"]
    for blind, target, status in (("off", "v/enc/new", 0), ("on", "v/new", 1)):
        assert run(["set", f"blind={blind}", "v"]) == 0
        done = subprocess.run([*command, target], input=FULL.read_bytes(), capture_output=True, check=False)
        assert (done.returncode, b"warning" in done.stderr) == (status, False), done.stderr


def test_where_blind_is_on_the_way_out_is_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["set", "blind=on", "v"]) == 0
    status, _, error = given(FULL, "receive", "-x", "encryption", "v/new")
    assert (status, WAY_OUT in error, "nothing above v/new is encrypted" in error) == (1, True, True), error
    # Of who asked for nothing, raw streams are expected.
    status, _, error = given(FULL, "receive", "v/new")
    assert (status, "zfs send -w" in error) == (1, True), error
    assert snapshots(capsys) == []
