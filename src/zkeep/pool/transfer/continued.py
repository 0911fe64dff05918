"""Go on with an interrupted receive: decide whether a stream does that, from where, and into which dataset."""

from __future__ import annotations

from dataclasses import replace

from zkeep.errors import Refused
from zkeep.format.checksum import fletcher4
from zkeep.format.events import SubBegin
from zkeep.format.records import NATIVE, Feature
from zkeep.pool.datasets.begin import Opening, number
from zkeep.pool.datasets.model import Dataset
from zkeep.pool.timeline.resume import Resumed
from zkeep.pool.transfer.admit import ReceiveTarget
from zkeep.pool.types import Doc


def goes_on(state: Doc, event: SubBegin, target: ReceiveTarget) -> bool:
    """Whether a stream goes on with the partial receive; else it replaces it."""
    return bool(event.begin.features & Feature.RESUMING) or _is_sent_again(state, event, target)


def resume(state: Doc, event: SubBegin) -> Resumed:
    """The position at which a stream continues a partial receive; call it after admit().

    A resumed stream begins at or before the last block that arrived, one that is sent again at its start; records that
    are kept already are skipped.
    """
    point = number(event.nvlist, "resume_object"), number(event.nvlist, "resume_offset")
    if event.begin.features & Feature.RESUMING and point > (state["object"], state["offset"]):
        want = f"object {state['object']}, offset {state['offset']}"
        raise Refused(
            f"cannot resume the receive: the stream begins at object {point[0]}, offset {point[1]}, needed is {want}"
        )
    # The running checksum and the last position are those behind the last segment that was finished.
    opening = Opening.from_doc(state["begin"])
    begun = fletcher4(opening.header + opening.payload, swap=opening.byteorder != NATIVE)
    a, b, c, d = state["state"] or begun
    last = state["last"] or (0, -1, 0)
    return Resumed(state["txg"], state, (a, b, c, d), (last[0], last[1], last[2]))


def _is_sent_again(state: Doc, event: SubBegin, target: ReceiveTarget) -> bool:
    """Whether a whole stream is the interrupted one, sent again from its start; another key or flag makes it another.

    Raises:
        Refused: it is of another snapshot, or -s is missing.
    """
    same = (event.begin.toguid, event.begin.fromguid) == (state["toguid"], state["fromguid"])
    if not target.resumable or not same:
        raise Refused(
            f'cannot receive {target.name}: destination {target.name} contains partially-complete state from "zfs '
            f'receive -s".: go on with its receive_resume_token, or the same stream and -s, or give it up with '
            f"zkeep receive -A {target.name}"
        )
    # The sender may have renamed the snapshot; everything else of the two BEGINs must be equal, byte by byte.
    begun = Opening.from_doc(state["begin"])
    mine, theirs = replace(event.begin, toname=b""), replace(begun.begin, toname=b"")
    return (mine, event.payload, event.byteorder) == (theirs, begun.payload, begun.byteorder)


def begun_target(target: ReceiveTarget, state: Doc, dataset: Dataset) -> ReceiveTarget:
    """The target of the interrupted receive.

    Properties that are set now override those that were set then, and so do those that were set in the dataset
    meanwhile: setting `blind` or a quota after a receive broke off has the last word, whatever -o said at first.
    """
    fields = dict(state["fields"])
    # `local` as it was when the receive began, and as it is now: what differs was set in between.
    before, now = state.get("local", {}), dataset.doc["local"]
    then = {name: text for name, text in fields.pop("local", {}).items() if before.get(name) == now.get(name)}
    if local := {**then, **target.fields.get("local", {})}:
        fields["local"] = local
    return replace(target, resumable=True, fields=fields, snapshot=state["snapshot"])
