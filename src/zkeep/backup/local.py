"""The dataset here from which a backup is sent: which one it is, and what becomes of it once that arrived."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from zkeep.backup.places import Path, Place
from zkeep.backup.plan import Have, LostThere, NothingInCommon, Plan, Point, plan
from zkeep.errors import Refused
from zkeep.names import BadName, DatasetName
from zkeep.pool.datasets import contents, destroy, sent
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.sent import DESTINATION
from zkeep.pool.datasets.things import RESUME
from zkeep.pool.datasets.view import View

SOURCE = "zkeep:backup-source"
"User property of the dataset: what it is a backup of."
PREFIX = "backup-"
"What the names of the snapshots begin with that backups make."
_OWN = re.compile(r"backup-([0-9a-f]{8}-)?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
"Their whole names; with 8 digits in between, they are those of a dataset of ZFS (backup/zfs.py)."


@dataclass(frozen=True)
class Job:
    """One backup: from where, to where. Both are part of its name: another destination is another backup."""

    source: Path | Place
    destination: Place

    @property
    def properties(self) -> dict[str, str]:
        return {SOURCE: str(self.source), DESTINATION: str(self.destination)}

    def base(self) -> str:
        """What its dataset is called, if nothing else is."""
        last = self.source.text if isinstance(self.source, Path) else self.source.dataset.text
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", last.rstrip("/").rpartition("/")[2]).strip("-.") or "root"


def digest(job: Job) -> str:
    """Stands for a backup where its places would be too long."""
    return sha256("\0".join(job.properties.values()).encode("utf-8", "surrogateescape")).hexdigest()


def zfs_key(job: Job, home: str) -> str:
    """8 hex digits that stand for a backup in names on a host of ZFS.

    `home`: the random number of this home of zkeep. Other machines may back up the same dataset to a destination that
    has the same name for them.
    """
    return sha256(f"{home}\0{digest(job)}".encode()).hexdigest()[:8]


def find(pool: Pool, job: Job) -> Dataset | None:
    """The dataset of a backup."""
    wanted = job.properties
    for dataset in pool.tree().by_name.values():
        if wanted.items() <= dataset.doc["local"].items():
            return dataset
    return None


def free_name(pool: Pool | None, top: DatasetName, job: Job) -> DatasetName:
    """A name below `top` that no dataset has."""
    return next(name for name in _names(top, job.base()) if pool is None or pool.find(name) is None)


def _names(top: DatasetName, base: str) -> Iterator[DatasetName]:
    try:
        first = top.child(base)
    except BadName:
        first = top.child("backup")
    yield first
    for number in range(2, 1 << 30):
        yield DatasetName.parse(f"{first}-{number}")


def have(pool: Pool, dataset: Dataset) -> Have:
    """What can be sent of a dataset: whole snapshots, and bookmarks."""
    points = [Point(f"#{b.doc['name']}", b.guid, b.txg) for b in pool.bookmarks(dataset)]
    points += [Point(f"@{s.doc['name']}", s.guid, s.txg) for s in pool.snapshots(dataset) if is_whole(s)]
    return Have(True, tuple(sorted(points, key=lambda point: point.createtxg)))


def planned(pool: Pool, dataset: Dataset, there: Have, to: str, upto: int | None = None) -> Plan:
    """Plan what to send of a dataset, see plan(); the record says what the destination has lost.

    Raises:
        Conflict: the two sides do not fit together.
    """
    try:
        return plan(have(pool, dataset), there, to, upto=upto)
    except NothingInCommon as conflict:
        if sent.find(pool, dataset, conflict.newest.guid) is None:
            raise
        last = sent.of_dataset(pool, dataset)[-1]
        raise LostThere(to, conflict.newest, last.name) from None


def check_not_lost(pool: Pool, dataset: Dataset, there: Have, job: Job) -> None:
    """Look into the record of what was sent if the destination has nothing: the next snapshot could not be sent whole.

    Raises:
        LostThere: it had some.
    """
    # The record knows what was there; if nothing is there now, the next increment has no base.
    had = [] if there.points else sent.of_dataset(pool, dataset)
    had = [each for each in had if str(job.destination) in each.to]
    if had:
        raise LostThere(str(job.destination), None, had[-1].name)


def is_own(name: str) -> bool:
    """Whether a snapshot has the name of one that a backup of a folder made."""
    return bool(_OWN.fullmatch(name)) and name[len(PREFIX) + 4 : len(PREFIX) + 5] == "-"


def is_whole(snapshot: Snapshot) -> bool:
    """Whether it is not a part of one that is being made or received."""
    return not snapshot.doc.get(STEP) and not snapshot.doc.get(RESUME)


def note_sent(pool: Pool, dataset: Dataset, guid: int, to: str) -> None:
    """Note in the source's record that a destination has a snapshot."""
    with pool.transaction() as t:
        for snapshot in pool.snapshots_by_guid(guid, dataset):
            sent.note(pool, t, snapshot, to)


def arrived(pool: Pool, dataset: Dataset, guid: int) -> list[str]:
    """Drop what need not be here once a destination lists a snapshot; returns the names of destroyed snapshots.

    Only this snapshot was sent, none of those before it. So the older ones of backups are destroyed first. Then this
    one alone is marked as stored elsewhere: what remains before it (made, held or cloned by hand) keeps its contents.
    """
    gone = drop_older(pool, dataset, guid)
    for snapshot in pool.snapshots_by_guid(guid, dataset):
        with pool.transaction() as t:
            contents.mark(pool, t, snapshot)
    return gone


def drop_older(pool: Pool, dataset: Dataset, guid: int) -> list[str]:
    """Destroy the snapshots that backups made before one that the destination has; returns their names.

    The next increment is made from that one. What somebody else made, holds or cloned stays.
    """
    snapshots = pool.snapshots(dataset)
    newest = next((s for s in snapshots if s.guid == guid), None)
    if newest is None:
        return []
    # Only what backups made, which their whole names tell; of that, what nobody holds or cloned.
    view = View(pool)
    old = [s for s in snapshots if s.txg < newest.txg and is_whole(s) and _OWN.fullmatch(str(s.doc["name"]))]
    free = [s for s in old if not s.holds and not pool.tree().clones(dataset, s.txg)]

    def decide_again() -> None:
        # The one that the destination has may have been destroyed meanwhile: then the next increment needs another.
        now = pool.snapshot_at(dataset.id, newest.txg)
        if now is None or now.guid != guid:
            raise Refused(f"cannot destroy {free[-1].name}: {newest.name} was destroyed meanwhile")

    if free:
        plan = destroy.DestroyPlan(snapshots=free)
        destroy.check(view, plan, destroy.DestroyOptions())
        destroy.execute(pool, plan, decide_again=decide_again)
    return [str(snapshot.doc["name"]) for snapshot in free]
