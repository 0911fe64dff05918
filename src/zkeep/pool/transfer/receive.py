"""zfs receive: a whole stream, plain or compound, into a pool.

Source: OpenZFS lib/libzfs/libzfs_sendrecv.c zfs_receive_impl(), zfs_receive_package(), zfs_receive_one().
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Literal

from zkeep.errors import BadStream, Interrupted, Refused
from zkeep.format.events import Batch, Event, Package, PackageEnd, SubBegin, SubEnd
from zkeep.format.reader import read_events
from zkeep.format.records import BeginFlag, Feature
from zkeep.names import BadName, DatasetName, SnapshotName, shown
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.rehearsal import rehearsal
from zkeep.pool.transfer.admit import Target
from zkeep.pool.transfer.begin_rules import ZVOL
from zkeep.pool.transfer.overrides import Where, override
from zkeep.pool.transfer.package_header import Outline
from zkeep.pool.transfer.replication import replicate_names
from zkeep.pool.transfer.reserve import Charges
from zkeep.pool.transfer.session import ReceiveSession, give_up, land

Doc = dict[str, Any]


@dataclass(frozen=True)
class Arrival:
    """A substream: announced when it begins (`bytes` is None), told of again when it is kept, or passed over."""

    sent: str
    kept: str
    incremental: bool
    bytes: int | None = None
    seconds: float = 0.0
    ignored: bool = False


def _untold(arrival: Arrival) -> None:
    pass


@dataclass
class ReceiveOptions:
    """The letters of zfs receive. `name_from`: d (all but the pool) or e (the last component) of the sent name."""

    dry_run: bool = False
    resumable: bool = False
    force: bool = False
    name_from: Literal["d", "e"] | None = None
    set_properties: dict[str, str] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    abort: bool = False
    skip_holds: bool = False
    tell: Callable[[Arrival], None] = _untold
    progress: Callable[[str, int], None] | None = None
    """Told, as records come in, of the snapshot that is received and of its bytes so far."""


def receive(pool: Pool, source: BinaryIO, target: str, options: ReceiveOptions) -> None:
    """Read a stream to its end and keep its snapshots.

    Each snapshot of a package is there as soon as its own END was verified, that of a plain stream once nothing more
    came. What follows a bad one is not read.

    Raises:
        BadStream, Refused: nothing of the snapshot concerned was kept.
        TryAgain: the dataset is busy; or the stream was cut short and its state is kept (-s).
    """
    if options.abort:
        give_up(pool, pool.dataset(DatasetName.parse(target)))
        return
    receive_events(pool, read_events(source), target, options)


def receive_events(pool: Pool, events: Iterable[Event], target: str, options: ReceiveOptions) -> None:
    """The same, from what was read of a stream already; the next event is asked for once the one before is kept."""
    with closing(rehearsal(pool)) if options.dry_run else nullcontext(pool) as used:
        receiver = _Receiver(used, target, options)
        try:
            for event in events:
                receiver.take(event)
            receiver.close()
        except BaseException as error:
            receiver.fail(error)
            raise


class _Receiver:
    """Handles the events of a whole stream."""

    def __init__(self, pool: Pool, target: str, options: ReceiveOptions) -> None:
        self._pool = pool
        self._options = options
        self._names = _Names(target, options.name_from)
        if options.name_from:
            pool.dataset(self._names.target)  # below which the sent names go
        self._charges = Charges(pool)
        self._with_holds = False
        self._origin = _named_origin(pool, options.set_properties.get("origin"))
        self._package: Package | None = None
        self._outline: Outline | None = None
        self._landing: ReceiveSession | None = None
        self._context: Any = None
        self._skipping = False
        self._settled = True
        self._ended: SubEnd | None = None
        self._arrival = Arrival("", "", False)
        self._kind = ""
        self._started = (0.0, 0)
        self._received = 0

    def take(self, event: Event) -> None:
        if isinstance(event, Batch):
            if self._landing is not None:
                self._landing.add(event)
                self._received += len(event.buffer)
                if self._options.progress:
                    self._options.progress(self._arrival.kept, self._received)
        elif isinstance(event, SubBegin):
            self._begin(event)
        elif isinstance(event, SubEnd) and self._package is None:
            self._ended = event  # and shall be the last: what follows would speak against all of it
        elif isinstance(event, SubEnd):
            self._end(event)
        elif isinstance(event, Package):
            self._open_package(event)
        else:
            assert isinstance(event, PackageEnd)

    def _open_package(self, package: Package) -> None:
        self._package = package
        self._with_holds = bool(package.header.features & Feature.HOLDS) and not self._options.skip_holds
        self._outline = Outline.of(package)
        self._names.top = self._outline.top
        if self._names.snapshot:
            raise Refused("cannot receive: a package of several snapshots goes to a dataset, not to one snapshot")
        self._replicate_names(force=self._options.force)

    def _replicate_names(self, *, force: bool) -> None:
        if self._outline and self._outline.incremental:
            local = self._names.dataset(self._outline.top)
            self._charges.forget()
            self._settled = replicate_names(
                *(self._pool, self._outline, local, self._names.target, self._names.dataset), force=force
            )

    def _begin(self, event: SubBegin) -> None:
        sent, snapshot = _sent_name(event)
        if not self._settled:
            self._replicate_names(force=False)
        target = self._target(event, sent, snapshot)
        if self._already_here(event, target):
            self._skipping = True
            return
        kept = f"{target.name}@{target.snapshot}"
        self._arrival = Arrival(f"{sent}@{snapshot}", kept, bool(event.begin.fromguid))
        self._kind = _kind(event)
        self._options.tell(self._arrival)
        self._started, self._received = (time.monotonic(), event.offset), 0
        self._context = land(self._pool, event, target, self._charges)
        self._landing = self._context.__enter__()

    def _already_here(self, event: SubBegin, target: Target) -> bool:
        """Whether the snapshot itself is there already: then its stream is read, verified and passed over.

        So whoever did not learn that a receive was done may send the same again. In a package it may have another name
        here; to a plain stream's snapshot its receiver has given one.
        """
        dataset = self._pool.find(target.name)
        same = self._pool.snapshots_by_guid(event.begin.toguid, dataset) if dataset else []
        named = [s for s in same if s.doc["name"] == target.snapshot]
        found = next(iter(named or (same if self._package else [])), None)
        if found is None:
            return False
        self._options.tell(Arrival(str(found.name), str(found.name), bool(event.begin.fromguid), ignored=True))
        return True

    def _target(self, event: SubBegin, sent: str, snapshot: str) -> Target:
        name = self._names.dataset(sent)
        fields: Doc = {}
        snapshot_fields: Doc = {}
        outlined = self._outline.find(sent) if self._outline else None
        if outlined is not None:
            snapshot_fields = outlined.snapshot_fields(snapshot)
            if self._with_holds:
                snapshot_fields["holds"] = outlined.holds(snapshot)
            if outlined.has_properties:
                fields["received"] = outlined.received
            if self._outline and self._outline.recursive and event.begin.raw:
                fields["encroot"] = sent == self._outline.top or outlined.is_encroot
        fields["received_name"] = sent
        self._override(event, name, sent, fields)
        return Target(
            name=name,
            snapshot=self._names.snapshot or snapshot,
            force=self._options.force,
            resumable=self._options.resumable,
            dry_run=self._options.dry_run,
            within=self._names.target,
            origin=self._origin_of(event),
            parents=self._options.name_from == "d",
            fields=fields,
            snapshot_fields=snapshot_fields,
        )

    def _origin_of(self, event: SubBegin) -> Snapshot | None:
        """What -o origin= means for a substream: of a package, it is the origin of the clones that were made of it."""
        origin, begin = self._origin, event.begin
        if origin is None or self._package is None:
            return origin
        return origin if begin.flags & BeginFlag.CLONE and begin.fromguid == origin.guid else None

    def _override(self, event: SubBegin, name: DatasetName, sent: str, fields: Doc) -> None:
        """Have -o and -x prevail over what is received."""
        recursive = self._outline is not None and self._outline.recursive
        top = self._outline is None or not recursive or sent == self._outline.top
        where = Where(
            kind="v" if event.begin.type == ZVOL else "f", raw=event.begin.raw, top=top, recursive=recursive
        )
        dataset = self._pool.find(name)
        try:
            local = override(self._options, where, dataset.doc["local"] if dataset else {}, fields.get("received", {}))
        except Refused as error:
            raise Refused(f"cannot receive {name}: {error}") from None
        if local:
            fields["local"] = local

    def _end(self, event: SubEnd) -> None:
        if self._skipping:
            self._skipping = False
            return
        landing, context = self._landing, self._context
        assert landing is not None
        try:
            landing.commit(event)
        except BaseException as error:
            self.fail(error)
            raise
        self._landing = self._context = None
        context.__exit__(None, None, None)
        if self._options.dry_run:
            return
        began, offset = self._started
        seconds, size = time.monotonic() - began, event.offset + 312 - offset
        self._options.tell(replace(self._arrival, bytes=size, seconds=seconds))

    def fail(self, error: BaseException) -> None:
        """The stream failed while a snapshot was landing: leave it as its options say."""
        landing = self._landing
        context, self._context, self._landing = self._context, None, None
        if context is None:
            return
        try:
            context.__exit__(type(error), error, error.__traceback__)
        except type(error):
            pass
        kept = landing.kept if landing is not None and not self._options.dry_run else None
        if kept and isinstance(error, Refused | OSError | KeyboardInterrupt):
            raise self._interrupted(error, *kept) from error

    def _interrupted(self, error: BaseException, dataset: DatasetName, token: str) -> Interrupted:
        """What zfs says of a partial receive, and beside it why, and of which dataset it is.

        Source: OpenZFS lib/libzfs/libzfs_sendrecv.c recv_ecksum_set_aux().
        """
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or "interrupted"
        said = "checksum mismatch or incomplete stream." if isinstance(error, BadStream) else f"{why}."
        return Interrupted(
            f"cannot receive {self._kind} stream: {said}",
            [
                "Partially received snapshot is saved.",
                "A resuming stream can be generated on the sending system by running:",
                f"    zfs send -t {token}",
                f"to go on with {self._arrival.kept} by: zkeep receive -s {dataset} ({why})",
            ],
        )

    def close(self) -> None:
        """The stream came to its end."""
        if self._ended is not None:
            self._end(self._ended)
        self._replicate_names(force=False)


def _named_origin(pool: Pool, text: str | None) -> Snapshot | None:
    """Raises Refused: it is no snapshot, or is not there."""
    if text is None:
        return None
    name = SnapshotName.parse(text)
    origin = pool.find_snapshot(name)
    if origin is None:
        raise Refused(f"cannot receive: origin {name} does not exist")
    return origin


def _kind(event: SubBegin) -> str:
    """What zfs calls a stream where it says that it could not be received."""
    if event.begin.features & Feature.RESUMING:
        return "resume"
    return "incremental" if event.begin.fromguid and not event.begin.flags & BeginFlag.CLONE else "new filesystem"


def _sent_name(event: SubBegin) -> tuple[str, str]:
    """The dataset and the snapshot as the sender calls them, checked."""
    try:
        text = event.begin.name.decode()
        parsed = SnapshotName.parse(text)
    except (UnicodeDecodeError, BadName) as error:
        reason = error.reason if isinstance(error, BadName) else "it is not UTF-8"
        raw = event.begin.name.decode("latin-1")
        raise BadStream(f"its snapshot name {shown(raw)} is not one: {reason}", event.offset, "BEGIN") from None
    return parsed.dataset.text, parsed.name


class _Names:
    """Where the datasets of a stream go."""

    def __init__(self, target: str, name_from: Literal["d", "e"] | None) -> None:
        self.snapshot = ""
        if "@" in target:
            parsed = SnapshotName.parse(target)
            if name_from:
                raise Refused("cannot receive: with -d or -e the target is a dataset, not a snapshot")
            self.target, self.snapshot = parsed.dataset, parsed.name
        else:
            self.target = DatasetName.parse(target)
        self._from = name_from
        self.top: str | None = None

    def dataset(self, sent: str) -> DatasetName:
        """The dataset here of one that the sender calls `sent`."""
        if self._from == "d":
            rest = sent.partition("/")[2]
        else:
            top = self.top or sent
            if not (sent + "/").startswith(top + "/"):
                raise Refused(f"cannot receive {shown(sent)}: it is not below {shown(top)}, where the stream begins")
            rest = sent[len(top) + 1 :]
            if self._from == "e":
                rest = f"{top.rpartition('/')[2]}/{rest}".rstrip("/")
        return self.target.child(rest) if rest else self.target
