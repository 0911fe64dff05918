"""A raw stream, passed on as far as it is authentic.

The MACs of a snapshot can be held against its keys only when all of it is there. So each substream is received into a
pool and put aside as it came; when its snapshot is authentic, its bytes go on, and not before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from zkeep.errors import NotAuthentic, Refused
from zkeep.format.events import Batch, Event, Package, SubBegin, SubEnd
from zkeep.format.records import Feature
from zkeep.format.writer import Writer
from zkeep.names import SnapshotName, shown
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.transfer.receive import Arrival, ReceiveOptions, receive_events
from zkeep.restore.filter.sanitize import Allowed, Remade, remake


class Passing:
    """One stream's way through a pool that holds the bases of its increments.

    `aside` is an empty file, to be written and read. `check` is given a received snapshot and its sender's name, and
    raises if it is not authentic. `heard` is told of the outer header before it goes on.
    """

    def __init__(
        self,
        pool: Pool,
        out: BinaryIO,
        aside: BinaryIO,
        check: Callable[[Snapshot, str], None],
        allowed: Allowed,
        heard: Callable[[Remade], None] = lambda remade: None,
    ) -> None:
        self._pool = pool
        self._out = out
        self._aside = aside
        self._check = check
        self._allowed = allowed
        self._heard = heard
        self._writer: Writer | None = None
        self._opening = b""

    def run(self, events: Iterable[Event], target: str) -> None:
        """All of it; `target`: the dataset to receive into.

        Raises:
            NotAuthentic: what check raised, or a substream is not raw; nothing of it went on.
            BadStream, Refused: it breaks the format, or is an increment of what is not here; likewise.
        """
        options = ReceiveOptions(force=True, on_snapshot=self._arrived)
        receive_events(self._pool, self._put_aside(events), target, options)
        if self._writer is not None:
            self._go_on()
            self._out.write(self._writer.package_end())

    def _put_aside(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Package):
                self._open(event)
            elif isinstance(event, SubBegin):
                self._judge(event)
                self._aside.write(event.header + event.payload)
            elif isinstance(event, Batch):
                self._aside.write(event.buffer)
            elif isinstance(event, SubEnd):
                self._aside.write(event.header)
            yield event

    def _open(self, package: Package) -> None:
        remade = remake(package, self._allowed)
        self._heard(remade)
        self._writer = Writer(package.byteorder)
        self._opening = remade.written(self._writer)

    def _judge(self, event: SubBegin) -> None:
        """Refuse what could not be authenticated, before it is received."""
        begin = event.begin
        name = shown(begin.name.decode("utf-8", "replace"), 255)[1:-1]
        here = {s.guid for found in self._pool.all_snapshots().values() for s in found}
        if not begin.raw:
            raise NotAuthentic(f"{name}: it is not raw: nothing in it can be authenticated")
        if begin.features & Feature.RESUMING:
            raise Refused(f"cannot authenticate {name}: the rest of an interrupted send is no whole snapshot")
        if begin.fromguid and begin.fromguid not in here:
            raise Refused(
                f"cannot authenticate {name}: it is an increment, and its base, guid {begin.fromguid}, is not here; "
                f"give it with --base STREAM or --base DATASET@SNAPSHOT"
            )
        if begin.toguid in here:
            raise Refused(f"cannot authenticate {name}: the base, or the stream before it, has it already")

    def _arrived(self, arrival: Arrival) -> None:
        if arrival.bytes is None:
            return
        self._check(self._pool.snapshot(SnapshotName.parse(arrival.kept)), arrival.sent)
        self._go_on()

    def _go_on(self) -> None:
        """What lies aside is authentic."""
        self._out.write(self._opening)
        self._opening = b""
        self._aside.seek(0)
        shutil.copyfileobj(self._aside, self._out, 1 << 20)
        self._aside.seek(0)
        self._aside.truncate()
