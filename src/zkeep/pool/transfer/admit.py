"""The decision at a BEGIN, before a byte is stored: may the stream be received, and what happens then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NoReturn

from zkeep.errors import Damaged, Refused
from zkeep.format.events import SubBegin
from zkeep.format.objtypes import ObjsetType
from zkeep.format.records import Begin, BeginFlag, Feature
from zkeep.names import DatasetName
from zkeep.pool.datasets import head
from zkeep.pool.datasets.begin import Opening, number, rewrapped
from zkeep.pool.datasets.history import past_of
from zkeep.pool.datasets.keyrecords import wrap_fields
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.partial import base_of, bases, needed_by
from zkeep.pool.datasets.view import View
from zkeep.pool.transfer import steps
from zkeep.pool.transfer.begin_rules import refuse_after, refuse_form, refuse_other_ivset, refuse_rest
from zkeep.pool.types import Doc

KEY_GUID = "DSL_CRYPTO_GUID"


@dataclass
class ReceiveTarget:
    """The snapshot that a stream is to become. The dataset `name` may not exist yet."""

    name: DatasetName
    snapshot: str
    within: DatasetName
    "The dataset that the user named: except for `origin`, nothing outside of it is looked up or changed."
    force: bool = False
    append_only: bool = False
    "No snapshot is destroyed, also with `force`."
    resumable: bool = False
    dry_run: bool = False
    "Nothing is stored: the pool is a rehearsal."
    origin: Snapshot | None = None
    "The origin of the clone, if the user names one (-o origin=)."
    parents: bool = False
    "Make parents that are missing."
    fields: Doc = field(default_factory=dict)
    "Fields for the dataset's document, when it is made or at commit: local, received, encroot, received_name."
    snapshot_fields: Doc = field(default_factory=dict)
    head: bool = False
    "It becomes the dataset's head, and no snapshot: a commit of one that is mounted, or what a snapshot will name."
    made_here: bool = False
    "It is written here: a clone to which nothing was written yet goes on from its origin."
    excerpt: bool = False
    "What comes is no whole stream, but an excerpt of one (format/excerpt.py)."


@dataclass(frozen=True)
class ReceivePlan:
    """What a receive does. `dataset`: where the snapshot goes, if it exists. `source`: what an increment follows."""

    opening: Opening
    begin: Begin
    dataset: Dataset | None
    source: Snapshot | None
    clone: bool
    doomed: list[Snapshot]
    "Snapshots newer than the source, which -F destroys, and steps of a package that broke off."


def admit(pool: Pool, event: SubBegin, target: ReceiveTarget, begun: Doc | None = None) -> ReceivePlan:
    """Decide whether a stream may be received. `begun`: the document of the interrupted receive that it goes on with.

    Every BEGIN passes here, from whatever caller.

    Raises:
        Refused: with the reason and the way out.
    """
    begin, where = event.begin, f"cannot receive {target.name}"
    opening = Opening.of(event)
    # Rules for every stream: a kernel would take it back, it may be plain here, and its snapshot's name is free.
    dataset = pool.find(target.name)
    if begin.features & Feature.RESUMING and begun is None:
        raise Refused(f"{where}: the stream resumes a receive, but destination has no interrupted one")
    if broken := refuse_form(opening):
        raise Refused(f"{where}: {broken}")
    heir = dataset or nearest(pool, target.name)
    refuse_open_streams(pool, begin, heir, target)
    taken = dataset is not None and pool.find_snapshot(target.name.snapshot(target.snapshot))
    if taken and not target.head:
        raise Refused(f"{where}: snapshot {target.name}@{target.snapshot} exists already")
    # Rules for its kind: the rest of an interrupted receive, a full stream, or an increment (which may be a clone).
    if begun is not None:
        return _admit_rest(pool, opening, pool.dataset(target.name), target, begun)
    if begin.fromguid == 0:
        return _admit_full(pool, opening, begin, dataset, target)
    return _admit_increment(pool, opening, begin, dataset, target)


def nearest(pool: Pool, name: DatasetName) -> Dataset:
    """The closest ancestor that exists."""
    # From the parent upwards.
    above = name.parent
    while above is not None:
        found = pool.find(above)
        if found:
            return found
        above = above.parent
    raise Refused(f"cannot receive {name}: it is not in pool {pool.name}")


def is_blind(pool: Pool, heir: Dataset, target: ReceiveTarget) -> bool:
    """Whether nothing is stored in clear. `heir`: the dataset, or the one that it will inherit from."""
    local = target.fields.get("local", {}).get("blind")
    return (local or View(pool).policy(heir, "blind")) == "on"


def refuse_open_streams(pool: Pool, begin: Begin, heir: Dataset, target: ReceiveTarget) -> None:
    """Refuse a plain stream where blind=on. `heir`: the dataset, or the one that it will inherit from."""
    if begin.raw:
        return
    if is_blind(pool, heir, target):
        raise Refused(
            f"cannot receive {target.name}: the stream is not raw and blind=on: send it with zfs send -w "
            f"(from an encrypted dataset), or allow it with zkeep set blind=off {heir.name}"
        )


def _admit_full(
    pool: Pool, opening: Opening, begin: Begin, dataset: Dataset | None, target: ReceiveTarget
) -> ReceivePlan:
    where = f"cannot receive {target.name}"
    if target.origin is not None:
        raise Refused(f"{where}: the stream is full, so it has nothing in common with origin {target.origin.name}")
    if begin.flags & BeginFlag.CLONE:
        raise Refused(f"{where}: the stream is of a clone, and names no origin")
    # A new dataset, or an empty one that -F overwrites: nothing that has a past is overwritten by a full stream.
    if dataset is None:
        _refuse_orphan(pool, where, target)
        return ReceivePlan(opening, begin, None, None, False, [])
    passing = steps.in_the_way(pool, dataset, begin)
    if past := past_of(pool, dataset, passing):
        raise Refused(f"{where}: destination {past}, or receive under another name")
    if dataset.origin:
        raise Refused(f"{where}: destination is a clone")
    _refuse_existing(pool, where, begin, dataset, target)
    refuse_needed(pool, where, passing)
    return ReceivePlan(opening, begin, dataset, None, False, passing)


def _refuse_existing(pool: Pool, where: str, begin: Begin, dataset: Dataset, target: ReceiveTarget) -> None:
    """Refuse to overwrite an empty dataset without -F, unless all it was made for is steps of a package."""
    if not target.force and not (steps.in_the_way(pool, dataset, begin) and steps.is_made_for(pool, dataset)):
        raise Refused(f"{where}: destination exists; must specify -F to overwrite it")
    _refuse_children(pool, where, begin, dataset)


def _refuse_children(pool: Pool, where: str, begin: Begin, dataset: Dataset) -> None:
    if begin.type == ObjsetType.VOLUME and any(d != dataset for d in pool.tree().within(dataset)):
        raise Refused(f"{where}: a volume has no children, and destination has some")


def _refuse_orphan(pool: Pool, where: str, target: ReceiveTarget) -> None:
    above = target.name.parent
    if above is None or (pool.find(above) is None and not target.parents):
        raise Refused(f"{where}: its parent does not exist; make it with zkeep create -p {above}")
    if (found := nearest(pool, target.name)).is_volume:
        raise Refused(f"{where}: {found.name} is a volume, and has no datasets below it")


def _admit_increment(
    pool: Pool, opening: Opening, begin: Begin, dataset: Dataset | None, target: ReceiveTarget
) -> ReceivePlan:
    where = f"cannot receive incremental stream into {target.name}"
    # A clone makes a dataset of its own.
    newest = head.newest_state(pool, dataset) if dataset is not None else None
    wants_new = bool(begin.flags & BeginFlag.CLONE) or target.origin is not None
    if dataset is None or wants_new or (newest is None and not dataset.origin):
        return _admit_clone(pool, opening, begin, dataset, target)
    # The source: the snapshot with the guid that the stream names, or the unnamed state of a mounted dataset.
    source = next(iter(pool.snapshots_by_guid(begin.fromguid, dataset)), None)
    state = head.unnamed(pool, dataset)
    if newest is None and target.made_here:
        origin = head.last_snapshot(pool, dataset)
        source = origin if origin is not None and origin.guid == begin.fromguid else None
    if state is not None and state.guid == begin.fromguid and target.head:
        source = state
    elif state is not None and not target.force:
        way = "roll back with -F, or take a snapshot"
        raise Refused(f"{where}: destination {dataset.name} has been modified since most recent snapshot: {way}")
    if source is None:
        way = "destination has no snapshot: send it in full"
        if newest is not None:
            way = f"newest is @{newest.doc['name']}, {newest.guid:#x}: send from that one, or from a bookmark of it"
        raise Refused(f"{where}: incremental source guid {begin.fromguid:#x} is not there; {way}")
    _refuse_other_chain(pool, where, opening, source)
    doomed = _newer(pool, where, begin, dataset, source, target)
    return ReceivePlan(opening, begin, dataset, source, False, doomed)


def _newer(
    pool: Pool, where: str, begin: Begin, dataset: Dataset, source: Snapshot, target: ReceiveTarget
) -> list[Snapshot]:
    """The snapshots that -F destroys, and steps of a package that broke off."""
    newer = pool.snapshots_after(dataset, source.txg)
    passing = {step.key for step in steps.in_the_way(pool, dataset, begin)} if newer else set()
    stays = [snapshot for snapshot in newer if snapshot.key not in passing]
    if stays and not target.force:
        raise Refused(
            f"{where}: @{source.doc['name']}, its source, is not the most recent snapshot "
            f"(that is @{stays[-1].doc['name']}): roll back with -F"
        )
    if stays and target.append_only:
        raise Refused(
            f"{where}: @{source.doc['name']}, its source, is not the most recent snapshot "
            f"(that is @{stays[-1].doc['name']}): permission denied: newer snapshots are not destroyed here"
        )
    refuse_needed(pool, where, newer)
    return newer


def _admit_rest(pool: Pool, opening: Opening, dataset: Dataset, target: ReceiveTarget, begun: Doc) -> ReceivePlan:
    """A stream that goes on with an interrupted one: its BEGIN must say the same, and it must still be allowed."""
    where = f"cannot resume the receive into {target.name}"
    first = Opening.from_doc(begun["begin"])
    if other := refuse_rest(opening, first):
        raise Refused(f"{where}: {other}; go on with its receive_resume_token, or give it up with zkeep receive -A")
    if opening.crypt is not None:  # change-key may have changed the wrap at the source: the newest one counts
        first = rewrapped(first, wrap_fields(opening.crypt))
    # The source as it is now; everything that may have changed since the receive began is checked again.
    source = pool.snapshot_at(*begun["source"]) if begun["source"] else None
    if begun["source"] and source is None:
        raise Refused(f"{where}: the incremental source was destroyed meanwhile")
    doomed: list[Snapshot] = []
    if source is not None:
        _refuse_other_chain(pool, where, opening, source)
    if source is not None and not begun["clone"]:
        doomed = _newer(pool, where, first.begin, dataset, source, target)
    else:
        doomed = steps.in_the_way(pool, dataset, first.begin)
        if len(pool.snapshot_txgs(dataset)) > len(doomed):
            raise Refused(f"{where}: destination has snapshots meanwhile")
        refuse_needed(pool, where, doomed)
    return ReceivePlan(first, first.begin, None if begun["new"] else dataset, source, begun["clone"], doomed)


def refuse_needed(pool: Pool, where: str, doomed: Sequence[Snapshot]) -> None:
    """Refuse to destroy snapshots that have holds, clones or a partial receive. Ones that are gone are skipped."""
    known = bases(pool) if doomed else {}
    for planned in doomed:
        snapshot = pool.snapshot_at(planned.dataset.id, planned.txg)
        if snapshot is None:
            continue
        if snapshot.holds:
            raise Refused(f"{where}: cannot roll back: {snapshot.name} is held ({', '.join(sorted(snapshot.holds))})")
        clones = pool.tree().clones(snapshot.dataset, snapshot.txg)
        if clones:
            raise Refused(f"{where}: cannot roll back: {pool.called(clones[0])} is a clone of {snapshot.name}")
        if receiving := base_of(known, snapshot):
            raise Refused(f"{where}: cannot roll back: {snapshot.name}: {needed_by(pool, receiving)}")


def _refuse_other_chain(pool: Pool, where: str, opening: Opening, source: Snapshot) -> None:
    """Refuse an increment that does not fit its source: another type, key, shape or IV set."""
    doc = pool.catalog.get("begin", source.key)
    if doc is None:
        raise Damaged(f"the catalog has lost the BEGIN of {source.name}")
    before = Opening.from_doc(doc)
    # A raw increment's blocks are encrypted with its dataset's key, so the source must have the same one.
    other_key = opening.begin.raw and number(opening.crypt, KEY_GUID) != number(before.crypt, KEY_GUID)
    if other_key and source.doc.get("reencrypted"):
        raise Refused(
            f"{where}: {source.name} was encrypted here, from a plain stream: "
            "the increment must be plain, too: zfs send -i, without -w"
        )
    broken = refuse_after(opening, before, str(source.name))
    if broken is None and opening.begin.raw:
        broken = refuse_other_ivset(opening, source.doc["ivset_guid"], str(source.name))
    if broken:
        raise Refused(f"{where}: {broken}")


def _common_components(one: DatasetName, other: DatasetName) -> int:
    """How many leading components two names share: of several possible origins, the nearest is taken."""
    pairs = zip(one.components, other.components, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _refuse_overwriting(pool: Pool, begin: Begin, dataset: Dataset, target: ReceiveTarget) -> NoReturn:
    """Refuse a clone onto a dataset that has a past: a clone makes a new dataset.

    Source: OpenZFS lib/libzfs/libzfs_sendrecv.c zfs_receive_one(), stream_wantsnewfs.
    """
    where = f"cannot receive incremental stream into {target.name}"
    if not begin.flags & BeginFlag.CLONE and target.origin is None:
        missing = f"incremental source guid {begin.fromguid:#x} is not there"
        raise Refused(f"{where}: {missing}; destination has no snapshot: send it in full")
    if not target.force:
        raise Refused(f"{where}: the stream is of a clone and destination exists; must specify -F to overwrite it")
    past = past_of(pool, dataset) or "has an origin; must destroy it"
    raise Refused(f"{where}: the stream is of a clone and destination {past} to overwrite it")


def _admit_clone(
    pool: Pool, opening: Opening, begin: Begin, dataset: Dataset | None, target: ReceiveTarget
) -> ReceivePlan:
    where = f"cannot receive incremental stream into {target.name}"
    passing = steps.in_the_way(pool, dataset, begin) if dataset is not None else []
    if dataset is not None and ((dataset.origin and not passing) or past_of(pool, dataset, passing)):
        _refuse_overwriting(pool, begin, dataset, target)
    source = clone_source(pool, where, begin, target)
    # Where nothing but steps is in the way, the dataset may be a clone of the same snapshot.
    if dataset is not None and dataset.origin not in (None, (source.dataset.id, source.txg)):
        _refuse_overwriting(pool, begin, dataset, target)
    if not (begin.flags & BeginFlag.CLONE or target.origin):
        raise Refused(f"{where}: destination does not exist; the source is {source.name}")
    _refuse_other_chain(pool, where, opening, source)
    if dataset is None:
        _refuse_orphan(pool, where, target)
    if dataset is not None:
        _refuse_existing(pool, where, begin, dataset, target)
        refuse_needed(pool, where, passing)
    return ReceivePlan(opening, begin, dataset, source, True, passing)


def clone_source(pool: Pool, where: str, begin: Begin, target: ReceiveTarget) -> Snapshot:
    """The origin of a clone: the snapshot that the user named, or the nearest one with that guid in the target.

    The sender chooses the guid, and guids are no secret: outside of the target nothing is looked up by it.
    """
    if target.origin is not None:
        if target.origin.guid != begin.fromguid:
            raise Refused(f"{where}: {target.origin.name} is not the source of the stream, guid {begin.fromguid:#x}")
        return target.origin
    found = [s for s in pool.snapshots_by_guid(begin.fromguid) if s.dataset.name.is_within(target.within)]
    if not found:
        raise Refused(
            f"{where}: its source, guid {begin.fromguid:#x}, is not in {target.within}: "
            "receive its full stream first, or name the source with -o origin=SNAPSHOT"
        )
    return max(found, key=lambda s: _common_components(s.dataset.name, target.name))
