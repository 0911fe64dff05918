"""Sends encrypted snapshots as plain streams, from a source or in full.

Source: OpenZFS module/zfs/dmu_send.c dmu_send_impl().
"""

from __future__ import annotations

from contextlib import ExitStack

from zkeep.crypto.unwrap import GetKey, WrongKey
from zkeep.errors import Refused
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.history import History
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.timeline.compose import Journey, plan
from zkeep.pool.timeline.emit import StreamWriter, Write
from zkeep.pool.transfer.send import Leg, opened_source, parted
from zkeep.restore.plain.difference import Difference
from zkeep.restore.plain.steps import plain_steps
from zkeep.restore.plain.writer import PlainWriter
from zkeep.snapshot.keys import master_keys
from zkeep.snapshot.open import OpenSnapshot


class PlainSender:
    """Writes substreams of encrypted snapshots; pool.transfer.send() calls it. `get_key` finds wrapping keys."""

    def __init__(self, get_key: GetKey) -> None:
        self._get_key = get_key

    def check(self, pool: Pool, snapshot: Snapshot) -> None:
        """Raises Refused: the key is not here."""
        try:
            master_keys(pool, snapshot, self._get_key)
        except WrongKey:
            raise Refused(
                f"cannot send {snapshot.name}: it is encrypted and its key is not loaded: load it with zkeep load-key, "
                f"or send it raw, with -w"
            ) from None

    def write(self, pool: Pool, leg: Leg, opening: Opening, maxblkid: int, write: Write) -> None:
        """Write one substream, from the BEGIN that is given to its END. `maxblkid`: of the metadnode.

        Raises:
            Forgery: something is not authentic; the stream breaks off without an END.
            Damaged: the pool's own data is not what was stored; likewise.
        """
        source = opened_source(pool, leg)
        with ExitStack() as stack:
            # Opened with the key, so that only what is authentic leaves.
            snapshot = stack.enter_context(OpenSnapshot(pool, leg.snapshot, self._get_key))
            old = stack.enter_context(OpenSnapshot(pool, source, self._get_key)) if source is not None else None
            # The runs that the receiver has already, and those that are sent.
            before, new = parted(History(snapshot.state.runs), leg)
            timeline, order, toguid = snapshot.state.timeline, opening.byteorder, opening.begin.toguid
            # A resumed stream begins in the middle; what came before it was compared then.
            resume = _block(snapshot, leg.resume)
            complete = leg.source is None or source is not None
            difference = Difference(snapshot, old, complete=complete, resume=resume)
            out = stack.enter_context(StreamWriter(timeline, write, order, toguid))
            writer = stack.enter_context(PlainWriter(snapshot, opening, out, difference))
            # BEGIN, the records in the order that a plain stream has, END with the checksum of all.
            out.begin(opening.header, opening.payload)
            journey = Journey(before, new, True, maxblkid, resume)
            writer.steps(plain_steps(plan(timeline, journey)) if new else ())
            out.end()


def _block(snapshot: OpenSnapshot, resume: tuple[int, int] | None) -> tuple[int, int] | None:
    """The whole block in which a stream goes on: a receiver may have got a part of a large one that was cut."""
    if resume is None:
        return None
    number, offset = resume
    size = snapshot.object(number).dnode.blksz
    return number, offset // size * size
