"""The outer header of compound streams (-R, -I, -p), and their end.

Source: OpenZFS lib/libzfs/libzfs_sendrecv.c send_iterate_fs(), send_prelim_records(), send_conclusion_record().
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zkeep.format.fletcher import fletcher4
from zkeep.format.nvlist import NvList, NvType, encode
from zkeep.format.records import Begin, End, Feature, HeaderType
from zkeep.pool.datasets import properties
from zkeep.pool.datasets.model import Bookmark, Dataset, Pool, Snapshot

Leg = tuple[Snapshot, Snapshot | Bookmark | None]
NOT_SENT = ("blind", "receive_resume_token")
"""Properties that mean nothing to a real pool."""


@dataclass(frozen=True)
class Wrapping:
    """What a compound stream is of: the snapshot's full name, and for increments the short name of the source."""

    snapshot: str
    source: str | None
    replicate: bool
    props: bool


def outer_header(pool: Pool, request: Wrapping, legs: Sequence[Leg]) -> bytes:
    """BEGIN, nvlist and END that come before the substreams."""
    payload = b""
    if request.replicate or request.props:
        payload = encode(_outline(pool, request, legs))
    begin = Begin(
        payloadlen=len(payload),
        versioninfo=HeaderType.COMPOUND,
        toname=request.snapshot.encode(),
    )
    header = begin.pack("little")
    end = End(payloadlen=0, body_checksum=fletcher4(header + payload))
    return header + payload + end.pack("little")


def conclusion() -> bytes:
    """The END of the whole stream."""
    return End(payloadlen=0).pack("little")


def _outline(pool: Pool, request: Wrapping, legs: Sequence[Leg]) -> NvList:
    """The nvlist of the outer header: which datasets, with which snapshots and properties."""
    nvlist = NvList()
    if request.source is not None:
        nvlist.set("fromsnap", request.source)
    nvlist.set("tosnap", request.snapshot.rpartition("@")[2])
    if not request.replicate:
        nvlist.set("not_recursive", True, NvType.BOOLEAN)
    if any(Feature(snapshot.doc["features"]) & Feature.RAW for snapshot, _ in legs):
        nvlist.set("raw", True, NvType.BOOLEAN)
    fss = NvList()
    datasets = {snapshot.dataset.id: snapshot.dataset for snapshot, _ in legs}
    for dataset in datasets.values():
        fss.set(f"{dataset.guid:#x}", _entry(pool, request, dataset, legs))
    nvlist.set("fss", fss)
    return nvlist


def _entry(pool: Pool, request: Wrapping, dataset: Dataset, legs: Sequence[Leg]) -> NvList:
    entry = NvList()
    entry.set("name", dataset.name.text)
    entry.set("parentfromsnap", _parent_guid(pool, request, dataset))
    origin = pool.snapshot_at(*dataset.origin) if dataset.origin else None
    if origin is not None:
        entry.set("origin", origin.guid)
    entry.set("props", props := _props(dataset))
    if dataset.doc.get("crypt") and dataset.doc.get("encroot"):
        entry.set("is_encroot", True, NvType.BOOLEAN)
        # zfs receive aborts without it: libzfs_sendrecv.c recv_fix_encryption_hierarchy()
        props.set("keylocation", props.get("keylocation", "prompt"), NvType.STRING)
    snapshots = [s for s in pool.snapshots(dataset) if s.txg <= _last(dataset, legs)]
    snaps, snapprops = NvList(), NvList()
    for snapshot in snapshots:
        snaps.set(snapshot.doc["name"], snapshot.guid, NvType.UINT64)
        snapprops.set(snapshot.doc["name"], _props(snapshot))
    entry.set("snaps", snaps)
    entry.set("snapprops", snapprops)
    return entry


def _last(dataset: Dataset, legs: Sequence[Leg]) -> int:
    return max(snapshot.txg for snapshot, _ in legs if snapshot.dataset.id == dataset.id)


def _parent_guid(pool: Pool, request: Wrapping, dataset: Dataset) -> int:
    """The guid of the parent's snapshot that the receiver finds the parent by; 0 for the top."""
    top, _, tosnap = request.snapshot.partition("@")
    if dataset.name.text == top or dataset.name.parent is None:
        return 0
    name = request.source if request.source is not None else tosnap
    found = pool.find_snapshot(dataset.name.parent.snapshot(name))
    return found.guid if found else 0


def _props(thing: Dataset | Snapshot) -> NvList:
    """What was set or received, as a real pool knows it."""
    nvlist = NvList()
    own = {**thing.doc.get("received", {}), **{k: v for k, v in thing.doc.get("local", {}).items() if v is not None}}
    for name, text in own.items():
        if name not in NOT_SENT:
            value = properties.to_stream(name, text)
            nvlist.set(name, value, NvType.UINT64 if isinstance(value, int) else NvType.STRING)
    return nvlist
