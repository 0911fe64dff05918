"""zfs receive: a whole stream, plain or compound, into a pool.

Source: OpenZFS lib/libzfs/libzfs_sendrecv.c zfs_receive_impl(), zfs_receive_package(), zfs_receive_one().
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Literal, Protocol

from zkeep.errors import BadStream, Interrupted, Refused, TryAgain
from zkeep.format.events import Batch, Event, Package, SubBegin, SubEnd
from zkeep.format.objtypes import ObjsetType
from zkeep.format.reader import read_events
from zkeep.format.records import HEADER, BeginFlag, Feature
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.no_room import noting_no_room
from zkeep.pool.datasets.partial import state_of
from zkeep.pool.datasets.rehearsal import rehearsal
from zkeep.pool.transfer import steps
from zkeep.pool.transfer.admit import ReceiveTarget
from zkeep.pool.transfer.at_once import (
    MOST,
    MOST_BYTES,
    Gathered,
    gathered,
    of_one_dataset,
    receive_at_once,
    receive_together,
)
from zkeep.pool.transfer.begin_rules import DATASET_TYPES
from zkeep.pool.transfer.overrides import Where, override
from zkeep.pool.transfer.package_header import PLAIN, PackageHeader
from zkeep.pool.transfer.replication import Replicated, replicate_names
from zkeep.pool.transfer.reserve import Charges, with_room
from zkeep.pool.transfer.sent_names import Names, sent_name
from zkeep.pool.transfer.session import give_up, judge, open_session
from zkeep.pool.types import Doc


@dataclass(frozen=True)
class Arrival:
    """A snapshot of a stream: reported when its substream begins (`bytes` is None), and when it is kept or skipped."""

    sent: str
    kept: str
    incremental: bool
    bytes: int | None = None
    seconds: float = 0.0
    ignored: bool = False


@dataclass(frozen=True)
class Substream:
    """The BEGIN of a substream and where it is to go. `top`: it is of the topmost dataset of its stream."""

    event: SubBegin
    target: ReceiveTarget
    top: bool


class Intake(Protocol):
    """Another way to keep a plain substream than as it came: zkeep.reencrypt encrypts it, above the pool."""

    @property
    def refuses_raw(self) -> str | None:
        """Why no raw stream may be received, if so."""
        ...

    def takes(self, pool: Pool, substream: Substream) -> bool:
        """Whether it takes a substream."""
        ...

    def judge(self, pool: Pool, substream: Substream, charges: Charges) -> None:
        """Refuse what receive() would refuse at once. It changes nothing. Raises Refused."""
        ...

    def receive(self, pool: Pool, substream: Substream, charges: Charges, events: Iterator[Batch | SubEnd]) -> SubEnd:
        """Receive it, all or nothing; `events` ends with its END."""
        ...

    def kept(self, pool: Pool, target: ReceiveTarget) -> str | None:
        """The resume token of what receive() has kept when it failed."""
        ...

    def gives_up(self, pool: Pool, name: DatasetName) -> bool:
        """Forget what was kept; whether there was something."""
        ...


@dataclass(frozen=True)
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
    append_only: bool = False
    "No snapshot is destroyed, whatever `force` and the stream say."
    on_snapshot: Callable[[Arrival], None] = lambda arrival: None
    on_progress: Callable[[str, int], None] | None = None
    "Called, as records come in, with the name of the snapshot that is received and its bytes so far."
    intake: Intake | None = None
    "What takes plain substreams that must not be kept as they come; without it all are."


def receive(pool: Pool, source: BinaryIO, target: str, options: ReceiveOptions) -> None:
    """Read a stream to its end and keep its snapshots.

    Each snapshot of a package is kept as soon as its own END was verified, that of a plain stream once the stream is at
    its end. Nothing is read behind a bad one.

    Raises:
        BadStream, Refused: nothing of the snapshot concerned was kept.
        TryAgain: the dataset is busy; or the stream was cut short and its state is kept (-s).
    """
    if options.abort:
        dataset = pool.dataset(DatasetName.parse(target))
        if options.intake is None or not options.intake.gives_up(pool, dataset.name):
            give_up(pool, dataset)
        return
    _run(pool, read_events(source), target, options, groups=True)


def receive_events(pool: Pool, events: Iterable[Event], target: str, options: ReceiveOptions) -> None:
    """Receive a stream from its events; the next one is requested only when the one before is processed.

    Who gives the events can rely on each snapshot to be there, and told, before being asked for another one.
    """
    _run(pool, iter(events), target, options, groups=False)


def _run(pool: Pool, events: Iterator[Event], target: str, options: ReceiveOptions, *, groups: bool) -> None:
    with closing(rehearsal(pool)) if options.dry_run else nullcontext(pool) as used:
        _Receiver(used, target, options, groups=groups).run(events)


class _Receiver:
    """Receives the substreams of one stream, one after the other."""

    def __init__(self, pool: Pool, target: str, options: ReceiveOptions, *, groups: bool) -> None:
        """`groups`: many small snapshots are read before the first of them is received."""
        self._pool = pool
        self._groups = groups
        self._options = options
        self._names = Names(target, options.name_from)
        if options.name_from:
            pool.dataset(self._names.target)  # below which the sent names go
        self._charges = Charges(pool)
        self._origin = _named_origin(pool, options.set_properties.get("origin"))
        self._header = PLAIN
        self._stepped: set[DatasetName] = set()
        "Datasets of which this package brought a step."
        self._forces_names = False
        "Whether what is gone at the source is still to be destroyed here (-F)."
        self._names_settled = True
        "Whether all datasets have the names that the replication stream gives them."
        self._replicated: list[str] = []
        "What was done to follow the source, apart from receiving: renamed, promoted, destroyed."

    def run(self, events: Iterator[Event]) -> None:
        try:
            self._receive_all(events)
        except BaseException as error:
            if self._replicated and not self._options.dry_run:
                done = ", ".join(self._replicated)
                self._pool.warn(f"{self._names.target}: before this failed, things were {done} as at the source")
            if isinstance(error, BadStream) and error.ends_early and (left := self._left_before()):
                raise _interrupted(error, *left) from error
            raise

    def _left_before(self) -> tuple[str, str, DatasetName, str] | None:
        """What an earlier receive left to go on with, for a line that broke before it came to that: the kind of
        its stream, its snapshot, the dataset that keeps it, and its token."""
        top = self._pool.find(self._names.target)
        if top is None or not self._options.resumable or self._options.dry_run:
            return None
        for dataset in self._pool.tree().within(top):
            state = state_of(self._pool.catalog, dataset)
            if state and state["resumable"]:
                kind = "incremental" if state["fromguid"] else "new filesystem"
                return kind, f"{dataset.name}@{state['snapshot']}", dataset.name, str(state["token"])
        return None

    def _receive_all(self, events: Iterator[Event]) -> None:
        for event in events:
            if isinstance(event, Package):
                self._header = PackageHeader.of(event)
                self._names.top = self._header.top
                if self._names.snapshot:
                    raise Refused(
                        "cannot receive: a package of several snapshots goes to a dataset, not to one snapshot"
                    )
                # Names follow the source when the first BEGIN is here, which may be refused.
                self._names_settled = not self._header.incremental
                self._forces_names = self._options.force and not self._options.append_only
            elif isinstance(event, SubBegin):
                if self._groups and event.small and self._header.is_package and not self._options.dry_run:
                    self._receive_small(event, events)
                else:
                    self._receive_substream(event, events)
        self._replicate_names(lambda: None)

    def _replicate_names(self, judge: Callable[[], None]) -> None:
        """Let names follow the source; `judge` raises if what comes next is refused, and then they do not."""
        if not self._header.incremental:
            return
        local = self._names.dataset(self._header.top)

        def attempt() -> Replicated:
            self._charges.forget()
            return replicate_names(
                *(self._pool, self._header, local, self._names.target, self._names.dataset),
                force=self._forces_names,
                judge=judge,
            )

        try:
            with noting_no_room(self._pool, local, dry_run=self._options.dry_run):
                done = with_room(self._pool, attempt)
        finally:
            self._charges.forget()
        self._forces_names, self._names_settled = False, done.settled
        self._replicated += [word for word in done.done if word not in self._replicated]

    # Substreams

    def _receive_small(self, begin: SubBegin, events: Iterator[Event]) -> None:
        """Receive a small snapshot of a package, and those that are in memory behind it: many in one transaction."""
        some, size, failure = deque([gathered(begin, events)]), 0, None
        try:
            while (end := some[-1].end) and end.small_follows and len(some) < MOST and size < MOST_BYTES:
                following = next(events)
                assert isinstance(following, SubBegin)
                some.append(gathered(following, events))
                size += some[-1].size
        except BadStream as error:
            failure = error
        # Where one of them cannot be received with the others, each goes its own way, which says why.
        together = self._names_settled and not self._stepped
        while some:
            if together and (done := self._receive_together(of_one_dataset(some))):
                for _ in range(done):
                    some.popleft()
                continue
            together = False
            one = some.popleft()
            self._receive_substream(one.event, one.events())
        if failure is not None:
            raise failure

    def _receive_together(self, some: list[Gathered]) -> int:
        """Receive the first of some snapshots in one transaction; returns how many."""
        if len(some) < 2:
            return 0
        began = time.monotonic()
        made = receive_together(self._pool, some, self._charges, self._target_together)
        seconds = (time.monotonic() - began) / max(len(made), 1)
        # What is told may have to wait for a terminal, and the catalog was locked until now.
        for one, snapshot in zip(some, made, strict=False):
            sent = "@".join(sent_name(one.event))
            arrival = Arrival(sent, str(snapshot.name), bool(one.event.begin.fromguid))
            self._options.on_snapshot(arrival)
            for _ in self._records(arrival.kept, one.events()):
                pass  # progress
            self._options.on_snapshot(replace(arrival, bytes=_size(one.event, one.end), seconds=seconds))
        return len(made)

    def _target_together(self, one: Gathered) -> ReceiveTarget | None:
        """Where a snapshot of several goes; None: it is there, or has to be received alone."""
        sent, snapshot = sent_name(one.event)
        target = self._target(one.event, sent, snapshot)
        alone = steps.RECEIVED_STEP in target.snapshot_fields or self._existing(one.event, target) is not None
        if alone or self._intake(Substream(one.event, target, self._is_top(sent))) is not None:
            return None
        return target

    def _receive_substream(self, begin: SubBegin, events: Iterator[Event]) -> None:
        """Receive the snapshot whose BEGIN was read; `events` goes on behind it."""
        # 1. Its name here. Datasets that could not be renamed before may have their parents now.
        sent, snapshot = sent_name(begin)
        if not self._names_settled:
            self._replicate_names(lambda: self._judge(begin, sent, snapshot))
        # 2. What is here already is read, verified and skipped.
        with self._pool.catalog.reading():
            target = self._target(begin, sent, snapshot)
            existing = self._existing(begin, target)
        if existing:
            name = str(existing.name)
            self._options.on_snapshot(Arrival(name, name, bool(begin.begin.fromguid), ignored=True))
            for event in events:  # its records were read and verified for nothing
                if isinstance(event, SubEnd):
                    break
            return
        # 3. Receive: encrypted on the way by the intake, if there is one that takes it; else as it came.
        arrival = Arrival(f"{sent}@{snapshot}", f"{target.name}@{target.snapshot}", bool(begin.begin.fromguid))
        self._options.on_snapshot(arrival)
        began = time.monotonic()
        substream = Substream(begin, target, self._is_top(sent))
        if intake := self._intake(substream):
            end = self._receive_by(intake, substream, arrival.kept, events)
        else:
            end = self._receive_as_it_came(begin, target, arrival.kept, events)
        if not self._options.dry_run:
            # When a snapshot of this package is there, the step before it is not needed any more.
            if target.name in self._stepped:
                steps.remove_older(self._pool, target.name)
            if steps.RECEIVED_STEP in target.snapshot_fields:
                self._stepped.add(target.name)
            seconds = time.monotonic() - began
            self._options.on_snapshot(replace(arrival, bytes=_size(begin, end), seconds=seconds))

    def _judge(self, begin: SubBegin, sent: str, snapshot: str) -> None:
        """Refuse what would be refused when it is received."""
        target = self._target(begin, sent, snapshot)
        if self._existing(begin, target):
            return
        substream = Substream(begin, target, self._is_top(sent))
        if intake := self._intake(substream):
            intake.judge(self._pool, substream, self._charges)
        else:
            judge(self._pool, begin, target, self._charges)

    def _intake(self, substream: Substream) -> Intake | None:
        """What takes the substream; None: it is kept as it comes."""
        intake, begin = self._options.intake, substream.event.begin
        if intake is None or begin.type not in DATASET_TYPES:
            return None
        if begin.raw and intake.refuses_raw:
            raise Refused(f"cannot receive {substream.target.name}: {intake.refuses_raw}")
        return intake if intake.takes(self._pool, substream) else None

    def _receive_by(self, intake: Intake, substream: Substream, name: str, events: Iterator[Event]) -> SubEnd:
        target = substream.target
        try:
            return intake.receive(self._pool, substream, self._charges, self._records(name, events))
        except (Refused, OSError, KeyboardInterrupt) as error:
            # Where the intake has kept a part, the error says how to go on with it.
            token = intake.kept(self._pool, target)
            if token is None or not target.resumable or self._options.dry_run:
                raise
            raise _interrupted(error, _kind(substream.event), name, target.name, token) from error

    def _is_top(self, sent: str) -> bool:
        return not self._header.recursive or sent == self._header.top

    def _receive_as_it_came(self, begin: SubBegin, target: ReceiveTarget, name: str, events: Iterator[Event]) -> SubEnd:
        records = self._records(name, events)
        # A small snapshot that is here as a whole needs no more than one transaction; nobody has to go on with it.
        if begin.small and self._header.is_package and not self._options.dry_run:
            one = gathered(begin, records)
            if one.end and receive_at_once(self._pool, one, target, self._charges):
                return one.end
            records = one.events()
        session = open_session(self._pool, begin, target, self._charges)
        try:
            with session:
                for event in records:
                    if isinstance(event, SubEnd):
                        session.commit(event)
                        return event
                    session.add(event)
        except (Refused, TryAgain, OSError, KeyboardInterrupt) as error:
            if session.kept and not self._options.dry_run:
                raise _interrupted(error, _kind(begin), name, *session.kept) from error
            raise
        raise AssertionError("the records of a substream end with its END")

    def _records(self, name: str, events: Iterator[Event]) -> Iterator[Batch | SubEnd]:
        """The records of a substream, and its END."""
        size = 0
        for event in events:
            if isinstance(event, Batch):
                yield event
                size += len(event.buffer)
                if self._options.on_progress:
                    self._options.on_progress(name, size)
            elif isinstance(event, SubEnd):
                # END is passed on only when the stream is known to be whole: with it the snapshot is committed.
                if not self._header.is_package:
                    # A plain stream ends behind its snapshot's END: the reader raises BadStream if anything follows.
                    for _ in events:
                        pass
                yield event
                return
        raise BadStream("it ends before the END of its snapshot", size, "END")

    def _existing(self, event: SubBegin, target: ReceiveTarget) -> Snapshot | None:
        """The snapshot itself, if it is there already: then its stream is read, verified and skipped.

        So a sender that did not learn that a receive was done may send the same again. In a package the snapshot may
        have another name here; a plain stream's snapshot has the name that the user gave it.
        """
        dataset = self._pool.find(target.name)
        same = self._pool.snapshots_by_guid(event.begin.toguid, dataset) if dataset else []
        named = [s for s in same if s.doc["name"] == target.snapshot]
        return next(iter(named or (same if self._header.is_package else [])), None)

    def _target(self, event: SubBegin, sent: str, snapshot: str) -> ReceiveTarget:
        name = self._names.dataset(sent)
        fields: Doc = {}
        snapshot_fields: Doc = {}
        header = self._header
        # What the package's header says of this dataset and snapshot: properties, holds, encryption root.
        outlined = header.find(sent)
        if outlined is not None:
            snapshot_fields = outlined.snapshot_fields(snapshot)
            if header.has_holds and not self._options.skip_holds:
                snapshot_fields["holds"] = outlined.holds(snapshot)
            if outlined.has_properties:
                fields["received"] = outlined.received
            if header.recursive and event.begin.raw:
                fields["encroot"] = sent == header.top or outlined.is_encroot
        if header.is_package and steps.is_step(event.begin, snapshot):
            snapshot_fields |= steps.fields(self._pool, name)
        fields["received_name"] = sent
        self._override(event, name, sent, fields)
        # In a package, -o origin= is the origin of the clones that were made of it, and means nothing for the others.
        origin, begin = self._origin, event.begin
        if header.is_package and origin and not (begin.flags & BeginFlag.CLONE and begin.fromguid == origin.guid):
            origin = None
        return ReceiveTarget(
            name=name,
            snapshot=self._names.snapshot or snapshot,
            force=self._options.force,
            append_only=self._options.append_only,
            resumable=self._options.resumable,
            dry_run=self._options.dry_run,
            within=self._names.target,
            origin=origin,
            parents=self._options.name_from == "d",
            fields=fields,
            snapshot_fields=snapshot_fields,
        )

    def _override(self, event: SubBegin, name: DatasetName, sent: str, fields: Doc) -> None:
        """Let -o and -x override what is received."""
        recursive = self._header.recursive
        top = self._is_top(sent)
        kind = "v" if event.begin.type == ObjsetType.VOLUME else "f"
        where = Where(kind=kind, raw=event.begin.raw, top=top, recursive=recursive)
        dataset = self._pool.find(name)
        try:
            local = override(self._options, where, dataset.doc["local"] if dataset else {}, fields.get("received", {}))
        except Refused as error:
            raise Refused(f"cannot receive {name}: {error}") from None
        if local:
            fields["local"] = local


def _size(begin: SubBegin, end: SubEnd | None) -> int:
    """Bytes of a substream."""
    return end.offset + HEADER - begin.offset if end else 0


def _interrupted(error: BaseException, kind: str, name: str, dataset: DatasetName, token: str) -> Interrupted:
    """What zfs says of a partial receive, with the reason, and the dataset that keeps it.

    Source: OpenZFS lib/libzfs/libzfs_sendrecv.c recv_ecksum_set_aux().
    """
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or "interrupted"
    said = "checksum mismatch or incomplete stream." if isinstance(error, BadStream) else f"{why}."
    return Interrupted(
        f"cannot receive {kind} stream: {said}",
        [
            "Partially received snapshot is saved.",
            "A resuming stream can be generated on the sending system by running:",
            f"    zfs send -t {token}",
            f"to go on with {name} by: zkeep receive -s {dataset} ({why})",
        ],
    )


def _named_origin(pool: Pool, text: str | None) -> Snapshot | None:
    """The snapshot of -o origin=. Raises Refused: it is no snapshot, or does not exist."""
    if text is None:
        return None
    name = SnapshotName.parse(text)
    origin = pool.find_snapshot(name)
    if origin is None:
        raise Refused(f"cannot receive: origin {name} does not exist")
    return origin


def _kind(event: SubBegin) -> str:
    """The kind of a stream in zfs's messages of failed receives."""
    # These are libzfs's words; scripts look for them.
    if event.begin.features & Feature.RESUMING:
        return "resume"
    return "incremental" if event.begin.fromguid and not event.begin.flags & BeginFlag.CLONE else "new filesystem"
