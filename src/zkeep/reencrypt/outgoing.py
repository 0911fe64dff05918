"""A stream that becomes encrypted leaves step by step, while it comes in, and only metadata stays.

Each transaction group is sent as soon as it is there, the first one in full or from the snapshot before, the others as
increments, and then its contents are dropped. So disk space and memory are bounded by a step. At the other end the
steps are snapshots, `@step-GUID`, until the next one is there: zkeep removes them itself.

The last group is a step, too, until it was sent. So whatever is interrupted leaves nothing but steps, which go away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zkeep.errors import Refused
from zkeep.format.checksum import fletcher4
from zkeep.format.records import Begin, End, HeaderType
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import contents
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.orphans import reading
from zkeep.pool.datasets.things import RESUME
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.timeline.emit import Write, write_fully
from zkeep.pool.transfer.package import conclusion
from zkeep.pool.transfer.send import Leg, LegOptions, write_leg
from zkeep.reencrypt.leftovers import MADE_FOR, exclusive, remove_leftovers
from zkeep.reencrypt.receive import UNSENT


@dataclass
class StepSender:
    """A Follower of a Reencryption. `wanted`: whether the stream that comes is one that leaves so."""

    write: Write
    wanted: Callable[[], bool]
    is_package: Callable[[], bool]
    "Whether the stream that comes may have several snapshots."
    _begun: bool = False
    _packaged: bool = False

    def takes(self) -> bool:
        return self.wanted()

    def taken(self, pool: Pool, made: Snapshot, base: Snapshot | None, *, last: bool) -> Snapshot:
        """Send a group, then drop its contents.

        Raises:
            OSError: nobody reads the stream any more.
        """
        if not self._begun:
            self._begun, self._packaged = True, self.is_package() or not last
            if self._packaged:
                header = Begin(versioninfo=HeaderType.COMPOUND, toname=str(made.name).encode()).pack("little")
                write_fully(self.write, header + End(body_checksum=fletcher4(header)).pack("little"))
        with reading(pool):
            write_leg(pool, Leg(made, base), self.write, LegOptions())
        if last:
            with pool.transaction() as t:
                made = pool.update_snapshot(t, made, **{STEP: False, UNSENT: False, MADE_FOR: False})
        # It is there without its contents, or with them: what fails here is done by the next compaction.
        with pool.afterwards(f"{made.name} was sent", "zkeep pool compact"):
            with pool.transaction() as t:
                contents.mark(pool, t, made)
            compact(pool, pool.by_id(made.dataset.id))
        return pool.snapshot(made.name)

    def finish(self) -> None:
        """All snapshots were sent."""
        if self._packaged:
            write_fully(self.write, conclusion())


def remove_unsent(pool: Pool, name: DatasetName) -> None:
    """Take away what was left by a filter that was killed."""
    dataset = pool.find(name)
    newest = pool.newest_snapshot(dataset) if dataset is not None else None
    if newest is not None and newest.doc.get(STEP) and RESUME not in newest.doc:
        with exclusive(pool, name):
            remove_leftovers(pool, name)


def refuse_sent(pool: Pool, name: SnapshotName) -> None:
    """Raises Refused: a snapshot comes again, whose contents are not here any more."""
    raise Refused(f"cannot encrypt: {sent_before(pool, name)}")


def sent_before(pool: Pool, name: SnapshotName) -> str:
    """What is so with a snapshot that was sent and has no contents here, and the way out if it did not arrive."""
    before = [each for each in pool.snapshots(pool.dataset(name.dataset)) if each.txg < pool.snapshot(name).txg]
    way_out = f"rollback -r {before[-1].name}" if before else f"destroy -r {name.dataset}"
    return (
        f"{name} was sent before, and its contents are not here (contents=metadata): if the other end "
        f"lacks it, zkeep {way_out}, and run it again"
    )
