"""Small snapshots of a package, all of which is here when a BEGIN is read: received in one transaction.

Nothing of them is registered, so that one costs one sync of its segment, and all that are received together one of the
journal. Nobody has to go on with a part of such a snapshot: it is sent again as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic

from zkeep.errors import BadStream, Refused, TryAgain, ZkeepError
from zkeep.format.events import Batch, Event, SubBegin, SubEnd
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.orphans import discard, reading
from zkeep.pool.datasets.summaries import sum_up
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.timeline.ingest import Files, Small, Tally
from zkeep.pool.transfer.admit import ReceivePlan, ReceiveTarget
from zkeep.pool.transfer.registration import Unregistered
from zkeep.pool.transfer.reserve import Charges, refuse_full_disk
from zkeep.pool.transfer.session import ReceiveSession, admitted, locked, open_writer

MOST = 64
"The most snapshots that one transaction makes."
MOST_BYTES = 4 << 20
"The most bytes of them; the last one may pass it."
LONG = 0.5
"Seconds after which a transaction takes no more of them: other processes wait for it."


@dataclass(frozen=True)
class Gathered:
    """A small substream of a package, all of which is in memory. `error`: what is wrong before its END."""

    event: SubBegin
    batches: list[Batch]
    end: SubEnd | None
    error: BadStream | None

    def events(self) -> Iterator[Batch | SubEnd]:
        """What came behind its BEGIN. Raises BadStream."""
        yield from self.batches
        if self.end is not None:
            yield self.end
        elif self.error is not None:
            raise self.error

    @property
    def size(self) -> int:
        """Bytes of its records."""
        return sum(len(batch.buffer) for batch in self.batches)


def gathered(begin: SubBegin, records: Iterator[Event] | Iterator[Batch | SubEnd]) -> Gathered:
    """All records of a small substream, and its END or what is wrong before it."""
    batches: list[Batch] = []
    try:
        for event in records:
            if isinstance(event, SubEnd):
                return Gathered(begin, batches, event, None)
            if isinstance(event, Batch):
                batches.append(event)
    except BadStream as error:
        return Gathered(begin, batches, None, error)
    raise AssertionError("the records of a substream end with its END")


def of_one_dataset(some: Iterable[Gathered]) -> list[Gathered]:
    """The first ones that are whole and of the same dataset."""
    found: list[Gathered] = []
    for one in some:
        name = one.event.begin.name.partition(b"@")[0]
        if one.end is None or (found and found[0].event.begin.name.partition(b"@")[0] != name):
            break
        found.append(one)
    return found


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
        files: Files | None = None,
    ) -> None:
        """`locks`: of the dataset; they are the session's from now on. `files`: where its file is left, if others are
        made with it, which are written all at once."""
        alone = files is None
        size = sum(len(batch.buffer) for batch in batches)
        registration = Unregistered(pool, plan, target, charges, size, alone=alone)
        work = locks.enter_context(ExitStack())
        if batches and alone:
            work.enter_context(reading(pool))  # until the end, so that its file is not taken for an orphan
        super().__init__(pool, plan, target, charges, registration, None, work, locks.pop_all())
        self._batches = batches
        self._files: Files = [] if files is None else files
        self._alone = alone
        self.segments: list[str] = []
        "What it wrote, or is going to."

    def _write_now(self, tally: Tally) -> Tally:
        if not self._batches:
            return tally
        small = Small(self._pool.runs.living, self._files)
        writer = open_writer(self._pool, self._plan, self._target, self._registration, None, self._work, small=small)
        for batch in self._batches:
            writer.add(batch)
        tally = writer.finish()
        if self._alone:
            self._pool.store.put_all(self._files)
        self.segments = tally.segments
        return tally

    def make_in(self, t: Transaction) -> tuple[Snapshot, list[str]]:
        """Make the snapshot in a transaction that makes others, too, and count it as if that were committed."""
        with self._locks:
            snapshot, dropped = self._make(t, Tally())
            self._charge(snapshot)
            return snapshot, dropped


def receive_at_once(pool: Pool, one: Gathered, target: ReceiveTarget, charges: Charges) -> bool:
    """Receive a snapshot, all of whose records are here, in one transaction.

    False: it cannot be received so, and nothing was changed; open_session() goes another way, or says why not.
    """
    if one.end is None:
        return False
    with ExitStack() as locks:
        try:
            dataset = locked(pool, target, locks)
            with pool.catalog.reading():
                target, state, _, plan = admitted(pool, one.event, target, dataset)
            refuse_full_disk(pool, target.name)
            if state is not None:
                return False
            if one.batches:
                charges.allot()
            session = _SessionAtOnce(pool, plan, target, charges, one.batches, locks)
        except (ZkeepError, OSError):
            return False
    try:
        with session:
            session.commit(one.end)
        return True
    except TryAgain:
        raise  # also where nobody knows whether it was made
    except (Refused, OSError):
        # The transaction was undone, so no document names what was written.
        discard(pool, session.segments)
        return False


class _Together:
    """Several snapshots of one dataset, received in one transaction."""

    def __init__(self, pool: Pool, charges: Charges, target_of: Callable[[Gathered], ReceiveTarget | None]) -> None:
        self._pool = pool
        self._charges = charges
        self._target_of = target_of
        self._files: Files = []
        self._segments: list[str] = []
        "What was written."

    def receive(self, some: Sequence[Gathered]) -> list[Snapshot]:
        with ExitStack() as locks:
            # 1. The dataset is locked, and txgs are allotted: what is written has names that nothing else gets.
            try:
                with self._pool.catalog.reading():
                    target = self._target_of(some[0])
                if target is None or locked(self._pool, target, locks) is None:
                    return []
                refuse_full_disk(self._pool, target.name)
                if any(one.batches for one in some):
                    self._charges.allot(len(some))
                locks.enter_context(reading(self._pool))
            except (ZkeepError, OSError):
                return []
            # 2. All or none of them.
            try:
                made, dropped = self._make(some)
            except TryAgain:
                raise  # also where nobody knows whether they were made
            except (ZkeepError, OSError):
                made, dropped = [], []
                self._charges.forget()
        if not made:
            # The transaction was undone, so no document names what was written.
            discard(self._pool, self._segments)
            return []
        # 3. What follows a commit.
        with self._pool.afterwards(f"{made[-1].name} is received"):
            self._charges.committed()
            discard(self._pool, dropped)
            sum_up(self._pool, made[-1].dataset, len(made))
        return made

    def _make(self, some: Sequence[Gathered]) -> tuple[list[Snapshot], list[str]]:
        """Make as many as do not take long. Raises Refused: one of them has to go another way."""
        made: list[Snapshot] = []
        dropped: list[str] = []
        segments: list[str] = []
        began = monotonic()
        with self._pool.transaction() as t:
            for one in some:
                if made and monotonic() - began > LONG:
                    break
                target = self._target_of(one)
                if target is None:
                    raise Refused("it goes another way")
                target, state, _, plan = admitted(self._pool, one.event, target, self._pool.find(target.name))
                if state is not None or plan.dataset is None:
                    raise Refused("it goes another way")
                session = _SessionAtOnce(
                    self._pool, plan, target, self._charges, one.batches, ExitStack(), self._files
                )
                snapshot, gone = session.make_in(t)
                segments += session.segments
                made.append(snapshot)
                dropped += gone
            if self._files:
                self._charges.allot_in(t, len(made))
            # All were found to have room. They are durable before the transaction is, which names them.
            self._pool.store.put_all(self._files)
            self._segments = segments
        return made, dropped


def receive_together(
    pool: Pool, some: Sequence[Gathered], charges: Charges, target_of: Callable[[Gathered], ReceiveTarget | None]
) -> list[Snapshot]:
    """Receive the first of some snapshots of one dataset in one transaction.

    `target_of` is asked for each when those before it are made; None: that one goes another way.

    None of them: they cannot be received so, and nothing was changed. receive_at_once() takes them one by one.
    """
    return _Together(pool, charges, target_of).receive(some)
