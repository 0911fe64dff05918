"""The space figures, as sums over what the catalog says of runs.

A run tells how many bytes of records it brought (`bytes`, `logical`) and, for each earlier segment, how many
of that segment's bytes it overwrote or freed (`dead`). A byte is born in the run whose segment holds it and
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

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

Document = Mapping[str, Any]
HEAD = (1 << 64) - 1
"Stands for the txg after all."


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes as stored, and before compression."""

    stored: int = 0
    logical: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.stored + other.stored, self.logical + other.logical)

    def __sub__(self, other: Amount) -> Amount:
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
    "By txg."

    @property
    def used(self) -> Amount:
        return self.by_dataset + self.by_snapshots + self.by_children


@dataclass(frozen=True, slots=True)
class Death:
    """Bytes born at txg `born` that the run `died` overwrote or freed; of an origin's if `foreign`."""

    born: int
    died: int
    amount: Amount
    foreign: bool


@dataclass(slots=True)
class History:
    """What one dataset's own runs did; `txgs` ascending, `births` beside them."""

    txgs: list[int]
    births: list[Amount]
    deaths: list[Death]
    base: Amount = NOTHING
    "What a clone referred to when it began."

    def referenced(self, txg: int) -> Amount:
        born = _total(b for t, b in zip(self.txgs, self.births, strict=True) if t <= txg)
        return self.base + born - _total(d.amount for d in self.deaths if d.died <= txg)

    def written(self, since: int, until: int = HEAD) -> Amount:
        """Bytes referred to at `until` and born after `since`."""
        born = _total(b for t, b in zip(self.txgs, self.births, strict=True) if since < t <= until)
        return born - _total(d.amount for d in self.deaths if since < d.born and d.died <= until)


def _total(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, NOTHING)


def history(runs: Sequence[Document], births: Mapping[str, int], base: Amount = NOTHING) -> History:
    """`runs`: the dataset's, by txg. `births`: the txg of each segment, those of origins included."""
    own = {segment for run in runs for segment in run["segments"]}
    deaths = [
        Death(births.get(segment, 0), run["txg"], Amount(*dead), segment not in own)
        for run in runs
        for segment, dead in run["dead"].items()
    ]
    return History([r["txg"] for r in runs], [Amount(r["bytes"], r["logical"]) for r in runs], deaths, base)


def figures(past: History, pins: Sequence[int]) -> DatasetSpace:
    """`pins`: the txgs of the snapshots, ascending. What lies below the dataset is not in it yet."""
    count = len(pins)
    born = [NOTHING] * (count + 1)  # by interval: (pin before, pin], the last one up to the head
    died = [NOTHING] * (count + 1)
    inside = [NOTHING] * (count + 1)
    unique = [NOTHING] * (count + 1)
    by_snapshots = foreign = NOTHING
    for txg, amount in zip(past.txgs, past.births, strict=True):
        at = bisect_left(pins, txg)
        born[at] = born[at] + amount
    for death in past.deaths:
        at = bisect_left(pins, death.died)
        died[at] = died[at] + death.amount
        if death.foreign:
            foreign = foreign + death.amount
            continue
        since = bisect_left(pins, death.born)
        if since == at:
            inside[at] = inside[at] + death.amount
            continue
        by_snapshots = by_snapshots + death.amount
        if since == at - 1:
            unique[since] = unique[since] + death.amount
    change = [b - d for b, d in zip(born, died, strict=True)]
    referenced = list(accumulate(change, initial=past.base))[1:]
    written = [b - i for b, i in zip(born, inside, strict=True)]
    return DatasetSpace(
        referenced=referenced[-1],
        by_dataset=referenced[-1] - past.base + foreign,
        by_snapshots=by_snapshots,
        written=written[-1],
        snapshots={txg: SnapshotSpace(referenced[i], unique[i], written[i]) for i, txg in enumerate(pins)},
    )


@dataclass(frozen=True, slots=True)
class Space:
    """The figures and histories of all datasets, by id."""

    datasets: dict[int, DatasetSpace]
    histories: dict[int, History]


def compute(
    datasets: Mapping[int, Document],
    runs: Mapping[int, Sequence[Document]],
    pins: Mapping[int, Sequence[int]],
) -> Space:
    """All datasets at once, from their documents, their runs and their snapshots' txgs, both ascending."""
    births: dict[str, int] = {}
    for own in runs.values():
        for run in own:
            births.update(dict.fromkeys(run["segments"], run["txg"]))
    histories: dict[int, History] = {}
    for dataset_id in datasets:
        _add_history(dataset_id, datasets, runs, births, histories)
    found = {i: figures(histories[i], pins.get(i, ())) for i in datasets}
    _add_children(datasets, found)
    return Space(found, histories)


def _add_history(
    dataset_id: int,
    datasets: Mapping[int, Document],
    runs: Mapping[int, Sequence[Document]],
    births: Mapping[str, int],
    histories: dict[int, History],
) -> None:
    """A clone's needs its origin's first: chains of clones are walked from their beginning."""
    chain = [dataset_id]
    while (origin := datasets[chain[-1]]["origin"]) and origin["dataset"] not in histories:
        chain.append(origin["dataset"])
    for current in reversed(chain):
        origin = datasets[current]["origin"]
        base = histories[origin["dataset"]].referenced(origin["txg"]) if origin else NOTHING
        histories[current] = history(runs.get(current, ()), births, base)


def _add_children(datasets: Mapping[int, Document], found: Mapping[int, DatasetSpace]) -> None:
    by_name = {str(doc["name"]): found[i] for i, doc in datasets.items()}
    deepest_first = sorted(by_name, key=lambda name: -name.count("/") if name else 1)
    for name in deepest_first:
        above = by_name.get(name.rpartition("/")[0])
        if name and above:
            above.by_children = above.by_children + by_name[name].used
