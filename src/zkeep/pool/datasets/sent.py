"""The source's own record of what it sent: the guid and the portable MAC of each snapshot, and where it went.

A destination has neither key nor reason to be trusted. It can return an old snapshot under a new name; all of it is
authentic. This record, which the source keeps when the snapshots themselves are long gone here, tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from zkeep.clock import seconds_now
from zkeep.format.nvlist import NvList
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.types import Doc

SENT = "sent"
"The kind of the documents, under DATASET/GUID."
DESTINATION = "zkeep:backup-destination"
"User property of the dataset of a backup: where it is sent, as it is named to `zkeep backup`."
ELSEWHERE = ("ssh://", "zfs:")
"How a destination begins that is not a dataset of zkeep on this machine."


@dataclass(frozen=True)
class Sent:
    """A snapshot that a destination had, after it was sent there. `name`: as the destination was given it."""

    guid: int
    name: str
    portable_mac: bytes
    ivset_guid: int
    at: int
    "Of two snapshots of a dataset, the one that was sent later has the greater number."
    to: tuple[str, ...]
    "The destinations, as they are named to `zkeep backup`."
    noted_at: int
    "When it was noted, in seconds, by the clock that there was."


def note(pool: Pool, t: Transaction, snapshot: Snapshot, to: str) -> None:
    """Add a destination to the record of a snapshot."""
    key = _key(snapshot.dataset, snapshot.guid)
    # Later than all that was noted before: two backups may end within a second, and a clock may have been ahead.
    last = max((int(doc["at"]) for _, doc in t.scan(SENT, snapshot.dataset.key + "/")), default=0)
    now = seconds_now()
    order = max(now, last + 1)
    before: Doc = t.get(SENT, key) or {"to": [], "at": order, **({"noted_at": now} if order != now else {})}
    if to in before["to"]:
        return
    # The portable MAC covers the contents and says nothing of the key's wrap: it is the same wherever the snapshot
    # is.
    begin = pool.catalog.get("begin", snapshot.key)
    crypt = Opening.from_doc(begin).crypt if begin is not None else None
    mac = crypt.get("portable_mac") if isinstance(crypt, NvList) else None
    doc = {
        "guid": snapshot.guid,
        "name": str(snapshot.doc["name"]),
        "portable_mac": bytes(mac).hex() if isinstance(mac, bytes | bytearray) else "",
        "ivset_guid": int(snapshot.doc["ivset_guid"]),
    }
    t.put(SENT, key, {**before, **doc, "to": [*before["to"], to]})


def find(pool: Pool, dataset: Dataset, guid: int) -> Sent | None:
    """The record of one snapshot of a dataset."""
    doc = pool.catalog.get(SENT, _key(dataset, guid))
    return _sent(doc) if doc is not None else None


def of_dataset(pool: Pool, dataset: Dataset) -> list[Sent]:
    """All that was sent of a dataset, in the order in which it was noted."""
    found = [_sent(doc) for _, doc in pool.catalog.scan(SENT, dataset.key + "/")]
    return sorted(found, key=lambda sent: sent.at)


def destination(dataset: Dataset) -> str | None:
    """Where the backups of a dataset are sent; None if they stay here, or if it is none of a backup."""
    to = str(dataset.doc["local"].get(DESTINATION, ""))
    return to if to.startswith(ELSEWHERE) else None


def last_arrived(pool: Pool, dataset: Dataset, to: str) -> Sent | None:
    """The record of the snapshot that a destination got last."""
    return next((sent for sent in reversed(of_dataset(pool, dataset)) if to in sent.to), None)


def of_pool(pool: Pool) -> list[Sent]:
    """All that was ever sent of all datasets of a pool, also of destroyed ones."""
    return [_sent(doc) for _, doc in pool.catalog.scan(SENT)]


def _key(dataset: Dataset, guid: int) -> str:
    return f"{dataset.key}/{guid:020d}"


def _sent(doc: Doc) -> Sent:
    mac = bytes.fromhex(doc["portable_mac"])
    noted_at: int = doc["noted_at"] if "noted_at" in doc else doc["at"]
    return Sent(doc["guid"], doc["name"], mac, doc["ivset_guid"], doc["at"], tuple(doc["to"]), noted_at)
