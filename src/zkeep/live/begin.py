"""How a mount begins: which datasets can be written to, and what one holds that nothing was written to yet."""

from __future__ import annotations

import os

from zkeep.errors import Refused
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Dataset, Snapshot
from zkeep.snapshot.changes import ObjectChange
from zkeep.snapshot.new_filesystem import empty_root, fixed_objects
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.writer import SnapshotWriter


def write_empty(writer: SnapshotWriter, base: OpenSnapshot | None) -> None:
    """Write a filesystem without files; its root folder is the user's."""
    changes: list[ObjectChange] = [*fixed_objects(), empty_root(os.getuid(), os.getgid())]
    for change in sorted(changes, key=lambda change: change.number):
        writer.write(change)


def refuse_unwritable(dataset: Dataset, state: Snapshot | None) -> None:
    """Refuse a dataset that cannot be written to here. `state`: what it holds.

    Raises:
        Refused: with the reason.
    """
    where = f"cannot mount '{dataset.name}' read-write"
    if dataset.is_volume:
        raise Refused(f"{where}: it is a volume")
    if state is not None and not state.is_made_here:
        raise Refused(f"{where}: {state.name} was received: mount it with -o ro")
    if state is not None and state.doc.get(STEP):
        raise Refused(
            f"{where}: {state.name} is what an interrupted 'zkeep snapshot --from' left; run that again, or destroy it"
        )
