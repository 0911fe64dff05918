"""zkeep health after something was refused for lack of room: full, until it is there, however much is free by then."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from backupkit import ZKEEP, Laptop
from sshkit import stream
from zkeep.pool.timeline.ingest import SegmentWriter


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Laptop:
    made = Laptop(tmp_path, monkeypatch, capfd)
    roomy = os.statvfs_result((4096, 4096, 1 << 30, 1 << 29, 1 << 29, 1000, 500, 500, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: roomy)
    return made


def full(laptop: Laptop, home: Path) -> dict[str, str]:
    """What is full, by the name of the dataset."""
    done = laptop._run(home, "health", "-j")
    found: dict[str, str] = {}
    for pool in json.loads(done.out)["pools"].values():
        for name, dataset in pool["datasets"].items():
            for problem in dataset["problems"]:
                found[name] = problem["text"]
                assert problem["kind"] == "full"
    assert done.status == (1 if found else 0), done
    return found


def test_a_quota_over_there(laptop: Laptop) -> None:
    assert laptop.backup().status == 0
    (laptop.source / "b").write_bytes(os.urandom(300_000))
    assert laptop.serve("set", "quota=200K", "vault/me").status == 0
    assert laptop.backup().status == 5
    assert laptop.serve("receive", "-A", "vault/me").status == 0
    assert full(laptop, laptop.server)["vault/me"].startswith("there was no room for the last snapshot, ")
    # It is not better as long as nothing arrived, even with room.
    assert laptop.serve("set", "quota=none", "vault/me").status == 0
    assert "vault/me" in full(laptop, laptop.server)
    assert laptop.backup().status == 0
    assert full(laptop, laptop.server) == {}


def receive(laptop: Laptop, target: str, *words: str) -> int:
    env = {**os.environ, "ZKEEP_HOME": str(laptop.server)}
    call = [*ZKEEP, "receive", *words, target]
    return subprocess.run(call, input=stream("full-s0"), env=env, check=False, capture_output=True).returncode


def test_a_dataset_that_was_to_be_made(laptop: Laptop) -> None:
    assert laptop.serve("create", "-o", "quota=1K", "vault/small").status == 0
    assert receive(laptop, "vault/small/home", "-n") != 0
    assert full(laptop, laptop.server) == {}  # nothing was to be stored
    for name in ("home", "other"):
        assert receive(laptop, f"vault/small/{name}") == 1
    assert full(laptop, laptop.server).keys() == {"vault/small"}
    assert laptop.serve("set", "quota=none", "vault/small").status == 0
    assert receive(laptop, "vault/small/other") == 0
    said = full(laptop, laptop.server)["vault/small"]
    assert said.startswith("there was no room for a snapshot of vault/small/home, ")
    assert receive(laptop, "vault/small/home") == 0
    assert full(laptop, laptop.server) == {}


@pytest.mark.parametrize("what", ["folder", "image"])
def test_a_disk_here(what: str, laptop: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "image":
        laptop.source = laptop.source / "a"
        laptop.source.write_bytes(bytes(40_000))
    assert laptop.backup().status == 0
    (laptop.source / "b" if what == "folder" else laptop.source).write_bytes(os.urandom(300_000))

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "add", no_room)
        assert laptop.backup().status == 1
    dataset = "local/docs" if what == "folder" else "local/a"
    assert full(laptop, laptop.home).keys() == {dataset}
    assert laptop.backup().status == 0
    assert full(laptop, laptop.home) == {}


def test_what_never_came_is_forgotten_with_what_it_was_to_be_below(laptop: Laptop) -> None:
    assert laptop.serve("create", "-o", "quota=1K", "vault/small").status == 0
    assert receive(laptop, "vault/small/home") == 1
    assert laptop.serve("destroy", "vault/small").status == 0
    assert laptop.serve("create", "vault/small").status == 0
    assert full(laptop, laptop.server) == {}
    assert laptop.serve("pool", "scrub", "--rebuild-catalog", "vault").status == 0
