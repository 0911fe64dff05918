"""Receives and snapshots that were refused for lack of room, until one into the same dataset is done: for `health`.

A disk, or a quota, that was too small for what came may be far from full again as soon as that was refused, and the
backup is missing all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from zkeep.clock import seconds_now
from zkeep.errors import Refused, ZkeepError
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import NO_ROOM, Dataset, Pool
from zkeep.pool.store.disk import FULL
from zkeep.pool.types import Doc

MOST_NAMES = 20
"Datasets that did not exist yet, for which a dataset above them keeps a note."
LONG = 30 * 86400
"Seconds after which a dataset that still does not exist is not asked for any more."


class QuotaExceeded(Refused):
    """A quota of the dataset, or of one above it, has no room for what is received."""


@contextmanager
def noting_no_room(pool: Pool, name: DatasetName, *, dry_run: bool) -> Iterator[None]:
    """Note it if what is received into a dataset fails for lack of room."""
    try:
        yield
    except (QuotaExceeded, OSError) as error:
        note_no_room(pool, name, error, dry_run=dry_run)
        raise


def note_no_room(pool: Pool, name: DatasetName, error: BaseException | None, *, dry_run: bool) -> None:
    """Note an error if it is one of lacking room, once what was written is given up.

    A disk on which not even that can be written is full, which is seen without it.
    """
    is_full = isinstance(error, OSError) and error.errno in FULL
    if dry_run or not (is_full or isinstance(error, QuotaExceeded)):
        return
    with suppress(ZkeepError, OSError), pool.transaction() as t:
        above: DatasetName | None = name
        while above is not None and pool.find(above) is None:
            above = above.parent
        if above is None:
            return
        dataset = pool.dataset(above)
        below = name.text[len(dataset.name.text) + 1 :]
        names = (t.get(NO_ROOM, dataset.key) or {}).get("names", {})
        # What comes later has a higher txg, whatever clocks say.
        names = {**{old: value for old, value in names.items() if old != below}, below: [seconds_now(), t.next_txg()]}
        t.put(NO_ROOM, dataset.key, {"names": dict(list(names.items())[-MOST_NAMES:])})


def lacking(pool: Pool, dataset: Dataset, now: int) -> Iterator[tuple[DatasetName, int]]:
    """The datasets, this one or some that were to be made below it, that lack what was refused last, and when it was"""
    doc: Doc = pool.catalog.get(NO_ROOM, dataset.key) or {}
    for below, (at, txg) in doc.get("names", {}).items():
        name = dataset.name.child(below) if below else dataset.name
        found = pool.find(name)
        newest = pool.newest_snapshot(found) if found is not None else None
        if newest is not None and newest.txg > txg:
            continue
        if found is not None or now - at <= LONG:
            yield name, at
