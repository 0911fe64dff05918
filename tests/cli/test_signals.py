"""A signal ends a verb soon, with one line and status 5; no terminal is left without echo, and no worker behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Timer

import pytest

import keykit
from commandkit import own_state
from zkeep.cli.common.signals import Interrupt, interrupting
from zkeep.cli.main import run
from zkeep.cli.mount import background

private = pytest.fixture(autouse=True)(keykit.private)
ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def taken() -> None:
    """Shells let what runs in the background ignore SIGINT; nohup SIGHUP."""
    for number in ENDS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def wait_for(done: Callable[[], bool]) -> bool:
    for _ in range(400):
        if done():
            return True
        time.sleep(0.01)
    return False


def test_a_signal_does_afterwards_what_it_did_before(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in ENDS]
    assert run(["version"]) == 0
    assert [signal.getsignal(number) for number in ENDS] == before


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_ends_a_verb(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zkeep.cli.help.version.version_text", lambda *_: signal.raise_signal(number))
    assert run(["version"]) == 5
    assert capfd.readouterr().err == "zkeep: interrupted\n"


@pytest.mark.parametrize("number", ENDS)
def test_what_is_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interrupting():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def interrupted(work: Callable[[], object]) -> bool:
    with suppress(Interrupt), interrupting():
        work()
        return False
    return True


def hit_twice(undone: list[int]) -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        undone.append(1)


def test_two_signals_at_once_are_one() -> None:
    """timeout(1) sends two: the second one does not cut off what takes back what the first one stopped."""
    undone: list[int] = []
    assert interrupted(lambda: hit_twice(undone))
    assert undone


def test_a_later_signal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkeep.cli.common.signals.PATIENCE", 0.0)
    undone: list[int] = []
    assert interrupted(lambda: hit_twice(undone))
    assert not undone


def test_a_signal_while_an_object_is_removed_is_not_lost() -> None:
    class Removed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    reached = []

    def remove() -> None:
        Removed()
        reached.append(1)
        wait_for(lambda: False)

    assert interrupted(remove)
    assert reached


def test_a_signal_while_the_end_is_reported(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = iter([lambda: signal.raise_signal(signal.SIGTERM), lambda: None])

    def explain(error: BaseException) -> tuple[str, int]:
        next(shown)()
        return "the end", 5

    monkeypatch.setattr("zkeep.cli.main._explain", explain)
    assert run(["get", "-x"]) == 5
    assert capfd.readouterr().err == "zkeep: the end\n"


def test_what_goes_on_in_the_background_ends_with_who_waits_for_it() -> None:
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    reads, writes = os.pipe()
    timer = Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM])
    timer.start()
    assert interrupted(lambda: background._waited(child, reads))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    os.close(reads)
    os.close(writes)


def test_a_terminal_has_its_echo_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_state(tmp_path, monkeypatch)
    key = tmp_path / "key"
    keykit.write(key, bytes(32))
    assert run(["pool", "create", "v", str(tmp_path / "v")]) == 0
    new = ["-o", "keyformat=raw", "-o", f"keylocation=file://{key}"]
    assert run(["create", "-o", "encryption=on", *new, "v/docs"]) == 0
    ours, theirs = pty.openpty()

    def echoes() -> bool:
        return bool(termios.tcgetattr(ours)[3] & termios.ECHO)

    words = ["change-key", "-L", f"file://{key}", "-o", "keyformat=passphrase", "-o", "keylocation=prompt", "v/docs"]
    command = [sys.executable, "-m", "zkeep", *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        assert wait_for(lambda: not echoes())
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 5
    assert echoes()
    assert b"Traceback" not in os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
    run(["unload-key", "-a"])
