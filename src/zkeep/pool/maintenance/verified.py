"""When the snapshots of a dataset were last verified with the key, and which were not authentic: for `zkeep health`.

Who verifies has the key; what is noted here has none. A pool that cannot be written to does without.
"""

from __future__ import annotations

from contextlib import suppress

from zkeep.errors import ZkeepError
from zkeep.pool.datasets.model import VERIFY, Dataset, Pool, Snapshot
from zkeep.pool.types import Doc

MOST_FAILED = 100
"Snapshots that a note names: one is enough to be told."


def note(pool: Pool, snapshot: Snapshot, now: int, *, authentic: bool) -> None:
    """Note the outcome of one verification."""
    if pool.catalog.read_only:
        return
    with suppress(ZkeepError, OSError), pool.transaction() as t:
        key = snapshot.dataset.key
        if t.get("dataset", key) is None:
            return  # destroyed meanwhile: nobody would remove the note
        failed = [guid for guid in (t.get(VERIFY, key) or {}).get("failed", []) if guid != snapshot.guid]
        if not authentic:
            failed = [*failed[-MOST_FAILED + 1 :], snapshot.guid]
        t.put(VERIFY, key, {"at": now, "snapshot": snapshot.guid, "failed": failed})


def last(pool: Pool, dataset: Dataset) -> tuple[int | None, list[str]]:
    """When anything in the dataset was last verified, and the snapshots, still there, that were not authentic."""
    doc: Doc = pool.catalog.get(VERIFY, dataset.key) or {}
    bad = [s for guid in doc.get("failed", []) for s in pool.snapshots_by_guid(guid, dataset)]
    return doc.get("at"), [snapshot.doc["name"] for snapshot in bad]
