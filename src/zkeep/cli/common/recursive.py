"""The same snapshot of a dataset and of all datasets below it: the option -r."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zkeep.cli.common.terminal import say
from zkeep.errors import Damaged, NotAuthentic, Refused, ZkeepError
from zkeep.pool.datasets.head import current_state

if TYPE_CHECKING:
    from zkeep.pool.datasets.model import Dataset, Pool, Snapshot

SOME = 4
"How many datasets a message names."


@dataclass(frozen=True)
class SnapshotTree:
    """A snapshot, and what lies below its dataset, parents first."""

    top: Snapshot
    below: list[Snapshot]
    "Snapshots of the same name, below."
    lacking: list[Dataset]
    "Datasets that have no such snapshot."
    wanted: str
    "What these lack, for messages."
    datasets: list[Dataset]
    "Those of `top` and `below`. What a clone holds may still be its origin's snapshot."

    @classmethod
    def of(cls, pool: Pool, top: Snapshot) -> SnapshotTree:
        datasets = [d for d in pool.tree().within(top.dataset) if d.id != top.dataset.id]
        found = [(d, pool.find_snapshot(d.name.snapshot(top.doc["name"]))) for d in _in_order(datasets)]
        below, lacking = [s for _, s in found if s is not None], [d for d, s in found if s is None]
        return cls(top, below, lacking, f"@{top.doc['name']}", [s.dataset for s in (top, *below)])

    @classmethod
    def current(cls, pool: Pool, dataset: Dataset) -> SnapshotTree:
        """What each dataset holds now. Raises Refused: the topmost holds nothing."""
        top = current_state(pool, dataset)
        if top is None:
            raise Refused(f"{dataset.name}: it has no snapshot")
        datasets = [d for d in pool.tree().within(dataset) if d.id != dataset.id]
        found = [(d, current_state(pool, d)) for d in _in_order(datasets)]
        below, lacking = [(d, s) for d, s in found if s is not None], [d for d, s in found if s is None]
        return cls(top, [s for _, s in below], lacking, "snapshot", [dataset, *(d for d, _ in below)])

    def shown(self, recursive: bool) -> list[tuple[Dataset, Snapshot]]:
        """The snapshots, each with its dataset."""
        return list(zip(self.datasets, self.snapshots(True), strict=True))[: None if recursive else 1]

    def snapshots(self, recursive: bool) -> list[Snapshot]:
        return [self.top, *(self.below if recursive else [])]

    def say_left_out(self, recursive: bool, verb: str) -> None:
        """Say what is not included, once the rest was done."""
        if not recursive:
            say_left_out(str(self.top.name), self.datasets[1:], verb)
        elif self.lacking:
            say(f"{self.top.name}: not included, as there is no {self.wanted}: {_names(self.lacking)}")

    def place(self, dataset: Dataset) -> str:
        """The path of a dataset relative to the top one, where it would be mounted; empty for the top one."""
        return dataset.name.text[len(self.datasets[0].name.text) + 1 :]


def say_left_out(name: str, datasets: list[Dataset], verb: str) -> None:
    if datasets:
        say(f"{name}: not included: {_names(datasets)}; {verb} -r takes what lies below, too")


def _in_order(datasets: list[Dataset]) -> list[Dataset]:
    return sorted(datasets, key=lambda dataset: dataset.name.text.split("/"))


def _names(datasets: list[Dataset]) -> str:
    more = len(datasets) - SOME
    named = ", ".join(d.name.text for d in datasets[:SOME])
    return f"{named} and {more} more" if more > 0 else named


@dataclass
class Errors:
    """Collects the errors of some snapshots while the others go on."""

    found: list[ZkeepError] = field(default_factory=list)

    @contextmanager
    def spared(self) -> Iterator[None]:
        try:
            yield
        except (Damaged, NotAuthentic, Refused) as error:
            self.found.append(error)

    def conclude(self) -> None:
        """Print all errors but the worst, and raise that one."""
        if not self.found:
            return
        worst = max(self.found, key=lambda error: error.status)
        for error in self.found:
            if error is not worst:
                say(str(error))
        raise worst
