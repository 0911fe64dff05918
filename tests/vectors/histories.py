"""Histories that a real kernel sent, and the judge of what zkeep puts together from them.

A history is one dataset's snapshots s0, s1, .. with the kernel's own full stream of each and its increments of pairs:
NAME.full-sN.zfs and NAME.inc-sA-sB.zfs, in a folder or in a NAME.tar.xz (the streams share most of their bytes).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

from zkeep.format.events import Batch, SubBegin, SubEnd
from zkeep.format.reader import read_events
from zkeep.format.records import HEADER, LAYOUTS, Begin, Free, RecordType
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.model import Bookmark, Pool, Snapshot
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.send import Leg, LegOptions, write_leg

DATA = Path(__file__).parent.parent / "data"
END = (1 << 64) - 1
Pair = tuple[int | None, int]
"""From and to; None: a full stream."""


@dataclass
class History:
    name: str
    streams: dict[Pair, Path | bytes] = field(default_factory=dict)

    def stream(self, pair: Pair) -> bytes:
        held = self.streams[pair]
        return held if isinstance(held, bytes) else held.read_bytes()

    @property
    def last(self) -> int:
        return max(to for _, to in self.streams)

    @property
    def chain(self) -> list[Pair]:
        """The streams to receive: the first full one, and each increment from one snapshot to the next."""
        return [(None, 0), *((a, b) for a, b in pairwise(range(self.last + 1)))]

    @property
    def pairs(self) -> list[Pair]:
        return sorted(self.streams, key=lambda pair: (pair[1], pair[0] if pair[0] is not None else -1))

    def __str__(self) -> str:
        return self.name


def _pair(stem: str) -> tuple[str, Pair] | None:
    """`rs512.inc-s3-s4` -> (rs512, (3, 4))"""
    if found := re.fullmatch(r"(.+)\.full-s(\d+)", stem):
        return found[1], (None, int(found[2]))
    if found := re.fullmatch(r"(.+)\.inc-s(\d+)-s(\d+)", stem):
        return found[1], (int(found[2]), int(found[3]))
    return None


def histories(*folders: Path) -> list[History]:
    """All histories in some folders that can be received from their first snapshot on."""
    found: dict[tuple[Path, str], History] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.zfs")):
            if named := _pair(path.stem):
                history = found.setdefault((folder, named[0]), History(named[0]))
                history.streams[named[1]] = path
    complete = [h for h in found.values() if all(pair in h.streams for pair in h.chain)]
    packed = [_unpack(path) for folder in folders for path in sorted(folder.glob("*.tar.xz"))]
    return sorted(complete + packed, key=lambda h: h.name)


@cache
def _unpack(path: Path) -> History:
    history = History(path.name.removesuffix(".tar.xz"))
    with tarfile.open(path) as archive:
        for member in archive:
            named, held = _pair(Path(member.name).stem), archive.extractfile(member)
            if named and held:
                history.streams[named[1]] = held.read()
    return history


# In a pool


def new_pool(path: Path) -> Pool:
    path.mkdir(parents=True, exist_ok=True)
    return Pool.create(path / "pool", "v", {"blind": "off"})


def take(pool: Pool, stream: bytes, target: str = "v/x", *, force: bool = False, resumable: bool = False) -> None:
    receive(pool, io.BytesIO(stream), target, ReceiveOptions(force=force, resumable=resumable))


def take_chain(pool: Pool, history: History, target: str = "v/x") -> None:
    """Receive a history, from its first snapshot to its last."""
    for pair in history.chain:
        take(pool, history.stream(pair), f"{target}@s{pair[1]}")


def snapshot(pool: Pool, number: int, target: str = "v/x") -> Snapshot:
    return pool.snapshot(SnapshotName.parse(f"{target}@s{number}"))


def point(pool: Pool, number: int, target: str = "v/x") -> Snapshot | Bookmark | None:
    """The snapshot of a number, or its bookmark where only that is left."""
    dataset = pool.dataset(DatasetName.parse(target))
    points: list[Snapshot | Bookmark] = [*pool.snapshots(dataset), *pool.bookmarks(dataset)]
    return next((p for p in points if p.doc["name"] in (f"s{number}", f"b{number}")), None)


def put_together(pool: Pool, pair: Pair, target: str = "v/x") -> bytes:
    """What zkeep sends, under the name that came in."""
    source = point(pool, pair[0], target) if pair[0] is not None else None
    sink = io.BytesIO()
    write_leg(pool, Leg(snapshot(pool, pair[1], target), source), sink.write, LegOptions(received_name=True))
    return sink.getvalue()


def forget_originals(pool: Pool) -> None:
    """From here on nothing is sent back as it came: everything is put together."""
    with pool.transaction() as t:
        for key, doc in t.scan("run"):
            t.put("run", key, doc | {"whole": False})


def substreams(stream: bytes) -> Iterator[tuple[Begin, bytes]]:
    begun: SubBegin | None = None
    for event in read_events(io.BytesIO(stream)):
        if isinstance(event, SubBegin):
            begun = event
        elif isinstance(event, SubEnd):
            assert begun is not None
            yield begun.begin, stream[begun.offset : event.offset + HEADER]


# The judge

Record = tuple[RecordType, bytes]
Ranges = dict[int, list[tuple[int, int]]]


def records(stream: bytes) -> list[Record]:
    """BEGIN and all records without their running checksums, but with the sums of their payloads."""
    found: list[Record] = []
    for event in read_events(io.BytesIO(stream)):
        if isinstance(event, SubBegin):
            found.append((RecordType.BEGIN, event.header + event.payload))
        elif isinstance(event, Batch):
            for at, length, rtype in zip(event.offsets.tolist(), event.lengths.tolist(), event.types, strict=True):
                whole = bytes(event.buffer[at : at + length])
                found.append((RecordType(int(rtype)), whole[:280] + whole[HEADER:]))
    return found


def difference(got: bytes, want: bytes, before: bytes | None, after: bytes) -> str:
    """What is wrong with `got`: nothing, or a line.

    An increment may differ in FREE records over ranges that are holes in both full streams, `before` and `after`.
    """
    if got == want:
        return ""
    mine, theirs = records(got), records(want)
    if mine[0] != theirs[0]:
        return "BEGIN differs"
    rest = [[r for r in side if r[0] != RecordType.FREE or _is_tail(r)] for side in (mine, theirs)]
    if rest[0] != rest[1]:
        return _first_difference(mine, theirs)
    if before is None:
        return "FREE records of a full stream differ: " + _first_difference(mine, theirs)
    odd = _outside(_freed(mine), _freed(theirs))
    if not odd:
        return "the same ranges are freed by other records: " + _first_difference(mine, theirs)
    filled = _filled(records(before)), _filled(records(after))
    for number, low, high in odd:
        for blocks in filled:
            if any(start < high and end > low for start, end in blocks.get(number, [])):
                return f"FREE({number}, {low}, {high - low}) over data"
    return ""


def _is_tail(record: Record) -> bool:
    return Free.unpack(record[1][:280].ljust(HEADER, b"\0"), "little").length == END


def _text(record: Record) -> str:
    layout = LAYOUTS[record[0]].unpack(record[1][:280].ljust(HEADER, b"\0"), "little")
    return str(layout)


def _first_difference(mine: list[Record], theirs: list[Record]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    sides = [_text(side[at]) if at < len(side) else "nothing" for side in (mine, theirs)]
    return f"record {at} is {sides[0]}, the kernel's {sides[1]}"


def _freed(found: list[Record]) -> Ranges:
    ranges: Ranges = {}
    for record in found:
        if record[0] == RecordType.FREE and not _is_tail(record):
            free = Free.unpack(record[1][:280].ljust(HEADER, b"\0"), "little")
            ranges.setdefault(free.object, []).append((free.offset, min(free.offset + free.length, END)))
    return ranges


def _filled(found: list[Record]) -> Ranges:
    ranges: Ranges = {}
    for rtype, raw in found:
        if rtype in (RecordType.WRITE, RecordType.WRITE_EMBEDDED):
            row = LAYOUTS[rtype].unpack(raw[:280].ljust(HEADER, b"\0"), "little")
            size = getattr(row, "logical_size", None) or getattr(row, "length", 0)
            ranges.setdefault(row.object, []).append((row.offset, row.offset + size))  # type: ignore[attr-defined]
    return ranges


def _outside(mine: Ranges, theirs: Ranges) -> list[tuple[int, int, int]]:
    """Where only one of the two frees."""
    odd = []
    for number in mine.keys() | theirs.keys():
        turns: dict[int, list[int]] = {}
        for side, ranges in enumerate((mine, theirs)):
            for low, high in ranges.get(number, []):
                turns.setdefault(low, [0, 0])[side] += 1
                turns.setdefault(high, [0, 0])[side] -= 1
        depth = [0, 0]
        marks = sorted(turns)
        for low, high in pairwise(marks):
            depth = [depth[0] + turns[low][0], depth[1] + turns[low][1]]
            if (depth[0] > 0) != (depth[1] > 0):
                odd.append((number, low, high))
    return odd
