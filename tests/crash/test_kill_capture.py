"""P3 under kill -9 at random moments of snapshots of folders, and of dropping contents that are elsewhere.

ZKEEP_KILLS=200 makes it long.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "capture"))

from capturekit import change_tree, extracted, make_tree, sent
from historykit import check_objects, stored_listing

from zkeep.cli.main import run
from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool

KILLS = int(os.environ.get("ZKEEP_KILLS", "4"))
WORKER = Path(__file__).with_name("capture_worker.py")
STEPS = "30000", "70000", "300000", "4000000000"


def zkeep(*words: str) -> int:
    return run(list(words))


class History:
    """A pool, a folder that changes, and what each snapshot of it must be."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.dice = tmp_path, random.Random(13)
        self.source = tmp_path / "source"
        self.wanted: dict[str, dict[str, tuple[Any, ...]]] = {}
        "The folder as it was, by the names of snapshots that were begun."
        self.there: list[str] = []
        "Those that are there, in order."
        monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "state"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        (tmp_path / "key").write_bytes(bytes(range(32)))
        assert zkeep("pool", "create", "v", str(tmp_path / "pool")) == 0
        self.datasets = 0
        make_tree(self.source)
        self.dataset()
        self.seconds = 0.0
        "How long a whole first snapshot takes here: kills are spread over a bit more."

    def measure(self) -> None:
        """Take and drop one snapshot without a kill, in a dataset of its own."""
        name = f"{self.dataset()}@whole"
        for words in (["take", name, str(self.source)], ["drop", name]):
            worker = subprocess.Popen([sys.executable, str(WORKER), *words], stdout=subprocess.PIPE)
            with worker:
                assert worker.stdout is not None
                assert worker.stdout.readline() == b"!ready\n"
                begun = time.monotonic()
                assert worker.wait() == 0
            self.seconds = max(self.seconds, time.monotonic() - begun)
        zkeep("destroy", "-r", f"v/home{self.datasets}")
        self.dataset()

    def dataset(self) -> str:
        """A new, empty dataset."""
        self.datasets += 1
        options = ("encryption=on", "keyformat=raw", f"keylocation=file://{self.path / 'key'}")
        name = f"v/home{self.datasets}"
        assert zkeep("create", *(word for option in options for word in ("-o", option)), name) == 0
        return name

    def killed(self, *words: str) -> str:
        """What a worker said before it was killed, at a random moment of its work."""
        environment = {**os.environ, "ZKEEP_STEP": self.dice.choice(STEPS)}
        with subprocess.Popen([sys.executable, str(WORKER), *words], stdout=subprocess.PIPE, env=environment) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"!ready\n"
            time.sleep(self.dice.random() * self.seconds * 1.5)
            worker.kill()
            said = worker.stdout.read().decode()
        assert worker.returncode in (0, -9), said
        return said

    def names(self) -> list[str]:
        with Pool.open(self.path / "pool", "v") as pool:
            return [str(s.name) for some in pool.all_snapshots().values() for s in some if not s.doc.get("step")]

    def check(self, name: str, bare: bool = False) -> None:
        """A snapshot that is there is authentic, and equal to what the folder was."""
        check_objects(self.path / "pool", name)
        assert zkeep("verify", "-L", f"file://{self.path / 'key'}", name) == 0
        if not bare:
            assert extracted(zkeep, self.path, name) == self.wanted[name]
            shutil.rmtree(self.path / f"out-{name.replace('/', '-')}")


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    made = History(tmp_path, monkeypatch)
    made.measure()
    return made


def test_p3_a_killed_capture_leaves_the_pool_clean(history: History) -> None:
    """First snapshots and increments, in steps or in one; each goes on from where the last one was killed."""
    acknowledged: set[str] = set()
    for number in range(KILLS):
        if number % 9 == 8:
            history.dataset()
        name = f"v/home{history.datasets}@{number}"
        change_tree(history.source, number)
        history.wanted[name] = stored_listing(history.source)
        if "+" in history.killed("take", name, str(history.source)):
            acknowledged.add(name)
        assert zkeep("pool", "scrub", "v") == 0
        found = history.names()
        assert acknowledged <= set(found)
        newest = [each for each in found if each == name]
        for each in {*newest, *history.dice.sample(found, min(1, len(found)))}:
            history.check(each)
    print(f"{len(acknowledged)} of {KILLS} were acknowledged, {len(history.names())} are there")
    # At last one that is not killed: of what was there before, nothing is lost.
    assert zkeep("snapshot", "--from", str(history.source), f"v/home{history.datasets}@end") == 0
    assert zkeep("pool", "compact", "v") == 0
    assert zkeep("pool", "scrub", "v") == 0
    for each in history.names():
        if each in history.wanted:
            history.check(each)


def test_p3_a_killed_drop_loses_nothing_else(history: History) -> None:
    """What was not confirmed can be sent as before; what was is authentic, and the next increment goes on from it."""
    taken: list[str] = []
    streams: dict[str, bytes] = {}
    dropped = -1
    for number in range(KILLS):
        if len(taken) - dropped < 4:
            name = f"v/home{history.datasets}@{number}"
            change_tree(history.source, number)
            assert zkeep("snapshot", "--from", str(history.source), name) == 0
            history.wanted[name] = stored_listing(history.source)
            if taken:
                base = taken[-1].partition("@")[2]
                streams[name] = sent(zkeep, history.path / "stream", "-i", f"@{base}", name).read_bytes()
            taken.append(name)
        chosen = history.dice.randrange(max(dropped, 0), len(taken))
        history.killed("drop", taken[chosen])
        assert zkeep("pool", "scrub", "v") == 0
        with Pool.open(history.path / "pool", "v") as pool:
            marks = [pool.snapshot(SnapshotName.parse(name)).doc["local"].get("contents") for name in taken]
        confirmed = marks.count("metadata") - 1
        assert marks == ["metadata"] * (confirmed + 1) + [None] * (len(marks) - confirmed - 1)
        assert confirmed in (dropped, chosen) or (confirmed == dropped and chosen <= dropped)
        dropped = confirmed
        for at, name in enumerate(taken):
            if at > max(dropped, 0):
                base = taken[at - 1].partition("@")[2]
                assert sent(zkeep, history.path / "stream", "-i", f"@{base}", name).read_bytes() == streams[name]
        history.check(history.dice.choice(taken), bare=True)
    assert zkeep("pool", "compact", "v") == 0
    assert zkeep("pool", "scrub", "v") == 0
    for name in taken:
        history.check(name, bare=True)
