"""zkeep backup of a folder, a disk image or a device: a snapshot of it in a dataset here, which is sent from here.

DEST on this machine is that dataset. For a DEST on a host it is one of the pool `local`, which keeps no contents once
the host has them.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path as FilePath
from urllib.parse import unquote, urlsplit

from zkeep.backup import local
from zkeep.backup.local import Job
from zkeep.backup.peer import Peer
from zkeep.backup.places import Path
from zkeep.backup.plan import Have, Plan, plan
from zkeep.backup.run import Side, replicate
from zkeep.cli.backup.events import Events
from zkeep.cli.backup.keys import NewKey, file_of, prepare
from zkeep.cli.backup.local_pool import LOCAL, make_pool
from zkeep.cli.backup.recover import recovered
from zkeep.cli.backup.wanted import Wanted, locked
from zkeep.cli.common.give_back import give_back
from zkeep.cli.common.pools import opened, registry
from zkeep.cli.common.pruning import prune_received
from zkeep.cli.common.snapshot_from import NotAllRead, take
from zkeep.cli.common.terminal import say
from zkeep.cli.keys.root_key import key_location, opening_key
from zkeep.clock import seconds_now
from zkeep.errors import Refused, WrongUsage, ZkeepError
from zkeep.names import DatasetName, SnapshotName, printable, shown
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.view import View

BLOCK = 16 << 10
"Bytes of a volume's block."


def back_up_folder(wanted: Wanted, events: Events) -> None:
    """Do all of it: what is needed for the first time, the snapshot, the streams.

    Raises:
        NotAllRead: it is done, but not all files could be read.
    """
    _check_source(wanted)
    target = other_side(wanted)
    there = target.have() if target else Have()
    name = find_dataset(wanted.job)
    if wanted.recovers and target is not None and (name := recovered(wanted, name, target, there, events)) is None:
        return
    check_fits(wanted, name, name, there)
    if wanted.dry_run:
        say_plan(wanted, name, there, events)
        return
    key = None if name else first_key(wanted)
    with locked(wanted.job):
        name = find_dataset(wanted.job) or make(wanted, key, events)
        problem = _one_backup(wanted, name, target, there, events)
    if problem:
        raise problem


def _check_source(wanted: Wanted) -> None:
    job = wanted.job
    try:
        is_folder = stat.S_ISDIR(os.stat(str(job.source)).st_mode)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise Refused(f"cannot back up {shown(str(job.source))}: {why}") from None
    if not is_folder and wanted.reading().excludes:
        raise WrongUsage("--exclude... and --one-file-system go with a folder")


def other_side(wanted: Wanted) -> Side | None:
    """The other side; None: the dataset is on this machine, and is written to directly."""
    place = wanted.job.destination
    if place.host is None and place.program == "zkeep":
        return None
    return Side(Peer.of(place, wanted.ssh), place.dataset)


# The dataset here


def find_dataset(job: Job) -> DatasetName | None:
    """The dataset here that is written to, if it is there."""
    place = job.destination
    direct = place.host is None and place.program == "zkeep"
    pool_name = place.dataset.pool if direct else LOCAL
    if pool_name not in registry().pools():
        if direct:
            way = f"zkeep pool create {pool_name} FOLDER"
            raise Refused(f"cannot back up to {place}: there is no pool {pool_name}: {way}")
        return None
    with opened(pool_name) as pool:
        found = pool.find(place.dataset) if direct else local.find(pool, job)
        if found and direct:
            _check_own(pool, found, job)
        return found.name if found else None


def _check_own(pool: Pool, dataset: Dataset, job: Job) -> None:
    """Refuse a dataset of something else as DEST: its next snapshot would have none of those files."""
    cannot = f"cannot back up {job.source} to {dataset.name}"
    source = dataset.doc["local"].get(local.SOURCE)
    if source is not None and source != str(job.source):
        raise Refused(f"{cannot}: it is the backup of {shown(str(source))}; name another DEST")
    if source is None and pool.snapshots(dataset):
        way = f"zkeep set {shlex.quote(f'{local.SOURCE}={job.source}')} {dataset.name}"
        raise Refused(f"{cannot}: it has snapshots of something else; name another DEST. If they are of it: {way}")
    if encryption_root(View(pool), dataset) is None:
        way = f"zkeep destroy {shlex.quote(dataset.name.text)}"
        raise Refused(
            f"{cannot}: it is there already, and not encrypted; backup makes the dataset itself, with a key: name one "
            f"that does not exist yet, or destroy this one: {way}"
        )


def check_fits(wanted: Wanted, name: DatasetName | None, sending: DatasetName | None, there: Have) -> None:
    """Refuse, before anything is made or taken, a destination or a key file that is not this backup's.

    `name`: the dataset here, if it is there; `sending`: the one that is sent, itself or one below.
    """
    if name is None or sending is None:
        _check_new(wanted, there)
        return
    with opened(name) as pool:
        _check_key_file(wanted, pool, pool.dataset(name))
        dataset = pool.find(sending)
        if dataset is None:
            _check_new(wanted, there)
        elif other_side(wanted) is not None:
            local.check_not_lost(pool, dataset, there, wanted.job)


def _check_new(wanted: Wanted, there: Have) -> None:
    """What is made here for the first time has a new key: it fits no snapshot that is there already."""
    if there.points or there.token:
        to = wanted.job.destination
        raise Refused(
            f"cannot back up {wanted.job.source} to {to}: it has backups from elsewhere, or what this machine knew of "
            f"them is lost. If they are of it, the same command with --recover -L file:///path/of/its/key goes on with "
            f"them; else name a DEST that does not exist yet. zkeep restore {to} gets them back"
        )


def _check_key_file(wanted: Wanted, pool: Pool, dataset: Dataset) -> None:
    """Refuse another key file than the one that is used."""
    root = encryption_root(View(pool), dataset)
    if wanted.key_file is None or root is None:
        return
    location, file = key_location(root), file_of(wanted.key_file, dataset.name)
    if location == "prompt" or os.path.realpath(unquote(urlsplit(location).path)) != os.path.realpath(file):
        raise Refused(
            f"cannot back up {wanted.job.source} with the key {shown(str(file))}: {root.name} is there already, and "
            f"its keylocation is {shown(location)}; leave --key-file out"
        )


def _new_name(wanted: Wanted) -> DatasetName:
    place = wanted.job.destination
    if place.host is None and place.program == "zkeep":
        return place.dataset
    if LOCAL not in registry().pools():
        return local.free_name(None, DatasetName(LOCAL), wanted.job)
    with opened(LOCAL) as pool:
        return local.free_name(pool, DatasetName(LOCAL), wanted.job)


def make(wanted: Wanted, key: NewKey | None, events: Events) -> DatasetName:
    """Make the key file, the pool and the dataset, in this order: each can be used again if what follows fails."""
    name = _new_name(wanted)
    assert key is not None
    key.write()
    if not key.is_there:
        events.say("made", f"made the key {key.path}: keep a copy elsewhere", always=True, key=str(key.path))
    if name.pool not in registry().pools():
        path = make_pool()
        events.say("made", f"made the pool {LOCAL} in {path}", always=True, pool=LOCAL, path=str(path))
    with opened(name) as pool:
        _create(pool, name, wanted, key)
    events.say("made", f"made the dataset {name}", always=True, dataset=str(name))
    return name


def first_key(wanted: Wanted) -> NewKey:
    """The key of a dataset that is not there yet."""
    asked = {"yes": wanted.yes, "as_json": wanted.as_json}
    return prepare(wanted.job, _new_name(wanted), wanted.key_file, **asked, ssh=wanted.ssh)


def _create(pool: Pool, name: DatasetName, wanted: Wanted, key: NewKey) -> None:
    settings, kind, shape = dict(wanted.job.properties), "filesystem", {}
    size = _image_size(str(wanted.job.source)) if isinstance(wanted.job.source, Path) else None
    if size is not None:
        kind, shape = "volume", {"volblocksize": BLOCK}
        settings["volsize"] = str(-(-size // BLOCK) * BLOCK)
    fields = {**key.keys.fields, **shape, "guid": key.guid}
    namespace.create(pool, name, settings, True, kind, fields=fields, also=partial(key.keys.put, pool))


def _image_size(path: str) -> int | None:
    """Bytes of a disk image or a device; None: it is a folder."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise Refused(f"cannot back up {shown(path)}: it is neither a folder, nor a disk image or a block device")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return max(os.lseek(fd, 0, os.SEEK_END), 1)
    finally:
        os.close(fd)


# One backup


def _one_backup(
    wanted: Wanted, name: DatasetName, target: Side | None, there: Have, events: Events
) -> NotAllRead | None:
    """What broke off the last time goes on first; then the next snapshot is taken and sent."""
    here = Side(Peer(), name)
    with opened(name) as pool:
        if target is None and local.SOURCE not in pool.dataset(name).doc["local"]:
            namespace.set_properties(pool, [name], wanted.job.properties)  # it was empty
        if target is not None and there.token is not None:
            rest = local.planned(pool, pool.dataset(name), there, str(target), there.token.toguid)
            carry_out(wanted, pool, here, target, rest, events)
            there = target.have()
        if target is not None and there.points:
            local.planned(pool, pool.dataset(name), there, str(target))  # what does not fit is refused before work
        snapshot, problem = _take(wanted, pool, name, events)
        if target is None:
            _set_retention_and_prune(wanted, pool, snapshot)
            return problem
        carry_out(wanted, pool, here, target, local.planned(pool, pool.dataset(name), there, str(target)), events)
    set_retention(wanted, target)
    return problem


def _take(wanted: Wanted, pool: Pool, name: DatasetName, events: Events) -> tuple[SnapshotName, NotAllRead | None]:
    snapshot = _snapshot_name(pool, name)
    _grow(pool, pool.dataset(name), str(wanted.job.source))
    problem = None
    try:
        take(pool, snapshot, wanted.reading(), _locations(wanted, pool, pool.dataset(name)))
    except NotAllRead as error:
        problem = error
    if not wanted.as_json:
        events.say("snapshot", f"took {snapshot}")
    return snapshot, problem


def _snapshot_name(pool: Pool, name: DatasetName) -> SnapshotName:
    """By the clock; a second later if it is taken, for a clock may go backwards."""
    at = seconds_now()
    while True:
        text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
        snapshot = name.snapshot(f"{local.PREFIX}{text}")
        if pool.find_snapshot(snapshot) is None:
            return snapshot
        at += 1


def _grow(pool: Pool, dataset: Dataset, source: str) -> None:
    """A disk that became larger needs a larger volume."""
    size = _image_size(source)
    if dataset.is_volume and size is not None and size > int(dataset.doc["local"].get("volsize") or 0):
        blksz = int(dataset.doc.get("volblocksize") or BLOCK)
        namespace.set_properties(pool, [dataset.name], {"volsize": str(-(-size // blksz) * blksz)})


def _locations(wanted: Wanted, pool: Pool, dataset: Dataset) -> list[str]:
    """Where the key is: as -L says, or where it was put; else loaded, or typed."""
    if wanted.locations:
        return list(wanted.locations)
    root = encryption_root(View(pool), dataset)
    location = key_location(root) if root is not None else "prompt"
    if location == "prompt":
        return []
    path = FilePath(unquote(urlsplit(location).path))
    if not os.path.lexists(path):
        way = f"bring it back from its recovery sheet: zkeep key restore -o {shown(str(path))}"
        raise Refused(f"cannot back up {wanted.job.source}: the key {shown(str(path))} is not there; {way}")
    return [location]


def wrapping_key(wanted: Wanted, pool: Pool, dataset: Dataset) -> bytes:
    """The key itself, from its file, or wherever -L says.

    Raises:
        Refused: it is not there, or another one.
    """
    root = encryption_root(View(pool), dataset) or dataset
    location = next(iter(_locations(wanted, pool, dataset)), None)
    return opening_key(pool, root, location)


def _set_retention_and_prune(wanted: Wanted, pool: Pool, snapshot: SnapshotName) -> None:
    if wanted.retention is not None:
        namespace.set_properties(pool, [snapshot.dataset], {"retention": wanted.retention})
    prune_received(pool, [str(snapshot)])


def carry_out(wanted: Wanted, pool: Pool, here: Side, target: Side, steps: Plan, events: Events) -> None:
    """Send, and what follows when it arrived: the record of it, and contents that need not be here, too."""
    replicate(here, target, steps, events)
    for step in steps.steps:
        _arrived(wanted, pool, here.dataset, step.to.guid, events)


def _arrived(wanted: Wanted, pool: Pool, name: DatasetName, guid: int, events: Events) -> None:
    dataset = pool.dataset(name)
    local.note_sent(pool, dataset, guid, str(wanted.job.destination))
    with pool.afterwards(f"{name} was sent", "the next backup"):
        for old in local.arrived(pool, dataset, guid):
            events.say("dropped", f"destroyed @{old} here: the next increment needs it no more", name=f"@{old}")
        give_back(pool, {dataset.id}, "sent")


def set_retention(wanted: Wanted, target: Side) -> None:
    """Ask the destination to keep snapshots by these rules; a client that only appends may not."""
    if wanted.retention is None:
        return
    try:
        done, answer = target.peer.ask("get", "-H", "-o", "value", "retention", str(target.dataset))
        if done.status == 0 and answer.decode("utf-8", "replace").strip() == wanted.retention:
            return
        target.peer.do("set", f"retention={wanted.retention}", str(target.dataset), cannot="cannot set retention")
    except ZkeepError as error:
        say(f"warning: {error}; have it set there: zkeep set retention={wanted.retention} {target.dataset}")


# -n


def say_plan(wanted: Wanted, name: DatasetName | None, there: Have, events: Events) -> None:
    lines = []
    if name is None:
        new = _new_name(wanted)
        path = file_of(wanted.key_file, new)
        lines += [f"would make a key in {path}"] if not path.is_file() else []
        lines += [f"would make the pool {LOCAL}"] if new.pool not in registry().pools() else []
        lines.append(f"would make the dataset {new}")
    lines.append(f"would take a snapshot of {wanted.job.source} in {name or _new_name(wanted)}")
    if other_side(wanted) is not None:
        lines += _would_send(wanted, name, there)
    for line in lines:
        events.say("plan", line, always=True, step=printable(line))


def _would_send(wanted: Wanted, name: DatasetName | None, there: Have) -> Iterator[str]:
    to = wanted.job.destination
    if name is None:
        yield f"would send it in full to {to}"
        return
    with opened(name) as pool:
        have = local.have(pool, pool.dataset(name))
    if there.token is not None:
        rest = plan(have, there, str(to), upto=there.token.toguid)
        yield f"would {rest.steps[0]} to {to}"
    if there.points and not there.token:
        plan(have, there, str(to))
    newest = next(reversed(there.snapshots), None)
    since = have.by_guid(newest.guid) if newest else None
    yield f"would send it{f' since {since.name}' if since else ' in full'} to {to}"
