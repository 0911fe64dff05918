"""P2: every real stream of the big set is received, and each of its substreams goes out as it came."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
from histories import DATA, forget_originals, new_pool, substreams

from zkeep.format.events import Package
from zkeep.format.reader import read_events
from zkeep.format.records import Begin, BeginFlag, Feature
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.send import Leg, LegOptions, is_past, write_leg

WHERE = os.environ.get("ZKEEP_VECTORS", "")
FOLDERS = [Path(WHERE) / name for name in ("story", "blog", "variants", "chains")] if WHERE else []
BIG = [path for folder in FOLDERS for path in sorted(folder.glob("*.zfs"))]
SHIPPED = sorted((DATA / "streams").glob("*.zfs"))


@dataclass(frozen=True)
class Stream:
    path: Path
    package: bool
    parts: tuple[Begin, ...]

    @property
    def needs(self) -> int:
        """The guid of the snapshot that must be there before."""
        return self.parts[0].fromguid


@cache
def stream_of(path: Path) -> Stream:
    data = path.read_bytes()
    package = isinstance(next(iter(read_events(io.BytesIO(data)))), Package)
    return Stream(path, package, tuple(begin for begin, _ in substreams(data)))


def is_part(path: Path) -> bool:
    return "-resume-" in path.name and not path.name.endswith("-whole.zfs")


def base_of(stream: Stream, among: list[Path]) -> Stream:
    """A stream that brings what this one follows, in the same form: by its name the nearest, then the smallest."""

    def rank(other: Stream) -> tuple[bool, int, int]:
        again = bool({b.toguid for b in other.parts} & {b.toguid for b in stream.parts})
        alike = sum(1 for _ in takewhile(lambda p: p[0] == p[1], zip(other.path.stem, stream.path.stem, strict=False)))
        return again, -alike, other.path.stat().st_size

    one_dataset = len({b.name.partition(b"@")[0] for b in stream.parts}) == 1
    raw = stream.parts[0].raw
    brings = [o for o in map(stream_of, among) if any(b.toguid == stream.needs and b.raw == raw for b in o.parts)]
    return min((o for o in brings if one_dataset or o.package), key=rank)


def with_guid(pool: Pool, guid: int) -> list[Snapshot]:
    return [s for found in pool.all_snapshots().values() for s in found if s.guid == guid]


def take(pool: Pool, stream: Stream, among: list[Path]) -> None:
    """Receive a stream, and before it what it follows."""
    target, begin, options = "v/x", stream.parts[0], ReceiveOptions()
    if stream.needs and not with_guid(pool, stream.needs):
        take(pool, base_of(stream, among), among)
    if stream.needs and not stream.package:
        source = with_guid(pool, stream.needs)[0]
        target = "v/clone" if begin.flags & BeginFlag.CLONE else str(source.dataset.name)
        if begin.flags & BeginFlag.CLONE:
            options = ReceiveOptions(set_properties={"origin": str(source.name)})
    with stream.path.open("rb") as file:
        receive(pool, file, target, options)


def part_sent_back(pool: Pool, begin: Begin) -> bytes:
    snapshot = with_guid(pool, begin.toguid)[-1]
    sources = [s for s in with_guid(pool, begin.fromguid) if is_past(pool, s, snapshot)] if begin.fromguid else [None]
    sink = io.BytesIO()
    write_leg(pool, Leg(snapshot, sources[0]), sink.write, LegOptions(received_name=True))
    return sink.getvalue()


@pytest.mark.skipif(not BIG, reason="ZKEEP_VECTORS names no folder with the big set")
@pytest.mark.parametrize("path", [p for p in BIG if not is_part(p)], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_p2_what_came_in_goes_out_substream_by_substream(tmp_path: Path, path: Path) -> None:
    among = [p for p in sorted(path.parent.glob("*.zfs")) if not is_part(p) and not p.name.startswith("B-redacted")]
    check(tmp_path, path, among)


@pytest.mark.parametrize("path", [p for p in SHIPPED if not stream_of(p).needs], ids=lambda p: p.stem)
def test_p2_what_came_in_goes_out(tmp_path: Path, path: Path) -> None:
    check(tmp_path, path, SHIPPED)


def check(tmp_path: Path, path: Path, among: list[Path]) -> None:
    stream = stream_of(path)
    with new_pool(tmp_path) as pool:
        take(pool, stream, among)
        for begin, data in substreams(path.read_bytes()):
            assert part_sent_back(pool, begin) == data, begin.name
        forget_originals(pool)
        for begin, data in substreams(path.read_bytes()):
            made = part_sent_back(pool, begin)
            if begin.raw and not begin.features & Feature.REDACTED:
                assert made == data, begin.name
            accepted(made)


def accepted(made: bytes) -> None:
    """zstream dump, where it is installed, finds nothing to complain about; nor do we."""
    assert len(list(substreams(made))) == 1
    if zstream := shutil.which("zstream") or shutil.which("zstream", path="/sbin:/usr/sbin"):
        subprocess.run([zstream, "dump"], input=made, stdout=subprocess.DEVNULL, check=True)
