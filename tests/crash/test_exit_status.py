"""Exit status 1 means that nothing was changed, and 0 that all was, at whichever call the disk fails.

Each verb runs again and again, and each time another call fails: once, or from there on. ZKEEP_FAULTS says how many
faults are tried with each verb, as dice say; `all` tries every call, with EIO, ENOSPC and EACCES.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faultkit import Faults, failing

from zkeep.cli.main import run
from zkeep.pool.datasets import destroyed
from zkeep.pool.datasets.model import NotThere, Pool
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.store.files import LocalStore

MANY = os.environ.get("ZKEEP_FAULTS", "8")
NUMBERS = (errno.EIO, errno.ENOSPC, errno.EACCES)
STREAMS = Path(__file__).parent.parent / "data" / "streams"
VERBS = {
    "set": "set x:y=z vault/jambon",
    "set many": "set x:y=z vault/jambon vault/jambon/blanc vault",
    "inherit": "inherit a:b vault/jambon",
    "hold": "hold -r keep vault/jambon@2019",
    "release": "release tag vault/jambon/blanc@2018",
    "bookmark": "bookmark vault/jambon/blanc@2018 #more",
    "create": "create -p vault/new/er",
    "rename": "rename vault/jambon vault/other",
    "rename a snapshot": "rename vault/jambon/blanc@2019 @renamed",
    "roll back": "rollback -r vault/jambon/blanc@2018",
    "destroy a tree": "destroy -r vault/spare",
    "destroy a snapshot": "destroy vault/jambon/blanc@2019",
    "destroy a bookmark": "destroy vault/jambon/blanc#mark",
    "pool create": "pool create second {home}/../second",
    "pool export": "pool export vault",
    "pool import": "pool import {home}/../vault third",
    "pool destroy": "pool destroy -f extra",
    "receive": "receive vault/jambon/blanc",
    "receive -s": "receive -s vault/jambon/blanc",
    "receive a tree": "receive vault/fresh",
}
INPUTS = {"receive": "inc-w.zfs", "receive -s": "inc-w.zfs", "receive a tree": "full-Rw.zfs"}
STEPWISE = ("receive a tree",)
"""What keeps each snapshot as it comes, as zfs does: a failure leaves what came before it."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with datasets, snapshots, holds, a bookmark; and the home that knows it."""
    top = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZKEEP_HOME", str(top / "home"))
        for line in (
            f"pool create vault {top / 'vault'}",
            "receive vault/jambon < full-Rw.zfs",
            f"pool create extra {top / 'extra'}",
            "create extra/a",
            "create vault/spare",
            "receive vault/spare/copy < full-Rw.zfs",
            "set a:b=c vault/jambon",
            "bookmark vault/jambon/blanc@2018 #mark",
            "hold tag vault/jambon/blanc@2018",
        ):
            words, _, name = line.partition(" < ")
            assert called(words, name) == 0, line
    return top


def called(line: str, stream: str = "") -> int:
    """The exit status of a command that reads `stream`."""
    saved = os.dup(0)
    source = os.open(STREAMS / stream if stream else os.devnull, os.O_RDONLY)
    try:
        os.dup2(source, 0)
        return run(line.split())
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(source)


def state(home: Path) -> list[object]:
    """What a user sees: pools, datasets with their properties, snapshots with their holds, bookmarks."""
    registry = Registry(home)
    found: list[object] = [("destroyed", pool.name) for pool in destroyed.known(registry, home.parent)]
    for name, path in registry.pools().items():
        with suppress(NotThere), registry.open(name) as pool:  # a name may be left of a pool that is destroyed
            found += [(name, path.name), *_contents(pool)]
    return sorted(found, key=repr)


def _contents(pool: Pool) -> Iterator[object]:
    for dataset in pool.tree().by_id.values():
        yield dataset.name.text, sorted(dataset.doc["local"].items())
        for snapshot in pool.snapshots(dataset):
            yield str(snapshot.name), snapshot.guid, sorted(snapshot.holds)
        for bookmark in pool.bookmarks(dataset):
            yield str(bookmark.name)


class Bench:
    """Runs one verb in a fresh copy of the template."""

    def __init__(self, template: Path, place: Path, verb: str, patch: pytest.MonkeyPatch) -> None:
        self.home = place / "home"
        self._place, self._template, self._verb = place, template, verb
        patch.setenv("ZKEEP_HOME", str(self.home))
        patch.setenv("ZKEEP_WAIT", "0.05")
        self.refresh()

    def refresh(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._template, self._place)
        pools = self.home / "pools.json"
        pools.write_text(pools.read_text().replace(str(self._template), str(self._place)))
        if self._verb == "pool import":
            Registry(self.home).remove("vault")

    def play(self, faults: Faults) -> int:
        with failing(faults):
            return called(VERBS[self._verb].format(home=self.home), INPUTS.get(self._verb, ""))


def moments(calls: int) -> Iterator[tuple[int, int, int]]:
    """The first call that fails, how many do, and with what."""
    every = [(first, count, number) for first in range(calls) for count in (1, 10**9) for number in NUMBERS]
    yield from every if MANY == "all" else random.Random(calls).sample(every, min(int(MANY), len(every)))


@pytest.mark.parametrize("verb", VERBS)
def test_p3_the_exit_status_says_what_is_true(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    bench = Bench(template, tmp_path / "place", verb, monkeypatch)
    before, counting = state(bench.home), Faults()
    assert bench.play(counting) == 0, capfd.readouterr()
    after = state(bench.home)
    assert after != before
    wrong = []
    for first, count, number in moments(counting.calls):
        bench.refresh()
        capfd.readouterr()
        status = bench.play(Faults(first, count, number))
        error = capfd.readouterr().err
        found = state(bench.home)
        if "unexpected" in error or not is_true(status, found, before, after, verb):
            what = "once" if count == 1 else "on"
            done = "before" if found == before else "after" if found == after else f"between: {found}"
            wrong.append(f"call {first} {what}, {errno.errorcode[number]}: status {status}, {done}: {error.strip()}")
    assert not wrong, "\n".join(wrong)


def is_true(status: int, found: list[object], before: list[object], after: list[object], verb: str) -> bool:
    if status == 0:
        return found == after
    if status == 5 or verb in STEPWISE:
        return found in (before, after) or verb in STEPWISE
    return found == before


def test_p3_a_change_that_the_disk_does_not_let_be_taken_back_is_not_called_undone(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line of the journal is written, the sync fails, and so does all that follows: who knows."""
    bench = Bench(template, tmp_path / "place", "set", monkeypatch)
    before = state(bench.home)
    tried: Callable[..., int] = LocalStore._append

    def fails(self: object, fd: int, name: str, content: bytes, fresh: bool) -> int:
        monkeypatch.setattr(os, "fsync", _refuse)
        monkeypatch.setattr(os, "ftruncate", _refuse)
        return tried(self, fd, name, content, fresh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zkeep.pool.store.files.LocalStore._append", fails)
        assert called(VERBS["set"]) == 5
    assert "whether the change was made is seen" in capfd.readouterr().err
    monkeypatch.undo()
    assert state(bench.home) != before


def _refuse(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
