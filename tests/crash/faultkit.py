"""A disk that fails at a call of our choice: what zkeep asks of the system and of SQLite is counted."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import random
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zkeep.cli.main import run
from zkeep.pool.datasets import destroyed, keyrecords
from zkeep.pool.datasets.model import NotThere, Pool
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.store.index import Index

CALLS = (
    *("open", "pwritev", "ftruncate", "fsync", "link", "rename", "replace", "unlink", "mkdir", "rmdir"),
    *("stat", "fstat", "scandir", "listdir", "pread", "preadv", "statvfs"),
)
MANY = os.environ.get("ZKEEP_FAULTS", "8")
"""How many faults are tried with each verb, as dice say. `all`: at each place in the code from which a call is made,
the first call and the last one fail. `every`: every call, with every number; that takes hours."""
STOP = -1
"""No error: a signal that ends the verb comes during the call."""
NUMBERS = (errno.EIO, errno.ENOSPC, errno.EACCES, STOP)
ON = 10**9
TIME = re.compile(r"backup-[-0-9TZ:]+")
"What the snapshots of a backup are called: each run has its own time."
MINUTE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d")
DATA = Path(__file__).parent.parent / "data"
Moment = tuple[int, int, int]
"""The first call that fails, how many do, and with what."""


class Faults:
    """Counts calls of `room`; from the `first` on, `count` of them fail. None fails where `first` is below 0."""

    def __init__(self, first: int = -1, count: int = 1, number: int = errno.EIO, room: str = "zkeep.pool") -> None:
        self._room = room
        self.places: list[int] = []
        """Where each call came from: a hash of the functions and lines of zkeep that led to it."""
        self._failing = range(first, first + count) if first >= 0 else range(0)
        self._number = number
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        return len(self.places)

    def ask(self, frame: Any) -> None:
        place = hash(tuple(_lines(frame)))
        with self._lock:
            at = len(self.places)
            self.places.append(place)
        if at in self._failing and self._number == STOP:
            signal.raise_signal(signal.SIGTERM)
        elif at in self._failing:
            raise OSError(self._number, os.strerror(self._number))

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*arguments: Any, **more: Any) -> Any:
            frame: Any = sys._getframe(1)
            while frame and frame.f_globals.get("__name__") in ("os", "pathlib", "tempfile"):
                frame = frame.f_back
            if frame and frame.f_globals.get("__name__", "").startswith(self._room):
                self.ask(frame)
            return call(*arguments, **more)

        return asked

    def moments(self) -> list[Moment]:
        """The faults to try, after a run in which none failed."""
        every = [(first, count, number) for first in range(self.calls) for count in (1, ON) for number in NUMBERS]
        every = [(first, count, number) for first, count, number in every if number != STOP or count == 1]
        if MANY == "every":
            return every
        if MANY != "all":
            return random.Random(self.calls).sample(every, min(int(MANY), len(every)))
        found: dict[int, list[int]] = {}
        for at, place in enumerate(self.places):
            found.setdefault(place, []).append(at)
        chosen = sorted({at for calls in found.values() for at in (calls[0], calls[-1])})
        errors = [(at, count, NUMBERS[(at + (count > 1)) % 3]) for at in chosen for count in (1, ON)]
        return errors + [(at, 1, STOP) for at in chosen]


def _lines(frame: Any) -> Iterator[tuple[str, int]]:
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("zkeep."):
            yield frame.f_code.co_qualname, frame.f_lineno
        frame = frame.f_back


@contextmanager
def failing(faults: Faults) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, faults.wrapped(getattr(os, name)))
        patch.setattr(io, "open", faults.wrapped(io.open))
        patch.setattr(shutil, "rmtree", faults.wrapped(shutil.rmtree))
        patch.setattr(fcntl, "flock", faults.wrapped(fcntl.flock))
        run = Index._run

        def asked(self: Index, query: str, *values: object) -> list[Any]:
            faults.ask(sys._getframe(1))
            return run(self, query, *values)

        patch.setattr(Index, "_run", asked)
        yield


@contextmanager
def harmless_afterwards() -> Iterator[None]:
    """A signal from another thread may come when the verb has just ended."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def called(line: str, stream: str = "") -> int:
    """The exit status of a command that reads `stream`, a file below tests/data."""
    saved = os.dup(0)
    source = os.open(DATA / stream if stream else os.devnull, os.O_RDONLY)
    try:
        os.dup2(source, 0)
        return run(line.split())
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(source)


def unload(place: Path) -> None:
    """Let the agent end that holds the keys of a bench or of its template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZKEEP_HOME", str(place / "home"))
        patch.setenv("ZKEEP_AGENT", str(place.with_name("run") / "agent"))
        called("unload-key -a")


def state(home: Path, *, guids: bool = True) -> list[object]:
    """What a user sees: pools, datasets with their properties and keys, snapshots with their holds, bookmarks."""
    registry = Registry(home)
    found: list[object] = [("destroyed", pool.name) for pool in destroyed.known(registry, home.parent)]
    for name, path in registry.pools().items():
        with suppress(NotThere), registry.open(name) as pool:  # a name may be left of a pool that is destroyed
            found += [(name, path.name), *_contents(pool, guids)]
    return sorted(found, key=repr)


def written(folder: Path) -> list[object]:
    """The files that a verb wrote into a folder of the user's, with what is in them but for the minute of a sheet."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [(str(path.relative_to(folder)), MINUTE.sub(b"now", path.read_bytes())) for path in found]


def drafts(folder: Path) -> list[str]:
    """Files under names that no verb means to leave. The next extract removes what is left of one before."""
    return [path.name for path in folder.rglob(".*") if not path.name.startswith(".zkeep-extract-")]


def _contents(pool: Pool, guids: bool) -> Iterator[object]:
    for dataset in pool.tree().by_id.values():
        doc, marks = dataset.doc, [record.mark for record in keyrecords.of_dataset(pool, dataset)]
        partial = bool(pool.catalog.get("receive", dataset.key))
        kept = [sorted(doc["local"].items()), doc.get("own_key"), doc.get("origin"), partial]
        yield dataset.name.text, kept, marks if guids else len(set(marks))
        for snapshot in pool.snapshots(dataset):
            yield TIME.sub("backup", str(snapshot.name)), snapshot.guid if guids else 0, sorted(snapshot.holds)
        for bookmark in pool.bookmarks(dataset):
            yield str(bookmark.name)


@dataclass(frozen=True)
class Verb:
    """A command, and what it reads.

    `stepwise`: it keeps each step, as zfs does, so that a failure leaves those before it. `random`: guids and wraps are
    drawn again in each run.
    """

    line: str
    stream: str = ""
    stepwise: bool = False
    random: bool = False
    quiet: bool = False
    """It changes nothing that a user sees but space."""
    first: str = ""
    """A command that comes before it, at which nothing fails."""
    room: str = "zkeep.pool"
    """The modules whose calls fail."""
    parts: bool = False
    """It writes several files: status 5 may leave some of them, and the same call writes the others."""
    way_out: str = ""
    """A command that finishes it where the same call does not; only after exit status 5."""


class Bench:
    """Runs one verb in a fresh copy of the template."""

    def __init__(self, template: Path, place: Path, verb: Verb, patch: pytest.MonkeyPatch) -> None:
        self.home = place / "home"
        self.place, self._template, self._verb = place, template, verb
        patch.setenv("ZKEEP_HOME", str(self.home))
        patch.setenv("ZKEEP_AGENT", str(place.with_name("run") / "agent"))
        patch.setenv("ZKEEP_WAIT", "0.05")
        self.refresh()

    def refresh(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self._template, self.place)
        for known in self.home.glob("*.json"):
            known.write_text(known.read_text().replace(str(self._template), str(self.place)))
        if self._verb.line.startswith("pool import {place}/vault"):
            Registry(self.home).remove("vault")
        if self._verb.first:
            assert called(self._verb.first.format(place=self.place)) == 0

    def play(self, faults: Faults) -> int:
        with failing(faults), harmless_afterwards():
            return called(*(text.format(place=self.place) for text in (self._verb.line, self._verb.stream)))

    def state(self) -> list[object]:
        return [*state(self.home, guids=not self._verb.random), *written(self.place / "out")]


def judge(bench: Bench, verb: Verb, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What is not as the exit status says, at each of the faults. No agent is left."""
    try:
        return _wrong(bench, verb, capfd)
    finally:
        unload(bench.place)


def _wrong(bench: Bench, verb: Verb, capfd: pytest.CaptureFixture[str]) -> list[str]:
    before, counting = bench.state(), Faults(room=verb.room)
    assert bench.play(counting) == 0, capfd.readouterr()
    after = bench.state()
    assert verb.quiet or after != before
    wrong = []
    for first, count, number in counting.moments():
        bench.refresh()
        capfd.readouterr()
        status = bench.play(Faults(first, count, number, verb.room))
        error = capfd.readouterr().err
        found = bench.state()
        again = bench.play(Faults()) if status else 0
        if again and status == 5 and verb.way_out:
            again = called(verb.way_out.format(place=bench.place))
        # Where the disk left it open whether the change was made, it may have been: made again, it is there twice.
        twice = status == 5 and verb.random and found == after
        finished = (bench.state() == after or twice) and (again == 0 or found == after)
        # What was begun is tidied up, unless nothing can be done any more; what cannot be removed is named.
        left = [name for name in drafts(bench.place / "out") if name not in error] if count == 1 else []
        if "unexpected" in error or left or not finished or not is_true(status, found, before, after, verb):
            what = "once" if count == 1 else "on"
            more, less = [x for x in found if x not in before], [x for x in before if x not in found]
            done = "before" if found == before else "after" if found == after else f"between: +{more} -{less}"
            then = "" if finished else f" (again: status {again}: {capfd.readouterr().err.strip()})"
            then += f" (left: {left})" if left else ""
            kind = errno.errorcode.get(number, "a signal")
            wrong.append(
                f"call {first} {what}, {kind}: status {status}, {done}: {error.strip()}{then}"
            )
    return wrong


def is_true(status: int, found: list[object], before: list[object], after: list[object], verb: Verb) -> bool:
    if status == 0:
        return found == after
    if status == 5 or verb.stepwise:
        return found in (before, after) or verb.stepwise or verb.parts
    return found == before
