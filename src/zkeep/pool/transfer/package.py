"""The outer header of compound streams (-R, -I, -p), and their end.

Source: OpenZFS lib/libzfs/libzfs_sendrecv.c send_iterate_fs(), send_prelim_records(), send_conclusion_record().
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zkeep.format.checksum import fletcher4
from zkeep.format.nvlist import NvList, NvType, encode
from zkeep.format.records import Begin, End, Feature, HeaderType
from zkeep.names import DatasetName
from zkeep.pool.datasets import properties
from zkeep.pool.datasets.model import Bookmark, Dataset, Pool, Snapshot

Leg = tuple[Snapshot, Snapshot | Bookmark | None]
_OF_ENCRYPTION = frozenset(("encryption", "keyformat", "keylocation", "pbkdf2iters"))


@dataclass(frozen=True)
class Wrapping:
    """The content of a compound stream: the snapshot's full name, and for increments the short name of the source."""

    snapshot: str
    source: str | None
    replicate: bool
    props: bool
    holds: bool = False
    backup: bool = False
    "Send only received properties."
    newest_key: bool = False
    decrypted: bool = False
    "What is encrypted here leaves decrypted: the stream has no keys, and says nothing about encryption."
    names: Mapping[int, str] = field(default_factory=dict)
    "What datasets are called in the stream, by their ids, where that is not as here."

    def name_of(self, dataset: Dataset) -> str:
        return self.names.get(dataset.id, dataset.name.text)


def received_names(top: Dataset, datasets: Sequence[Dataset]) -> dict[int, str]:
    """The names of datasets, by their ids, as their senders gave them; all of them below the top's.

    Where names that came do not make the tree that is here (they came from several places, or something was moved
    since), what is below the top is called below the top's name as it is here.
    """
    # `here`: the tree as it is here, below the sender's name of the top. `came`: what the streams said.
    base = str(top.doc["received_name"] or top.name.text)
    here = {d.id: base + d.name.text[len(top.name.text) :] for d in (top, *datasets)}
    came = {d.id: str(d.doc["received_name"] or here[d.id]) for d in (top, *datasets)}
    ids = {d.name: d.id for d in (top, *datasets)}
    # The names that came make a tree if all differ, and each lies below that of the dataset's parent.
    fits = len(set(came.values())) == len(came) and all(
        came[d.id].rpartition("/")[0] == came[ids[d.name.parent]]
        if d.name.parent in ids
        else came[d.id].startswith(base + "/")
        for d in datasets
        if d.id != top.id
    )
    return came if fits else here


def outer_header(pool: Pool, request: Wrapping, legs: Sequence[Leg]) -> bytes:
    """BEGIN, nvlist and END that come before the substreams."""
    # | BEGIN: COMPOUND, features << 2, name of the top | nvlist | END: checksum of both |   substreams ... | END |
    payload = b""
    if request.replicate or request.props or request.holds or request.backup:
        payload = encode(_header_nvlist(pool, request, legs))
    dataset, _, snapshot = request.snapshot.partition("@")
    begin = Begin(
        payloadlen=len(payload),
        versioninfo=HeaderType.COMPOUND | int(Feature.HOLDS if request.holds else 0) << 2,
        toname=f"{request.name_of(pool.dataset(DatasetName.parse(dataset)))}@{snapshot}".encode(),
    )
    header = begin.pack("little")
    end = End(payloadlen=0, body_checksum=fletcher4(header + payload))
    return header + payload + end.pack("little")


def conclusion() -> bytes:
    """The END of the whole stream."""
    return End(payloadlen=0).pack("little")


def _header_nvlist(pool: Pool, request: Wrapping, legs: Sequence[Leg]) -> NvList:
    """The nvlist of the outer header: which datasets, with which snapshots and properties."""
    nvlist = NvList()
    # {fromsnap, tosnap, not_recursive, raw, fss: {GUID: {name, parentfromsnap, origin, props, snaps: {NAME: guid},
    # snapprops: {NAME: {...}}, snapholds: {NAME: {TAG: time}}, is_encroot}, ...}}
    if request.source is not None:
        nvlist.set("fromsnap", request.source)
    nvlist.set("tosnap", request.snapshot.rpartition("@")[2])
    if not request.replicate:
        nvlist.set("not_recursive", True, NvType.BOOLEAN)
    if not request.decrypted and any(Feature(snapshot.doc["features"]) & Feature.RAW for snapshot, _ in legs):
        nvlist.set("raw", True, NvType.BOOLEAN)
    # One entry for each dataset, under its guid, with all snapshots up to the youngest that is sent.
    fss = NvList()
    last: dict[int, Snapshot] = {}
    for snapshot, _ in legs:
        if snapshot.dataset.id not in last or snapshot.txg > last[snapshot.dataset.id].txg:
            last[snapshot.dataset.id] = snapshot
    for snapshot in last.values():
        fss.set(f"{snapshot.dataset.guid:#x}", _entry(pool, request, snapshot))
    nvlist.set("fss", fss)
    return nvlist


def _entry(pool: Pool, request: Wrapping, last: Snapshot) -> NvList:
    """The header's entry for a dataset of which `last` is the youngest snapshot to be sent."""
    # How a receiver finds its place: by its name, by a snapshot of its parent, by its origin.
    entry, dataset = NvList(), last.dataset
    entry.set("name", request.name_of(dataset))
    entry.set("parentfromsnap", _parent_guid(pool, request, dataset))
    origin = pool.snapshot_at(*dataset.origin) if dataset.origin else None
    if origin is not None:
        entry.set("origin", origin.guid)
    # An encryption root in the stream: by the wraps that came, or (newest_key) by those made here.
    root = dataset.has_own_key if request.newest_key else bool(dataset.doc.get("encroot"))
    is_root = bool(dataset.doc.get("crypt")) and root and not request.decrypted
    if request.replicate or request.props or request.backup:
        props = _props(dataset, request)
        # Without a keylocation libzfs's recv_fix_encryption_hierarchy() aborts at an encryption root.
        if is_root and props.get("keylocation", "none") == "none":
            props.set("keylocation", "prompt", NvType.STRING)
        entry.set("props", props)
    if is_root:
        entry.set("is_encroot", True, NvType.BOOLEAN)
    # A receiver destroys (-F), renames and holds snapshots by these lists.
    snapshots = [s for s in pool.snapshots(dataset) if s.txg <= last.txg]
    snaps, snapprops, snapholds = NvList(), NvList(), NvList()
    for snapshot in snapshots:
        name = snapshot.doc["name"]
        snaps.set(name, snapshot.guid, NvType.UINT64)
        snapprops.set(name, _props(snapshot, request))
        nvlist = NvList()
        for tag, when in snapshot.holds.items():
            nvlist.set(tag, when, NvType.UINT64)
        snapholds.set(name, nvlist)
    entry.set("snaps", snaps)
    entry.set("snapprops", snapprops)
    if request.holds:
        entry.set("snapholds", snapholds)
    return entry


def _parent_guid(pool: Pool, request: Wrapping, dataset: Dataset) -> int:
    """The guid of the parent's snapshot that the receiver finds the parent by; 0 for the top."""
    # A receiver finds the parent by the snapshot that both have: the source of an increment, or else the new one.
    top, _, tosnap = request.snapshot.partition("@")
    if dataset.name.text == top or dataset.name.parent is None:
        return 0
    name = request.source if request.source is not None else tosnap
    found = pool.find_snapshot(dataset.name.parent.snapshot(name))
    return found.guid if found else 0


def _props(thing: Dataset | Snapshot, request: Wrapping) -> NvList:
    """What was set, or received and is not hidden, as a real pool knows it; with -b all that was received."""
    nvlist = NvList()
    # Received values, and over them those that were set here; None hides a received one (zfs inherit).
    own = dict(thing.doc.get("received", {}))
    if not request.backup:
        own |= thing.doc.get("local", {})
    for name, text in own.items():
        prop = properties.find(name)
        if request.decrypted and name in _OF_ENCRYPTION:
            continue
        if text is not None and prop and not prop.is_own and properties.makes_sense(name, text):
            value = properties.to_stream(name, text)
            nvlist.set(name, value, NvType.UINT64 if isinstance(value, int) else NvType.STRING)
    return nvlist
