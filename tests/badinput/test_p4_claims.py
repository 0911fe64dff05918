"""P4: names, numbers and tokens that lie; and work that stays in proportion to what came."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from badkit import Box, Record, first, forged, one_line, renamed, stream, taken_apart, with_keys

from zkeep.format.nvlist import NvList
from zkeep.format.records import HEADER, RecordType
from zkeep.pool.transfer.token import Token

FULL = stream("rs512b", "full-s0")
NEXT = stream("rs512b", "inc-s0-s1")
AFTER = stream("rs512b", "inc-s1-s2")
OTHER = stream("rs1k", "inc-s0-s1")
PLAIN = (Path(__file__).parent.parent / "data" / "streams" / "plain-blanc-2018.zfs").read_bytes()
REPLICATION = (Path(__file__).parent.parent / "data" / "streams" / "full-Rw.zfs").read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"tank",
        b"tank/x",
        b"@s",
        b"tank/x@",
        b"tank/../etc@s",
        b"tank/..@s",
        b"/etc@s",
        b"tank//x@s",
        b"tank/x@s/t",
        b"tank/x@a@b",
        b"tank/x#b",
        b"tank/x@s\x01",
        b"tank/\x1b[2J@s",
        b"tank/x\n@s",
        b"tank/x@s\x7f",
        b"tank/\xff\xfe@s",
        b"a" * 256,
        b"tank/" + b"n" * 300 + b"@s",
        b"tank/x@%s%n",
        b"tank/x y@..",
    ],
)
def test_p4_a_name_that_is_none_is_refused(box: Box, name: bytes) -> None:
    bad = renamed(FULL, name[:256])
    for arguments in (["v/y"], ["-d", "v"], ["-e", "v"]):
        box.refuses(bad, *arguments)


def test_p4_a_long_name_does_not_fit(box: Box) -> None:
    box.refuses(renamed(FULL, b"tank/" + b"n" * 248 + b"@s"), "-d", "v/" + "m" * 100)


def test_p4_an_increment_of_another_history_is_refused(kept: Box) -> None:
    kept.refuses(OTHER, "v/x", why="is not there; newest is @s0")
    kept.refuses(AFTER, "v/x", why="is not there; newest is @s0")
    kept.refuses(NEXT, "v/y")
    kept.refuses(FULL, "v/x@again")
    kept.refuses(FULL, "-F", "v/x@again")


def test_p4_an_increment_of_another_ivset_is_refused(kept: Box) -> None:
    bad = with_keys(NEXT, lambda _, keys: keys.set("from_ivset_guid", 12345))
    kept.refuses(bad, "v/x@s1", why="IV set guid mismatch")


def test_p4_what_is_not_raw_stays_out(kept: Box) -> None:
    kept.refuses(PLAIN, "v/y", why="blind=on")
    assert kept.zkeep("set", "blind=off", "v").status == 0

    def unraw(records: list[Record]) -> None:
        begin = records[0].get()
        records[0].put("versioninfo", begin.versioninfo & ~(1 << 26))  # type: ignore[attr-defined]

    kept.refuses(forged(NEXT, unraw), "v/x@s1")


def test_p4_a_raw_stream_without_keys_is_refused(box: Box) -> None:
    box.refuses(with_keys(FULL, lambda whole, _: whole.remove("crypt_keydata")), "v/x")


def test_p4_a_quota_is_kept(kept: Box) -> None:
    assert kept.zkeep("create", "-o", "quota=30K", "v/small").status == 0
    kept.refuses(stream("rs512b", "full-s2"), "v/small/x", why="quota")


@pytest.mark.parametrize(
    ("key", "value"),
    [("mdn_maxblkid", 1 << 60), ("mdn_maxblkid", (1 << 64) - 1), ("mdn_nlevels", 255), ("mdn_indblkshift", 255)],
)
def test_p4_a_metadnode_beyond_measure_costs_nothing(box: Box, key: str, value: int) -> None:
    bad = with_keys(FULL, lambda _, keys: keys.set(key, value))
    measured(box, bad)


def test_p4_objects_beyond_measure_cost_nothing(box: Box) -> None:
    """A tree of 7 levels, a maxblkid that no block reaches, and all numbers freed."""

    def change(records: list[Record]) -> None:
        for record in records:
            if record.rtype == RecordType.OBJECT:
                record.put("nlevels", 7)
                record.put("maxblkid", 1 << 46)

    measured(box, forged(FULL, change))

    def free(records: list[Record]) -> None:
        last = [r for r in records if r.rtype == RecordType.FREEOBJECTS][-1:]
        for record in last:
            record.put("numobjs", 1 << 63)

    measured(box, forged(FULL, free))


@pytest.mark.parametrize(("shift", "levels"), [(0, 7), (0, 1), (12, 1), (12, 7), (17, 1)])
def test_p4_a_tree_that_grows_beyond_measure_costs_nothing(box: Box, shift: int, levels: int) -> None:
    """An increment put together over a file that claims to have grown to 2^44 blocks."""

    def reshaped(name: str, maxblkid: int) -> bytes:
        def change(records: list[Record]) -> None:
            for record in (r for r in records if r.rtype == RecordType.OBJECT):
                record.put("indblkshift", shift)
                record.put("nlevels", levels)
                if maxblkid:
                    record.put("maxblkid", maxblkid)

        return forged(stream("rs512", name), change)

    for name, maxblkid in (("full-s0", 0), ("inc-s0-s1", 0), ("inc-s1-s2", 0), ("inc-s2-s3", 1 << 44)):
        box.takes(reshaped(name, maxblkid), f"v/x@{name[-2:]}")
    box.compose_always()
    for source in ([], ["-i", "@s0"], ["-i", "@s1"]):
        sent = limited(b"", "send", "-w", *source, "v/x@s3")
        assert sent.returncode == 0, sent.stderr


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from zkeep.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def measured(box: Box, data: bytes) -> None:
    """Receive, check and put together within 1 GiB and seconds; whatever is refused is one line."""
    before = box.state()
    began = time.monotonic()
    taken = limited(data, "receive", "v/huge@s0")
    if taken.returncode:
        assert taken.returncode == 1, taken
        assert taken.stderr.count(b"\n") == 1, taken
        assert b"out of memory" not in taken.stderr
        assert b"unexpected" not in taken.stderr
        assert box.state() == before
    else:
        box.compose_always()
        sent = limited(b"", "send", "-w", "v/huge@s0")
        assert sent.returncode == 0, sent.stderr
        assert len(sent.stdout) < 2 * len(data)
        assert limited(b"", "destroy", "-r", "v/huge").returncode == 0
    assert time.monotonic() - began < 30


def limited(data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", LIMITED, *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)


def test_p4_a_forged_token_is_refused(kept: Box) -> None:
    good = Token(toname="v/x@s0", toguid=taken_apart(FULL)[0].get().toguid, object=1, offset=0, bytes=0)  # type: ignore[attr-defined]
    for text in (
        "",
        "1-0-0-",
        "1-" + "f" * 5000,
        "2-1-1-00",
        good.encode()[:-2],
        good.encode() + "00",
        good.encode(),
        Token("x@y", 1, 1, 1, 1).encode(),
        Token("v/x@s0; rm -rf /", good.toguid, 1, 1, 1).encode(),
        Token("v/../x@s0", good.toguid, 1 << 63, (1 << 64) - 1, 1, 77, good.features).encode(),
    ):
        before = kept.state()
        answer = kept.zkeep("send", "-t", text)
        assert answer.status in (1, 2), (text, answer)
        one_line(answer)
        assert answer.out == ""
        assert kept.state() == before


# -R


def test_p4_hostile_outlines_are_refused(box: Box) -> None:
    for bad in (b"tank/../../etc", b"tank/x\x01\x02", b"jambon-is-not-a-dataset@@"):
        data = REPLICATION.replace(b"zdata/encrypted/jambon", bad.ljust(22, b"n")[:22])
        box.refuses(data, "v/x")
    payload = int.from_bytes(REPLICATION[4:8], "little")
    for size in (0, 1, payload - 8, payload + 8, (1 << 32) - 1):
        data = bytearray(REPLICATION)
        data[4:8] = size.to_bytes(4, "little")
        box.refuses(bytes(data), "v/x")
    for at in range(HEADER, HEADER + payload, 97):
        data = bytearray(REPLICATION)
        data[at] ^= 0xFF
        box.refuses(bytes(data), "v/x")


def test_p4_a_deep_list_in_begin_is_refused(box: Box) -> None:
    def bury(whole: NvList, _: NvList) -> None:
        inner = NvList(form=whole.form)
        for _ in range(200):
            outer = NvList(form=whole.form)
            outer.set("x", inner)
            inner = outer
        whole.set("deep", inner)

    try:
        data = with_keys(FULL, bury)
    except (RecursionError, ValueError):
        pytest.skip("such a list cannot even be made")
    box.refuses(data, "v/x")


def test_p4_first_record_of_each_kind_twice_is_refused_or_harmless(kept: Box) -> None:
    for rtype in (RecordType.OBJECT, RecordType.OBJECT_RANGE, RecordType.WRITE):
        records = taken_apart(NEXT)
        record = first(records, rtype)
        records.insert(records.index(record), record)
        kept.refuses(forged(NEXT, lambda found, r=records: found.__setitem__(slice(None), r)), "v/x@s1")
