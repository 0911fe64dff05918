"""load-key, unload-key, change-key, forget-keys, on a backup that real OpenZFS sent."""

from __future__ import annotations

import io
import json
import lzma
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import keykit
from rawbytes import everything
from vectors.forgeries import put_together, taken_apart
from zkeep.agent import client
from zkeep.cli.main import run
from zkeep.format.records import Begin, BeginFlag

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")
Output = pytest.CaptureFixture[str]
private = pytest.fixture(autouse=True)(keykit.private)
SNAPSHOT = "v/jambon/blanc@work-of-the-day"


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Output) -> Iterator[None]:
    """v/jambon: a root of encryption with four children, under a raw key."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    for stream, target in (("full-Rw.zfs", "v/jambon"), ("inc-w.zfs", "v/jambon/blanc")):
        receive(STORY / stream, target)
    capfd.readouterr()
    yield
    run(["unload-key", "-a"])
    assert list(client.keys()) == []


def receive(stream: Path, target: str, *flags: str) -> None:
    with stream.open("rb") as source:
        command = [sys.executable, "-m", "zkeep", "receive", *flags, target]
        assert subprocess.run(command, stdin=source, check=False).returncode == 0


def said(capfd: Output, *words: str, status: int = 0) -> str:
    """What a command prints, whichever way; exactly one line of it if it fails."""
    assert run(list(words)) == status
    out, err = capfd.readouterr()
    if status:
        assert err.count("\n") == 1
    return str(out + err)


def get(capfd: Output, prop: str, name: str) -> str:
    return said(capfd, "get", "-H", "-o", "value", prop, name).strip()


def passphrase(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_where_a_key_is_can_be_changed_but_not_inherited(capfd: Output) -> None:
    assert said(capfd, "set", f"keylocation={KEY}", "v/jambon") == ""
    assert "property cannot be inherited" in said(capfd, "inherit", "keylocation", "v/jambon", status=1)
    assert get(capfd, "keylocation", "v/jambon") == KEY


def test_the_key_comes_and_the_files_are_there(capfd: Output) -> None:
    assert get(capfd, "keystatus", SNAPSHOT) == "unavailable"
    assert get(capfd, "encryptionroot", SNAPSHOT) == "v/jambon"
    assert get(capfd, "keylocation", "v/jambon") == "prompt"
    assert said(capfd, "set", f"keylocation={KEY}", "v/jambon") == ""
    assert said(capfd, "load-key", "v/jambon") == ""
    assert get(capfd, "keystatus", SNAPSHOT) == "available"
    assert "another-file" in said(capfd, "ls", SNAPSHOT)
    assert said(capfd, "unload-key", "v/jambon") == ""
    assert get(capfd, "keystatus", SNAPSHOT) == "unavailable"
    assert "no key is here" in said(capfd, "ls", SNAPSHOT, status=1)


def test_what_zfs_says_is_said(capfd: Output, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_bytes(bytes(32))
    wrong = f"file://{tmp_path}/wrong"
    assert said(capfd, "load-key", "-n", "-L", KEY, "v/jambon") == "1 / 1 key(s) successfully verified\n"
    assert "Incorrect key provided for 'v/jambon'." in said(capfd, "load-key", "-L", wrong, "v/jambon", status=1)
    assert "encryption root of 'v/jambon/blanc'" in said(capfd, "load-key", "-L", KEY, "v/jambon/blanc", status=1)
    assert "'v' is not encrypted" in said(capfd, "load-key", "-L", KEY, "v", status=1)
    assert "already unloaded" in said(capfd, "unload-key", "v/jambon", status=1)
    assert said(capfd, "load-key", "-r", "-L", KEY, "v") == "1 / 1 key(s) successfully loaded\n"
    assert "already loaded" in said(capfd, "load-key", "-L", KEY, "v/jambon", status=1)
    assert said(capfd, "unload-key", "-a") == "1 / 1 key(s) successfully unloaded\n"


@pytest.mark.parametrize("which", [["-a"], ["-r", "v"]])
def test_where_many_are_asked_for_those_that_are_so_already_are_not_counted(capfd: Output, which: list[str]) -> None:
    assert said(capfd, "unload-key", *which) == ""
    said(capfd, "load-key", "-L", KEY, "v/jambon")
    assert said(capfd, "load-key", "-L", KEY, *which) == ""
    assert said(capfd, "load-key", "-n", "-L", KEY, *which) == "0 / 0 key(s) successfully verified\n"
    assert said(capfd, "unload-key", *which) == "1 / 1 key(s) successfully unloaded\n"
    assert said(capfd, "unload-key", *which) == ""


@pytest.mark.parametrize(
    "words",
    [
        ["load-key", "-L", KEY, "v/jambon"],
        ["load-key", "-L", KEY, "-a"],
        ["unload-key", "v/jambon"],
        ["unload-key", "-a"],
        ["ls", SNAPSHOT],
        ["cat", SNAPSHOT, "another-file"],
        ["get", "-r", "keystatus", "v"],
    ],
)
def test_an_agent_that_does_not_answer_is_told_of_once(
    capfd: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    monkeypatch.setattr(client, "ANSWERING", 0.5)
    (tmp_path / "runtime").mkdir(mode=0o700)
    place = tmp_path / "runtime" / "agent"
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(place))
        door.listen()
        start = time.monotonic()
        assert "the agent that holds the keys does not answer" in said(capfd, *words, status=5)
        assert time.monotonic() - start < 2 * client.ANSWERING + 1
    place.unlink()


@pytest.mark.parametrize(
    "words", [[], ["-a", "v/jambon"], ["--lifetime", "soon", "v/jambon"], ["v/jambon@to-remote-server"]]
)
def test_wrong_usage(capfd: Output, words: list[str]) -> None:
    said(capfd, "load-key", *words, status=2)


def test_a_changed_key_stands_beside_the_old_one(capfd: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    said(capfd, "load-key", "-L", KEY, "v/jambon")
    passphrase(monkeypatch, "correct horse\n")
    options = ["-o", "keyformat=passphrase", "-o", "pbkdf2iters=100000"]
    assert said(capfd, "change-key", *options, "v/jambon") == ""
    said(capfd, "unload-key", "-a")
    assert get(capfd, "keyformat", "v/jambon/blanc") == "passphrase"
    assert get(capfd, "keyhistory", "v/jambon/blanc").startswith("@2018%work-of-the-day raw ")
    assert ", here passphrase " in get(capfd, "keyhistory", "v/jambon/blanc")
    assert "another-file" in said(capfd, "ls", "-L", KEY, SNAPSHOT)
    passphrase(monkeypatch, "correct horse\n")
    said(capfd, "load-key", "v/jambon")
    assert "blanc@2018: authentic" in said(capfd, "verify", "-v", "v/jambon/blanc@2018")


def test_an_increment_after_a_changed_key_takes_nothing_away(capfd: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """openzfs/zfs#12614: there, the sender's wrap replaces the receiver's, and the receiver's key opens nothing."""
    said(capfd, "destroy", SNAPSHOT)
    passphrase(monkeypatch, "correct horse\n")
    options = ["-o", "keyformat=passphrase", "-o", "pbkdf2iters=100000"]
    said(capfd, "change-key", "-L", KEY, *options, "v/jambon")
    receive(STORY / "inc-w.zfs", "v/jambon/blanc")
    passphrase(monkeypatch, "correct horse\n")
    said(capfd, "load-key", "v/jambon")
    assert "another-file" in said(capfd, "ls", SNAPSHOT)
    said(capfd, "unload-key", "-a")
    assert "another-file" in said(capfd, "ls", "-L", KEY, SNAPSHOT)


@pytest.mark.parametrize("options", [["-o", "pbkdf2iters=9"], ["-o", "keyformat=base64"], ["-o", "compression=on"]])
def test_change_key_refuses_nonsense(capfd: Output, options: list[str]) -> None:
    said(capfd, "change-key", "-L", KEY, *options, "v/jambon", status=2)


def test_forgotten_keys_open_nothing_and_are_nowhere(
    capfd: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passphrase(monkeypatch, "correct horse\n")
    options = ["-o", "keyformat=passphrase", "-o", "pbkdf2iters=100000"]
    said(capfd, "change-key", "-L", KEY, *options, "v/jambon")
    old = sealed_key(STORY / "full-Rw.zfs")
    assert old in everything(tmp_path / "pool")
    said(capfd, "forget-keys", "-n", "v/jambon")
    assert "another-file" in said(capfd, "ls", "-L", KEY, SNAPSHOT)
    said(capfd, "forget-keys", "-f", "v/jambon")
    said(capfd, "ls", "-L", KEY, SNAPSHOT, status=1)
    assert old not in everything(tmp_path / "pool")
    said(capfd, "pool", "scrub", "v")
    said(capfd, "pool", "scrub", "--rebuild-catalog", "v")
    passphrase(monkeypatch, "correct horse\n")
    said(capfd, "load-key", "v/jambon")
    assert "blanc@2018: authentic" in said(capfd, "verify", "-v", "v/jambon/blanc@2018")


def sealed_key(stream: Path) -> bytes:
    """The sealed master key of the first snapshot in a stream."""
    from zkeep.format.events import SubBegin
    from zkeep.format.nvlist import NvList
    from zkeep.format.reader import read_events

    with stream.open("rb") as source:
        begin = next(event for event in read_events(source) if isinstance(event, SubBegin))
    assert begin.nvlist is not None
    crypt = begin.nvlist["crypt_keydata"]
    assert isinstance(crypt, NvList)
    key = crypt["DSL_CRYPTO_MASTER_KEY_1"]
    assert isinstance(key, bytes)
    return key


# Whose key it is

CHAIN = STORY.parent / "chains"


@pytest.fixture
def other(tmp_path: Path) -> str:
    """v/jambon/other: a root of its own below the other one; the key's location."""
    manifest = json.loads(lzma.decompress((CHAIN / "ccm192-lzjb-8k.manifest.json.xz").read_bytes()))
    (tmp_path / "other").write_bytes(bytes.fromhex(manifest["key"]["hex"]))
    receive(CHAIN / "ccm192-lzjb-8k.full-s0.zfs", "v/jambon/other")
    return f"file://{tmp_path}/other"


def test_a_root_inherits_its_parents_key_and_both_open_it(capfd: Output, other: str, tmp_path: Path) -> None:
    child = "v/jambon/other"
    assert get(capfd, "encryptionroot", child) == child
    assert "Key of 'v/jambon/other' must be loaded" in said(capfd, "change-key", "-i", child, status=1)
    assert "Key of 'v/jambon' must be loaded" not in said(capfd, "change-key", "-i", "-L", other, child, status=1)
    said(capfd, "load-key", "-L", KEY, "v/jambon")
    assert said(capfd, "change-key", "-i", "-L", other, "-o", "x:y=z", child) == ""
    assert get(capfd, "encryptionroot", child) == "v/jambon"
    assert get(capfd, "keylocation", child) == "none"
    assert get(capfd, "keystatus", child) == "available"
    assert get(capfd, "x:y", child) == "z"
    assert "authentic" in said(capfd, "verify", "-v", f"{child}@s0")
    said(capfd, "unload-key", "-a")
    for location in (KEY, other):
        assert "authentic" in said(capfd, "verify", "-v", "-L", location, f"{child}@s0")
    assert "inherits from 'v/jambon' as it is" in said(capfd, "change-key", "-i", child, status=1)
    said(capfd, "forget-keys", "-f", "v/jambon")
    assert "authentic" in said(capfd, "verify", "-v", "-L", KEY, f"{child}@s0")
    said(capfd, "verify", "-L", other, f"{child}@s0", status=1)


@pytest.mark.parametrize("newest", [[], ["--newest-key"]])
def test_what_is_sent_names_the_roots_of_the_sealings_that_are_sent(
    capfd: Output, other: str, tmp_path: Path, newest: list[str]
) -> None:
    """A child that is no root in the header would never open with the sealing that came."""
    said(capfd, "change-key", "-i", "-L", other, "-L", KEY, "v/jambon/other")
    said(capfd, "rename", "v/jambon/other@s0", "v/jambon/other@to-remote-server")
    command = [sys.executable, "-m", "zkeep", "send", "-Rws", *newest, "v/jambon@to-remote-server"]
    sent = subprocess.run(command, capture_output=True, check=True).stdout
    (tmp_path / "sent").write_bytes(sent)
    receive(tmp_path / "sent", "v/again")
    assert get(capfd, "encryptionroot", "v/again/other") == ("v/again" if newest else "v/again/other")


def test_what_inherits_becomes_a_root_and_goes_back(capfd: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "v/jambon/blanc"
    assert "Keyformat required" in said(capfd, "change-key", "-L", KEY, child, status=1)
    passphrase(monkeypatch, "correct horse\n")
    options = ["-o", "keyformat=passphrase", "-o", "pbkdf2iters=100000"]
    assert said(capfd, "change-key", "-L", KEY, *options, child) == ""
    assert get(capfd, "encryptionroot", SNAPSHOT) == child
    assert get(capfd, "keyformat", "v/jambon") == "raw"
    passphrase(monkeypatch, "correct horse\n")
    said(capfd, "load-key", child)
    assert "another-file" in said(capfd, "ls", SNAPSHOT)
    assert said(capfd, "change-key", "-i", "-L", KEY, child) == ""
    assert get(capfd, "encryptionroot", SNAPSHOT) == "v/jambon"
    assert get(capfd, "keyformat", child) == "raw"
    assert list(client.keys()) == []
    assert "another-file" in said(capfd, "ls", "-L", KEY, SNAPSHOT)


def test_the_present_key_and_the_new_one_may_come_line_by_line(capfd: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    passphrase(monkeypatch, "correct horse\n")
    options = ["-o", "keyformat=passphrase", "-o", "pbkdf2iters=100000"]
    said(capfd, "change-key", "-L", KEY, *options, "v/jambon")
    passphrase(monkeypatch, "correct horse\nbattery staple\n")
    said(capfd, "change-key", "-l", *options, "v/jambon")
    assert get(capfd, "keystatus", "v/jambon") == "available"
    said(capfd, "unload-key", "-a")
    passphrase(monkeypatch, "battery staple\n")
    assert said(capfd, "load-key", "-n", "v/jambon") == "1 / 1 key(s) successfully verified\n"


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["-i", "v/jambon"], 1, "the parent of 'v/jambon' is not encrypted"),
        (["v"], 1, "'v' is not encrypted"),
        (["-i", "-o", "keyformat=raw", "v/jambon/blanc"], 2, "Only user properties"),
        (["-o", "keyformat=raw", "-o", "pbkdf2iters=200000", "v/jambon"], 2, "non-passphrase"),
        (["-o", "keyformat=hex", "v/jambon"], 1, "must be loaded"),
        (["v/jambon/nobody"], 1, "does not exist"),
        (["v/jambon@2018"], 1, "bad dataset name"),
    ],
)
def test_change_key_says_what_is_missing(capfd: Output, words: list[str], status: int, why: str) -> None:
    assert why in said(capfd, "change-key", *words, status=status)


# Clones


def test_clones_forget_what_their_origin_forgets_wherever_they_are(capfd: Output, other: str, tmp_path: Path) -> None:
    """A clone has the same keys: an old sealing that stays with it would go on opening them all."""
    clone = taken_apart((CHAIN / "ccm192-lzjb-8k.inc-s0-s1.zfs").read_bytes())
    begin = clone[0].header
    assert isinstance(begin, Begin)
    clone[0].put(replace(begin, flags=begin.flags | BeginFlag.CLONE))
    (tmp_path / "clone").write_bytes(put_together(clone))
    receive(tmp_path / "clone", "v/elsewhere", "-o", "origin=v/jambon/other@s0")
    assert get(capfd, "origin", "v/elsewhere") == "v/jambon/other@s0"
    old = sealed_key(CHAIN / "ccm192-lzjb-8k.full-s0.zfs")
    (tmp_path / "new").write_bytes(bytes(range(32)))
    options = ["-o", "keyformat=raw", "-o", f"keylocation=file://{tmp_path}/new"]
    said(capfd, "change-key", "-L", other, *options, "v/jambon/other")
    assert "v/elsewhere" in said(capfd, "forget-keys", "-n", "v/jambon/other")
    said(capfd, "forget-keys", "-f", "v/jambon/other")
    assert old not in everything(tmp_path / "pool")
    new = f"file://{tmp_path}/new"
    for name in ("v/jambon/other@s0", "v/elsewhere@s1"):
        assert "authentic" in said(capfd, "verify", "-v", "-L", new, name)
        said(capfd, "verify", "-L", other, name, status=1)
