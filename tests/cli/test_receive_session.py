"""Where a stream lands, what bounds it, and what list, get and send say of it, as somebody types it."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.format.events import SubBegin
from zkeep.format.reader import read_events
from zkeep.pool.datasets.begin import Address, Opening, addressed

CHAIN = Path(__file__).parent.parent / "data" / "opened" / "chains"
FULL, INCREMENT = (CHAIN / f"ccm192-lzjb-8k.{name}.zfs" for name in ("full-s0", "inc-s0-s1"))
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0


def receive(stream: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "zkeep", "receive", *words]
    with stream.open("rb") as source:
        done = subprocess.run(command, stdin=source, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def names(capfd: Output) -> list[str]:
    capfd.readouterr()
    assert run(["list", "-H", "-o", "name", "-t", "filesystem"]) == 0
    return capfd.readouterr().out.split()


@pytest.mark.parametrize("letter", ["-d", "-e"])
def test_a_name_that_is_not_there_is_not_made_up(letter: str, capfd: Output) -> None:
    assert receive(FULL, letter, "v/typo") == (1, "zkeep: cannot open v/typo: dataset does not exist\n")
    assert names(capfd) == ["v"]


def test_what_lies_between_is_made_with_the_snapshot_and_not_before(capfd: Output, tmp_path: Path) -> None:
    status, said = receive(INCREMENT, "-d", "v")
    assert status == 1
    assert "its source" in said
    assert names(capfd) == ["v"]
    assert receive(FULL, "-n", "-d", "v")[0] == 0
    assert names(capfd) == ["v"]
    assert receive(FULL, "-d", "v") == (0, "")
    made = names(capfd)
    assert len(made) > 1
    assert receive(INCREMENT, "-d", "v") == (0, "")
    assert names(capfd) == made


def test_a_quota_that_comes_with_a_stream_bounds_it(capfd: Output) -> None:
    assert receive(FULL, "-o", "quota=100K", "v/a") == (1, "zkeep: cannot receive v/a: the quota is used up\n")
    assert names(capfd) == ["v"]
    assert receive(FULL, "v/a") == (0, "")
    assert run(["set", "quota=300K", "v/a"]) == 0
    assert receive(INCREMENT, "-o", "quota=231K", "v/a")[0] == 1
    assert run(["set", "quota=231K", "v/a"]) == 0
    assert receive(INCREMENT, "v/a")[0] == 1
    assert receive(INCREMENT, "-o", "quota=none", "v/a") == (0, "")


def test_what_is_missing_hides_nothing_else(capfd: Output) -> None:
    assert run(["create", "v/ok"]) == 0
    capfd.readouterr()
    for words in ("list -H -o name v/nope v/ok", "get -H -o name used v/ok v/nope"):
        assert run(words.split()) == 1
        assert capfd.readouterr() == ("v/ok\n", "zkeep: cannot open v/nope: dataset does not exist\n")


def test_sources_are_said_as_zfs_says_them(capfd: Output) -> None:
    assert receive(FULL, "v/a") == receive(INCREMENT, "v/a") == (0, "")
    for words, line in (
        (["-nwP", "-i", "@s0", "v/a@s1"], "incremental\tv/a@s0\tv/a@s1\t"),
        (["-nwP", "-I", "@s0", "v/a@s1"], "incremental\ts0\tv/a@s1\t"),
        (["-nwv", "-i", "@s0", "v/a@s1"], "send from v/a@s0 to v/a@s1 estimated size is "),
        (["-nwv", "-I", "@s0", "v/a@s1"], "send from @s0 to v/a@s1 estimated size is "),
    ):
        capfd.readouterr()
        assert run(["send", *words]) == 0
        assert capfd.readouterr().out.startswith(line)


def test_a_flag_of_tomorrow_goes_back_as_it_came() -> None:
    event = next(iter(read_events(io.BytesIO(FULL.read_bytes()))))
    assert isinstance(event, SubBegin)
    begin = replace(event.begin, flags=int(event.begin.flags) | 0x10)
    opening = Opening(begin.pack("little"), event.payload, "little")
    assert addressed(opening, Address(toname=b"x@y")).begin.flags & 0x10
    assert addressed(opening, Address(toname=b"x@y", clone=True)).begin.flags & 0x11 == 0x11
