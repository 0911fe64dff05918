"""zkeep backup of a dataset, of zkeep or ZFS, here or on a host: raw, with all snapshots since the last time.

What is not encrypted does not leave as it is. A dataset of ZFS without encryption is encrypted on its way: into a
dataset of the pool `local`, which keeps no contents once the destination has them.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import BinaryIO, cast

from zkeep.backup import local
from zkeep.backup.local import Job
from zkeep.backup.patience import Patient
from zkeep.backup.peer import STALL_SECONDS, Peer
from zkeep.backup.places import Place
from zkeep.backup.plan import Have, Plan, Point, Step, plan
from zkeep.backup.run import Side, replicate
from zkeep.backup.zfs import ZfsSource, below
from zkeep.cli.backup import folder as backup_folder
from zkeep.cli.backup.events import Events
from zkeep.cli.backup.wanted import Wanted, locked
from zkeep.cli.common.pools import opened, registry
from zkeep.errors import Refused
from zkeep.names import MAX_UINT64, DatasetName
from zkeep.pool.datasets.model import Pool


def back_up_dataset(wanted: Wanted, events: Events) -> None:
    """Do all of it: the snapshot where ZFS can take one, and the streams that the destination lacks."""
    source = _source(wanted)
    _check_options(wanted)
    parts = _parts(wanted, source)
    if _is_plain(wanted, source, parts):
        _back_up_plain(wanted, source, list(parts), events)
        return
    place = wanted.job.destination
    target = Side(Peer.of(place, wanted.ssh), place.dataset)
    target.have()  # where nobody answers, no snapshots pile up here
    with nullcontext() if wanted.dry_run else locked(wanted.job):
        planned = _snapshot(wanted, source, events)
        for name in parts:
            _back_up_one(wanted, _sides(wanted, source, name), planned, events)
    if not wanted.dry_run:
        backup_folder.set_retention(wanted, target)


def check_unattended(wanted: Wanted) -> None:
    """Refuse to schedule a backup that fails when nobody is there: its source is not there, or needs a new key.

    Raises:
        Refused, TryAgain: it would; the source cannot be asked.
    """
    source = _source(wanted)
    _check_options(wanted)
    if not _is_plain(wanted, source, _parts(wanted, source)):
        return
    job = wanted.job
    if backup_folder.find_dataset(job) is None:
        why = "it is not encrypted, and its first backup asks for a key"
        way = f"zkeep backup {job.source} {job.destination}"
        raise Refused(f"cannot schedule the backup of {source}: {why}; run it once: {way}")


def _place(wanted: Wanted) -> Place:
    assert isinstance(wanted.job.source, Place)
    return wanted.job.source


def _source(wanted: Wanted) -> Side:
    place = _place(wanted)
    if place == wanted.job.destination:
        raise Refused(f"cannot back up {place} to itself")
    return Side(Peer.of(place, wanted.ssh), place.dataset)


def _check_options(wanted: Wanted) -> None:
    if wanted.reading().excludes:
        raise Refused(f"cannot back up {wanted.job.source}: of a dataset nothing can be excluded")


def _parts(wanted: Wanted, source: Side) -> dict[str, str]:
    """The datasets that are sent, parents first, as their names behind the source's; the encryption of each.

    Raises:
        Refused: the source is not there.
    """
    below_too = ["-r", "-t", "filesystem,volume"] if wanted.recursive else []
    done, answer = source.peer.ask("get", "-H", *below_too, "-o", "name,value", "encryption", str(source.dataset))
    source.peer.check(done, f"cannot back up {source}")
    rows = (line.partition("\t") for line in answer.decode("utf-8", "replace").split("\n") if line)
    encryption = {below([name], source.dataset)[0]: value.strip() for name, _, value in rows}
    if "" not in encryption:
        raise Refused(f"cannot back up {source}: {source.peer} does not say whether it is encrypted")
    return dict(sorted(encryption.items()))


def _is_plain(wanted: Wanted, source: Side, parts: dict[str, str]) -> bool:
    """Whether it is a dataset of ZFS without encryption, with all that is sent with it.

    Raises:
        Refused: it is one of zkeep without encryption; some of what is sent is encrypted, and some is not.
    """
    plain = [name for name, encryption in parts.items() if encryption in ("off", "-", "")]
    if "" in plain and source.peer.program == "zfs":
        if others := [name for name in parts if name not in plain]:
            other = source.dataset.child(others[0])
            raise Refused(f"cannot back up {source} with -r: it is not encrypted, and {other} is: name them one by one")
        return True
    if plain:
        which = source.dataset.child(plain[0]) if plain[0] else source.dataset
        with_r = " with -r" if wanted.recursive else ""
        raise Refused(f"cannot back up {source}{with_r}: {which} is not encrypted, and what is sent could be read")
    return False


def _zfs(wanted: Wanted, side: Side) -> ZfsSource | None:
    if side.peer.program != "zfs":
        return None
    return ZfsSource(side, local.zfs_key(wanted.job, registry().number(keep=not wanted.dry_run)))


def _snapshot(wanted: Wanted, source: Side, events: Events) -> Point | None:
    """ZFS takes one; what a zkeep pool received has those of its source. Returns what a dry run did not take."""
    zfs = _zfs(wanted, source)
    if zfs is None:
        return None
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    name = f"{source.dataset}@{zfs.prefix}{stamp}"
    if wanted.dry_run:
        events.say("plan", f"would take {name}", always=True, step=f"take {name}")
        return Point(f"@{zfs.prefix}{stamp}", -1, MAX_UINT64)
    zfs.snapshot(stamp, wanted.recursive)
    events.say("snapshot", f"took {name}", name=name)
    return None


def _sides(wanted: Wanted, source: Side, name: str) -> tuple[Side, Side]:
    """One of the datasets that are sent, and where it goes."""
    place = wanted.job.destination
    here = source.dataset.child(name) if name else source.dataset
    there = place.child(name) if name else place
    return Side(source.peer, here), Side(Peer.of(there, wanted.ssh), there.dataset)


def _back_up_one(wanted: Wanted, part: tuple[Side, Side], planned: Point | None, events: Events) -> None:
    source, target = part
    have = source.sendable()
    if planned is not None:
        have = replace(have, points=(*have.points, planned))
    steps = plan(have, target.have(), str(target), every=True)
    if wanted.dry_run:
        for step in steps.steps:
            events.say("plan", f"would {step} from {source} to {target}", always=True, step=str(step))
        return
    zfs = _zfs(wanted, source)
    for step in steps.steps:
        if zfs is not None:
            zfs.before(step)
        replicate(source, target, Plan((step,), steps.fills and step is steps.steps[0]), events)
        if zfs is not None:
            zfs.after(have, step)


# Without encryption


def _back_up_plain(wanted: Wanted, source: Side, parts: list[str], events: Events) -> None:
    """Into datasets below that of the backup, whose key is in its file; from there as a folder's."""
    target = backup_folder.other_side(wanted)
    if target is None:
        way = "use zfs send | zkeep receive -x encryption"
        raise Refused(f"cannot back up {source} to {wanted.job.destination}: {way}")
    # All that can be refused is refused before a key is made or a snapshot taken.
    top = backup_folder.find_dataset(wanted.job)
    there = {name: _sides(wanted, source, name)[1].have() for name in parts}
    for name in parts:
        backup_folder.check_fits(_part(wanted, name), top, _here(top, name) if top else None, there[name])
    if wanted.dry_run:
        _snapshot(wanted, source, events)
        backup_folder.say_plan(wanted, top, there[""], events)
        for name in parts[1:]:
            text = f"would send {source.dataset.child(name)} likewise"
            events.say("plan", text, always=True, step=text)
        return
    key = None if top else backup_folder.first_key(wanted)
    with locked(wanted.job):
        top = backup_folder.find_dataset(wanted.job) or backup_folder.make(wanted, key, events)
        _snapshot(wanted, source, events)
        with opened(top) as pool:
            for name in parts:
                part, to = _sides(wanted, source, name)
                _encrypt(wanted, pool, part, top, _here(top, name), events)
                here = Side(Peer(), _here(top, name))
                steps = local.planned(pool, pool.dataset(here.dataset), there[name], str(to))
                backup_folder.carry_out(_part(wanted, name), pool, here, to, steps, events)
    backup_folder.set_retention(wanted, target)


def _part(wanted: Wanted, name: str) -> Wanted:
    """The same for one of the datasets below, as a backup of its own; "" is itself."""
    place, job = _place(wanted), wanted.job
    return replace(wanted, job=Job(place.child(name), job.destination.child(name))) if name else wanted


def _here(top: DatasetName, name: str) -> DatasetName:
    """The dataset of this machine into which one of them is encrypted."""
    return top.child(f"zfs/{name}" if name else "zfs")


def _have(pool: Pool, name: DatasetName) -> Have:
    dataset = pool.find(name)
    return local.have(pool, dataset) if dataset else Have()


def _encrypt(
    wanted: Wanted, pool: Pool, source: Side, top: DatasetName, here: DatasetName, events: Events
) -> None:
    """The snapshots that are not here yet, one after the other. `top`: the dataset that has the key."""
    zfs, have = _zfs(wanted, source), source.sendable()
    assert zfs is not None
    for step in plan(have, _have(pool, here), str(here)).steps:
        zfs.before(step)
        _encrypt_one(source, step, pool, here, backup_folder.wrapping_key(wanted, pool, pool.dataset(top)))
        events.say("encrypted", f"encrypted {source.full(step.to)}", name=source.full(step.to))
        zfs.after(have, step)


def _encrypt_one(source: Side, step: Step, pool: Pool, here: DatasetName, key: bytes) -> None:
    from zkeep.cli.keys.reencryption import EncryptingIntake
    from zkeep.format.reader import read_events
    from zkeep.pool.transfer.receive import ReceiveOptions, receive_events

    since = ["-i", source.full(step.source)] if step.source else []
    cannot = f"cannot send {source.full(step.to)}"
    words = ["send", "-L", *since, source.full(step.to)]
    with source.peer.running(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as sender:
        assert sender.process.stdout is not None
        came = cast(BinaryIO, Patient(sender.process.stdout, cannot))
        options = ReceiveOptions(intake=EncryptingIntake({}, (), [key]))
        try:
            receive_events(pool, read_events(came), str(here), options)
        except Refused:
            source.peer.check(sender.end(5), cannot)
            raise
        source.peer.check(sender.end(STALL_SECONDS), cannot)
