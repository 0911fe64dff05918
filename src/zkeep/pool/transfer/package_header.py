"""Read the outer header of a package (send -R, -I, -p), which describes its datasets.

Source: OpenZFS lib/libzfs/libzfs_sendrecv.c send_iterate_fs().
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from zkeep.errors import BadStream
from zkeep.format.events import Package
from zkeep.format.nvlist import NvList, is_uint64
from zkeep.format.records import Feature
from zkeep.names import BadName, DatasetName, SnapshotName, parse_tag, shown
from zkeep.pool.datasets import properties
from zkeep.pool.types import Doc


@dataclass(frozen=True)
class PackageDataset:
    """One dataset of the outer header."""

    name: str
    snaps: dict[str, int]
    "Guids by snapshot name."
    nvlist: NvList

    @property
    def is_encroot(self) -> bool:
        return "is_encroot" in self.nvlist

    @property
    def origin(self) -> int:
        """The guid of the snapshot that it is a clone of; 0 if it is none."""
        guid = self.nvlist.get("origin")
        return guid if is_uint64(guid) else 0

    @property
    def has_properties(self) -> bool:
        return "props" in self.nvlist

    @property
    def received(self) -> dict[str, str]:
        return _texts(self.nvlist.get("props"))

    def snapshot_fields(self, snapshot: str) -> Doc:
        """Received properties of one of its snapshots."""
        fields: Doc = {}
        # The header is the sender's: every value is looked at before its type is relied on.
        props = self.nvlist.get("snapprops")
        mine = props.get(snapshot) if isinstance(props, NvList) else None
        if isinstance(mine, NvList) and len(mine):
            fields["received"] = _texts(mine)
        return fields

    def holds(self, snapshot: str) -> dict[str, int]:
        """When each hold of one of its snapshots was set, by tag; invalid tags are left out."""
        holds = self.nvlist.get("snapholds")
        mine = holds.get(snapshot) if isinstance(holds, NvList) else None
        found = {}
        for tag, when in mine.items() if isinstance(mine, NvList) else ():
            with suppress(BadName):
                found[parse_tag(tag)] = when if is_uint64(when) else 0
        return found


def _texts(nvlist: object) -> dict[str, str]:
    """Properties as text; those that zkeep does not know are left out."""
    if not isinstance(nvlist, NvList):
        return {}
    found = {}
    for name, held in nvlist.items():
        # libzfs writes {name: value} for received properties and {name: {value, source}} for others.
        value = held.get("value", "") if isinstance(held, NvList) else held
        text = properties.from_stream(name, value) if isinstance(value, int | str) else None
        if text is not None:
            found[name] = text
    return found


@dataclass(frozen=True)
class PackageHeader:
    """The outer header, checked. `top`: the dataset that all others are below."""

    top: str
    fromsnap: str | None
    recursive: bool
    datasets: dict[str, PackageDataset]
    has_holds: bool = False
    is_package: bool = True
    "False: the stream is plain, and has no outer header (PLAIN)."

    @classmethod
    def of(cls, package: Package) -> PackageHeader:
        """Raises BadStream: a name or a shape in it is not what libzfs writes."""
        # Every name in it is checked here, once; guids and properties of unknown types are left out.
        nvlist = package.nvlist
        top = _name(package, package.header.name.decode("utf-8", "replace"))
        fss = nvlist.get("fss")
        datasets = {}
        for entry in fss.values() if isinstance(fss, NvList) else ():
            dataset = _dataset(package, entry)
            datasets[dataset.name] = dataset
        fromsnap = nvlist.get("fromsnap")
        recursive = bool(datasets) and "not_recursive" not in nvlist
        has_holds = bool(package.header.features & Feature.HOLDS)
        return cls(top, fromsnap if isinstance(fromsnap, str) else None, recursive, datasets, has_holds)

    @property
    def incremental(self) -> bool:
        return self.recursive and self.fromsnap is not None

    def find(self, name: str) -> PackageDataset | None:
        return self.datasets.get(name)

    @cached_property
    def by_guid(self) -> dict[int, tuple[PackageDataset, str]]:
        """Each snapshot's dataset and name."""
        return {guid: (d, name) for d in self.datasets.values() for name, guid in d.snaps.items()}


PLAIN = PackageHeader("", None, False, {}, is_package=False)


def _name(package: Package, text: str) -> str:
    """The dataset part of a name in the header."""
    try:
        return DatasetName.parse(text.partition("@")[0]).text
    except BadName as error:
        raise BadStream(f"its header names {shown(text)}: {error.reason}", package.offset, "BEGIN") from None


def _dataset(package: Package, entry: object) -> PackageDataset:
    if not isinstance(entry, NvList) or not isinstance(entry.get("name"), str):
        raise BadStream("its header has a dataset without a name", package.offset, "BEGIN")
    snaps = entry.get("snaps")
    pairs = snaps.items() if isinstance(snaps, NvList) else ()
    name = _name(package, str(entry["name"]))
    checked = {}
    for snap, guid in pairs:
        try:
            SnapshotName.parse(f"{name}@{snap}")
        except BadName as error:
            raise BadStream(f"its header names {shown(snap)}: {error.reason}", package.offset, "BEGIN") from None
        if is_uint64(guid):
            checked[snap] = guid
    return PackageDataset(name, checked, entry)
