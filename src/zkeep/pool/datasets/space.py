"""The space figures, as sums over what the catalog says of runs.

A run tells how many bytes of records it brought (`bytes`, `logical`) and, for each earlier run by its txg,
how many of that run's bytes it overwrote or freed (`dead`). A byte is born in the run that brought it and
dies in the run that names it dead; from birth until death every snapshot refers to it, and so does the head,
if it never dies.

    referenced        bytes born and not dead at that point, those of a clone's origin included
    used (snapshot)   bytes that it alone refers to: born after the snapshot before, dead by the one after (or
                      the head). Destroying it frees just these, and they alone leave the dataset's `used`.
    written           bytes referred to and born after the snapshot before
    usedbysnapshots   bytes that some snapshot refers to and the head does not
    usedbydataset     bytes that the head refers to, a clone's origin's left out
    used (dataset)    usedbydataset + usedbysnapshots + usedbychildren

What died before any snapshot could refer to it counts nowhere: compaction gives it back.
`logical...` are the same sums over the sizes before compression. Pure: documents in, figures out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import accumulate
from typing import NamedTuple

from zkeep.errors import Damaged
from zkeep.names import MAX_UINT64
from zkeep.pool.types import ReadOnlyDoc

HEAD = MAX_UINT64
"Stands for a txg later than every other: the dataset itself, not a snapshot."


class Amount(NamedTuple):
    """Bytes as stored, and before compression."""

    stored: int = 0
    logical: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(self.stored + other.stored, self.logical + other.logical)

    def minus(self, other: Amount) -> Amount:
        return Amount(self.stored - other.stored, self.logical - other.logical)

    @property
    def ratio(self) -> int:
        """Compression in hundredths, at least 100: record headers are no compression."""
        return max(100, self.logical * 100 // self.stored) if self.stored else 100


NOTHING = Amount()


@dataclass(frozen=True, slots=True)
class SnapshotSpace:
    referenced: Amount
    used: Amount
    written: Amount


@dataclass(slots=True)
class DatasetSpace:
    referenced: Amount = NOTHING
    by_dataset: Amount = NOTHING
    by_snapshots: Amount = NOTHING
    by_children: Amount = NOTHING
    written: Amount = NOTHING
    snapshots: dict[int, SnapshotSpace] = field(default_factory=dict)
    "The figures of snapshots, by txg."

    @property
    def used(self) -> Amount:
        return _total((self.by_dataset, self.by_snapshots, self.by_children))


class Death(NamedTuple):
    """Bytes born at txg `born` that the run `died` overwrote or freed; of an origin's if `foreign`."""

    born: int
    died: int
    foreign: bool
    stored: int
    logical: int


@dataclass
class SpaceHistory:
    """What one dataset's own runs did; `txgs` ascending, `births` beside them, `deaths` by the txgs of `died`."""

    txgs: list[int]
    births: list[Amount]
    deaths: list[Death]
    base: Amount = NOTHING
    "What a clone referred to when it began."

    def referenced(self, txg: int) -> Amount:
        # All bytes born by then, less all that died by then; both are sums that are there already.
        births = self._born[bisect_right(self.txgs, txg)]
        return self.base.plus(births).minus(self._dead[bisect_right(self.deaths, txg, key=_died)])

    def written(self, since: int, until: int = HEAD) -> Amount:
        """Bytes referred to at `until` and born after `since`."""
        if until <= since:
            return NOTHING
        births = self._born[bisect_right(self.txgs, until)].minus(self._born[bisect_right(self.txgs, since)])
        # What was born after `since` died after it, too.
        first, end = (bisect_right(self.deaths, txg, key=_died) for txg in (since, until))
        return births.minus(_total(Amount(*d[3:]) for d in self.deaths[first:end] if since < d.born))

    @cached_property
    def _born(self) -> list[Amount]:
        """The sums of the first births: of none, of one, of two, ..."""
        return list(accumulate(self.births, Amount.plus, initial=NOTHING))

    @cached_property
    def _dead(self) -> list[Amount]:
        """The sums of the first deaths."""
        return list(accumulate((Amount(*d[3:]) for d in self.deaths), Amount.plus, initial=NOTHING))


def _died(death: Death) -> int:
    return death.died


def _total(amounts: Iterable[Amount]) -> Amount:
    return reduce(Amount.plus, amounts, NOTHING)


def history(runs: Sequence[ReadOnlyDoc], base: Amount = NOTHING) -> SpaceHistory:
    """`runs`: the dataset's own, by txg. What they killed of other runs was an origin's."""
    own = {run["txg"] for run in runs}
    deaths = [
        Death(int(born), run["txg"], int(born) not in own, stored, logical)
        for run in runs
        for born, (stored, logical) in run["dead"].items()
    ]
    return SpaceHistory([r["txg"] for r in runs], [Amount(r["bytes"], r["logical"]) for r in runs], deaths, base)


class _Layer(NamedTuple):
    """The figures of one dataset in one kind of bytes, by interval."""

    referenced: list[int]
    written: list[int]
    unique: list[int]
    by_dataset: int
    by_snapshots: int


def _layer(
    base: int, births: Iterable[tuple[int, int]], deaths: Iterable[tuple[int, int, bool, int]], count: int
) -> _Layer:
    """Interval i of `count` reaches from pin i-1 (exclusive) to pin i; the last one up to the head."""
    # What was born in an interval is referred to from then on, and written in it; what died is so no more.
    change = [0] * count
    written = [0] * count
    unique = [0] * count
    by_snapshots = foreign = 0
    for at, size in births:
        change[at] += size
        written[at] += size
    for born, died, is_foreign, size in deaths:
        change[died] -= size
        # A death within the interval of the birth leaves nothing behind. Else the snapshots between keep the bytes, and
        # if there is only one, it alone does. What an origin's runs brought is the origin's.
        if is_foreign:
            foreign += size
        elif born == died:
            written[died] -= size
        else:
            by_snapshots += size
            if born == died - 1:
                unique[born] += size
    referenced = list(accumulate(change, initial=base))[1:]
    return _Layer(referenced, written, unique, referenced[-1] - base + foreign, by_snapshots)


def figures(past: SpaceHistory, pins: Sequence[int]) -> DatasetSpace:
    """`pins`: the txgs of the snapshots, ascending. What lies below the dataset is not in it yet."""
    # Number the intervals between snapshots, and say for each birth and death in which one it lies:
    #
    # pins        |    10    |    20    |   head          births at 3, 12; the run at 12 killed 50 bytes of 3:
    # interval    0          1          2                 born in 0, died in 1: only the snapshot at 10 has them
    where = {txg: bisect_left(pins, txg) for txg in {*past.txgs, *(d.born for d in past.deaths)}}
    born = [(where[txg], amount) for txg, amount in zip(past.txgs, past.births, strict=True)]
    died = [(where[d.born], where[d.died], d.foreign) for d in past.deaths]
    count = len(pins) + 1
    stored, logical = (
        _layer(
            past.base[i],
            [(at, a[i]) for at, a in born],
            [(*w, d[3 + i]) for w, d in zip(died, past.deaths, strict=True)],
            count,
        )
        for i in (0, 1)
    )
    referenced, written, unique = (
        list(map(Amount, a, b)) for a, b in zip(stored[:3], logical[:3], strict=True)
    )
    return DatasetSpace(
        referenced=referenced[-1],
        by_dataset=Amount(stored.by_dataset, logical.by_dataset),
        by_snapshots=Amount(stored.by_snapshots, logical.by_snapshots),
        written=written[-1],
        snapshots=dict(zip(pins, map(SnapshotSpace, referenced, unique, written), strict=False)),
    )


@dataclass(frozen=True, slots=True)
class Space:
    """The figures and histories of all datasets, by id."""

    datasets: dict[int, DatasetSpace]
    histories: dict[int, SpaceHistory]


def compute(
    datasets: Mapping[int, ReadOnlyDoc],
    runs: Mapping[int, Sequence[ReadOnlyDoc]],
    pins: Mapping[int, Sequence[int]],
) -> Space:
    """Compute the figures of all datasets, from their documents, runs and snapshots' txgs (both ascending)."""
    histories: dict[int, SpaceHistory] = {}
    for dataset_id in datasets:
        _add_history(dataset_id, datasets, runs, histories)
    found = {i: figures(histories[i], pins.get(i, ())) for i in datasets}
    # From the deepest to the top: each adds what it uses to the dataset above it.
    by_name = {str(doc["name"]): found[i] for i, doc in datasets.items()}
    deepest_first = sorted(by_name, key=lambda name: -name.count("/") if name else 1)
    for name in deepest_first:
        above = by_name.get(name.rpartition("/")[0])
        if name and above:
            above.by_children = above.by_children.plus(by_name[name].used)
    return Space(found, histories)


def _add_history(
    dataset_id: int,
    datasets: Mapping[int, ReadOnlyDoc],
    runs: Mapping[int, Sequence[ReadOnlyDoc]],
    histories: dict[int, SpaceHistory],
) -> None:
    """Compute the history of a dataset, and first that of its origin: chains of clones begin with the oldest."""
    # Down to an origin whose history is known or to a dataset that is no clone, then back up.
    chain = {dataset_id: None}
    last = dataset_id
    while (origin := datasets[last]["origin"]) and origin["dataset"] not in histories:
        last = origin["dataset"]
        if last in chain or last not in datasets:
            raise Damaged(f"catalog: dataset {dataset_id}: its origin is not there, or is a clone of it")
        chain[last] = None
    for current in reversed(chain):
        origin = datasets[current]["origin"]
        base = histories[origin["dataset"]].referenced(origin["txg"]) if origin else NOTHING
        histories[current] = history(runs.get(current, ()), base)
