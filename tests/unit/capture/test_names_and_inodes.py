"""Names and inodes that few file systems have (namesserver.py), whether a folder is looked at in one call or not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from capturekit import extracted

from mountkit import needs_fuse
from zkeep.capture import ahead, objects, previous

Zkeep = Callable[..., int]
TIME = 1_600_000_000_000_000_001
INODES = {"highest": (1 << 64) - 1, "second": (1 << 64) - 2, "sign": 1 << 63, "most": (1 << 63) - 1, "wide": 1 << 32}

pytestmark = needs_fuse


class Served:
    """A mounted folder. `top`: where; say() gives the names, and the inode of each."""

    def __init__(self, place: Path) -> None:
        self.top, self.said = place / "served", place / "said"

    def say(self, files: dict[str, int], *, changed: int = TIME) -> None:
        fresh = self.said.with_suffix(".new")
        fresh.write_text(json.dumps({"changed": changed, "files": files}))
        fresh.replace(self.said)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path)
    found.top.mkdir()
    found.say({})
    program = Path(__file__).with_name("namesserver.py")
    with subprocess.Popen([sys.executable, program, found.top, found.said]) as server:
        try:
            until = time.monotonic() + 20
            while not found.top.is_mount():
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            yield found
        finally:
            server.terminate()  # which unmounts


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and previous._listing is None:
        pytest.skip("it is not compiled here")
    if not request.param:
        monkeypatch.setattr(previous, "_listing", None)
        monkeypatch.setattr(ahead, "_read_files", None)
    return bool(request.param)


def names(found: dict[str, Any]) -> set[str]:
    return {Path(name).name for name in found if name not in (".", "folder", "")}


@pytest.mark.parametrize("length", [255, 256, 300, 1000])
@pytest.mark.parametrize("changed", [True, False], ids=["folder changed", "folder as it was"])
@pytest.mark.usefixtures("compiled")
def test_a_file_gets_a_name_that_is_too_long(
    zkeep: Zkeep, tmp_path: Path, served: Served, capsys: pytest.CaptureFixture[str], length: int, changed: bool
) -> None:
    """Its inode and times are those of last time: it is the file that was there, but cannot be stored by that name."""
    served.say({"stays": 70, "gets a name": 77})
    assert zkeep("snapshot", "--from", str(served.top), "v/home@1") == 0
    served.say({"stays": 70, "x" * length: 77}, changed=TIME + changed)
    kept = length == 255
    for name in "23":
        assert zkeep("snapshot", "--from", str(served.top), f"v/home@{name}") == (0 if kept else 3)
        assert (f"its name has {length} bytes, more than 255" in capsys.readouterr().err) is not kept
        assert names(extracted(zkeep, tmp_path, f"v/home@{name}")) == {"stays"} | ({"x" * length} if kept else set())


def test_high_inodes_are_told_apart(
    zkeep: Zkeep, tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    served.say(INODES)
    assert zkeep("snapshot", "--from", str(served.top), "v/home@1") == 0
    assert names(extracted(zkeep, tmp_path, "v/home@1")) == set(INODES)
    # Nothing is read again, also where the names of two of them were exchanged.
    monkeypatch.setattr(objects.ObjectWriter, "_write_file", forbidden)
    monkeypatch.setattr(objects.ObjectWriter, "_write_small", forbidden)
    assert zkeep("snapshot", "--from", str(served.top), "v/home@2") == 0
    served.say(INODES | {"sign": INODES["most"], "most": INODES["sign"]}, changed=TIME + 1)
    assert zkeep("snapshot", "--from", str(served.top), "v/home@3") == 0
    assert names(extracted(zkeep, tmp_path, "v/home@3")) == set(INODES)


def forbidden(*_: object) -> bool:
    raise AssertionError("it was read again")
