"""Histories that Hypothesis makes up: every snapshot comes back, at every time, before and after pruning.

ZKEEP_HISTORIES=200 tries as many of them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from historykit import check_objects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from treechanges import OPERATIONS, Change, apply, everything

from zkeep.cli.main import run
from zkeep.format.events import Batch
from zkeep.format.records import RecordType
from zkeep.pool.transfer.session import ReceiveSession

HISTORIES = int(os.environ.get("ZKEEP_HISTORIES", "2"))
NUMBERS = st.integers(0, 1 << 20)
CHANGES = st.lists(st.builds(Change, st.sampled_from(sorted(OPERATIONS)), NUMBERS, NUMBERS, NUMBERS), max_size=25)
TURNS = st.fixed_dictionaries(
    {
        "changes": CHANGES,
        "step": st.sampled_from(["4000000000", "4000000000", "40000", "400000"]),
        "loses_cache": st.sampled_from([False, False, False, True]),
        "destroys": st.none() | NUMBERS,
        "compacts": st.booleans(),
    }
)
OPTIONS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["lz4", "zstd", "off", "zle", "gzip-1"]),
        "recordsize": st.sampled_from(["128K", "512", "4K", "1M"]),
        "encryption": st.sampled_from(["aes-256-gcm", "aes-128-ccm"]),
    }
)


def zkeep(*words: str) -> None:
    assert run(list(words)) == 0, words


class History:
    """A pool, and a folder that is stored in it again and again."""

    def __init__(self, place: Path, options: dict[str, str]) -> None:
        self.place, self.source = place, place / "source"
        self.source.mkdir()
        self.wanted: dict[str, dict[str, tuple[Any, ...]]] = {}
        (place / "key").write_bytes(bytes(range(32)))
        zkeep("pool", "create", "v", str(place / "pool"))
        words = [f"{name}={value}" for name, value in options.items()]
        words += ["keyformat=raw", f"keylocation=file://{place / 'key'}"]
        zkeep("create", *(word for option in words for word in ("-o", option)), "v/home")

    def turn(self, number: int, turn: dict[str, Any]) -> None:
        for change in turn["changes"]:
            apply(self.source, change)
        if turn["loses_cache"]:
            shutil.rmtree(self.place / "state" / "capture", ignore_errors=True)
        os.environ["ZKEEP_STEP"] = turn["step"]
        name = f"v/home@{number}"
        zkeep("snapshot", "--from", str(self.source), name)
        self.wanted[name] = everything(self.source)
        check_objects(self.place / "pool", name)
        self.check(name)
        if turn["destroys"] is not None and len(self.wanted) > 1:
            gone = sorted(self.wanted)[turn["destroys"] % (len(self.wanted) - 1)]
            zkeep("destroy", gone)
            del self.wanted[gone]
        if turn["compacts"]:
            zkeep("pool", "compact", "v")

    def check(self, name: str) -> None:
        """It is authentic, and extracted it is what the folder was."""
        zkeep("verify", name)
        target = self.place / "out"
        zkeep("extract", "-L", f"file://{self.place / 'key'}", "-C", str(target), name)
        found = everything(target)
        wanted = self.wanted[name]
        assert found.keys() == wanted.keys()
        for path, seen in found.items():
            assert seen == wanted[path], path
        shutil.rmtree(target)

    def check_all(self) -> None:
        for name in self.wanted:
            self.check(name)
        zkeep("pool", "compact", "v")
        for name in self.wanted:
            self.check(name)
        zkeep("pool", "scrub", "v")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[bytes, bytes]]:
    """How often each salt and IV was used."""
    found: Counter[tuple[bytes, bytes]] = Counter()
    genuine: Callable[[ReceiveSession, Batch], None] = ReceiveSession.add

    def add(self: ReceiveSession, batch: Batch) -> None:
        for rtype in (RecordType.WRITE, RecordType.SPILL, RecordType.OBJECT_RANGE):
            _, headers = batch.select(rtype)
            pairs = zip(headers["salt"].tolist(), headers["iv"].tolist(), strict=True)
            found.update((bytes(salt), bytes(iv)) for salt, iv in pairs if any(bytes(iv)))
        genuine(self, batch)

    monkeypatch.setattr(ReceiveSession, "add", add)
    return found


@settings(
    max_examples=HISTORIES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)
@given(options=OPTIONS, turns=st.lists(TURNS, min_size=2, max_size=6))
def test_every_snapshot_of_every_history_comes_back(
    monkeypatch: pytest.MonkeyPatch,
    used: Counter[tuple[bytes, bytes]],
    options: dict[str, str],
    turns: list[dict[str, Any]],
) -> None:
    used.clear()
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        place = Path(folder)
        patch.setenv("ZKEEP_HOME", str(place / "state"))
        patch.setenv("XDG_RUNTIME_DIR", str(place))
        patch.setenv("ZKEEP_STEP", "4000000000")
        history = History(place, options)
        for number, turn in enumerate(turns):
            history.turn(number, turn)
        history.check_all()
        assert used
        assert max(used.values()) == 1
        zkeep("unload-key", "-a")
