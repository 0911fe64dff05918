"""Resume or clear up after a plain stream that broke off while it was being encrypted: it leaves steps.

A step (see commit) is a snapshot. With `-s` its document says where the stream continues, and has the resume token.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import sha256

from zkeep.errors import Refused
from zkeep.format.events import SubBegin
from zkeep.format.records import Feature
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.begin import Opening, number
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.things import RESUME
from zkeep.pool.datasets.view import View
from zkeep.pool.transfer.admit import ReceiveTarget
from zkeep.pool.transfer.begin_rules import redaction_of
from zkeep.pool.transfer.token import Token
from zkeep.pool.types import Doc
from zkeep.reencrypt.objects import Translator
from zkeep.snapshot.commit import REENCRYPTED

MADE_FOR = "made_for"
"Field of a step: its dataset was made for it, and goes with it."


@dataclass(frozen=True)
class PartialStream:
    """A receive that can be resumed, as the documents of its steps record it."""

    opening: Opening
    target: ReceiveTarget

    def fields(self, translator: Translator) -> Doc:
        """The resume token's fields: the position behind what the translator has written."""
        begin, (at, offset) = self.opening.begin, translator.point or (1, 0)
        # What zfs send -t takes: the sender goes on behind the object and offset that are stored here.
        token = Token(
            toname=begin.name.decode("utf-8", "surrogateescape"),
            toguid=begin.toguid,
            object=at,
            offset=offset,
            bytes=translator.bytes,
            fromguid=begin.fromguid,
            features=begin.features & ~Feature.RESUMING,
            redaction=redaction_of(self.opening),
        )
        return {
            RESUME: {
                "token": token.encode(),
                "toguid": begin.toguid,
                "fromguid": begin.fromguid,
                "features": int(begin.features & ~Feature.RESUMING),
                "object": at,
                "offset": offset,
                "snapshot": self.target.snapshot,
                "snapshot_fields": self.target.snapshot_fields,
            }
        }


def _steps(pool: Pool, name: DatasetName) -> list[Snapshot]:
    """The steps that are a dataset's newest snapshots."""
    dataset = pool.find(name)
    found: list[Snapshot] = []
    for snapshot in reversed(pool.snapshots(dataset) if dataset is not None else []):
        if not (snapshot.doc.get(STEP) and snapshot.doc.get(REENCRYPTED)):
            break
        found.append(snapshot)
    return found[::-1]


def has_steps(pool: Pool, name: DatasetName) -> bool:
    """Whether an earlier receive left something, to go on from or to clear away."""
    return bool(_steps(pool, name))


def partial_of(pool: Pool, name: DatasetName) -> Doc | None:
    """The resume document of an interrupted receive; None if there is none."""
    steps = _steps(pool, name)
    found: Doc | None = steps[-1].doc.get(RESUME) if steps else None
    return found


def resume(pool: Pool, event: SubBegin, target: ReceiveTarget) -> Snapshot | None:
    """The step that a stream goes on from; None: it begins again, and what is there is in its way.

    Raises:
        Refused: it is not the rest of the receive that broke off, or there is none.
    """
    begin, where = event.begin, f"cannot receive {target.name}"
    state, resuming = partial_of(pool, target.name), bool(begin.features & Feature.RESUMING)
    # Nothing is kept: a stream that resumes has nothing to go on from.
    if state is None:
        if resuming:
            raise Refused(f"{where}: the stream resumes a receive, but destination has no interrupted one")
        return None
    # The same stream from its beginning, with -s again: start over.
    same = (begin.toguid, begin.fromguid) == (state["toguid"], state["fromguid"])
    if not resuming and same and target.resumable:
        return None
    # Any other stream would destroy what is kept.
    if not resuming or not same or int(begin.features & ~Feature.RESUMING) != state["features"]:
        raise Refused(
            f'{where}: destination {target.name} contains partially-complete state from "zfs receive -s".: go on with '
            f"its receive_resume_token, or the same stream and -s, or give it up with zkeep receive -A {target.name}"
        )
    # It may begin earlier, where an older token pointed to, but not leave anything out.
    point = number(event.nvlist, "resume_object"), number(event.nvlist, "resume_offset")
    if point > (state["object"], state["offset"]):
        needed = f"object {state['object']}, offset {state['offset']}"
        raise Refused(f"{where}: the stream begins at object {point[0]}, offset {point[1]}, needed is {needed}")
    return _steps(pool, target.name)[-1]


def continued(target: ReceiveTarget, step: Snapshot) -> ReceiveTarget:
    """The target of the receive that broke off."""
    state: Doc = step.doc[RESUME]
    return replace(
        target, snapshot=state["snapshot"], snapshot_fields=state["snapshot_fields"], resumable=True, force=False
    )


def exclusive(pool: Pool, name: DatasetName) -> AbstractContextManager[None]:
    """While this is held, no other process makes or removes steps in a dataset.

    Raises:
        TryAgain: one does.
    """
    lock = f"reencrypt-{sha256(name.text.encode()).hexdigest()[:32]}"
    return pool.store.lock(lock, busy=f"cannot receive into {name}: dataset is busy")


def remove_leftovers(pool: Pool, name: DatasetName) -> None:
    """Remove the steps that are a dataset's newest snapshots, and the dataset if it was made for them.

    The caller holds exclusive().
    """
    steps = _steps(pool, name)
    if not steps:
        return
    # A dataset that was made for this receive goes with its steps, unless something else is in it by now.
    view, dataset = View(pool), pool.dataset(name)
    before = pool.snapshots(dataset)[: -len(steps)]
    if steps[0].doc.get(MADE_FOR) and not before and view.tree.within(dataset) == [dataset]:
        destroy.execute(pool, destroy.plan_dataset(view, name, destroy.DestroyOptions(recursive=True)))
        return
    # Otherwise the snapshots go, with the records behind the last one that stays.
    destroy.execute(pool, destroy.plan_steps(view, dataset, steps))
