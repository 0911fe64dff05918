"""A dataset of ZFS as a source: what is called around a send, so that the next increment always has its source.

    before   hold the snapshot; a temporary bookmark of it, should somebody destroy it all the same
    after    a bookmark that stays; the temporary one goes, the hold on what was sent before, and its snapshots and
             bookmarks: of those only what this backup made, known by its name

Nothing here is ever called at the destination.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from zkeep.backup.plan import Have, Point, Step
from zkeep.backup.run import Side
from zkeep.errors import Refused
from zkeep.names import DatasetName


@dataclass(frozen=True)
class ZfsSource:
    """`key`: 8 hex digits that stand for the backup: other backups of the same dataset have others."""

    side: Side
    key: str

    @property
    def prefix(self) -> str:
        return f"backup-{self.key}-"

    @property
    def tag(self) -> str:
        """The tag of its holds."""
        return f"zkeep-{self.key}"

    @property
    def sending(self) -> str:
        """The temporary bookmark."""
        return f"{self.side.dataset}#{self.prefix}sending"

    def final(self, point: Point) -> str:
        """The bookmark that stays of a snapshot that was sent."""
        return f"{self.side.dataset}#{self.prefix}{point.guid:016x}"

    def snapshot(self, stamp: str, recursive: bool) -> None:
        """Take one, of all datasets below at the same moment."""
        name = f"{self.side.dataset}@{self.prefix}{stamp}"
        words = ["snapshot", *(["-r"] if recursive else []), name]
        self.side.peer.do(*words, cannot=f"cannot snapshot {self.side.dataset}")

    def before(self, step: Step) -> None:
        # A hold on the snapshot, if it is ours; and a bookmark, for a snapshot of somebody else may go meanwhile.
        name = self.side.full(step.to)
        if self._is_own(step.to):
            self.side.peer.ask("hold", self.tag, name)  # it may have one of an earlier try
        self.side.peer.ask("destroy", self.sending)
        self.side.peer.do("bookmark", name, self.sending, cannot=f"cannot bookmark {name}")

    def after(self, have: Have, step: Step) -> None:
        """`have`: what there was before; `step`: what the destination lists now."""
        # First what the next increment needs, then what it needs no more: in any other order, one that
        # breaks off here would leave no source.
        sent = step.to
        self.side.peer.ask("bookmark", self.side.full(sent), self.final(sent))  # it may be there from an earlier try
        self.side.peer.ask("destroy", self.sending)
        if step.source is not None and have.by_guid(step.source.guid) in have.snapshots:
            self.side.peer.ask("destroy", self.final(step.source))  # made by the step before
        for point in self.outdated(have, sent):
            if point.is_snapshot:
                self.side.peer.ask("release", self.tag, self.side.full(point))
            # One that somebody else holds or cloned stays: zfs refuses.
            self.side.peer.ask("destroy", self.side.full(point))

    def outdated(self, have: Have, sent: Point) -> list[Point]:
        """What this backup made before, and no increment needs any more."""
        return [point for point in have.points if point.createtxg < sent.createtxg and self._is_own(point)]

    def _is_own(self, point: Point) -> bool:
        """By its whole name: a name is all that tells."""
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
        return bool(re.fullmatch(rf"[@#]{re.escape(self.prefix)}({stamp}|[0-9a-f]{{16}})", point.name))


def below(names: Iterable[str], top: DatasetName) -> list[str]:
    """The parts of names behind `top`, parents first; "" for itself.

    Raises:
        Refused: one of them is no name, or does not lie there.
    """
    found = []
    for text in names:
        name = DatasetName.parse(text)
        if not name.is_within(top):
            raise Refused(f"a listing of {top} has {name}, which does not lie below it")
        found.append(name.text[len(top.text) :].lstrip("/"))
    return sorted(set(found))
