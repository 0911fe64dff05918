"""forget-keys, while another call changes keys or receives between what it tells and what it does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import keykit
from zkeep.cli.main import run

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], str]:
    """A pool with v/jambon, whose key was changed to number 1; returns the location of a key by number."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))

    def location(number: int) -> str:
        keykit.write(tmp_path / f"key{number}", bytes([number]) * 32)
        return f"file://{tmp_path}/key{number}"

    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    assert received("v/jambon", STORY / "full-Rw.zfs") == 0
    change("v/jambon", KEY, location(1))
    return location


def received(name: str, stream: Path, *options: str) -> int:
    with stream.open("rb") as source:
        command = [sys.executable, "-m", "zkeep", "receive", *options, name]
        return subprocess.run(command, stdin=source, check=False).returncode


def change(name: str, old: str, new: str) -> None:
    assert run(["change-key", "-L", old, "-o", "keyformat=raw", "-o", f"keylocation={new}", name]) == 0


def asked(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> int:
    """The exit status of forget-keys; `meanwhile` happens before the user says yes."""

    def confirm(*_: object, **__: object) -> bool:
        meanwhile()
        return True

    with monkeypatch.context() as patch:
        patch.setattr(click, "confirm", confirm)
        return run(["forget-keys", "v/jambon"])


def opens(location: str) -> bool:
    return run(["ls", "-L", location, "v/jambon/blanc@2018"]) == 0


def test_p2_a_key_that_is_changed_meanwhile_is_not_dropped_for_the_old_one(
    key: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert asked(monkeypatch, lambda: change("v/jambon", key(1), key(2))) == 5
    assert "nothing is dropped; call it again" in capfd.readouterr().err
    assert opens(key(2))
    assert opens(key(1))
    assert run(["forget-keys", "-f", "v/jambon"]) == 0
    assert opens(key(2))
    assert not opens(key(1))


def test_a_child_that_gets_a_key_of_its_own_meanwhile_keeps_it(
    key: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(monkeypatch, lambda: change("v/jambon/blanc", key(1), key(2))) == 5
    assert opens(key(2))


def test_a_receive_that_begins_meanwhile_keeps_the_wrap_with_which_it_began(
    key: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = (STORY / "inc-w.zfs").read_bytes()
    (tmp_path / "cut").write_bytes(stream[: len(stream) * 2 // 3])
    assert asked(monkeypatch, lambda: received("v/jambon/blanc", tmp_path / "cut", "-s")) == 1
    assert "a receive is in progress" in capfd.readouterr().err
    assert opens(KEY)


def test_forgotten_by_another_call_meanwhile_it_is_said(
    key: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(monkeypatch, lambda: run(["forget-keys", "-f", "v/jambon"])) == 5
    assert opens(key(1))
    assert not opens(KEY)
