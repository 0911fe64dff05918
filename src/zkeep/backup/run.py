"""Carries a plan out: one stream after the other, from one side to the other, and looks whether all of it arrived."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from zkeep.backup.peer import STALL_SECONDS, Peer, Running, pipe
from zkeep.backup.plan import Have, Plan, Point, Step, own_token
from zkeep.errors import Refused, TryAgain
from zkeep.format.records import HEADER, MAGIC, NATIVE, Begin, other
from zkeep.names import DatasetName

_UNFINISHED = re.compile(r"@step-[0-9a-f]{16}")
"Snapshots of zkeep that hold a part of what will be another: they are gone when that is there."


class OnEvent(Protocol):
    """Called with what happens: `send` (to, source, resumed), `progress` (bytes), `sent` (to, bytes)."""

    def __call__(self, event: str, **fields: Any) -> None: ...


@dataclass(frozen=True)
class Side:
    """A dataset and who has it."""

    peer: Peer
    dataset: DatasetName

    def __str__(self) -> str:
        return f"{self.dataset} on {self.peer.host}" if self.peer.host else str(self.dataset)

    def have(self) -> Have:
        return self.peer.have(self.dataset)

    def sendable(self) -> Have:
        """What it has, without snapshots that are being made."""
        found = self.have()
        return replace(found, points=tuple(p for p in found.points if not _UNFINISHED.fullmatch(p.name)))

    def full(self, point: Point) -> str:
        return f"{self.dataset}{point.name}"


def replicate(
    source: Side, target: Side, plan: Plan, on_event: OnEvent, on_step: Callable[[Step], None] = lambda step: None
) -> None:
    """Send all streams of a plan. `on_step`: called when a stream was received, and listed.

    Raises:
        TryAgain: it broke off; what arrived is kept over there, and the same goes on with it.
        Refused: one side says no.
    """
    for step in plan.steps:
        _send(source, target, step, fills=plan.fills and step is plan.steps[0], on_event=on_event)
    if plan.steps:
        check_arrived(target, plan.steps[-1].to)
    for step in plan.steps:
        on_step(step)


def check_arrived(target: Side, point: Point) -> None:
    """Ask the destination for a snapshot: a stream that was written proves nothing.

    Raises:
        Refused: it does not list it.
    """
    found = target.have().by_guid(point.guid)
    if found is None or not found.is_snapshot:
        why = "does not list the snapshot: nothing is taken as stored"
        raise Refused(f"{target} took the stream of {point}, and {why}")


def _send(source: Side, target: Side, step: Step, *, fills: bool, on_event: OnEvent) -> None:
    on_event("send", to=step.to, source=step.source, resumed=step.resume.bytes if step.resume else 0)
    counted = _Counter(on_event)
    take, give = _receive_words(target, fills), _send_words(source, step)
    with (
        target.peer.running(*take, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as receiver,
        source.peer.running(*give, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as sender,
    ):
        whole = pipe(sender, receiver, counted, partial(_check_raw, source, step))
        _conclude(source, target, step, sender, receiver, whole=whole)
    on_event("sent", to=step.to, bytes=counted.bytes)


def _check_raw(source: Side, step: Step, head: bytes) -> None:
    """Look at the BEGIN: of a dataset that is not encrypted, `zfs send -w` gives a stream in clear, and no error.

    Raises:
        Refused: it is not that of a raw stream.
    """
    if len(head) < HEADER:
        return  # the sender failed, and says why
    for order in (NATIVE, other(NATIVE)):
        with suppress(ValueError):
            begin = Begin.unpack(head, order)
            if begin.magic == MAGIC and begin.raw:
                return
    raise Refused(f"cannot send {source.full(step.to)}: its stream is not raw, and could be read: it was not sent")


def _conclude(source: Side, target: Side, step: Step, sender: Running, receiver: Running, *, whole: bool) -> None:
    """Find out whose fault it is when a stream did not arrive: the first of the two that ended."""
    cannot = f"cannot send {source.full(step.to)} to {target}"
    # All was carried over: the sender's failure explains the receiver's, for what it sent ends too early.
    if whole:
        sent = sender.end(STALL_SECONDS)
        received = receiver.end(STALL_SECONDS)
        if sent.status:
            source.peer.check(sent, cannot)
        target.peer.check(received, cannot)
        return
    # The receiver closed its end first: it has the reason, and the sender only a broken pipe.
    received = receiver.end(60)
    sender.kill()
    target.peer.check(received, cannot)
    why = f": {received.said}" if received.said else ""
    raise TryAgain(f"{cannot}: {target.peer} ended before the stream did{why}")


class _Counter:
    def __init__(self, on_event: OnEvent) -> None:
        self.bytes = 0
        self._on_event = on_event

    def __call__(self, size: int) -> None:
        self.bytes += size
        self._on_event("progress", bytes=self.bytes)


def _send_words(source: Side, step: Step) -> list[str]:
    """Always raw: what leaves here can be read by nobody who has no key."""
    if step.resume is not None:
        return ["send", "-t", own_token(step, source.full(step.to))]
    since = ["-i", source.full(step.source)] if step.source else []
    return ["send", "-w", *since, source.full(step.to)]


def _receive_words(target: Side, fills: bool) -> list[str]:
    """`-F` only into a dataset that has nothing; a real zfs is asked to mount nothing."""
    zfs = ["-u"] if target.peer.program == "zfs" else []
    return ["receive", "-s", *zfs, *(["-F"] if fills else []), str(target.dataset)]
