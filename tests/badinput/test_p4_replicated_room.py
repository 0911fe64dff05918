"""P4: what a sender causes without a record counts under quotas, too: datasets, and where they and their pasts lie."""

from __future__ import annotations

import json

import pytest
from badkit import Box, Record, begin_of, forged, names_of, stream
from packagekit import Entry, package

from zkeep.format.records import BeginFlag

FULL, NEXT, AFTER = (stream("rs512b", name) for name in ("full-s0", "inc-s0-s1", "inc-s1-s2"))
S0, S1 = begin_of(FULL).toguid, begin_of(NEXT).toguid
SPENT = "the quota is used up"
BULK = {f"u:x{number}": "A" * 8000 for number in range(100)}
TOP = Entry("t/a", {"s0": S0, "s1": S1})


def moved(data: bytes, name: str, guid: int, source: int = 0, *, clone: bool = False) -> bytes:
    """The same stream of another snapshot."""

    def change(records: list[Record]) -> None:
        begin = records[0]
        begin.put("toname", name.encode())
        begin.put("fromguid", source)
        begin.put("flags", begin_of(data).flags | (BeginFlag.CLONE if clone else 0))
        for record in records:
            if "toguid" in names_of(record.rtype):
                record.put("toguid", guid)

    return forged(data, change)


@pytest.fixture
def tree(box: Box) -> Box:
    """v/a with s0 and s1, and below it b with snapshots of its own, of 100 and 101."""
    streams = [moved(FULL, "t/a@s0", S0), moved(NEXT, "t/a@s1", S1, S0)]
    streams += [moved(FULL, "t/a/b@s0", 100), moved(NEXT, "t/a/b@s1", 101, 100)]
    box.takes(package("t/a@s1", [TOP, Entry("t/a/b", {"s0": 100, "s1": 101})], streams), "v/a")
    return box


def used(box: Box, name: str) -> int:
    return int(box.zkeep("get", "-Hp", "-o", "value", "used", name).out)


def test_p4_a_past_that_is_parted_does_not_bring_properties_beyond_a_quota(tree: Box) -> None:
    """No substream comes at all, only a header."""
    entries = [TOP, Entry("t/a/b", {"s1": 101}), Entry("t/a/old", {"s0": 100}, BULK)]
    parting = package("t/a@s1", entries, fromsnap="s1")
    assert tree.zkeep("set", "quota=200K", "v").status == 0
    tree.refuses(parting, "v/a", why=SPENT)
    assert tree.zkeep("set", "quota=2M", "v").status == 0
    tree.takes(parting, "v/a")
    assert tree.zkeep("list", "-H", "-o", "name", "v/a/old").out == "v/a/old\n"


def test_p4_a_renamed_dataset_does_not_pass_a_quota(tree: Box) -> None:
    tree.takes(moved(FULL, "t/x@s0", 200), "v/a/small")
    assert tree.zkeep("set", f"quota={used(tree, 'v/a/small') + 5000}", "v/a/small").status == 0
    entries = [TOP, Entry("t/a/small", {"s0": 200}), Entry("t/a/small/b", {"s0": 100, "s1": 101})]
    renaming = package("t/a@s1", entries, fromsnap="s1")
    tree.refuses(renaming, "v/a", why=SPENT)
    assert tree.zkeep("set", "quota=1M", "v/a/small").status == 0
    tree.takes(renaming, "v/a")
    # A quota that is used up is in the way of what brings more, and of nothing else.
    within = [TOP, Entry("t/a/little", {"s0": 200}), Entry("t/a/little/b", {"s0": 100, "s1": 101})]
    tree.zkeep("set", f"quota={used(tree, 'v/a/small')}", "v/a/small")
    tree.takes(package("t/a@s1", within, fromsnap="s1"), "v/a")


def test_p4_a_promoted_clone_does_not_pass_a_quota(tree: Box) -> None:
    """The snapshots of its origin would become its own."""
    assert tree.zkeep("create", "v/a/small").status == 0
    tree.takes(moved(AFTER, "t/c@s2", 300, 101, clone=True), "-o", "origin=v/a/b@s1", "v/a/small/c")
    assert tree.zkeep("set", f"quota={used(tree, 'v/a/small') + 5000}", "v/a/small").status == 0
    snaps = {"s0": 100, "s1": 101, "s2": 300}
    entries = [TOP, Entry("t/a/b", {}, origin=101), Entry("t/a/small", {}), Entry("t/a/small/c", snaps)]
    promoting = package("t/a@s1", entries, fromsnap="s1")
    tree.refuses(promoting, "v/a", why=SPENT)
    assert tree.zkeep("set", "quota=none", "v/a/small").status == 0
    tree.takes(promoting, "v/a")
    assert tree.zkeep("get", "-H", "-o", "value", "origin", "v/a/b").out == "v/a/small/c@s1\n"


@pytest.mark.parametrize("letters", ["-d", "-ds"])
def test_p4_parents_that_are_made_on_the_way_count(box: Box, letters: str) -> None:
    """A BEGIN of some hundred bytes makes up to 49 datasets."""
    room = len(FULL) + 100_000
    assert box.zkeep("create", "-o", f"quota={room}", "v/c").status == 0
    deep = "/".join(["d"] * 45)
    for number in range(2):
        box.takes(moved(FULL, f"t/{number}/{deep}@s0", 100 + number), letters, "v/c")
        quota = room + len(FULL) * (number + 1)
        assert box.zkeep("set", f"quota={quota}", "v/c").status == 0
    refused = box.refuses(moved(FULL, f"t/2/{deep}@s0", 102), letters, "v/c", why=SPENT)
    assert refused.status == 1
    box.takes(moved(FULL, "t/2/d@s0", 102), letters, "v/c")


def test_a_package_for_which_there_was_no_room_is_a_problem(tree: Box) -> None:
    """An increment of a tree is judged before its names are followed."""
    assert tree.zkeep("set", "quota=90K", "v").status == 0
    bulky = Entry("t/a", {"s0": S0, "s1": S1, "s2": 102}, BULK)
    increment = package("t/a@s2", [bulky], [moved(AFTER, "t/a@s2", 102, S1)], fromsnap="s1")
    tree.refuses(increment, "v/a", why=SPENT)
    assert tree.zkeep("set", "quota=none", "v").status == 0
    problems = json.loads(tree.zkeep("health", "-j").out)["pools"]["v"]["datasets"]["v/a"]["problems"]
    assert [problem["kind"] for problem in problems] == ["full"]
