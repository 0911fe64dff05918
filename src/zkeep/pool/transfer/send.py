"""zfs send: from and to any snapshots and bookmarks that the pool has.

A run that is unchanged since it was received is sent as it came; everything else is put together (compose.py).

Source: OpenZFS lib/libzfs/libzfs_sendrecv.c zfs_send(), dump_filesystem(); module/zfs/dmu_send.c.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

from zkeep.errors import Refused, TryAgain
from zkeep.format.records import Begin, Feature
from zkeep.names import BookmarkName, DatasetName, SnapshotName, shown
from zkeep.pool.datasets import contents
from zkeep.pool.datasets.begin import Address, Opening, addressed
from zkeep.pool.datasets.history import History, history_of
from zkeep.pool.datasets.keyrecords import with_newest
from zkeep.pool.datasets.model import Bookmark, Dataset, NotThere, Pool, Snapshot
from zkeep.pool.datasets.orphans import reading
from zkeep.pool.datasets.space import Amount
from zkeep.pool.datasets.view import View
from zkeep.pool.timeline.compose import Journey, plan
from zkeep.pool.timeline.emit import StreamWriter, Write, lacks_payload, write_fully
from zkeep.pool.timeline.timeline import Run
from zkeep.pool.transfer.package import Wrapping, conclusion, outer_header, received_names
from zkeep.pool.transfer.plain import SendForm, plain_opening
from zkeep.pool.transfer.token import Token


@dataclass(frozen=True)
class Leg:
    """One substream: a snapshot, from a source or in full."""

    snapshot: Snapshot
    source: Snapshot | Bookmark | None
    resume: tuple[int, int] | None = None
    sent: int = 0
    """Bytes of it that arrived already."""
    form: SendForm | None = None
    """How its blocks are sent, if it is encrypted here and leaves as a plain stream."""

    @property
    def mark(self) -> str:
        """What stands before the source's name."""
        return "#" if isinstance(self.source, Bookmark) else "@"

    @property
    def clone(self) -> bool:
        return self.source is not None and self.source.dataset.id != self.snapshot.dataset.id


class Decrypting(Protocol):
    """Sends encrypted snapshots as plain streams. A pool has no key, so the keyed caller provides this."""

    def check(self, pool: Pool, snapshot: Snapshot) -> None:
        """Raises Refused: the key is not here."""

    def write(self, pool: Pool, leg: Leg, opening: Opening, maxblkid: int, write: Write) -> None:
        """Write one substream, from the BEGIN that is given to its END. `maxblkid`: of the metadnode."""


@dataclass(frozen=True)
class SendRequest:
    """The letters of zfs send. `from_`: -i, `from_all`: -I; both as typed (`@a`, `#b`, `pool/fs@a`)."""

    snapshot: str | None = None
    raw: bool = False
    large: bool = False
    compressed: bool = False
    replicate: bool = False
    from_: str | None = None
    from_all: str | None = None
    token: str | None = None
    dry_run: bool = False
    received_name: bool = False
    newest_key: bool = False
    """Send each snapshot with the newest wrap of its keys, not the one that came with it."""
    props: bool = False
    holds: bool = False
    backup: bool = False
    """-b: of properties, what was received, whatever was set here since."""
    skip_missing: bool = False
    exclude: tuple[str, ...] = ()
    """Names of datasets that -R leaves out, with all below them."""
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    announce: Callable[[list[tuple[Leg, int]]], None] | None = None
    """Called with what is going to be sent, with estimated sizes in bytes."""
    begin: Callable[[Leg], None] | None = None
    """Called before the first byte of each substream."""
    unencrypted: bool = False
    """-U: a token may ask for an encrypted snapshot as a plain stream."""
    decrypting: Callable[[], Decrypting] | None = None
    """Makes what sends encrypted snapshots that are not to be sent raw."""

    @property
    def is_package(self) -> bool:
        """Whether the substreams go in a compound stream, with an outer header."""
        return self.replicate or self.props or self.holds or self.backup or self.from_all is not None


@dataclass(frozen=True)
class LegOptions:
    """The form of one substream's BEGIN. `name`: its snapshot's name there, if not as here or as it came."""

    name: str | None = None
    received_name: bool = False
    newest_key: bool = False


def send(pool: Pool, request: SendRequest, sink: BinaryIO) -> None:
    """Write a stream.

    Raises:
        Refused: it cannot be made; nothing was written.
        Damaged: the pool's own data is bad; the stream breaks off without an END.
    """
    with reading(pool):
        with pool.catalog.reading():
            legs = list(_legs(pool, request))
        for leg in legs:
            _check_contents(pool, leg)
        decrypting = _plain_sender(pool, legs, request)
        if request.announce:
            view = View(pool)
            request.announce([(leg, _estimate(view, leg).stored) for leg in legs])
        if request.dry_run:
            return
        packaged = request.is_package
        # Everything that can be refused was refused: from here on bytes are written.
        names = _names(pool, request, legs) if packaged and request.received_name else {}
        if packaged:
            text = request.from_ if request.from_ is not None else request.from_all
            source = text.rpartition("@")[2].rpartition("#")[2] if text is not None else None
            forms = (
                request.replicate,
                request.props,
                request.holds,
                request.backup,
                request.newest_key,
                not request.raw,
            )
            wrapping = Wrapping(request.snapshot or "", source, *forms, names)
            pairs = [(leg.snapshot, leg.source) for leg in legs]
            write_fully(sink.write, outer_header(pool, wrapping, pairs))
        for leg in legs:
            if request.begin:
                request.begin(leg)
            given = names.get(leg.snapshot.dataset.id)
            name = f"{given}@{leg.snapshot.doc['name']}" if given is not None else None
            options = LegOptions(name, request.received_name, request.newest_key)
            if leg.form is not None and decrypting is not None:
                # The BEGIN of an encrypted snapshot's plain stream.
                plain = plain_opening(_opening(pool, leg.snapshot), leg.form, leg.snapshot.name)
                opening = addressed(plain, _address(leg, plain.begin, options))
                decrypting.write(pool, leg, opening, _opening(pool, leg.snapshot).maxblkid, sink.write)
                continue
            write_leg(pool, leg, sink.write, options)
        if packaged:
            write_fully(sink.write, conclusion())
        sink.flush()


def _names(pool: Pool, request: SendRequest, legs: list[Leg]) -> dict[int, str]:
    """The names of a package's datasets, by their ids, as they came.

    Raises:
        Refused: one would be too long.
    """
    top = pool.snapshot(SnapshotName.parse(request.snapshot or "")).dataset
    names = received_names(top, list({leg.snapshot.dataset.id: leg.snapshot.dataset for leg in legs}.values()))
    for leg in legs:
        SnapshotName.parse(f"{names[leg.snapshot.dataset.id]}@{leg.snapshot.doc['name']}")
    return names


def write_leg(pool: Pool, leg: Leg, write: Write, options: LegOptions) -> None:
    """Write one substream, from its BEGIN to its END."""
    snapshot = leg.snapshot
    # The BEGIN that was received, with the source, the names and the keys of this stream.
    history, before, new = runs_of(pool, leg)
    source_txg = leg.source.txg if leg.source else 0
    stored = _opening(pool, snapshot)
    if options.newest_key:
        stored = with_newest(pool, snapshot, stored)
    begin = stored.begin
    opening = addressed(stored, _address(leg, begin, options))
    order, toguid = opening.byteorder, begin.toguid
    with history.timeline(pool.store) as timeline, StreamWriter(timeline, write, order, toguid) as out:
        out.begin(opening.header, opening.payload)
        # A run that came from this very source is sent as it came; else the records are chosen by compose.
        if len(new) == 1 and new[0].doc["whole"] and new[0].doc["from_txg"] == source_txg and not leg.resume:
            out.verbatim(new[0])
        elif new:
            out.steps(plan(timeline, Journey(before, new, begin.raw, stored.maxblkid, leg.resume)))
        out.end()


def runs_of(pool: Pool, leg: Leg) -> tuple[History, list[Run], list[Run]]:
    """The runs up to a leg's snapshot: all, those that the receiver has, and those that it lacks.

    The caller reads the snapshot's BEGIN after this: it is there only if these runs lead to it. Whether the source was
    destroyed meanwhile, and its runs merged with later ones, is all the same: then more of them is sent.
    """
    history = history_of(pool, leg.snapshot.dataset).upto(leg.snapshot.txg)
    return history, *parted(history, leg)


def parted(history: History, leg: Leg) -> tuple[list[Run], list[Run]]:
    """The runs up to a leg's snapshot: those that the receiver has, and those that it lacks."""
    source_txg = leg.source.txg if leg.source else 0
    return history.upto(source_txg).runs, history.after(source_txg).runs


def opened_source(pool: Pool, leg: Leg) -> Snapshot | None:
    """The snapshot that an increment follows; for a bookmark, the one that it was made of, if that is still there."""
    source = leg.source
    if not isinstance(source, Bookmark):
        return source
    found = (snapshot for snapshot in pool.snapshots(source.dataset) if snapshot.txg == source.txg)
    return next(found, None)


def _check_contents(pool: Pool, leg: Leg) -> None:
    """Raises NotHere: a block has to be sent whose payload was dropped, because it is stored elsewhere."""
    history, before, new = runs_of(pool, leg)
    if not contents.lacking(new):
        return
    stored = _opening(pool, leg.snapshot)
    journey = Journey(before, new, stored.begin.raw, stored.maxblkid, leg.resume)
    with history.timeline(pool.store) as timeline:
        for steps in plan(timeline, journey):
            if lacks_payload(steps):
                raise contents.NotHere(f"cannot send {leg.snapshot.name}")


def _address(leg: Leg, begin: Begin, options: LegOptions) -> Address:
    # What a stream must say of its own: its name, its source, and for raw increments the source's IV set.
    toname = begin.toname if options.received_name else str(leg.snapshot.name).encode()
    return Address(
        toname=options.name.encode() if options.name is not None else toname,
        fromguid=leg.source.guid if leg.source else 0,
        from_ivset_guid=int(leg.source.doc["ivset_guid"]) if leg.source else 0,
        clone=leg.clone,
        resume=leg.resume,
    )


def _opening(pool: Pool, snapshot: Snapshot) -> Opening:
    doc = pool.catalog.get("begin", snapshot.key)
    if doc is None and pool.snapshot_at(snapshot.dataset.id, snapshot.txg) is None:
        raise TryAgain(f"cannot send {snapshot.name}: it was destroyed, or a clone of it promoted, meanwhile")
    if doc is None:
        raise NotThere(f"cannot send {snapshot.name}: it holds nothing yet")
    return Opening.from_doc(doc)


# What is to be sent


def _legs(pool: Pool, request: SendRequest) -> Iterator[Leg]:
    """The substreams of the request, each in the form that it has."""
    if request.token is not None:
        yield _resumed_leg(pool, Token.decode(request.token), request)
        return
    form = SendForm(request.large, request.compressed)
    for leg in _chosen_legs(pool, request):
        yield replace(leg, form=form) if _is_encrypted(leg.snapshot) and not request.raw else leg


def _is_encrypted(snapshot: Snapshot) -> bool:
    return bool(Feature(snapshot.doc["features"]) & Feature.RAW)


def _chosen_legs(pool: Pool, request: SendRequest) -> Iterator[Leg]:
    if request.snapshot is None:
        raise Refused("cannot send: name a snapshot")
    snapshot = pool.snapshot(SnapshotName.parse(request.snapshot))
    if request.replicate:
        yield from _replication(pool, snapshot, request)
    elif request.from_all is not None:
        yield from _between(pool, snapshot, _source(pool, snapshot, request.from_all))
    else:
        source = _source(pool, snapshot, request.from_) if request.from_ is not None else None
        yield Leg(snapshot, source)


def _source(pool: Pool, snapshot: Snapshot, text: str) -> Snapshot | Bookmark:
    """What -i or -I names, checked: it lies in the snapshot's past."""
    # `a` and `@a`: a snapshot of the same dataset; `#b`: its bookmark; `pool/fs@a`: as it stands, for clones.
    name = text if "@" in text or "#" in text else f"@{text}"
    if name[0] in "@#":
        name = f"{snapshot.dataset.name}{name}"
    found: Snapshot | Bookmark
    found = pool.bookmark(BookmarkName.parse(name)) if "#" in name else pool.snapshot(SnapshotName.parse(name))
    if not is_past(pool, found, snapshot):
        raise Refused(f"cannot send {snapshot.name}: {shown(name)} is not an earlier snapshot of the same dataset")
    return found


def is_past(pool: Pool, source: Snapshot | Bookmark, snapshot: Snapshot) -> bool:
    """Whether `source` lies on the way to `snapshot`: earlier in its dataset, or in its origin's past."""
    # The dataset itself up to the snapshot before, then each origin's dataset up to the origin.
    past = ((snapshot.dataset, snapshot.txg - 1), *pool.origins(snapshot.dataset))
    return any(dataset.id == source.dataset.id and source.txg <= last for dataset, last in past)


def _between(pool: Pool, snapshot: Snapshot, source: Snapshot | Bookmark | None) -> Iterator[Leg]:
    """Every snapshot after `source` up to `snapshot`, each from the one before."""
    # A source in another dataset is an origin: then all snapshots of this one come after it.
    first = source.txg if source is not None and source.dataset.id == snapshot.dataset.id else 0
    for each in pool.snapshots(snapshot.dataset):
        if first < each.txg <= snapshot.txg:
            yield Leg(each, source)
            source = each


def _replication(pool: Pool, snapshot: Snapshot, request: SendRequest) -> Iterator[Leg]:
    """The dataset and all below that have a snapshot of this name; origins before their clones."""
    text = request.from_ if request.from_ is not None else request.from_all
    fromsnap = text.rpartition("@")[2] if text is not None else None
    if fromsnap is not None:
        _source(pool, snapshot, f"@{fromsnap}")
    chosen = _chosen(pool, snapshot, request)
    for dataset, origin in _in_turn(pool, [s.dataset for s in chosen.values()]):
        last = chosen[dataset.name.text]
        source = pool.find_snapshot(dataset.name.snapshot(fromsnap)) if fromsnap is not None else None
        if source is not None and source.txg < dataset.doc.get("chain_promoted", 0):
            # OpenZFS's recv_incremental_replication() leaves such a promotion out without a message, or does and
            # undoes two promotions for ever, by the order in which it lists its own datasets. No header prevents
            # that: warn, with the way out.
            request.warn(
                f"WARNING: {dataset.name} was promoted in a chain of clones since @{source.doc['name']}: zkeep receive "
                "follows that, but zfs receive may never return, or leave it out without a word. Stop it then; "
                f"'zfs promote' there until the origins are as 'zkeep list -o name,origin -r {snapshot.dataset.name}' "
                "shows; and receive again"
            )
        if source is not None and request.from_all is None:
            yield Leg(last, source)
        else:
            yield from _between(pool, last, source or origin)


def _chosen(pool: Pool, snapshot: Snapshot, request: SendRequest) -> dict[str, Snapshot]:
    """The snapshots of this name of the dataset and what is below, by dataset; parents first.

    A dataset all of whose snapshots are younger than its parent's, or that holds nothing, is passed over with all below
    it; so is, with -s, any that lacks the snapshot.

    Source: lib/libzfs/libzfs_sendrecv.c send_iterate_fs(); cmd/zfs/zfs_main.c zfs_do_send_exclude().

    Raises:
        Refused: a dataset lacks the snapshot.
    """
    top, name = snapshot.dataset.name, snapshot.doc["name"]
    excluded = [DatasetName.parse(text) for text in request.exclude]
    found = {top.text: snapshot}
    for dataset in pool.tree().within(snapshot.dataset)[1:]:
        above = found.get(dataset.name.parent.text if dataset.name.parent else "")
        if above is None or any(dataset.name.is_within(one) for one in excluded):
            continue
        last = pool.find_snapshot(dataset.name.snapshot(name))
        if last is not None:
            found[dataset.name.text] = last
            continue
        snapshots = pool.snapshots(dataset)
        if any(s.doc["creation"] <= above.doc["creation"] for s in snapshots) and not request.skip_missing:
            lacking = f"snapshot {dataset.name}@{name} does not exist; pass it over with -s"
            raise Refused(f"cannot send {snapshot.name} recursively: {lacking}")
        if snapshots:
            lacking = f"snapshot {name} does not exist"
            request.warn(f"WARNING: skipping dataset {dataset.name} and its children: {lacking}")
    return found


def _in_turn(pool: Pool, datasets: list[Dataset]) -> Iterator[tuple[Dataset, Snapshot | None]]:
    """Sort datasets into an order that a receiver can follow, each after its parent and origin; with its origin.

    A clone that cannot come after its origin, because that lies below it, comes without one.

    Source: lib/libzfs/libzfs_sendrecv.c dump_filesystems().
    """
    ids: dict[DatasetName | None, int] = {d.name: d.id for d in datasets}
    known, pending = set(ids.values()), set(ids.values())
    # Each turn takes what waits for nothing any more. If nothing can be taken, a clone lies above its origin: it is
    # sent in full.
    waiting = datasets
    while waiting:
        later = []
        for dataset in waiting:
            if {ids.get(dataset.name.parent), dataset.origin and dataset.origin[0]} & pending:
                later.append(dataset)
                continue
            pending.remove(dataset.id)
            origin = dataset.origin if dataset.origin and dataset.origin[0] in known else None
            yield dataset, pool.snapshot_at(*origin) if origin else None
        if len(later) == len(waiting):
            free = [d for d in later if ids.get(d.name.parent) not in pending]
            alone = next((d for d in free if d.origin and pool.by_id(d.origin[0]).name.is_within(d.name)), free[0])
            pending.remove(alone.id)
            later.remove(alone)
            yield alone, None
        waiting = later


def _resumed_leg(pool: Pool, token: Token, request: SendRequest) -> Leg:
    """What a token asks for, if it fits what is here."""
    name = SnapshotName.parse(token.toname)
    every = pool.snapshots_by_guid(token.toguid)
    named = [s for s in every if s.name.name == name.name] or every
    if not named:
        gone = f"{shown(token.toname)} used in the initial send no longer exists"
        raise Refused(f"cannot resume send: {gone} (guid {token.toguid:#x})")
    snapshot = named[0]
    if token.raw and not _is_encrypted(snapshot):
        raise Refused(f"cannot resume send: the token and {snapshot.name} do not agree on being raw")
    if "redact_snaps" in token.redaction and not snapshot.doc["features"] & Feature.REDACTED:
        raise Refused(f"cannot resume send: the token is of a redacted stream, and {snapshot.name} is whole here")
    large = request.large or bool(token.features & Feature.LARGE_BLOCKS)
    compressed = request.compressed or bool(token.features & Feature.COMPRESSED)
    form = SendForm(large, compressed) if _is_encrypted(snapshot) and not token.raw else None
    source = _by_guid(pool, snapshot, token.fromguid) if token.fromguid else None
    resume = (token.object, token.offset) if token.object or token.offset else None
    return Leg(snapshot, source, resume, token.bytes, form)


def _by_guid(pool: Pool, snapshot: Snapshot, guid: int) -> Snapshot | Bookmark:
    # The dataset and its origins, snapshots before bookmarks; nothing else may be looked up by a peer's guid.
    candidates: list[Snapshot | Bookmark] = []
    for dataset in (snapshot.dataset, *(origin for origin, _ in pool.origins(snapshot.dataset))):
        candidates += [*pool.snapshots_by_guid(guid, dataset), *pool.bookmarks_by_guid(guid, dataset)]
    for candidate in candidates:
        if candidate.guid == guid and is_past(pool, candidate, snapshot):
            return candidate
    raise Refused(f"cannot resume send: incremental source {guid:#x} no longer exists")


def _plain_sender(pool: Pool, legs: list[Leg], request: SendRequest) -> Decrypting | None:
    """What sends the encrypted snapshots that are to leave as plain streams; None if there are none.

    Raises:
        Refused: one cannot leave so.
    """
    plain = [leg for leg in legs if leg.form is not None]
    if not plain:
        return None
    where = f"cannot send {plain[0].snapshot.name}"
    if request.decrypting is None or pool.scope is not None:
        raise Refused(f"{where}: it is encrypted and no key is here: send it raw, with -w")
    if request.token is not None and not request.unencrypted:
        # The receiver makes the token, and a forged one could ask for what was sent raw before.
        raise Refused(f"{where}: the token asks for a stream without encryption, and it is encrypted: allow it with -U")
    decrypting = request.decrypting()
    for leg in plain:
        plain_opening(_opening(pool, leg.snapshot), leg.form or SendForm(), leg.snapshot.name)
        decrypting.check(pool, leg.snapshot)
        if leg.source is not None and opened_source(pool, leg) is None:
            request.warn(
                f"WARNING: sending {leg.snapshot.name}: {leg.source.name} has no snapshot any more, so only what is "
                f"sent is authenticated, and not that nothing is left out"
            )
    if request.replicate or request.props or request.backup:
        for name in dict.fromkeys(leg.snapshot.dataset.name for leg in plain):
            request.warn(f"WARNING: sending {name} with its properties and without its encryption")
    return decrypting


# Estimates


def _estimate(view: View, leg: Leg) -> Amount:
    history = view.history(leg.snapshot.dataset)
    if leg.source is None:
        size = history.referenced(leg.snapshot.txg)
    else:
        size = history.written(leg.source.txg, leg.snapshot.txg)
    # A plain stream without -c has blocks uncompressed.
    if leg.form is not None and not leg.form.compressed:
        return Amount(max(0, size.logical - leg.sent), size.logical)
    return Amount(max(0, size.stored - leg.sent), size.logical)


__all__ = ["DatasetName", "Leg", "LegOptions", "SendRequest", "send", "write_leg"]
