"""Which datasets, snapshots and bookmarks a list or get is about, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from zkeep.agent.client import roots
from zkeep.cli.common.pools import Name, dataset_of, opened, parse, registry
from zkeep.cli.common.terminal import say
from zkeep.errors import WrongUsage, ZkeepError
from zkeep.names import BookmarkName, DatasetName, SnapshotName, shown
from zkeep.pool.datasets.answers import Thing, letter
from zkeep.pool.datasets.model import Bookmark, Dataset, NotThere, Snapshot
from zkeep.pool.datasets.view import View

_TYPES = {
    "filesystem": "f",
    "fs": "f",
    "volume": "v",
    "vol": "v",
    "snapshot": "s",
    "snap": "s",
    "bookmark": "b",
    "all": "fvsb",
}


@dataclass(frozen=True, slots=True)
class Item:
    """A thing and the view that answers for it."""

    view: View
    thing: Thing


def parse_types(texts: Sequence[str]) -> str | None:
    """Letters as in Property.applies; None where no type was asked for."""
    letters = ""
    for word in (word for text in texts for word in text.split(",")):
        if word not in _TYPES:
            raise WrongUsage(f"invalid type {shown(word)}: must be filesystem, volume, snapshot, bookmark or all")
        letters += _TYPES[word]
    return letters or None


@dataclass(frozen=True, slots=True)
class Selection:
    """The arguments of list and get. `types` filters what recursion reaches; what is named is always shown."""

    names: Sequence[str]
    types: str
    depth: int | None = 0
    "Levels below what is named; a dataset's snapshots and bookmarks are one level below it. None: all."

    def items(self) -> list[Item]:
        found: dict[str, Item] = {}
        for view, thing in self._found():
            found.setdefault(str(thing.name), Item(view, thing))
        return sorted(found.values(), key=lambda item: default_order(item.thing))

    def _found(self) -> Iterator[tuple[View, Thing]]:
        views: dict[str, View] = {}
        # A name that is not there is reported, and the others are listed all the same.
        for name in parse(self.names) or _all_pools(views):
            pool = dataset_of(name).pool
            try:
                if pool not in views:
                    views[pool] = _view(pool)
                things = list(self._below(views[pool], name))
            except NotThere as error:
                _missing(error)
                continue
            for thing in things:
                yield views[pool], thing

    def _below(self, view: View, name: Name) -> Iterator[Thing]:
        first = named(view, name)
        if not isinstance(first, Dataset):
            yield first
            return
        for dataset in view.within(first, self.depth):
            if letter(dataset) in self.types:
                yield dataset
            # Snapshots and bookmarks count as one level below their dataset.
            level = dataset.name.depth - first.name.depth + 1
            if not view.pool.sees(dataset.name) or (self.depth is not None and level > self.depth):
                continue
            if "s" in self.types:
                yield from view.snapshots[dataset.id]
            if "b" in self.types:
                yield from view.pool.bookmarks(dataset)


def _missing(error: ZkeepError) -> None:
    """Print the error, go on with the others, and end with its status."""
    say(str(error))
    click.get_current_context().find_root().meta["status"] = error.status


def _all_pools(views: dict[str, View]) -> list[Name]:
    """The pools that can be opened; others are reported."""
    for name in registry().pools():
        try:
            views[name] = _view(name)
        except ZkeepError as error:
            _missing(error)
    return [DatasetName(name) for name in views]


def _view(pool: str) -> View:
    """Open the view of a pool: it shows one moment, and stays open until the verb has ended."""
    context = click.get_current_context()
    found = context.with_resource(opened(pool))
    context.with_resource(found.catalog.reading())
    return View(found, set if found.scope else lambda: roots(found.doc["guid"]))


def named(view: View, name: Name) -> Thing:
    if isinstance(name, SnapshotName):
        return view.pool.snapshot(name)
    if isinstance(name, BookmarkName):
        return view.pool.bookmark(name)
    above = view.tree.find(name) if view.pool.is_above_scope(name) else None
    return above or view.pool.dataset(name)


def default_order(thing: Thing) -> tuple[str, int, int, str]:
    """Sort by name; a dataset's snapshots follow it, oldest first, as in zfs list."""
    if isinstance(thing, Snapshot):
        return thing.dataset.name.text, 1, thing.doc["createtxg"], thing.doc["name"]
    text = str(thing.name) if isinstance(thing, Bookmark) else thing.name.text
    return text, 0, 0, ""


def depth_of(recursive: bool, depth: int | None) -> int | None:
    """The depth to list: -d wins over -r; without both, only what is named."""
    if depth is not None:
        return depth
    return None if recursive else 0
