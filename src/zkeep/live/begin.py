"""How a mount begins: which datasets can be written to, and what one holds that nothing was written to yet."""

from __future__ import annotations

import os

from zkeep.errors import Refused
from zkeep.format.folding import Naming
from zkeep.format.zap_layout import BadZap
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Dataset, Snapshot
from zkeep.snapshot.changes import ObjectChange
from zkeep.snapshot.new_filesystem import empty_root, fixed_objects
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.writer import SnapshotWriter
from zkeep.tree.filesystem import Filesystem


def write_empty(naming: Naming, writer: SnapshotWriter, base: OpenSnapshot | None) -> None:
    """Write a filesystem without files; its root folder is the user's."""
    changes: list[ObjectChange] = [*fixed_objects(naming), empty_root(os.getuid(), os.getgid(), naming)]
    for change in sorted(changes, key=lambda change: change.number):
        writer.write(change)


def queued(tree: Filesystem, where: str) -> set[int]:
    """What the delete queue has: files without a name that were open when it was written.

    Raises:
        Refused: it cannot be read; `where` is what the error begins with.
    """
    number = tree.master["DELETE_QUEUE"]
    try:
        return {value for _, value in tree.zap(number).numbers()}
    except BadZap as error:
        raise Refused(f"{where}: object {number}: {error}") from None


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
