"""The types that view.py and derived.py share: what has properties, and the answer to a question for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from zkeep.pool.datasets.model import Bookmark, Dataset, DatasetTree, Pool, Snapshot
from zkeep.pool.datasets.properties import Property
from zkeep.pool.datasets.space import DatasetSpace

Thing = Dataset | Snapshot | Bookmark
Value = int | str | None
"A number, text, or None where the property has no value here (`-`)."
_TYPES = {"f": "filesystem", "v": "volume", "s": "snapshot", "b": "bookmark"}


@dataclass(frozen=True, slots=True)
class Answer:
    """`source`: `local`, `default`, `received`, `inherited from X` or `-`; `received`: the value that a stream had."""

    value: Value
    source: str = "-"
    received: str | None = None


NOTHING = Answer(None)


class Lookup(Protocol):
    """What derived properties are computed from; View is the implementation."""

    @property
    def pool(self) -> Pool: ...

    @property
    def tree(self) -> DatasetTree: ...

    @property
    def snapshots(self) -> Mapping[int, list[Snapshot]]: ...

    @property
    def loaded(self) -> set[int]: ...

    def figures(self, dataset: Dataset) -> DatasetSpace: ...

    def setting(self, thing: Thing, prop: Property) -> Answer: ...

    def available(self, dataset: Dataset) -> int: ...


def letter(thing: Thing) -> str:
    """The letter of its type in `Property.applies`."""
    if isinstance(thing, Dataset):
        return "v" if thing.is_volume else "f"
    return "s" if isinstance(thing, Snapshot) else "b"


def type_name(thing: Thing) -> str:
    return _TYPES[letter(thing)]


def head(thing: Thing) -> Dataset:
    """The dataset itself, or the one that a snapshot or bookmark belongs to."""
    return thing if isinstance(thing, Dataset) else thing.dataset
