"""Compound streams as a sender could make them: an outer header that says what it likes, and substreams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from badkit import DATA, stamped, taken_apart

from zkeep.format.nvlist import NvList, NvType, Value
from zkeep.format.records import Begin, Feature, HeaderType, RecordType
from zkeep.format.writer import Writer


@dataclass
class Entry:
    """What an outer header says of one dataset."""

    name: str
    snaps: Mapping[str, int]
    props: Mapping[str, Value] = field(default_factory=dict)
    snapprops: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    holds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    origin: int = 0
    is_root: bool = False

    def nvlist(self) -> NvList:
        made = NvList()
        made.set("name", self.name)
        made.set("parentfromsnap", 0)
        if self.origin:
            made.set("origin", self.origin)
        made.set("props", _list(self.props))
        if self.is_root:
            made.set("is_encroot", True, NvType.BOOLEAN)
        made.set("snaps", _list(self.snaps))
        for name, found in (("snapprops", self.snapprops), ("snapholds", self.holds)):
            inner = NvList()
            for snapshot, values in found.items():
                inner.set(snapshot, _list(values))
            made.set(name, inner)
        return made


def _list(values: Mapping[str, Value]) -> NvList:
    made = NvList()
    for name, value in values.items():
        made.set(name, value)
    return made


def package(
    snapshot: str,
    entries: Sequence[Entry],
    substreams: Sequence[bytes] = (),
    *,
    fromsnap: str = "",
    holds: bool = False,
) -> bytes:
    """A replication stream of the snapshot's dataset; an increment with `fromsnap`."""
    outer = NvList()
    if fromsnap:
        outer.set("fromsnap", fromsnap)
    outer.set("tosnap", snapshot.rpartition("@")[2])
    outer.set("raw", True, NvType.BOOLEAN)
    fss = NvList()
    for number, entry in enumerate(entries, 1):
        fss.set(f"{number:#x}", entry.nvlist())
    outer.set("fss", fss)
    writer = Writer("little")
    features = int(Feature.HOLDS) if holds else 0
    begin = Begin(versioninfo=HeaderType.COMPOUND | features << 2, toname=snapshot.encode())
    return writer.package(begin, outer) + b"".join(substreams) + writer.package_end()


def plain() -> bytes:
    """A full stream that is not raw."""
    records = taken_apart((DATA / "streams" / "plain-blanc-2018.zfs").read_bytes())
    end = next(i for i, record in enumerate(records) if record.rtype == RecordType.END)
    return stamped(records[: end + 1])
