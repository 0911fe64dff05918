"""Fetches parts of one snapshot from where it is kept: the index, blocks of dnodes, contents of some objects.

Each part is an excerpt (format/excerpt.py). What comes is bounded by what was asked for and by the size that was
listed; whether it is authentic, only the key can tell.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, TypeVar, cast

import numpy as np

from zkeep.backup import fetch
from zkeep.backup.fetch import Listed, checked, name_here, why_broken
from zkeep.backup.patience import Patient
from zkeep.backup.peer import Peer
from zkeep.errors import BadStream, Refused, TryAgain
from zkeep.format.events import Batch, SubBegin, SubEnd
from zkeep.format.excerpt import ExcerptReader
from zkeep.format.records import HEADER, RecordType
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import MAX_SLOTS
from zkeep.pool.transfer.admit import ReceiveTarget
from zkeep.pool.transfer.excerpt import INDEX, NO_PARTS, add_excerpt, listed
from zkeep.pool.transfer.session import open_session

SLACK = 4 << 20
"Bytes that may come beyond what was listed: a BEGIN, frames."
MOST_BLOCKS = 2048
"Blocks of dnodes that are asked for at once: what comes of them counts only if all of it came."
Events = Iterator[SubBegin | Batch | SubEnd]
T = TypeVar("T")


class NoParts(Refused):
    """The keeper cannot send parts of a snapshot; it can send the whole one."""


class Parts:
    """Parts of a snapshot, `wanted`, received into a pool. `received`: bytes that came so far."""

    def __init__(
        self,
        peer: Peer,
        wanted: Listed,
        pool: Pool,
        *,
        target: ReceiveTarget | None = None,
        on_retry: Callable[[str], None] = lambda why: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`target`: where it is received; else under its own name."""
        self._peer, self._wanted, self._pool = peer, wanted, pool
        self._on_retry, self._pause = on_retry, pause
        here = name_here(wanted)
        self._target = target or ReceiveTarget(here.dataset, here.name, here.dataset, excerpt=True)
        self.received = 0

    def index(self) -> Snapshot:
        """The snapshot with its index; with all that an earlier call left of it.

        Raises:
            NoParts: the keeper cannot.
            TryAgain: the line breaks again and again.
            NotAuthentic: it is not the snapshot that was listed.
        """
        target = self._target
        if found := self._pool.find_snapshot(target.name.snapshot(target.snapshot)):
            return checked(self._pool, found, self._wanted, raw=True)
        if target.name.parent is not None and self._pool.find(target.name.parent) is None:
            namespace.create(self._pool, target.name.parent, {}, True)

        def receive(events: Events) -> Snapshot:
            begin = next(events)
            assert isinstance(begin, SubBegin)
            with open_session(self._pool, begin, target) as session:
                for event in events:
                    if isinstance(event, SubEnd):
                        return session.commit(event)
                    assert isinstance(event, Batch)
                    _check(event, event.types == RecordType.OBJECT_RANGE)
                    session.add(event)
            raise AssertionError("an excerpt ends with its END")

        found = self._again("--metadata", INDEX, self._bound(), receive)
        return checked(self._pool, found, self._wanted, raw=True)

    def blocks(self, snapshot: Snapshot, numbers: Array) -> Snapshot:
        """Fetch blocks of dnodes, without the contents of files; returns the snapshot as it is then."""
        for at in range(0, len(numbers), MOST_BLOCKS):
            firsts = numbers[at : at + MOST_BLOCKS] * np.uint64(MAX_SLOTS)
            lines = sp.union(sp.lines(firsts, firsts + np.uint64(MAX_SLOTS)))
            for text in listed(lines):
                snapshot = self._again("--metadata", text, self._bound(), partial(self._add_blocks, snapshot, lines))
        return snapshot

    def _add_blocks(self, snapshot: Snapshot, lines: Array, events: Events) -> Snapshot:
        return add_excerpt(
            self._pool, snapshot, events, lambda batch: _check(batch, sp.on_lines(lines, _numbers(batch)))
        )[0]

    def contents(self, snapshot: Snapshot, objects: Array, offset: int, size: int) -> tuple[Snapshot, str | None]:
        """Fetch the contents of objects, those of the first from an offset on; `size`: bytes of their records.

        Returns the snapshot with what came, and why the excerpt broke off, if it did.
        """
        first, mark, rest = listed(sp.union(sp.lines(objects, objects + np.uint64(1))))[0].partition(",")
        low, dash, high = first.partition("-")
        # An offset is that of a single number: a range is cut behind its first.
        following = f",{int(low) + 1}-{high}" if dash else ""
        text = f"{low}:{offset}{following}{mark}{rest}"
        came = [snapshot]

        def check(batch: Batch) -> None:
            mine = np.isin(_numbers(batch), objects) | (batch.types == RecordType.OBJECT_RANGE)
            _check(batch, mine & ((batch.types != RecordType.WRITE) | (batch.lengths > HEADER)))

        def add(events: Events) -> Snapshot:
            came[0], error = add_excerpt(self._pool, snapshot, events, check, partial=True)
            if error is not None:
                raise error
            return came[0]

        bound = size + len(objects) * (MAX_SLOTS * 512 + 4 * HEADER) + size // 8 + SLACK
        _, why = self._once("--objects", text, bound, add)
        return came[0], why

    def _bound(self) -> int:
        """Metadata are a part of the snapshot, and a frame has 4 bytes for a record of 312 or more."""
        return self._wanted.size + self._wanted.size // 64 + SLACK

    # The line

    def _again(self, option: str, text: str, bound: int, receive: Callable[[Events], T]) -> T:
        """Fetch a part, and try again when the line breaks."""
        why: str | None = None
        for attempt in range(fetch.TRIES):
            if why is not None:
                self._on_retry(why)
                self._pause(fetch.PAUSES[min(attempt, len(fetch.PAUSES) - 1)])
            found, why = self._once(option, text, bound, receive)
            if found is not None:
                return found
        raise TryAgain(why or f"cannot fetch {self._wanted.name}")

    def _once(
        self, option: str, text: str, bound: int, receive: Callable[[Events], T]
    ) -> tuple[T | None, str | None]:
        """What was made of a part; or None and why it broke off, if another try may help."""
        words = ["send", "-w", option, text, str(self._wanted.name)]
        with self._peer.running(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as run:
            assert run.process.stdout is not None
            reader = ExcerptReader(cast(BinaryIO, Patient(run.process.stdout)), bound)
            try:
                return receive(reader.events()), None
            except (BadStream, TryAgain) as error:
                run.process.stdout.close()
                done = run.end(30)
                # An older zkeep does not know the option; some snapshots go only as a whole.
                if not reader.position and (done.status == 2 or NO_PARTS in done.said):
                    raise NoParts(f"{self._peer} cannot send parts of a snapshot") from None
                return None, why_broken(self._peer, done, error, self._wanted)
            finally:
                self.received += reader.position


def _check(batch: Batch, right: Array) -> None:
    """Raises Refused: a record is none that was asked for."""
    if not right.all():
        at = batch.offset + int(batch.offsets[np.flatnonzero(~right)[0]])
        raise Refused(f"what came is not what was asked for: the record at byte {at}")


def _numbers(batch: Batch) -> Array:
    """The object number of each record; of an OBJECT_RANGE, its first."""
    numbers = np.zeros(len(batch), np.uint64)
    for rtype in (RecordType.OBJECT, RecordType.WRITE, RecordType.SPILL):
        index, heads = batch.select(rtype)
        numbers[index] = heads["object"]
    index, heads = batch.select(RecordType.OBJECT_RANGE)
    numbers[index] = heads["firstobj"]
    return numbers
