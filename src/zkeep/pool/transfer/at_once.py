"""A small snapshot of a package, all of which is here when its BEGIN is read: received in one transaction.

Nothing of it is registered, so that it costs one sync of its segment and one of the journal. Nobody has to go on with a
part of it: it is sent again as a whole.
"""

from __future__ import annotations

from contextlib import ExitStack

from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.format.events import Batch, SubBegin, SubEnd
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.orphans import discard, reading
from zkeep.pool.timeline.ingest import Tally
from zkeep.pool.transfer.admit import ReceivePlan, ReceiveTarget
from zkeep.pool.transfer.registration import Unregistered
from zkeep.pool.transfer.reserve import Charges, refuse_full_disk
from zkeep.pool.transfer.session import ReceiveSession, admitted, locked, open_writer


class _SessionAtOnce(ReceiveSession):
    """A receive that writes its records when its transaction has found that there is room for them."""

    def __init__(
        self,
        pool: Pool,
        plan: ReceivePlan,
        target: ReceiveTarget,
        charges: Charges,
        batches: list[Batch],
        locks: ExitStack,
    ) -> None:
        """`locks`: of the dataset; they are the session's from now on."""
        size = sum(len(batch.buffer) for batch in batches)
        registration = Unregistered(pool, plan, target, charges, size)
        work = locks.enter_context(ExitStack())
        if batches:
            work.enter_context(reading(pool))  # until the end, so that its file is not taken for an orphan
        super().__init__(pool, plan, target, charges, registration, None, work, locks.pop_all())
        self._batches = batches
        self.segments: list[str] = []
        "What it wrote."

    def _write_now(self, tally: Tally) -> Tally:
        if not self._batches:
            return tally
        writer = open_writer(self._pool, self._plan, self._target, self._registration, None, self._work, at_once=True)
        self.segments = writer.tally.segments
        for batch in self._batches:
            writer.add(batch)
        return writer.finish()


def receive_at_once(
    pool: Pool, event: SubBegin, target: ReceiveTarget, batches: list[Batch], end: SubEnd, charges: Charges
) -> bool:
    """Receive a snapshot, all of whose records are here, in one transaction.

    False: it cannot be received so, and nothing was changed; open_session() goes another way, or says why not.
    """
    with ExitStack() as locks:
        try:
            dataset = locked(pool, target, locks)
            with pool.catalog.reading():
                target, state, _, plan = admitted(pool, event, target, dataset)
            refuse_full_disk(pool, target.name)
            if state is not None:
                return False
            if batches:
                charges.allot()
            session = _SessionAtOnce(pool, plan, target, charges, batches, locks)
        except (ZkeepError, OSError):
            return False
    try:
        with session:
            session.commit(end)
        return True
    except TryAgain:
        raise  # also where nobody knows whether it was made
    except (Refused, OSError):
        # The transaction was undone, so no document names what was written.
        discard(pool, session.segments)
        return False
