"""Compares what a keeper of backups lists and returns with the source's own record of what it sent there.

All that is there is authentic, and yet may be another: an old snapshot under a new name, or the state of last month as
the newest. Only who sent it can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zkeep.backup.fetch import Listed
from zkeep.errors import NotAuthentic
from zkeep.format.nvlist import NvList
from zkeep.names import printable
from zkeep.pool.datasets import sent
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.sent import DESTINATION

_TRUST = "--trust-server takes it all the same"


@dataclass(frozen=True)
class Known:
    """A snapshot as the source knows it. `mac`: its portable MAC, empty if it is not known; `at`: when it was sent."""

    name: str
    guid: int
    mac: bytes
    at: int = 0
    is_later: bool = False
    "It is the newest here, and not noted: it arrived, and the word of that did not."


@dataclass
class Record:
    """What this machine knows of a dataset that is kept elsewhere. `complete`: it has noted all that it sent there."""

    known: dict[int, Known] = field(default_factory=dict)
    complete: bool = False

    @property
    def newest(self) -> Known | None:
        """The last that was sent."""
        return max((found for found in self.known.values() if found.at), key=lambda found: found.at, default=None)

    def add(self, pool: Pool, place: str, listed: Iterable[Listed]) -> None:
        """Add what a pool of this machine knows: of what was sent to a place, and of listed snapshots."""
        for dataset in pool.tree().by_name.values():
            noted = [found for found in sent.of_dataset(pool, dataset) if place in found.to]
            if noted or dataset.doc["local"].get(DESTINATION) == place:
                self.complete = True
            for found in noted:
                self.known[found.guid] = Known(found.name, found.guid, found.portable_mac, found.at)
        for snapshot in (s for one in listed for s in pool.snapshots_by_guid(one.guid)):
            if not is_same_place(pool, snapshot.dataset, place):
                continue
            mac = portable_mac(pool, snapshot)
            newest = pool.newest_snapshot(snapshot.dataset)
            is_later = newest is not None and newest.guid == snapshot.guid
            self.known.setdefault(
                snapshot.guid, Known(str(snapshot.doc["name"]), snapshot.guid, mac, is_later=is_later)
            )


def is_same_place(pool: Pool, dataset: Dataset, place: str) -> bool:
    """Whether a dataset's record concerns a place: not if it was sent elsewhere."""
    to = dataset.doc["local"].get(DESTINATION)
    return to is None or to == place


def portable_mac(pool: Pool, snapshot: Snapshot) -> bytes:
    """The portable MAC of an encrypted snapshot; empty if it is not encrypted."""
    doc = pool.catalog.get("begin", snapshot.key)
    crypt = Opening.from_doc(doc).crypt if doc is not None else None
    mac = crypt.get("portable_mac") if isinstance(crypt, NvList) else None
    return bytes(mac) if isinstance(mac, bytes | bytearray) else b""


def check_listing(record: Record, listed: Sequence[Listed], chosen: Listed, *, newest: bool) -> None:
    """Compare a listing with the record. `newest`: whether the newest snapshot was asked for.

    Raises:
        NotAuthentic: the chosen snapshot was never sent, or under another name; or newer ones are kept back.
    """
    known = record.known.get(chosen.guid)
    if known is None and record.complete:
        raise NotAuthentic(f"{_called(chosen)}: nothing like that was ever sent from here; {_TRUST}")
    if known is not None and known.name != chosen.name.name:
        was = f"it was sent from here as @{printable(known.name)}"
        raise NotAuthentic(f"{_called(chosen)}: it is another snapshot under that name: {was}; {_TRUST}")
    last = record.newest
    if newest and last is not None and last.guid != chosen.guid and not (known is not None and known.is_later):
        there = next((one for one in listed if one.guid == last.guid), None)
        which = f"@{printable(last.name)} (guid {last.guid:#x}), the last that was sent from here"
        why = f"{which}, is older there" if there else f"{which}, is not there any more"
        raise NotAuthentic(f"{_called(chosen)} is not the newest: {why}; {_TRUST}, and --snapshot names another")


def check_arrived(record: Record, pool: Pool, snapshot: Snapshot) -> None:
    """Compare the portable MAC of what came with that of what was sent. Raises NotAuthentic: they differ."""
    known = record.known.get(snapshot.guid)
    if known is not None and known.mac and known.mac != portable_mac(pool, snapshot):
        raise NotAuthentic(f"{snapshot.name}: it has the guid of what was sent from here, and is not that; {_TRUST}")


class AllSent:
    """All that pools of this machine noted of what they sent, wherever to: tells an old snapshot under a new name."""

    def __init__(self) -> None:
        self._by_guid: dict[int, list[sent.Sent]] = {}
        self._by_mac: dict[bytes, list[sent.Sent]] = {}

    def add(self, pool: Pool) -> None:
        for noted in sent.of_pool(pool):
            if noted.portable_mac:
                self._by_guid.setdefault(noted.guid, []).append(noted)
                self._by_mac.setdefault(noted.portable_mac, []).append(noted)

    def check(self, pool: Pool, snapshot: Snapshot, name: str) -> None:
        """Compare a snapshot with what was sent. `name`: as it is called where it is kept.

        One of which nothing was noted passes: it may come from elsewhere.

        Raises:
            NotAuthentic: it was sent under another name, or something else was sent as this one.
        """
        if sent.find(pool, snapshot.dataset, snapshot.guid):
            return  # the dataset that was sent, which may have another name for it by now
        # Nothing in a stream authenticates its guid and name; the portable MAC stands for all the rest.
        same = self._by_mac.get(portable_mac(pool, snapshot), [])
        if same and name.partition("@")[2] not in {noted.name for noted in same}:
            was = f"it was sent from here as @{printable(same[0].name)}"
            raise NotAuthentic(f"{name}: it is another snapshot under that name: {was}; {_TRUST}")
        if not same and snapshot.guid in self._by_guid:
            raise NotAuthentic(f"{name}: it has the guid of what was sent from here, and is not that; {_TRUST}")


def _called(chosen: Listed) -> str:
    return f"{chosen.name} (guid {chosen.guid:#x})"
