"""receive -c, as somebody types it: scrub names the damage, a stream of the source takes it away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zkeep.cli.main import run

CHAIN = Path(__file__).parent.parent / "data" / "opened" / "chains"
FULL, INCREMENT = (CHAIN / f"ccm192-lzjb-8k.{name}.zfs" for name in ("full-s0", "inc-s0-s1"))


def receive(stream: Path, *words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "zkeep", "receive", *words]
    with stream.open("rb") as source:
        done = subprocess.run(command, stdin=source, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_damage_goes_and_what_cannot_go_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    assert receive(FULL, "v/a")[0] == receive(INCREMENT, "v/a")[0] == 0
    segment = next((tmp_path / "pool" / "segments").rglob("*-0.seg"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 3] ^= 1
    segment.write_bytes(content)
    assert run(["pool", "scrub", "v"]) == 3
    outcomes = [receive(FULL, "-cv", "v/a"), receive(INCREMENT, "-cv", "v/a")]  # one of them has the record
    assert 0 in [status for status, *_ in outcomes], outcomes
    assert any("healed 1 of 1 damaged records" in said for _, said, _ in outcomes)
    capfd.readouterr()
    assert run(["pool", "scrub", "v"]) == 0
    assert receive(FULL, "-c", "-F", "v/a")[0] == 2
    assert receive(INCREMENT, "-c", "v/a@s0")[0] == 1
    assert receive(FULL, "-c", "v/a@none")[0] == 1
