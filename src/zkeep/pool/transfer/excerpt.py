"""Excerpts out and in: what somebody who has the key needs of a snapshot that is kept elsewhere, and no more.

The keeper of a backup knows object numbers, and not names. So who has the key fetches the index, by which all else is
authenticated, then what the folders on the way to a file consist of, and then the contents of that file:

    index       the OBJECT_RANGE headers of all blocks of dnodes: what the portable MAC covers
    metadata    of some blocks of dnodes all records; of files' contents only the headers
    objects     some objects with their contents

Each excerpt that arrives becomes a run of its own (add_excerpt), so that the state of the snapshot is the merge of all
that was fetched of it. It is never a whole snapshot: it belongs into a pool that is used by zkeep restore alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from zkeep.errors import BadStream, Refused, TryAgain, WrongUsage
from zkeep.format.checksum import fletcher4
from zkeep.format.events import Batch, SubBegin, SubEnd
from zkeep.format.excerpt import EXCERPT_MAGIC, frame_head
from zkeep.format.records import NATIVE, RecordType
from zkeep.names import MAX_UINT64, SnapshotName, shown, whole_number
from zkeep.pool.datasets import contents
from zkeep.pool.datasets.begin import Address, Opening, addressed
from zkeep.pool.datasets.history import History, history_of
from zkeep.pool.datasets.model import NotThere, Pool, Snapshot, txg_key
from zkeep.pool.datasets.orphans import reading
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.compose import Journey, index_steps, plan
from zkeep.pool.timeline.emit import StreamWriter, lacks_payload, write_fully
from zkeep.pool.timeline.ingest import BeginTraits, SegmentWriter, Tally
from zkeep.pool.timeline.resolve import Kind
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import MAX_SLOTS
from zkeep.pool.timeline.timeline import Timeline

INDEX, ALL = "index", "all"
MOST_TEXT = 100_000
"Characters of a list of objects: a command line over ssh holds 128 KiB."
NO_PARTS = "it cannot be sent in parts"
"What a refusal says if the whole stream can be sent instead."
_LIST = re.compile(r"\d+(-\d+)?(:\d+)?(,\d+(-\d+)?)*", re.ASCII)


@dataclass(frozen=True)
class Excerpt:
    """What is asked for. `objects`: numbers as lines, ascending; None: the index alone.

    `contents`: the contents of these objects; else the metadata of their blocks of dnodes. `offset`: where in the
    first of the objects the contents begin.
    """

    objects: Array | None = None
    contents: bool = False
    offset: int = 0

    @property
    def blocks(self) -> Array:
        """The numbers of all objects that share a block of dnodes with one of these."""
        assert self.objects is not None
        last = self.objects["end"] - np.uint64(1)
        slots = np.uint64(MAX_SLOTS)
        return sp.union(sp.lines(self.objects["start"] // slots * slots, last // slots * slots + slots))


def parse_excerpt(metadata: str | None, objects: str | None) -> Excerpt:
    """Parse the values of send --metadata and --objects: `index`, `all`, or numbers like `7:131072,128-200`.

    Raises:
        WrongUsage: they are none.
    """
    if metadata is not None and objects is not None:
        raise WrongUsage("--metadata and --objects exclude each other")
    if metadata == INDEX:
        return Excerpt()
    if metadata == ALL:
        return Excerpt(sp.lines(np.zeros(1, np.uint64), np.array([MAX_UINT64 - MAX_SLOTS], np.uint64)))
    text, option = (metadata, "--metadata") if metadata is not None else (objects or "", "--objects")
    if len(text) > MOST_TEXT or not _LIST.fullmatch(text) or (":" in text and option == "--metadata"):
        form = "index, all, or numbers as 7,128-200" if option == "--metadata" else "numbers as 7:131072,128-200"
        raise WrongUsage(f"{option} takes {form}, not {shown(text[:40])}")
    first, _, rest = text.partition(",")
    first, _, offset = first.partition(":")
    pairs = [item.partition("-") for item in (f"{first},{rest}" if rest else first).split(",")]
    try:
        numbers = [(whole_number(low, 1 << 56), whole_number(high or low, 1 << 56)) for low, _, high in pairs]
        start = whole_number(offset or "0", MAX_UINT64)
    except ValueError:
        raise WrongUsage(f"{option}: an object's number has at most 17 digits") from None
    ends = [-1, *(high for _, high in numbers)]
    if any(low <= before or high < low for (low, high), before in zip(numbers, ends, strict=False)):
        raise WrongUsage(f"{option}: the numbers do not ascend")
    lows, highs = np.array(numbers, np.uint64).T
    return Excerpt(sp.lines(lows, highs + np.uint64(1)), option == "--objects", start)


def listed(objects: Array) -> list[str]:
    """Lists of object numbers (lines, ascending) as parse_excerpt() takes them, none longer than it takes."""
    found = [""]
    for start, end in zip(objects["start"].tolist(), objects["end"].tolist(), strict=True):
        item = f"{start}-{end - 1}" if end - start > 1 else f"{start}"
        if len(found[-1]) + 1 + len(item) > MOST_TEXT - 24:  # there is room for an offset
            found.append("")
        found[-1] += f",{item}" if found[-1] else item
    return [text for text in found if text]


# Out


def send_excerpt(pool: Pool, name: str, excerpt: Excerpt, sink: BinaryIO) -> None:
    """Write an excerpt of a snapshot.

    Raises:
        Refused: it cannot be made; nothing was written.
        Damaged: the pool's own data is bad; the excerpt breaks off without an END.
    """
    with reading(pool):
        # What others change meanwhile, compaction and promotion, is not seen here.
        with pool.catalog.reading():
            snapshot = pool.snapshot(SnapshotName.parse(name))
            doc = pool.catalog.get("begin", snapshot.key)
            history = history_of(pool, snapshot.dataset).upto(snapshot.txg)
        if doc is None:
            raise NotThere(f"cannot send {snapshot.name}: it holds nothing yet")
        stored = Opening.from_doc(doc)
        if not stored.begin.raw:
            raise Refused(f"cannot send {snapshot.name}: {NO_PARTS}: it is not encrypted")
        with history.timeline(pool.store) as timeline:
            _check(timeline, history, snapshot, stored, excerpt)
            # Names and guids of the BEGIN are those of a full stream.
            address = Address(str(snapshot.name).encode(), 0, 0, clone=False, resume=None)
            opening = addressed(stored, address)
            write_fully(sink.write, EXCERPT_MAGIC)
            toguid = stored.begin.toguid
            with StreamWriter(timeline, sink.write, opening.byteorder, toguid, frame_head) as out:
                out.begin(opening.header, opening.payload)
                out.steps(_steps(timeline, history, stored, excerpt))
                out.end()
    sink.flush()


def _check(timeline: Timeline, history: History, snapshot: Snapshot, stored: Opening, excerpt: Excerpt) -> None:
    """Raises Refused: its records have both byte orders; NotHere: contents were dropped here."""
    big = {segment.big_endian for run in history.runs for segment in timeline.segments(run)}
    if len(big) > 1:
        raise Refused(f"cannot send {snapshot.name}: {NO_PARTS}: it has records of both byte orders")
    if excerpt.contents and contents.lacking(history.runs):
        for steps in _steps(timeline, history, stored, excerpt):
            if lacks_payload(steps):
                raise contents.NotHere(f"cannot send {snapshot.name}")


def _steps(timeline: Timeline, history: History, stored: Opening, excerpt: Excerpt) -> Iterator[Array]:
    if excerpt.objects is None:
        yield from index_steps(timeline, history.runs)
        return
    blocks = excerpt.blocks
    journey = Journey([], history.runs, True, stored.maxblkid, within=blocks, bare=not excerpt.contents)
    for steps in plan(timeline, journey):
        yield steps[_is_wanted(steps, excerpt, blocks)]


def _is_wanted(steps: Array, excerpt: Excerpt, blocks: Array) -> Array:
    """Which records of the whole stream an excerpt has. FREE and FREEOBJECTS say nothing that it needs."""
    assert excerpt.objects is not None
    stored = steps["stored"] & sp.on_lines(blocks, steps["object"])
    if not excerpt.contents:
        return np.asarray(stored)
    # Contents: an OBJECT (with the OBJECT_RANGE before it, by the rules of order) and its WRITEs.
    of_block = steps["rtype"] == RecordType.OBJECT_RANGE
    mine = sp.on_lines(excerpt.objects, steps["object"]) & (steps["rtype"] != RecordType.SPILL)
    first = steps["object"] == excerpt.objects["start"][0]
    early = first & (steps["rtype"] == RecordType.WRITE) & (steps["offset"] < np.uint64(excerpt.offset))
    return np.asarray(stored & (of_block | (mine & ~early)))


# In


def add_excerpt(
    pool: Pool,
    snapshot: Snapshot,
    events: Iterator[SubBegin | Batch | SubEnd],
    check: Callable[[Batch], None],
    *,
    partial: bool = False,
) -> tuple[Snapshot, BadStream | TryAgain | None]:
    """Add an excerpt to what there is of a snapshot; returns the snapshot as it is then.

    All or nothing; with `partial`, what came is added also if the excerpt breaks off, and the error is returned.
    `check`: called with each batch before it is added; it may raise.

    Raises:
        Refused: it is an excerpt of another snapshot.
    """
    begin = next(events)
    assert isinstance(begin, SubBegin)
    _check_same(pool, snapshot, begin)
    with pool.transaction() as t:
        txg = t.next_txg()
    history = history_of(pool, snapshot.dataset).upto(snapshot.txg)
    traits = BeginTraits(begin.byteorder == "big", True, Kind(raw=True), bare=True)
    state = fletcher4(begin.header + begin.payload, swap=begin.byteorder != NATIVE)
    failed: BadStream | TryAgain | None = None
    with (
        reading(pool),
        history.timeline(pool.store) as timeline,
        SegmentWriter(pool.store, txg, traits, timeline, history.runs, state) as writer,
    ):
        try:
            for event in events:
                if isinstance(event, Batch):
                    check(event)
                    writer.add(event)
        except (BadStream, TryAgain) as error:
            if not partial:
                raise
            failed = error
        tally = writer.finish()
        return (_replace(pool, snapshot, txg, tally) if tally.records else snapshot), failed


def _check_same(pool: Pool, snapshot: Snapshot, begin: SubBegin) -> None:
    """Raises Refused: an excerpt is not of this snapshot."""
    doc = pool.catalog.get("begin", snapshot.key)
    stored = Opening.from_doc(doc) if doc is not None else None
    if stored is None or begin.begin.toguid != stored.begin.toguid or begin.payload != stored.payload:
        raise Refused(f"{snapshot.name}: what came is a part of another snapshot")


def _replace(pool: Pool, snapshot: Snapshot, txg: int, tally: Tally) -> Snapshot:
    """Let the snapshot be what it was and the new run; in one transaction."""
    dataset = snapshot.dataset
    run, begin = pool.catalog.get("run", snapshot.key), pool.catalog.get("begin", snapshot.key)
    assert run is not None
    assert begin is not None
    kept = {key: value for key, value in snapshot.doc.items() if key not in ("name", "guid", "txg", "createtxg")}
    with pool.transaction() as t:
        t.put("run", txg_key(dataset.id, txg), {**run, "bare": 0, **tally.doc(), "txg": txg, "whole": False})
        pool.remove_snapshot(t, snapshot)
        t.put("begin", txg_key(dataset.id, txg), begin)
        return pool.add_snapshot(t, dataset, str(snapshot.doc["name"]), txg, snapshot.guid, **kept)
