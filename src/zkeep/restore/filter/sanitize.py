"""Rebuild the outer header of a compound stream (send -R, -p, -I) from those of its parts that are known and harmless.

Nothing authenticates that header. Names, checked, and guids pass, and those properties that decide neither who may
read, run, mount or share anything, nor how safely it is stored.

Source: OpenZFS lib/libzfs/libzfs_sendrecv.c send_iterate_fs(), send_iterate_prop(), send_prelim_records(),
recv_fix_encryption_hierarchy().
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from zkeep.errors import BadStream, WrongUsage
from zkeep.format.events import Package
from zkeep.format.nvlist import NvList, NvType, is_uint64
from zkeep.format.records import Begin, Feature, HeaderType
from zkeep.format.writer import Writer
from zkeep.names import BadName, DatasetName, SnapshotName, shown
from zkeep.pool.datasets import properties
from zkeep.pool.transfer.package_header import PackageDataset, PackageHeader

HARMLESS = frozenset(("atime", "compression", "dnodesize", "logbias", "recordsize", "relatime"))
"Properties that pass without --allow."
ALL, HOLDS = "all", "holds"
_GUID = re.compile(r"0x[0-9a-f]{1,16}")


@dataclass(frozen=True)
class Allowed:
    """What --allow adds to the harmless properties: names of properties, `holds`, or `all`."""

    extra: frozenset[str] = frozenset()

    @classmethod
    def of(cls, names: Iterable[str]) -> Allowed:
        """Raises WrongUsage: there is no such property, or no stream can set it."""
        return cls(frozenset(name if name in (ALL, HOLDS) else _known(name) for name in names))

    def __contains__(self, name: object) -> bool:
        return ALL in self.extra or name in HARMLESS or name in self.extra


def _known(name: str) -> str:
    prop = properties.find(name)
    if prop is None or not prop.can_be_set or prop.is_own or prop.name == "keylocation":
        raise WrongUsage(f"--allow takes properties that a stream can set, holds, or all, not {shown(name)}")
    return prop.name


@dataclass
class SanitizedHeader:
    """The new header. `dropped`: pairs of a dataset or snapshot, and a property of it that does not pass."""

    header: Begin
    nvlist: NvList
    dropped: list[tuple[str, str]] = field(default_factory=list)

    def written(self, writer: Writer) -> bytes:
        return writer.package(self.header, self.nvlist)


def sanitize(package: Package, allowed: Allowed) -> SanitizedHeader:
    """Build the new header. Raises BadStream: a name or a shape in the old one is not what libzfs writes."""
    outline = PackageHeader.of(package)
    fss = package.nvlist.get("fss")
    if isinstance(fss, NvList) and len(fss) != len(outline.datasets):
        raise _bad(package, "its header names a dataset twice")
    _name(package, package.header.name.decode("utf-8", "replace"))
    return _Sanitizer(package, outline, allowed).made()


def _bad(package: Package, reason: str) -> BadStream:
    return BadStream(reason, package.offset, "BEGIN")


def _name(package: Package, text: str) -> SnapshotName:
    try:
        return SnapshotName.parse(text)
    except BadName as error:
        raise _bad(package, f"its header names {shown(text)}: {error.reason}") from None


class _Sanitizer:
    def __init__(self, package: Package, outline: PackageHeader, allowed: Allowed) -> None:
        self._package = package
        self._outline = outline
        self._allowed = allowed
        self._holds = HOLDS in allowed and bool(package.header.features & Feature.HOLDS)
        self._dropped: list[tuple[str, str]] = []

    def made(self) -> SanitizedHeader:
        old = self._package.header
        features = old.features & Feature.SA_SPILL | (Feature.HOLDS if self._holds else Feature(0))
        begin = Begin(versioninfo=HeaderType.COMPOUND | int(features) << 2, toname=old.name)
        return SanitizedHeader(begin, self._list(), self._dropped)

    def _list(self) -> NvList:
        # Everything is built again from what is known: an unknown field cannot pass by accident.
        old, new = self._package.nvlist, NvList()
        for name in ("fromsnap", "tosnap"):
            if isinstance(text := old.get(name), str):
                new.set(name, _name(self._package, f"{self._outline.top}@{text}").name)
        for name in ("not_recursive", "raw"):
            if name in old:
                new.set(name, True, NvType.BOOLEAN)
        if isinstance(fss := old.get("fss"), NvList):
            new.set("fss", self._datasets(fss))
        return new

    def _datasets(self, old: NvList) -> NvList:
        new, top = NvList(), DatasetName.parse(self._outline.top)
        for key, entry in old.items():
            # zfs receive finds datasets by these names and keys: none may lie outside of what was sent.
            outlined = self._outline.find(str(entry["name"])) if isinstance(entry, NvList) else None
            if not _GUID.fullmatch(key) or outlined is None:
                raise _bad(self._package, f"its header has a dataset of the guid {shown(key)}")
            if not DatasetName.parse(outlined.name).is_within(top):
                raise _bad(self._package, f"its header names {shown(outlined.name)}, which is not below {top}")
            new.set(key, self._dataset(outlined))
        return new

    def _dataset(self, outlined: PackageDataset) -> NvList:
        old, new = outlined.nvlist, NvList()
        new.set("name", outlined.name)
        for name in ("parentfromsnap", "origin"):
            if is_uint64(guid := old.get(name)):
                new.set(name, guid, NvType.UINT64)
        if outlined.has_properties or outlined.is_encroot:
            # zfs receive aborts where an encryption root has none; a path of the sender's choice is not passed on
            props = self._props(outlined.name, outlined.nvlist.get("props"))
            if outlined.is_encroot:
                props.set("keylocation", "prompt", NvType.STRING)
            new.set("props", props)
        if outlined.is_encroot:
            new.set("is_encroot", True, NvType.BOOLEAN)
        self._snapshots(outlined, new)
        return new

    def _snapshots(self, outlined: PackageDataset, new: NvList) -> None:
        snaps, props, holds = NvList(), NvList(), NvList()
        every = outlined.nvlist.get("snapprops")
        for name, guid in outlined.snaps.items():
            # The header is not authenticated: what the receiver will store from it is checked and built again.
            if not is_uint64(guid):
                raise _bad(self._package, f"its header gives {shown(name)} the guid {guid}")
            full = f"{outlined.name}@{name}"
            snaps.set(name, guid, NvType.UINT64)
            props.set(name, self._props(full, every.get(name) if isinstance(every, NvList) else None))
            # Properties and holds are passed on only as far as they were allowed.
            holds.set(name, self._held(full, outlined.holds(name)))
        new.set("snaps", snaps)
        new.set("snapprops", props)
        if self._holds:
            new.set("snapholds", holds)

    def _props(self, of: str, old: object) -> NvList:
        new = NvList()
        for name, held in old.items() if isinstance(old, NvList) else ():
            # A property is sent as its value, or as a list with the value and where it was set.
            value = held.get("value", "") if isinstance(held, NvList) else held
            text = properties.from_stream(name, value) if isinstance(value, int | str) else None
            if name == "keylocation" or name not in self._allowed or text is None:
                if (name, value) != ("keylocation", "prompt"):
                    self._dropped.append((of, name))
                continue
            made = properties.to_stream(name, text)
            new.set(name, made, NvType.UINT64 if isinstance(made, int) else NvType.STRING)
        return new

    def _held(self, of: str, holds: dict[str, int]) -> NvList:
        new = NvList()
        for tag, when in holds.items():
            if self._holds and is_uint64(when):
                new.set(tag, when, NvType.UINT64)
            else:
                self._dropped.append((of, f"the hold {shown(tag)}"))
        return new
