"""P4: what a receive may look up and touch lies in what was named to it; an origin elsewhere is named here."""

from __future__ import annotations

import pytest
from badkit import Box, begin_of, forged, stream
from packagekit import Entry, package

from zkeep.format.records import BeginFlag

FULL, NEXT, AFTER = (stream("rs512b", name) for name in ("full-s0", "inc-s0-s1", "inc-s1-s2"))
OWN = stream("rs1k", "full-s0")
S0, S1 = begin_of(FULL).toguid, begin_of(NEXT).toguid
EVIL = 0xE71
TREES = ("t/A", "t/A/x")


def clone_of(data: bytes, name: str, guid: int = EVIL) -> bytes:
    """The same increment as a clone's first snapshot."""

    def change(records: list) -> None:  # type: ignore[type-arg]
        records[0].put("toname", name.encode())
        records[0].put("flags", begin_of(data).flags | BeginFlag.CLONE)
        for record in records:
            record.put("toguid", guid)

    return forged(data, change)


def named(data: bytes, name: str) -> bytes:
    return forged(data, lambda records: records[0].put("toname", name.encode()))


@pytest.fixture
def two(box: Box) -> Box:
    """v/B/data is one client's, with s0 and s1; another's is v/A."""
    assert box.zkeep("create", "v/A").status == 0
    assert box.zkeep("create", "v/B").status == 0
    box.takes(FULL, "v/B/data@s0")
    box.takes(NEXT, "v/B/data@s1")
    return box


def below(box: Box, dataset: str) -> str:
    """All that the pool shows of a client's datasets."""
    return box.zkeep("list", "-Hp", "-r", "-t", "all", "-o", "name,origin,guid,used,clones", dataset).out


@pytest.mark.parametrize("letters", [[], ["-F"], ["-s"], ["-sF"]], ids=" ".join)
def test_p4_a_clone_of_another_clients_snapshot_is_refused(two: Box, letters: list[str]) -> None:
    before = below(two, "v/B")
    answer = two.refuses(clone_of(AFTER, "t/A/x@evil"), *letters, "v/A/x", why="name the source with -o origin=")
    assert "v/B" not in answer.err
    two.refuses(clone_of(AFTER, "t/A/x@evil"), *letters, "-e", "v/A", why="is not in v/A")
    entries = [Entry("t/A", {"a0": begin_of(OWN).toguid}), Entry("t/A/x", {"evil": EVIL}, origin=S1)]
    whole = package("t/A@a0", entries, [named(OWN, "t/A@a0"), clone_of(AFTER, "t/A/x@evil")])
    assert two.receive(whole, *letters, "v/A/d").status == 1
    assert two.zkeep("list", "-H", "-o", "name", "-r", "-t", "all", "v/A").out.split() == ["v/A", "v/A/d", "v/A/d@a0"]
    assert below(two, "v/B") == before


def test_p4_an_increment_of_another_clients_snapshot_tells_nothing(two: Box) -> None:
    answer = two.refuses(AFTER, "v/A/x")
    assert "v/B" not in answer.err


@pytest.fixture
def named_here(two: Box) -> Box:
    """v/A/d/x is a clone of v/B/data@s1, because it was named here."""
    two.takes(package("t/A@a0", [Entry("t/A", {"a0": begin_of(OWN).toguid})], [named(OWN, "t/A@a0")]), "v/A/d")
    two.takes(clone_of(AFTER, "t/A/x@evil"), "-o", "origin=v/B/data@s1", "v/A/d/x")
    return two


@pytest.mark.parametrize("letters", [[], ["-F"]], ids=" ".join)
@pytest.mark.parametrize(
    "snaps", [{"evil": EVIL}, {"evil": EVIL, "s1": S1}, {"evil": EVIL, "s0": S0, "s1": S1}], ids=lambda s: str(len(s))
)
@pytest.mark.parametrize("origin", [0, S0, begin_of(OWN).toguid])
def test_p4_a_promotion_does_not_reach_outside(
    named_here: Box, letters: list[str], snaps: dict[str, int], origin: int
) -> None:
    before = below(named_here, "v/B")
    entries = [Entry("t/A", {"a0": begin_of(OWN).toguid}), Entry("t/A/x", snaps, origin=origin)]
    answer = named_here.receive(package("t/A@a0", entries, fromsnap="a0"), *letters, "v/A/d")
    assert below(named_here, "v/B") == before, answer
    assert named_here.zkeep("get", "-Ho", "value", "origin", "v/A/d/x").out.strip() == "v/B/data@s1"
    named_here.takes(AFTER, "v/B/data@s2")
    assert named_here.zkeep("pool", "scrub", "v").status == 0


def test_p4_a_header_that_lists_another_clients_snapshots_renames_none(two: Box) -> None:
    before = below(two, "v/B")
    two.takes(OWN, "v/A/d@a0")
    entries = [
        Entry("t/A", {"a0": begin_of(OWN).toguid}),
        Entry("t/A/x", {"stolen": S0, "too": S1}),
    ]
    for letters in ([], ["-F"]):
        two.receive(package("t/A@a0", entries, fromsnap="a0"), *letters, "v/A/d")
        assert below(two, "v/B") == before


def test_p4_an_origin_in_a_package_is_that_of_its_clones(two: Box) -> None:
    entries = [Entry("t/A", {"a0": begin_of(OWN).toguid}), Entry("t/A/x", {"evil": EVIL}, origin=S1)]
    whole = package("t/A@a0", entries, [named(OWN, "t/A@a0"), clone_of(AFTER, "t/A/x@evil")])
    two.refuses(whole, "-o", "origin=v/B/data@none", "v/A/d", why="does not exist")
    two.refuses(whole, "-o", "origin=v/B/data", "v/A/d")
    two.takes(whole, "-o", "origin=v/B/data@s1", "v/A/d")
    assert two.zkeep("get", "-Ho", "value", "origin", "v/A/d/x").out.strip() == "v/B/data@s1"


def test_p4_an_origin_in_the_target_is_found(two: Box) -> None:
    """With -d and -e what was named is above the dataset that is made."""
    two.takes(clone_of(AFTER, "B/y@new"), "-d", "v/B")
    assert two.zkeep("get", "-Ho", "value", "origin", "v/B/y").out.strip() == "v/B/data@s1"


def test_p4_written_since_a_snapshot_that_it_was_cloned_from(
    named_here: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its full name, as zfs takes it; a client is told nothing about what it does not see."""

    def written(since: str, dataset: str = "v/A/d/x") -> str:
        return named_here.zkeep("get", "-Hp", "-o", "value", f"written@{since}", dataset).out.strip()

    both, own = written("v/B/data@s0"), written("v/B/data@s1")
    assert int(both) >= int(own) > 0
    assert written("v/B/data@s0", "v/B/data") == written("s0", "v/B/data") != "-"
    # What came after the clone, or is no part of its past, is none of its snapshots.
    named_here.takes(AFTER, "v/B/data@s2")
    # The clone has the same since s1 as its origin has.
    assert (written("s0", "v/B/data"), written("s1", "v/B/data")) == (both, own)
    for since in ("v/B/data@s2", "v/A/d@a0", "s1", "v/B/data@none", "v/B/data@s0@s1", "v/B/data#s0", "/@s0", "x@"):
        assert written(since) == "-"
    with monkeypatch.context() as patch:
        line = "zfs get -Hp -o value written@v/B/data@s1,written@v/B/data@none v/A/d/x"
        patch.setenv("SSH_ORIGINAL_COMMAND", line)
        assert named_here.zkeep("server", "--root", "v/A").out.split() == ["-", "-"]
