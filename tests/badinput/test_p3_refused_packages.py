"""P3: a replication package whose first BEGIN is refused has renamed, promoted and destroyed nothing."""

from __future__ import annotations

import pytest
from badkit import Box, begin_of, forged, stream, with_keys
from packagekit import Entry, package, plain

from zkeep.format.nvlist import NvList, NvType
from zkeep.format.records import BeginFlag

FULL, NEXT, AFTER = (stream("rs512b", name) for name in ("full-s0", "inc-s0-s1", "inc-s1-s2"))
OWN = stream("rs1k", "full-s0")
S0, S1, S2, Y = begin_of(FULL).toguid, begin_of(NEXT).toguid, begin_of(AFTER).toguid, begin_of(OWN).toguid
C, C2 = 0xC10E, 0xC10F
ON = "before this failed, things were"


def made(data: bytes, name: str, guid: int = 0, source: int = 0, flags: int = 0) -> bytes:
    def change(records: list) -> None:  # type: ignore[type-arg]
        begin = records[0]
        begin.put("toname", name.encode())
        begin.put("flags", begin_of(data).flags | flags)
        begin.put("fromguid", source or begin_of(data).fromguid)
        for record in records if guid else ():
            record.put("toguid", guid)

    return forged(data, change)


@pytest.fixture
def tree(box: Box) -> Box:
    """v/d with @s0 and @s1, its clone v/d/x with @c, and v/d/y with @y0."""
    box.takes(FULL, "v/d@s0")
    box.takes(NEXT, "v/d@s1")
    box.takes(made(NEXT, "t/d/x@c", C, flags=BeginFlag.CLONE), "-o", "origin=v/d@s0", "v/d/x@c")
    box.takes(OWN, "v/d/y@y0")
    return box


TOP, CLONE, OTHER = Entry("t/d", {"s0": S0, "s1": S1}), Entry("t/d/x", {"c": C}, origin=S0), Entry("t/d/y", {"y0": Y})
PROMOTED = [Entry("t/d", {"s1": S1}, origin=S0), Entry("t/d/x", {"s0": S0, "c": C})]
CHANGES = {
    "renamed": [TOP, CLONE, Entry("t/d/z", {"y0": Y})],
    "snapshots renamed": [Entry("t/d", {"s0": S0, "other": S1}), CLONE, OTHER],
    "promoted": [*PROMOTED, OTHER],
    "promoted, renamed": [*PROMOTED, Entry("t/d/z", {"why": Y})],
    "destroyed": [TOP, CLONE],
    "snapshot destroyed": [Entry("t/d", {"s1": S1}), Entry("t/d/x", {"s0": S0, "c": C}), OTHER],
    "all": [*PROMOTED, Entry("t/d/x/n", {"new": 7})],
}


def _other_key(data: bytes) -> bytes:
    def change(_: NvList, crypt: NvList) -> None:
        crypt.remove("DSL_CRYPTO_GUID")
        crypt.set("DSL_CRYPTO_GUID", 99, NvType.UINT64)

    return with_keys(data, change)


GOOD = made(AFTER, "t/d@s2")
REFUSED = {
    "another key": (_other_key(GOOD), "mismatch"),
    "plain": (made(plain(), "t/d@s2", 8), "not loaded"),
    "no source": (made(AFTER, "t/d@s2", source=5), "is not there"),
    "nothing common": (made(OWN, "t/d@s2", 8), "destination has snapshots"),
    "not below": (made(OWN, "elsewhere@s2", 8), "not below"),
    "no parent": (made(OWN, "t/d/no/where@s2", 8), "parent"),
}


@pytest.mark.parametrize("letters", ["-F", "-sF", "-nF"])
@pytest.mark.parametrize("change", CHANGES)
def test_p3_nothing_is_changed_before_the_first_begin_is_judged(tree: Box, change: str, letters: str) -> None:
    for data, why in REFUSED.values():
        whole = package("t/d@s2", CHANGES[change], [data], fromsnap="s1")
        assert ON not in tree.refuses(whole, letters, "v/d", why=why).err


@pytest.mark.parametrize("change", CHANGES)
def test_p3_nor_where_the_stream_ends_before_it_or_there_is_no_room(tree: Box, change: str) -> None:
    whole = package("t/d@s2", CHANGES[change], [GOOD], fromsnap="s1")
    tree.refuses(whole[: whole.index(GOOD[300:])], "-F", "v/d")
    if change not in ("destroyed", "all"):  # which give room
        used = tree.zkeep("get", "-Hp", "-o", "value", "used", "v/d").out.strip()
        assert tree.zkeep("set", f"quota={used}", "v/d").status == 0
        tree.refuses(whole, "-F", "v/d", why="quota")
        assert tree.zkeep("set", "quota=none", "v/d").status == 0
    tree.takes(whole, "-F", "v/d")
    if "promoted" in change:
        assert tree.zkeep("get", "-H", "-o", "value", "origin", "v/d").out == "v/d/x@s0\n"


@pytest.mark.parametrize("change", ["renamed", "promoted", "destroyed", "all"])
def test_what_fails_later_says_what_was_done(tree: Box, change: str) -> None:
    """What came before is kept, as of any package; so is what followed the source before it."""
    cut = package("t/d@s2", CHANGES[change], [GOOD[:-400]], fromsnap="s1")
    answer = tree.receive(cut, "-F", "v/d")
    assert answer.status == 1
    assert f"{ON} {'promoted, destroyed' if change == 'all' else change} as at the source" in answer.err
    later = package("t/d@s2", CHANGES[change], [GOOD, _other_key(made(AFTER, "t/d@s3", 9, S2))], fromsnap="s1")
    answer = tree.receive(later, "-F", "v/d")
    assert answer.status == 1
    assert ON not in answer.err
    assert "v/d@s2" in tree.zkeep("list", "-H", "-t", "all", "-r", "-o", "name", "v").out.split()


def test_a_package_without_snapshots_is_followed(tree: Box) -> None:
    tree.takes(package("t/d@s1", CHANGES["all"], [], fromsnap="s1"), "-F", "v/d")
    names = tree.zkeep("list", "-H", "-t", "all", "-r", "-o", "name", "v").out.split()
    assert names == ["v", "v/d", "v/d@s1", "v/d/x", "v/d/x@s0", "v/d/x@c"]

