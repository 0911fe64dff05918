"""Goes on with the backups of a folder when what this machine knew of them is lost: `zkeep backup --recover`.

The destination has all of it, and cannot be believed. So the metadata of its newest snapshot is fetched into a dataset
of the pool `local` that no backup knows yet. Only when every MAC of it was verified with the key, and it is a
filesystem that zkeep made, it becomes the dataset of the backup. What it has then is what it had before: the newest
snapshot without contents, and the record that the destination has it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from zkeep.backup import local
from zkeep.backup.fetch import Listed, list_snapshots
from zkeep.backup.parts import NoParts, Parts
from zkeep.backup.plan import Have
from zkeep.backup.record import Record, check_arrived, check_listing
from zkeep.backup.run import Side
from zkeep.cli.backup.events import Events
from zkeep.cli.backup.keys import file_of
from zkeep.cli.backup.local_pool import LOCAL, make_pool
from zkeep.cli.backup.wanted import Wanted, locked
from zkeep.cli.common.open_snapshot import keys_from
from zkeep.cli.common.pools import opened, registry
from zkeep.cli.common.terminal import say
from zkeep.cli.common.text import nice_bytes
from zkeep.errors import NotAuthentic, Refused, WrongUsage, ZkeepError
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets import contents, destroy, namespace, sent
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.view import View
from zkeep.pool.timeline.table import content_numbers
from zkeep.pool.transfer.admit import ReceiveTarget

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey
    from zkeep.snapshot.open import OpenSnapshot


def recovered(
    wanted: Wanted, name: DatasetName | None, target: Side, there: Have, events: Events
) -> DatasetName | None:
    """The dataset here of a backup that the destination has, fetched from there; None in a dry run, which says so.

    Raises:
        Refused: there is nothing to recover, or it is not to be had.
        NotAuthentic: something is not authentic, or is not what was sent from here; nothing is kept.
        TryAgain: the line breaks again and again; the same call goes on.
    """
    cannot = f"cannot recover the backup of {wanted.job.source}"
    if name is not None:
        raise Refused(f"{cannot}: {name} is here, and knows what was sent: leave --recover out")
    _refuse_waiting(wanted, there, cannot)
    if not there.snapshots:
        raise Refused(f"{cannot}: {wanted.job.destination} has no snapshot: leave --recover out")
    _refuse_moved(wanted, cannot)
    newest = _newest(wanted, target)
    location = _key_location(wanted)
    if wanted.dry_run:
        text = f"would fetch the metadata of {newest.name}, and go on from there"
        events.say("plan", text, always=True, step=text)
        return None
    get_key = keys_from((location,))
    with locked(wanted.job):
        if LOCAL not in registry().pools():
            make_pool()
        with opened(LOCAL) as pool:
            found = _fetched(wanted, pool, target, newest, get_key, location)
            name = _adopted(wanted, pool, found)
    events.say("recovered", f"recovered {name} from {newest.name}", always=True, dataset=str(name))
    return name


def _refuse_moved(wanted: Wanted, cannot: str) -> None:
    """Refuse what is not lost: the folder was backed up to this destination under another path."""
    to = str(wanted.job.destination)
    if LOCAL not in registry().pools():
        return
    with opened(LOCAL) as pool:
        for dataset in pool.tree().by_name.values():
            if dataset.doc["local"].get(sent.DESTINATION) == to:
                source = shown(str(dataset.doc["local"].get(local.SOURCE)))
                way = f"zkeep set {shlex.quote(f'{local.SOURCE}={wanted.job.source}')} {dataset.name}"
                raise Refused(f"{cannot}: {dataset.name} is sent to {to} and is of {source}; if that was moved: {way}")


def _refuse_waiting(wanted: Wanted, there: Have, cannot: str) -> None:
    """Refuse, before anything is fetched, a destination that waits for the rest of a stream that was lost here."""
    if there.token is not None:
        to = wanted.job.destination
        raise Refused(
            f"{cannot}: an interrupted receive of snapshot guid {there.token.toguid:#x} waits at {to}, and what it "
            f"was sent from is lost; if nothing else sends there, give it up, and call again: "
            f"{to.typed('receive -A')}"
        )


def _newest(wanted: Wanted, target: Side) -> Listed:
    """The newest snapshot there, which must be what any pool of this machine noted as the last that was sent."""
    listed = list_snapshots(target.peer, target.dataset, recursive=False)[target.dataset]
    newest = listed[-1]
    if not local.is_own(newest.name.name):
        raise Refused(f"cannot recover: the newest snapshot is {newest.name}, and none of a backup of a folder")
    record = _record(str(wanted.job.destination), listed)
    check_listing(record, listed, newest, newest=True)
    return newest


def _record(place: str, listed: Sequence[Listed]) -> Record:
    record = Record()
    for pool_name in registry().pools():
        try:
            with opened(pool_name) as pool:
                record.add(pool, place, listed)
        except (ZkeepError, OSError) as error:
            say(f"warning: what the pool {pool_name} noted of backups is not compared: {error}")
    return record


def _key_location(wanted: Wanted) -> str:
    """Where the key is, and will be looked for by the backups to come."""
    if len(wanted.locations) > 1 or (wanted.locations and wanted.key_file is not None):
        raise WrongUsage("--recover takes one key: -L file:///path or --key-file FILE")
    if wanted.locations:
        return wanted.locations[0]
    if wanted.key_file is None:
        raise WrongUsage("--recover needs the key: -L file:///path; zkeep key restore makes the file from a sheet")
    path = file_of(wanted.key_file, DatasetName(LOCAL))
    if not path.is_file():
        raise Refused(f"cannot read the key {shown(str(path))}: zkeep key restore -o makes it from a recovery sheet")
    return path.as_uri()


# Fetching


def _fetched(
    wanted: Wanted, pool: Pool, target: Side, newest: Listed, get_key: GetKey, location: str
) -> Snapshot:
    """The metadata of a snapshot, all of it authentic, in a dataset of its own."""
    from zkeep.pool.datasets.things import MADE_HERE

    name = DatasetName(LOCAL).child(f"recovering-{local.digest(wanted.job)[:16]}")
    _forget_others(pool, name, newest)
    keylocation = {} if location == "prompt" else {"keylocation": location}
    fields = {"local": keylocation, "encroot": True}
    receive = ReceiveTarget(
        *(name, newest.name.name, name), fields=fields, snapshot_fields={MADE_HERE: True}, excerpt=True
    )
    parts = Parts(target.peer, newest, pool, target=receive, on_retry=lambda why: say(f"{why}; trying again"))
    try:
        snapshot = parts.index()
        check_arrived(_record(str(wanted.job.destination), [newest]), pool, snapshot)
        snapshot = _with_all_blocks(pool, snapshot, parts, get_key)
        _check(pool, snapshot, get_key)
    except NoParts as error:
        raise Refused(f"cannot recover: {error}: a zkeep there that is as new as this one can") from None
    except (NotAuthentic, Refused):
        _destroy(pool, name)
        raise
    if wanted.verbose:
        say(f"fetched {nice_bytes(parts.received)} of metadata")
    return snapshot


def _forget_others(pool: Pool, name: DatasetName, newest: Listed) -> None:
    """Forget what an interrupted call fetched of another snapshot."""
    found = pool.find(name)
    if found is not None and [s.guid for s in pool.snapshots(found)] != [newest.guid]:
        _destroy(pool, name)


def _destroy(pool: Pool, name: DatasetName) -> None:
    if pool.find(name) is not None:
        destroy.execute(pool, destroy.plan_dataset(View(pool), name, destroy.DestroyOptions(recursive=True)))


def _with_all_blocks(pool: Pool, snapshot: Snapshot, parts: Parts, get_key: GetKey) -> Snapshot:
    from zkeep.snapshot.partial import PartialSnapshot

    with PartialSnapshot(pool, snapshot, get_key, parts.blocks) as partial:
        missing = partial.blocks_to_fetch()
    return parts.blocks(snapshot, np.array(missing, np.uint64)) if missing else snapshot


def _check(pool: Pool, snapshot: Snapshot, get_key: GetKey) -> None:
    """Verify every MAC, and that it is a filesystem as zkeep makes them, whose next snapshot can be made here.

    Raises:
        NotAuthentic: a MAC does not verify, or something is missing.
        Refused: it was made by something else.
    """
    from zkeep.cli.common.check_snapshot import check_snapshot
    from zkeep.snapshot.open import OpenSnapshot

    check_snapshot(pool, snapshot, get_key, str(snapshot.name))
    with OpenSnapshot(pool, snapshot, get_key) as opened_one:
        if not opened_one.is_volume:
            _refuse_held_back(opened_one)
        if opened_one.is_volume or not _is_ours(opened_one):
            raise Refused("cannot recover: the newest snapshot is not that of a folder that zkeep backed up")


def _refuse_held_back(opened_one: OpenSnapshot) -> None:
    """Refuse a snapshot of which more is missing than contents of files: the next one could not be made from it.

    Raises:
        NotAuthentic: a block of a folder, or of what describes the filesystem, came without its payload.
    """
    # The rows were made here of records whose MACs are verified by now: so is what they say of an object's type.
    for chunk in opened_one.state.chunks():
        bare = chunk.table.blocks["object"][chunk.table.blocks["bare"] > 0]
        others = bare[~np.isin(bare, content_numbers(chunk.table.objects))]
        if len(others):
            raise NotAuthentic(
                f"cannot recover: {opened_one.name}: not all came that was asked for: object {int(others[0])}, a "
                f"folder or the like, lacks blocks; nothing of it is kept"
            )


def _is_ours(opened_one: OpenSnapshot) -> bool:
    from zkeep.snapshot.new_filesystem import ATTRIBUTES, QUEUE, ROOT
    from zkeep.snapshot.writer import METADNODE
    from zkeep.tree.filesystem import Filesystem

    shape = opened_one.metadnode_shape()
    master = Filesystem(opened_one).master
    numbers = (master.get("ROOT"), master.get("DELETE_QUEUE"), master.get("SA_ATTRS"))
    kind = (shape.indblkshift, shape.nlevels, shape.nblkptr, shape.checksum, shape.compress)
    return kind == METADNODE and numbers == (ROOT, QUEUE, ATTRIBUTES)


# Adopting


def _adopted(wanted: Wanted, pool: Pool, snapshot: Snapshot) -> DatasetName:
    """Let it be the dataset of the backup; returns its name."""
    dataset, job = snapshot.dataset, wanted.job
    # All in one transaction: what a call that is killed leaves is found by the next, as what is being recovered or as
    # the dataset of the backup.
    with pool.transaction() as t:
        # The other side has it: that is the record, and contents are not here.
        sent.note(pool, t, snapshot, str(job.destination))
        contents.mark(pool, t, snapshot)
        for run in pool.runs.of(dataset.key).runs:
            key = f"{dataset.key}/{run.txg:020d}"
            t.put("run", key, {**run.doc, contents.CONTENTS: contents.METADATA})
        # By these properties a backup finds its dataset: from here on it is one.
        marked = pool.dataset(dataset.name)
        pool.update_dataset(t, marked, local={**marked.doc["local"], **namespace.check_settings(job.properties, "f")})
        name = local.free_name(pool, DatasetName(LOCAL), job)
        namespace.rename_within(pool, t, dataset.name, name)
    return name
