"""Whatever the clock says, what is stored can be read again; and once it is right, all goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.clock import LATEST, seconds_now

CHAIN = Path(__file__).parents[2] / "data" / "opened" / "chains" / "ccm192-lzjb-8k"
CLOCKS = [-9_000_000_000.0, -1.5, 0.0, 4_000_000_000.0, 250_000_000_001.0]


def receive(name: str) -> None:
    """zkeep receive v/a < STREAM"""
    saved = os.dup(0)
    with Path(f"{CHAIN}.{name}.zfs").open("rb") as stream:
        os.dup2(stream.fileno(), 0)
        try:
            assert run(["receive", "v/a"]) == 0
        finally:
            os.dup2(saved, 0)
            os.close(saved)


def test_the_time_is_in_the_range_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, at in ((-5e9, 0), (-0.5, 0), (12.9, 12), (1e30, LATEST)):
        monkeypatch.setattr(time, "time", lambda told=told: told)
        assert seconds_now() == at


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_pool_is_sound_that_was_written_by_a_wrong_clock(
    clock: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    really = time.time
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))

    def call(*words: str) -> str:
        assert run(list(words)) == 0, capfd.readouterr().err
        return "".join(capfd.readouterr())

    def everything_is_read() -> None:
        for words in (["list", "-t", "all"], ["get", "all", "v/a"], ["holds", "v/a@s0"], ["history", "v"]):
            call(*words)
        call("pool", "scrub", "v")
        call("pool", "compact", "v")
        assert run(["health", "v"]) in (0, 1)
        assert "DAMAGED" not in "".join(capfd.readouterr())

    monkeypatch.setattr(time, "time", lambda: clock)
    call("pool", "create", "v", str(tmp_path / "pool"))
    receive("full-s0")
    call("hold", "tag", "v/a@s0")
    call("bookmark", "v/a@s0", "v/a#mark")
    everything_is_read()
    monkeypatch.setattr(time, "time", really)
    everything_is_read()
    receive("inc-s0-s1")
    assert "v/a@s1" in call("list", "-t", "snapshot")
