"""What has to be sent, decided by guids alone: a pure function of what both sides have.

Names count for nothing: a snapshot may be called otherwise over there. Only the newest snapshot of the destination can
be the source of an increment, and it must be one that is known here, as a snapshot or a bookmark. Whatever the
destination has beside that is a conflict, and never something that is destroyed there.

What the destination says is hostile until it fits: a token counts if it asks for a snapshot that is here, raw, from the
destination's own newest one. Even then it is not passed on: a new one is made of its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from zkeep.errors import Refused
from zkeep.format.records import Feature
from zkeep.names import printable
from zkeep.pool.transfer.token import Token


@dataclass(frozen=True)
class Point:
    """A snapshot or a bookmark. `name`: with its `@` or `#`; `createtxg`: its place in the order."""

    name: str
    guid: int
    createtxg: int = 0

    @property
    def is_snapshot(self) -> bool:
        return self.name.startswith("@")

    def __str__(self) -> str:
        return f"{printable(self.name)} (guid {self.guid:#x})"


@dataclass(frozen=True)
class Have:
    """What one side has of a dataset. `points`: oldest first; `token`: of a receive that was interrupted."""

    exists: bool = False
    points: tuple[Point, ...] = ()
    token: Token | None = None

    @property
    def snapshots(self) -> list[Point]:
        return [point for point in self.points if point.is_snapshot]

    def by_guid(self, guid: int) -> Point | None:
        """The snapshot of a guid, or else the bookmark."""
        found = [point for point in self.points if point.guid == guid]
        return min(found, key=lambda point: not point.is_snapshot, default=None)


@dataclass(frozen=True)
class Step:
    """One stream: `to`, in full or from `source`; `resume`: the rest of it, from this place on."""

    to: Point
    source: Point | None = None
    resume: Token | None = None

    def __str__(self) -> str:
        what = f"send {printable(self.to.name)}"
        what += f" since {printable(self.source.name)}" if self.source else " in full"
        return what + (f", from byte {self.resume.bytes} on" if self.resume else "")


@dataclass(frozen=True)
class Plan:
    """The streams in their order. `fills`: the dataset is there and empty, and is received into with -F."""

    steps: tuple[Step, ...]
    fills: bool = False


class Conflict(Refused):
    """The two sides do not fit together; nothing is sent. The text has the evidence and the way out."""


@dataclass(eq=False)
class NothingInCommon(Conflict):
    """The destination has snapshots, and none of them is known here."""

    dataset: str
    newest: Point

    def __str__(self) -> str:
        return (
            f"{self.dataset}: none of its snapshots is known here; its newest is {self.newest}: it is the backup of "
            f"something else, or what it was made from is gone here; name a dataset that does not exist yet"
        )


@dataclass(eq=False)
class LostThere(Conflict):
    """The destination had newer snapshots from here, by the record of what was sent, and lists them no more."""

    dataset: str
    newest: Point | None
    "The newest that it still lists."
    lost: str
    "The name of the last that was sent."

    def __str__(self) -> str:
        if self.newest is None:
            return (
                f"{self.dataset}: it had @{printable(self.lost)} from here, and has nothing any more; what changed "
                f"since cannot be told without it: if its pool comes back, call again; else name a dataset that does "
                f"not exist yet"
            )
        return (
            f"{self.dataset}: it had @{printable(self.lost)} from here, and lists nothing newer than {self.newest}: "
            f"it was rolled back, or returns an old state; what changed since cannot be told any more: name a dataset "
            f"that does not exist yet"
        )


@dataclass(eq=False)
class DestinationIsAhead(Conflict):
    """The destination has snapshots that are newer than all that both sides have."""

    dataset: str
    common: Point
    newer: tuple[Point, ...]

    def __str__(self) -> str:
        names = ", ".join(str(point) for point in self.newer[:3]) + (", ..." if len(self.newer) > 3 else "")
        return (
            f"{self.dataset}: it got snapshots that are not from here since {printable(self.common.name)}: {names}; "
            f"nothing is destroyed over there: have its administrator roll it back to "
            f"{printable(self.common.name)}, or name another dataset"
        )


@dataclass(eq=False)
class ForeignReceive(Conflict):
    """The destination waits for the rest of a stream that cannot be made here."""

    dataset: str
    token: Token
    why: str
    way: str = ""
    "The command that gives it up, where it is known."

    def __str__(self) -> str:
        return (
            f"{self.dataset}: an interrupted receive of snapshot guid {self.token.toguid:#x} waits there, and it "
            f"cannot go on from here: {self.why}; "
            f"if nothing else sends there, give it up: "
            f"{self.way or f'receive -A {self.dataset}'}"
        )


@dataclass(eq=False)
class NothingToSend(Conflict):
    """The source has no snapshot. `dataset`: the destination."""

    dataset: str

    def __str__(self) -> str:
        return f"nothing can be sent to {self.dataset}: the source has no snapshot yet"


def plan(source: Have, target: Have, dataset: str, *, every: bool = False, upto: int | None = None) -> Plan:
    """Decide which streams bring the destination up to a snapshot of the source.

    `dataset`: the destination, for messages; `every`: with all snapshots between, not only the last; `upto`: the guid
    of the last, if not the newest.

    Raises:
        Conflict: they do not fit together.
    """
    # Which snapshot the destination is to have in the end.
    snapshots = source.snapshots
    wanted = next((s for s in reversed(snapshots) if upto in (None, s.guid)), None)
    # What was interrupted goes first; once it is there, it is the newest of the destination.
    resumed = _resumed(source, target, dataset)
    after = [*target.snapshots, *((resumed.to,) if resumed else ())]
    base = _base(source, after, dataset)  # before all else: a conflict counts for more than having nothing
    if wanted is None:
        raise NothingToSend(dataset)
    # In full where nothing is there; else increments, unless the newest is there already.
    steps = [resumed] if resumed else []
    if base is None:
        steps.append(Step(wanted))
    elif base.createtxg < wanted.createtxg:
        steps += _increments(source, base, wanted, every)
    return Plan(tuple(steps), fills=target.exists and not after)


def _resumed(source: Have, target: Have, dataset: str) -> Step | None:
    """The rest of what was interrupted, if it is ours."""
    token = target.token
    if token is None:
        return None
    # Each of the token's numbers must fit what both sides list: the token is the destination's own word.
    to = source.by_guid(token.toguid)
    newest = next(reversed(target.snapshots), None)
    if to is None or not to.is_snapshot:
        raise ForeignReceive(dataset, token, "that snapshot is not here")
    if not token.raw:
        raise ForeignReceive(dataset, token, "it asks for a stream that is not raw, which anybody could read")
    if token.fromguid != (newest.guid if newest else 0):
        raise ForeignReceive(dataset, token, f"its source, guid {token.fromguid:#x}, is not the newest snapshot there")
    base = source.by_guid(token.fromguid) if token.fromguid else None
    if token.fromguid and (base is None or base.createtxg >= to.createtxg):
        raise ForeignReceive(dataset, token, f"its source, guid {token.fromguid:#x}, is not here")
    return Step(to, base, token)


def _base(source: Have, after: list[Point], dataset: str) -> Point | None:
    """What the next increment is made from; None: the destination has nothing."""
    if not after:
        return None
    # The newest of the destination, if it is known here.
    known = [source.by_guid(point.guid) for point in after]
    if known[-1] is not None:
        return known[-1]
    # Else it is ahead of the newest that both have, or they have nothing in common.
    common = [at for at, point in enumerate(known) if point is not None]
    if not common:
        raise NothingInCommon(dataset, after[-1])
    raise DestinationIsAhead(dataset, after[common[-1]], tuple(after[common[-1] + 1 :]))


def _increments(source: Have, base: Point, wanted: Point, every: bool) -> Iterable[Step]:
    between = [s for s in source.snapshots if base.createtxg < s.createtxg < wanted.createtxg] if every else []
    for point in [*between, wanted]:
        yield Step(point, base)
        base = point


_SENT_RAW = Feature.RAW | Feature.COMPRESSED | Feature.EMBED_DATA | Feature.LARGE_BLOCKS


def own_token(step: Step, toname: str) -> str:
    """The token for the rest of a step, with nothing in it that the peer chose but numbers that were checked."""
    assert step.resume is not None
    features = (step.resume.features & _SENT_RAW) | Feature.RAW
    return replace(step.resume, toname=toname, features=features).encode()
