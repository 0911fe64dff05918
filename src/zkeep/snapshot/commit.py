"""Adding a snapshot that is made here to a dataset: its records enter the pool as those of a received stream do.

The one difference: what a stream says first, the portable MAC in its BEGIN, is known here when all records are there.
So the receive begins with a BEGIN that lacks it, and gets the whole one before it is committed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from tempfile import TemporaryFile

from zkeep.clock import seconds_now
from zkeep.crypto.unwrap import GetKey, MasterKeys, WrappedKeys, unwrap
from zkeep.errors import Damaged, Refused, TryAgain
from zkeep.format.checksum import fletcher4
from zkeep.format.compress_writer import Compress
from zkeep.format.events import SubBegin, SubEnd
from zkeep.format.nvlist import NvList, NvType, encode
from zkeep.format.objtypes import ObjsetType
from zkeep.format.records import Begin, BeginFlag, End, Feature, HeaderType
from zkeep.names import SnapshotName
from zkeep.pool.datasets import destroy, head, keyrecords
from zkeep.pool.datasets.begin import Opening, number
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot, new_guid
from zkeep.pool.datasets.things import MADE_HERE
from zkeep.pool.datasets.view import View
from zkeep.pool.store.disk import FULL, naming
from zkeep.pool.transfer.admit import ReceiveTarget
from zkeep.pool.transfer.reserve import Charges
from zkeep.pool.transfer.session import ReceiveSession, open_session
from zkeep.pool.types import Doc
from zkeep.snapshot.keys import master_keys
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.spool import Spool
from zkeep.snapshot.writer import METADNODE, SnapshotWriter

LARGE = 128 << 10
REENCRYPTED = "reencrypted"
"Field of a snapshot's document: its records were encrypted here, from a plain stream."
VOLSIZE = "volsize"
"Field of a snapshot's document: how large the volume is in it, if it was made here."
Fill = Callable[[SnapshotWriter, OpenSnapshot | None], bool | None]
"""Writes changes since the base (None: there is none) into a writer; whether there are more.

Then it is called again, with a writer and a base that has what it wrote.
"""


@dataclass(frozen=True)
class NewSnapshot:
    """What a snapshot made here is called, and how its blocks are stored."""

    name: SnapshotName
    compress: Compress
    features: Feature
    "ZSTD, LARGE_BLOCKS where blocks may be so; what the base has is kept."
    objset_type: ObjsetType = ObjsetType.FILESYSTEM
    unnamed: bool = False
    "It holds what the newest one holds, and becomes the dataset's head, until it gets the name."
    volsize: int | None = None
    "The size of a volume, in bytes."


def commit(
    pool: Pool,
    new: NewSnapshot,
    get_key: GetKey,
    fill: Fill,
    on_step: Callable[[Snapshot], None] = lambda made: None,
    after: int | None = None,
) -> Snapshot:
    """Make the next snapshot of a dataset.

    All or nothing: when `fill` or anything after it fails, nothing of it stays but the steps that are complete: `fill`
    may write in several transaction groups, each of which but the last makes a snapshot with a name of its own, that is
    gone in the end. After a failure the next commit goes on from the newest of them, and takes them away.

    `after`: the guid of the snapshot that `fill` knows the state of, 0 for an empty dataset; None: it knows of none.

    Raises:
        Refused: the dataset is not encrypted, its key is not here, or its newest snapshot was not made here.
        TryAgain: somebody else is writing to it, or the newest snapshot is not the one of `after` any more.
    """
    while True:
        made = _commit(pool, new, get_key, fill, after)
        if not made.doc.get(STEP):
            remove_steps(pool, made)
            return made
        on_step(made)
        after = made.guid


def remove_steps(pool: Pool, made: Snapshot) -> None:
    """Remove the steps that led to a snapshot, and are older than the newest one.

    The snapshot is committed, so a failure is only a warning: the next commit removes them.
    """
    dataset = made.dataset
    with pool.afterwards(f"{made.name} is there", "the next snapshot"):
        steps = [snapshot for snapshot in pool.snapshots(dataset)[:-1] if snapshot.doc.get(STEP)]
        if steps:
            names = ",".join(str(snapshot.doc["name"]) for snapshot in steps)
            with suppress(Refused):  # somebody holds one, or sends it
                plan = destroy.plan_snapshots(View(pool), dataset.name, names, destroy.DestroyOptions())
                destroy.execute(pool, plan)


def _commit(pool: Pool, new: NewSnapshot, get_key: GetKey, fill: Fill, after: int | None) -> Snapshot:
    """One transaction group: the snapshot, or a step on the way to it, that follows the one of guid `after`."""
    dataset, last = _newest_of(pool, new)
    # What is written is what differs from the snapshot that was looked at. If that is not the newest any more, as
    # somebody has taken another one or destroyed it, what "did not change" would be taken from the wrong one.
    if after is not None and after != (last.guid if last is not None else 0):
        raise TryAgain(f"cannot create snapshot {new.name}: the snapshots of {dataset.name} changed meanwhile")
    wrapped, keys = _keys(pool, dataset, last, get_key)
    with ExitStack() as stack:
        base = stack.enter_context(OpenSnapshot(pool, last, get_key, scattered=True)) if last is not None else None
        state = _next_state(new, last, wrapped)
        step: Doc = {MADE_HERE: True}
        group = Group(**vars(state), compress=new.compress, keys=keys, step_fields=lambda: step)
        return write_group(pool, group, base, fill)


def repeat(pool: Pool, new: NewSnapshot) -> Snapshot | None:
    """Make a snapshot that holds what the newest one holds. It needs no key, as no MAC changes.

    Returns None where something must be encrypted: the objects of a first snapshot, or another size of a volume.

    Raises:
        Refused: the newest snapshot was not made here, or the dataset was written to since.
        TryAgain: somebody else is writing to it.
    """
    dataset, last = _newest_of(pool, new)
    if last is None or last.doc.get(VOLSIZE) != new.volsize:
        return None
    _check_made_here(dataset, last)
    doc = pool.catalog.get("begin", last.key)
    before = Opening.from_doc(doc) if doc is not None else None
    crypt = before.crypt if before is not None else None
    mac = crypt.get("portable_mac") if crypt is not None else None
    if before is None or crypt is None or not isinstance(mac, bytes):
        raise Damaged(f"{last.name}: the catalog has lost its BEGIN, or the keys in it")
    state = _next_state(new, last, newest_wrap(pool, dataset))
    opening = opening_of(state, before.begin.features, number(crypt, "to_ivset_guid"))
    event = SubBegin(opening.begin, opening.header, opening.payload, opening.nvlist, "little", 0)
    with naming(pool.path, FULL), open_session(pool, event, state.target) as session:
        return _finish(session, _with_mac(opening, mac, number(crypt, "mdn_maxblkid"), opening.begin.toguid, new.name))


def _newest_of(pool: Pool, new: NewSnapshot) -> tuple[Dataset, Snapshot | None]:
    """The dataset of a new snapshot, and its newest one. Raises Refused: it was written to since."""
    dataset = pool.dataset(new.name.dataset)
    last = head.last_snapshot(pool, dataset)
    where = f"cannot create snapshot {new.name}: {dataset.name}"
    forget_unchanged(pool, dataset, where)
    if head.unnamed(pool, dataset) is not None:
        raise Refused(f"{where} was written to since its newest snapshot: take one of that with 'zkeep snapshot'")
    return dataset, last


def _next_state(new: NewSnapshot, last: Snapshot | None, wrapped: WrappedKeys) -> NewState:
    """What the BEGIN of a new snapshot says. `last`: the one that it follows."""
    # Until all datasets of a recursive snapshot have one, it has no name.
    name, fields = (head.NAME, {head.UNCHANGED: True}) if new.unnamed else (new.name.name, {})
    sized = {VOLSIZE: new.volsize} if new.volsize is not None else {}
    return NewState(
        begin=Begin(
            creation_time=seconds_now(),
            type=new.objset_type,
            toguid=new_guid(),
            fromguid=last.guid if last is not None else 0,
        ),
        features=new.features,
        target=ReceiveTarget(
            *(new.name.dataset, name, new.name.dataset),
            force=last is None,
            head=new.unnamed,
            made_here=True,
            snapshot_fields={MADE_HERE: True, **fields, **sized},
        ),
        wrapped=wrapped,
    )


def forget_unchanged(pool: Pool, dataset: Dataset, where: str) -> None:
    """Forget a state without a name that holds what the newest snapshot holds.

    A recursive snapshot that was interrupted leaves such ones. `where`: what an error begins with.

    Raises:
        TryAgain: somebody is at it.
    """
    state = head.unnamed(pool, dataset)
    if state is None or not state.doc.get(head.UNCHANGED):
        return

    def check_same() -> None:
        now = head.unnamed(pool, dataset)
        if now is None or now.guid != state.guid:
            raise TryAgain(f"{where} was written to meanwhile")

    newest = pool.newest_snapshot(dataset)
    plan = destroy.DestroyPlan(back_to=(dataset, newest.txg if newest is not None else 0))
    destroy.execute(pool, plan, decide_again=check_same)


def commit_head(pool: Pool, new: NewSnapshot, keys: MasterKeys, base: OpenSnapshot | None, fill: Fill) -> Snapshot:
    """Commit changes to a dataset that is mounted: its head, which no snapshot names, is what `fill` makes of `base`.

    `base`: the newest state, opened. `new.name`: of the dataset; the name of a snapshot in it has no meaning.

    Raises:
        Refused: the dataset cannot take it (see admit); its newest state is not the base any more.
        TryAgain: another process is writing to it.
    """
    dataset = pool.dataset(new.name.dataset)
    group = Group(
        begin=Begin(
            creation_time=seconds_now(),
            type=new.objset_type,
            toguid=new_guid(),
            fromguid=base.snapshot.guid if base is not None else 0,
        ),
        features=new.features,
        target=ReceiveTarget(
            *(dataset.name, head.NAME, dataset.name),
            force=base is None,
            head=True,
            made_here=True,
            snapshot_fields={MADE_HERE: True},
        ),
        compress=new.compress,
        wrapped=newest_wrap(pool, dataset),
        keys=keys,
    )
    return write_group(pool, group, base, fill)


def newest_wrap(pool: Pool, dataset: Dataset) -> WrappedKeys:
    """The keys of a dataset as they were wrapped last.

    Raises:
        Refused: it is not encrypted.
    """
    record = next(keyrecords.of_dataset(pool, dataset), None)
    if record is None:
        where = f"cannot write to {dataset.name}"
        raise Refused(f"{where}: it is not encrypted: create one with zkeep create -o encryption=on -o keyformat=...")
    return WrappedKeys.of(record.fields)


@dataclass(frozen=True, kw_only=True)
class NewState:
    """A state of a dataset that is made here. `begin`: its guids, time, type and flags; the rest follows."""

    begin: Begin
    features: Feature
    "Beside those that the base has."
    target: ReceiveTarget
    wrapped: WrappedKeys


@dataclass(frozen=True, kw_only=True)
class Group(NewState):
    """One transaction group that is written here."""

    compress: Compress
    keys: MasterKeys
    step_fields: Callable[[], Doc] = dict
    "Fields of the snapshot's document if it is a step."


def write_group(
    pool: Pool, group: Group, base: OpenSnapshot | None, fill: Fill, charges: Charges | None = None
) -> Snapshot:
    """Write what `fill` gives, after `base`, into a dataset, and commit it.

    If there is more to come it becomes a step: a snapshot with a guid and a name of its own.

    Raises:
        Refused: the dataset cannot take it (see admit).
    """
    target = group.target
    none = Feature(0), 0
    before = (base.begin.features, number(base.crypt, "to_ivset_guid")) if base is not None else none
    opening = opening_of(group, *before)
    # Of a disk that is full there is only one: files are read from others.
    with naming(pool.path, FULL), ExitStack() as stack:
        event = SubBegin(opening.begin, opening.header, opening.payload, opening.nvlist, "little", 0)
        session = stack.enter_context(open_session(pool, event, target, charges))
        # What a mounted dataset writes has a bound, and waits in memory; a snapshot of a folder has none.
        spool = None if target.head else Spool(stack.enter_context(TemporaryFile(dir=pool.path / "tmp")))
        toguid = opening.begin.toguid
        writer = SnapshotWriter(group.keys, toguid, group.compress, session.add, base, group.begin.type, spool)
        stack.enter_context(writer)
        writer.start(fletcher4(opening.header + opening.payload, swap=False))
        # Whatever fill() writes goes into segments that nothing names yet.
        more = fill(writer, base)
        mac, last_block = writer.finish()
        if more:
            toguid = new_guid()
            session.rename(f"step-{toguid:016x}", {**group.step_fields(), STEP: True})
        name = target.name.snapshot(session.snapshot_name)
        # Now the portable MAC is known, and so the whole BEGIN.
        return _finish(session, _with_mac(opening, mac, last_block, toguid, name))


def _finish(session: ReceiveSession, opening: Opening) -> Snapshot:
    """Commit what was written, with its whole BEGIN, as if an END had come."""
    session.complete(opening)
    end = End(toguid=opening.begin.toguid)
    return session.commit(SubEnd(end, end.pack("little"), 0, (0, 0, 0, 0)))


def _keys(pool: Pool, dataset: Dataset, last: Snapshot | None, get_key: GetKey) -> tuple[WrappedKeys, MasterKeys]:
    """The dataset's newest key record, and the keys inside."""
    where = f"cannot create snapshot of {dataset.name}"
    if last is not None:
        _check_made_here(dataset, last)
    record = next(keyrecords.of_dataset(pool, dataset), None)
    if record is None:
        raise Refused(f"{where}: it is not encrypted: create one with zkeep create -o encryption=on -o keyformat=...")
    wrapped = WrappedKeys.of(record.fields)
    try:
        return wrapped, master_keys(pool, last, get_key) if last is not None else unwrap(wrapped, get_key(wrapped))
    except Refused as error:
        raise type(error)(f"{where}: {error}") from None


def _check_made_here(dataset: Dataset, last: Snapshot) -> None:
    if not last.is_made_here:
        where = f"cannot create snapshot of {dataset.name}"
        raise Refused(f"{where}: {last.name} was received; take it on the sending side and send it here")


def opening_of(state: NewState, features: Feature, ivset_guid: int) -> Opening:
    """The BEGIN, but for what only the end knows. `features`, `ivset_guid`: those of the snapshot that it follows."""
    features |= Feature.RAW | Feature.COMPRESSED | Feature.LZ4 | Feature.SA_SPILL | state.features
    features &= ~Feature.RESUMING
    # The key record as it is, the shape of the metadnode, a new IV set, and zeros where the portable MAC will be.
    crypt = state.wrapped.fields()
    shape = "mdn_indblkshift", "mdn_nlevels", "mdn_nblkptr", "mdn_checksum", "mdn_compress"
    numbers = dict(zip(shape, METADNODE, strict=True)) | {
        "mdn_blksz": 16384,
        "mdn_maxblkid": 0,
        "to_ivset_guid": new_guid(),
        "from_ivset_guid": ivset_guid,
    }
    for name, value in numbers.items():
        crypt.set(name, value, NvType.UINT64)
    crypt.set("portable_mac", bytes(32), NvType.UINT8_ARRAY)
    outer = NvList()
    outer.set("crypt_keydata", crypt, NvType.NVLIST)
    outer.align = 8
    payload = encode(outer)
    begin = replace(
        state.begin,
        payloadlen=len(payload),
        versioninfo=HeaderType.SUBSTREAM | int(features) << 2,
        flags=state.begin.flags | BeginFlag.FREERECORDS | BeginFlag.SPILL_BLOCK,
        toname=str(state.target.name.snapshot(state.target.snapshot)).encode(),
    )
    return Opening(begin.pack("little"), payload, "little")


def _with_mac(opening: Opening, mac: bytes, last_block: int, toguid: int, name: SnapshotName) -> Opening:
    nvlist = opening.nvlist
    crypt = nvlist["crypt_keydata"] if nvlist is not None else None
    assert nvlist is not None
    assert isinstance(crypt, NvList)
    crypt.set("portable_mac", mac, NvType.UINT8_ARRAY)
    crypt.set("mdn_maxblkid", last_block, NvType.UINT64)
    payload = encode(nvlist)
    begin = replace(opening.begin, payloadlen=len(payload), toguid=toguid, toname=str(name).encode())
    return Opening(begin.pack("little"), payload, "little")
