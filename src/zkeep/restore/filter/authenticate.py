"""A filter that passes a raw stream on as far as it is authentic.

The MACs of a snapshot can be checked only when all of it is there. So each substream is received into a temporary pool,
and its bytes are put aside as they came. They are passed on when the snapshot turned out to be authentic, not before.
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
from zkeep.restore.filter.sanitize import Allowed, SanitizedHeader, sanitize


class AuthenticatingFilter:
    """Filters one stream through a pool that holds the bases of its increments.

    `aside` is an empty file, for reading and writing. `check` is called with each received snapshot and its name at the
    sender, and raises if it is not authentic. `on_header` is called with the new outer header, and `on_progress` with
    the name of what is received and how many bytes of it have come.
    """

    def __init__(
        self,
        pool: Pool,
        out: BinaryIO,
        aside: BinaryIO,
        check: Callable[[Snapshot, str], None],
        allowed: Allowed,
        on_header: Callable[[SanitizedHeader], None] = lambda sanitized: None,
        on_progress: Callable[[str, int], None] | None = None,
    ) -> None:
        self._pool = pool
        self._out = out
        self._aside = aside
        self._check = check
        self._allowed = allowed
        self._on_header = on_header
        self._on_progress = on_progress
        self._writer: Writer | None = None
        self._header = b""

    def run(self, events: Iterable[Event], target: str) -> None:
        """Filter the whole stream; `target`: the dataset to receive into.

        Raises:
            NotAuthentic: `check` raised it, or a substream is not raw; nothing of that substream was passed on.
            BadStream, Refused: it breaks the format, or its source is not in the pool; likewise.
        """
        options = ReceiveOptions(force=True, on_snapshot=self._arrived, on_progress=self._on_progress)
        receive_events(self._pool, self._put_aside(events), target, options)
        if self._writer is not None:
            self._pass_on()
            self._out.write(self._writer.package_end())

    def _put_aside(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            # The outer header is not put aside: it is rebuilt, and goes out with the first authentic substream.
            if isinstance(event, Package):
                sanitized = sanitize(event, self._allowed)
                self._on_header(sanitized)
                self._writer = Writer(event.byteorder)
                self._header = sanitized.written(self._writer)
            elif isinstance(event, SubBegin):
                self._check_begin(event)
                self._aside.write(event.header + event.payload)
            elif isinstance(event, Batch):
                self._aside.write(event.buffer)
            elif isinstance(event, SubEnd):
                self._aside.write(event.header)
            yield event

    def _check_begin(self, event: SubBegin) -> None:
        """Refuse what could not be authenticated, before it is received."""
        # Only a whole raw snapshot whose base is here has a MAC that covers all of it.
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
        self._pass_on()

    def _pass_on(self) -> None:
        """Pass on what was put aside: it is authentic."""
        self._out.write(self._header)
        self._header = b""
        self._aside.seek(0)
        shutil.copyfileobj(self._aside, self._out, 1 << 20)
        self._aside.seek(0)
        self._aside.truncate()
