"""P7: a long outer header is checked whole, and held only where it is looked at."""

from __future__ import annotations

import pytest

from zkeep.format import _nvcodec
from zkeep.format.dump import nvlist_lines
from zkeep.format.nvlist import BadNvlist, NvList, Pair, decode, encode


def header(snapshots: int) -> bytes:
    """The header of send -R: a dataset, its snapshots with their guids and their properties."""
    snaps, props = NvList(), NvList()
    for number in range(snapshots):
        snaps.set(f"snapshot-{number:06}", number)
        mine = NvList()
        mine.set("a:b", str(number))
        props.set(f"snapshot-{number:06}", mine)
    entry, fss, root = NvList(), NvList(), NvList()
    entry.set("name", "tank/fs")
    entry.set("snaps", snaps)
    entry.set("snapprops", props)
    entry.set("some", (mine, NvList()))
    fss.set("0x1", entry)
    root.set("tosnap", "x")
    root.set("fss", fss)
    return encode(root)


@pytest.fixture
def postponed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvcodec, "LARGE", 0)


def plain(nvlist: NvList) -> dict[str, object]:
    return {name: plain(value) if isinstance(value, NvList) else value for name, value in nvlist.items()}


def inside(nvlist: NvList, *names: str) -> NvList:
    for name in names:
        found = nvlist[name]
        assert isinstance(found, NvList)
        nvlist = found
    return nvlist


def test_p7_a_long_list_says_what_a_short_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = header(20)
    short = decode(packed)
    monkeypatch.setattr(_nvcodec, "LARGE", 0)
    long = decode(packed)
    assert list(nvlist_lines(short)) == list(nvlist_lines(long))
    assert repr(plain(short)) == repr(plain(long))
    assert encode(long) == encode(decode(packed)) == packed


def test_p7_what_is_shown_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    first = Pair.__init__

    def counting(self: Pair, *args: object) -> None:
        made.append(args[0])
        first(self, *args)  # type: ignore[arg-type]

    packed = header(2000)
    assert len(packed) > _nvcodec.LARGE
    nvlist = decode(packed)
    entry = inside(nvlist, "fss", "0x1")
    assert sum(line.endswith("]") or "snapshot-" in line for line in nvlist_lines(nvlist)) >= 4000
    monkeypatch.setattr(Pair, "__init__", counting)
    assert inside(entry, "snaps")["snapshot-000007"] == 7
    assert made.count("snapshot-000007") == 1  # decoded only now: showing it left nothing behind
    assert inside(entry, "snapprops", "snapshot-000007")["a:b"] == "7"
    assert made.count("a:b") <= 2  # of 2,000; one is in an array


def test_a_change_deep_in_a_long_list_is_packed(postponed: None) -> None:
    packed = header(5)
    nvlist = decode(packed)
    inside(nvlist, "fss", "0x1", "snaps").set("snapshot-000003", 99)
    again = decode(encode(nvlist))
    assert inside(again, "fss", "0x1", "snaps")["snapshot-000003"] == 99
    assert inside(again, "fss", "0x1", "snapprops", "snapshot-000003")["a:b"] == "3"
    assert encode(decode(packed)) == packed


def outcome(packed: bytes) -> object:
    try:
        return repr(plain(decode(packed)))
    except BadNvlist as bad:
        return bad.reason


def test_damage_in_a_long_list_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = header(2)
    damaged = [
        packed[:at] + bytes([packed[at] ^ flip]) + packed[at + 1 :] for at in range(len(packed)) for flip in (1, 128)
    ]
    damaged += [packed[:at] for at in range(len(packed))]
    expected = [outcome(each) for each in damaged]
    monkeypatch.setattr(_nvcodec, "LARGE", 0)
    for each, reason in zip(damaged, expected, strict=True):
        assert outcome(each) == reason


def test_a_list_that_is_made_finds_its_names_while_it_grows() -> None:
    nvlist = NvList()
    for number in range(50):
        nvlist.set(f"n{number}", number)
        nvlist.set(f"n{number}", number + 1)
    nvlist.pairs.append(Pair("late", nvlist.pairs[0].type, 7))
    assert nvlist["n3"] == 4
    assert nvlist["late"] == 7
    del nvlist["n3"]
    assert "n3" not in nvlist
    assert len(nvlist) == 50
