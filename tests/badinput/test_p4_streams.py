"""P4: nothing in a stream is believed."""

from __future__ import annotations

import random

import pytest
from badkit import Box, begin_of, field, first, forged, names_of, one_line, record_ends, stamped, stream, taken_apart

from zkeep.format.records import HEADER, RecordType

FULL = stream("rs512b", "full-s0")
NEXT = stream("rs512b", "inc-s0-s1")
TYPES = sorted({r.rtype for r in taken_apart(NEXT)} | {r.rtype for r in taken_apart(FULL)})


def has(rtype: RecordType) -> bytes:
    return NEXT if any(r.rtype == rtype for r in taken_apart(NEXT)) else FULL


def target(data: bytes) -> str:
    return "v/x@s1" if data is NEXT or begin_of(data).fromguid else "v/y"


def test_p4_a_stream_cut_at_any_record_is_refused(kept: Box) -> None:
    cuts = {0, 1, 2, HEADER - 1} | {end + d for end in record_ends(NEXT)[:-1] for d in (-1, 0, 1)} | {len(NEXT) - 1}
    for cut in sorted(cuts):
        kept.refuses(NEXT[:cut], "v/x@s1")
    kept.takes(NEXT, "v/x@s1")


def test_p4_a_resumable_receive_that_is_cut_can_be_given_up(kept: Box) -> None:
    before = kept.state()
    for cut in record_ends(NEXT)[1:-1:3]:
        answer = kept.receive(NEXT[:cut], "-s", "v/x@s1")
        assert answer.status == 5, answer
        first, *rest = answer.err.splitlines()
        assert first.startswith("zkeep: cannot receive incremental stream: checksum mismatch"), answer
        assert len(rest) == 4, answer
        assert rest[2].startswith("    zfs send -t 1-"), answer
        token = kept.zkeep("get", "-H", "-o", "value", "receive_resume_token", "v/x").out.strip()
        assert token.startswith("1-")
        assert kept.zkeep("receive", "-A", "v/x").status == 0
        assert kept.state() == before


@pytest.mark.parametrize("rtype", TYPES, ids=lambda t: t.name)
def test_p4_a_flipped_byte_in_any_field_is_refused(kept: Box, rtype: RecordType) -> None:
    data = has(rtype)
    ends = record_ends(data)
    at = next(i for i, r in enumerate(taken_apart(data)) if r.rtype == rtype)
    start = ends[at - 1] if at else 0
    for name in [*names_of(rtype), "rtype", "checksum"]:
        if rtype == RecordType.BEGIN and name == "checksum":
            continue
        offset, size = field(rtype, name)
        for byte in {0, size // 2, size - 1}:
            broken = bytearray(data)
            broken[start + offset + byte] ^= 0x55
            kept.refuses(bytes(broken), target(data))


@pytest.mark.parametrize("rtype", TYPES, ids=lambda t: t.name)
def test_p4_a_forged_field_is_refused_or_harmless(kept: Box, rtype: RecordType) -> None:
    """With every checksum right: lengths and numbers of 0, of 2^64 - 1 and others."""
    data = has(rtype)
    before = kept.state()
    kept.keep()
    for name in names_of(rtype):
        size = field(rtype, name)[1]
        if size > 8:
            continue
        for value in (0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1), 0x5A5A5A5A5A5A5A5A):
            bad = forged(data, lambda records, n=name, v=value: first(records, rtype).put(n, v))
            refused_or_harmless(kept, bad, before, f"{name}={value:#x}")


def refused_or_harmless(box: Box, data: bytes, before: object, what: str) -> None:
    """If it is taken, what it made can be listed, sent, checked and destroyed."""
    answer = box.receive(data, target(data))
    if answer.status:
        assert answer.status == 1, (what, answer)
        one_line(answer)
        assert box.state() == before, what
        return
    assert box.zkeep("list", "-t", "all", "-o", "name,used,refer,written,creation").status == 0, what
    for source in ([], ["-i", "@s0"]) if target(data) != "v/y" else ([],):
        name = target(data) if "@" in target(data) else box.newest("v/y")
        sent = box.zkeep("send", "-w", "-n", *source, name)
        assert sent.status in (0, 1), (what, sent)
    assert box.zkeep("destroy", "-r", target(data)).status == 0, what
    box.state()
    box.restore()


def test_p4_records_out_of_order_are_refused(kept: Box) -> None:
    dice, before = random.Random(5), kept.state()
    kept.keep()
    for _ in range(60):
        records = taken_apart(NEXT)
        a, b = sorted(dice.sample(range(1, len(records)), 2))
        records[a], records[b] = records[b], records[a]
        if records[a].rtype != records[b].rtype:
            refused_or_harmless(kept, stamped(records), before, f"records {a} and {b}")


def test_p4_end_before_begin_and_garbage_are_refused(kept: Box) -> None:
    begin, *_, end = taken_apart(NEXT)
    kept.refuses(bytes(end.header), "v/x@s1")
    kept.refuses(bytes(end.header) + NEXT, "v/x@s1")
    kept.refuses(NEXT[len(begin.header) + len(begin.payload) :], "v/x@s1")
    kept.refuses(b"", "v/x@s1")
    kept.refuses(bytes(100_000), "v/x@s1")
    kept.refuses(random.Random(1).randbytes(100_000), "v/x@s1")


def test_p4_garbage_after_the_end_is_said_and_the_snapshot_is_whole(kept: Box) -> None:
    answer = kept.receive(NEXT + b"garbage" * 100, "v/x@s1")
    kept.state()
    listed = kept.zkeep("list", "-H", "-t", "snapshot", "-o", "name").out.split()
    assert listed == (["v/x@s0"] if answer.status else ["v/x@s0", "v/x@s1"])
    if answer.status:
        one_line(answer)


def test_p4_deduplicated_streams_are_refused_with_the_way_out(kept: Box) -> None:
    def change(records: list[object]) -> None:
        record = first(taken_apart(NEXT), RecordType.WRITE)
        record.header[:4] = int(RecordType.WRITE_BYREF).to_bytes(4, "little")
        record.payload = b""
        records.insert(-1, record)

    kept.refuses(forged(NEXT, change), "v/x@s1", why="redup")
