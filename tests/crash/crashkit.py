"""What the tests of crashes do to a pool, and what must be true of it after."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from vectors.histories import DATA, History, histories
from zkeep.errors import Refused
from zkeep.names import BookmarkName, DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.send import SendRequest, send

Tell = Callable[[str, str], object]
"""Told `+`: a snapshot is acknowledged, `~`: its destroy begins, `-`: it is acknowledged as destroyed."""


def small_history() -> History:
    return next(h for h in histories(DATA / "histories") if h.name == "rs512b")


@dataclass
class Worker:
    """Receives, destroys and compacts, as its dice say."""

    pool: Pool
    history: History
    dice: random.Random
    tell: Tell

    def step(self) -> None:
        names = sorted(d.name.text for d in self.pool.tree().by_id.values() if d.name.parent)
        turn = self.dice.random()
        if not names or (turn < 0.2 and len(names) < 4):
            self.grow(f"v/x{self.dice.randrange(10**9)}")
        elif turn < 0.55:
            self.grow(self.dice.choice(names))
        elif turn < 0.8:
            self.destroy_some(self.dice.choice(names))
        elif turn < 0.85:
            self.destroy_dataset(self.dice.choice(names))
        else:
            compact(self.pool, self.pool.dataset(DatasetName.parse(self.dice.choice(names))))
            if self.dice.random() < 0.3:
                compact(self.pool)

    def grow(self, name: str) -> None:
        dataset = self.pool.find(DatasetName.parse(name))
        snapshots = self.pool.snapshots(dataset) if dataset else []
        last = int(snapshots[-1].doc["name"][1:]) if snapshots else None
        if (dataset and last is None) or last == self.history.last:
            return
        following = 0 if last is None else last + 1
        stream = io.BytesIO(self.history.stream((last, following)))
        receive(self.pool, stream, f"{name}@s{following}", ReceiveOptions())
        self.tell("+", f"{name}@s{following}")

    def destroy_some(self, name: str) -> None:
        snapshots = self.pool.snapshots(self.pool.dataset(DatasetName.parse(name)))[:-1]
        if not snapshots:
            return
        doomed = self.dice.choice(snapshots).doc["name"]
        if self.dice.random() < 0.4:
            self.bookmark(name, doomed)
        self.tell("~", f"{name}@{doomed}")
        plan = destroy.plan_snapshots(View(self.pool), DatasetName.parse(name), doomed, destroy.DestroyOptions())
        destroy.execute(self.pool, plan)
        self.tell("-", f"{name}@{doomed}")

    def bookmark(self, name: str, snapshot: str) -> None:
        with suppress(Refused):  # a worker killed before may have made it
            source, made = SnapshotName.parse(f"{name}@{snapshot}"), BookmarkName.parse(f"{name}#b{snapshot}")
            namespace.bookmark(self.pool, source, made)

    def destroy_dataset(self, name: str) -> None:
        names = [str(s.name) for s in self.pool.snapshots(self.pool.dataset(DatasetName.parse(name)))]
        for each in names:
            self.tell("~", each)
        plan = destroy.plan_dataset(View(self.pool), DatasetName.parse(name), destroy.DestroyOptions(recursive=True))
        destroy.execute(self.pool, plan)
        for each in names:
            self.tell("-", each)


class Acknowledged:
    """What the world was told, and so what must be."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.gone: set[str] = set()

    def take(self, sign: str, name: str) -> None:
        if sign == "+":
            self.there.add(name)
        else:
            self.there.discard(name)
            if sign == "-":
                self.gone.add(name)

    def check(self, pool: Pool, history: History) -> None:
        """Acknowledged snapshots are there and whole, destroyed ones are not, and every byte is as it was stored."""
        report = scrub(pool)
        assert report.clean, [str(error) for error in report.errors]
        found = {str(s.name): s for some in pool.all_snapshots().values() for s in some}
        assert self.there <= found.keys(), self.there - found.keys()
        assert not self.gone & found.keys(), self.gone & found.keys()
        for name in found:
            number = int(name.rpartition("@s")[2])
            assert sent(pool, name) == history.stream((None, number)), name


def sent(pool: Pool, name: str) -> bytes:
    sink = io.BytesIO()
    send(pool, SendRequest(snapshot=name, raw=True, received_name=True), sink)
    return sink.getvalue()


def leftovers(pool: Pool) -> list[str]:
    """Segments and drafts that no document names."""
    named = {s for _, doc in pool.catalog.scan("run") for s in doc["segments"]}
    files = [n for n in pool.store.names("segments") if n.rpartition("/")[2].removesuffix(".seg") not in named]
    return files + pool.store.drafts()


__all__ = ["Acknowledged", "Worker", "leftovers", "sent", "small_history"]
