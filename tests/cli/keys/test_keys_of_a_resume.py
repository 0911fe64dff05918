"""The key is changed at the source while a receive is interrupted: it goes on, and the new key opens it.

As with zfs: a resumed stream brings the newest wrap of the keys, and only their guid has to be the same.
Source: OpenZFS module/zfs/dsl_crypt.c dsl_crypto_recv_raw_key_check().
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import keykit
from zkeep.cli.main import run
from zkeep.errors import TryAgain

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")
SNAPSHOT = "blanc@2018"
Output = pytest.CaptureFixture[str]


def zkeep(*words: str, given: bytes = b"") -> tuple[int, bytes, str]:
    done = subprocess.run([sys.executable, "-m", "zkeep", *words], input=given, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """v/source has the whole tree, v/copy half of a snapshot of it. Then the key of v/source is changed to this."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    location = keykit.write(tmp_path / "new", bytes(range(32)))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    assert zkeep("receive", "v/source", given=(STORY / "full-Rw.zfs").read_bytes())[0] == 0
    whole = zkeep("send", "-w", f"v/source/{SNAPSHOT}")[1]
    assert zkeep("receive", "-s", "v/copy", given=whole[: len(whole) * 2 // 3])[0] == 5
    options = ["-o", "keyformat=raw", "-o", f"keylocation={location}"]
    assert run(["change-key", "-L", KEY, *options, "v/source"]) == 0
    return location


def rest() -> bytes:
    token = zkeep("get", "-Ho", "value", "receive_resume_token", "v/copy")[1].decode().strip()
    status, stream, error = zkeep("send", "--newest-key", "-t", token)
    assert status == 0, error
    return stream


def test_the_rest_after_a_change_of_the_key_is_received(new: str) -> None:
    assert zkeep("receive", "-s", "v/copy", given=rest())[0] == 0
    assert run(["verify", "-L", new, "v/copy@2018"]) == 0
    assert run(["verify", "-L", KEY, "v/copy@2018"]) == 1
    assert run(["pool", "scrub", "v"]) == 0
    again = zkeep("send", "-w", "v/copy@2018")[1]
    assert zkeep("receive", "v/third", given=again)[0] == 0
    assert run(["verify", "-L", new, "v/third@2018"]) == 0


def test_it_may_be_interrupted_again(new: str) -> None:
    stream = rest()
    assert zkeep("receive", "-s", "v/copy", given=stream[: len(stream) // 2])[0] == 5
    assert zkeep("receive", "-s", "v/copy", given=rest())[0] == 0
    assert run(["verify", "-L", new, "v/copy@2018"]) == 0


def test_the_whole_stream_with_the_new_wrap_replaces_the_partial_one(new: str) -> None:
    whole = zkeep("send", "--newest-key", "-w", f"v/source/{SNAPSHOT}")[1]
    assert zkeep("receive", "-s", "v/copy", given=whole)[0] == 0
    assert run(["verify", "-L", new, "v/copy@2018"]) == 0


def test_p3_keys_that_are_changed_are_changed_whatever_the_agent_does(
    new: str, monkeypatch: pytest.MonkeyPatch, capfd: Output
) -> None:
    """What fails after the transaction is a warning: exit status 1 would mean that nothing was changed."""

    def fails(*_: object) -> None:
        raise TryAgain("the agent that holds the keys does not answer")

    monkeypatch.setattr("zkeep.agent.client.roots", fails)
    options = ["-o", "keyformat=raw", "-o", f"keylocation={new}"]
    assert run(["change-key", "-L", new, *options, "v/source"]) == 0
    assert "is changed, but the new one is not loaded" in capfd.readouterr().err
