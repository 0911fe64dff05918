"""An outer header is authenticated by nothing: what reaches a restoring host is harmless."""

from __future__ import annotations

from typing import Any

import pytest

from zkeep.errors import BadStream, WrongUsage
from zkeep.format.events import Package
from zkeep.format.nvlist import NvList, NvType, Value
from zkeep.format.reader import Reader
from zkeep.format.records import Begin, ByteOrder, Feature, HeaderType
from zkeep.format.writer import Writer
from zkeep.pool.datasets import properties
from zkeep.restore.filter.sanitize import HARMLESS, Allowed, sanitize

HEADER = Begin(versioninfo=HeaderType.COMPOUND | int(Feature.HOLDS) << 2, toname=b"t/a@s")


def nvlist(pairs: dict[str, Any]) -> NvList:
    made = NvList()
    for name, value in pairs.items():
        made[name] = nvlist(value) if isinstance(value, dict) else value
    return made


def entry(**others: Value) -> NvList:
    made = nvlist(
        {
            "name": "t/a",
            "parentfromsnap": 0,
            "props": {
                **{"mountpoint": "/etc", "setuid": 1, "exec": 1, "devices": 1, "canmount": 0, "sharenfs": "on"},
                **{"org.x:run": "sh", "checksum": 2, "compression": 15, "recordsize": 4096, "keylocation": "file:///k"},
            },
            "snaps": {"s": 7},
            "snapprops": {"s": {"org.x:note": "n", "exec": 0}},
            "snapholds": {"s": {"keep": 5}},
            "unheard-of": "x",
        }
    )
    made.update(others)
    return made


def package(entry_: NvList, header: Begin = HEADER, byteorder: ByteOrder = "little", **top: Value) -> Package:
    fss = NvList()
    fss["0x1f"] = entry_
    made = nvlist({"tosnap": "s", "more": "x", **top})
    made["fss"] = fss
    return read(Writer(byteorder).package(header, made))


def read(stream: bytes) -> Package:
    (found,) = Reader().feed(stream)
    assert isinstance(found, Package)
    return found


def passed(before: Package, *allow: str) -> tuple[Package, dict[str, Any]]:
    """What a host reads of it; and its one dataset."""
    after = read(sanitize(before, Allowed.of(allow)).written(Writer(before.byteorder)))
    fss = after.nvlist["fss"]
    assert isinstance(fss, NvList)
    (dataset,) = fss.values()
    assert isinstance(dataset, NvList)
    return after, plain(dataset)


def plain(of: NvList) -> dict[str, Any]:
    return {name: plain(value) if isinstance(value, NvList) else value for name, value in of.items()}


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_only_what_is_known_and_harmless_passes(byteorder: ByteOrder) -> None:
    after, dataset = passed(package(entry(), byteorder=byteorder))
    assert set(after.nvlist) == {"tosnap", "fss"}
    assert after.header.features == Feature(0)
    assert dataset == {
        "name": "t/a",
        "parentfromsnap": 0,
        "props": {"compression": 15, "recordsize": 4096},
        "snaps": {"s": 7},
        "snapprops": {"s": {}},
    }


def test_it_is_told_what_is_left_out() -> None:
    dropped = sanitize(package(entry()), Allowed()).dropped
    assert ("t/a", "mountpoint") in dropped
    assert ("t/a", "keylocation") in dropped
    assert ("t/a@s", "org.x:note") in dropped
    assert ("t/a@s", "the hold 'keep'") in dropped
    assert ("t/a", "compression") not in dropped


def test_what_is_asked_for_passes() -> None:
    _, dataset = passed(package(entry()), "mountpoint", "org.x:note")
    assert dataset["props"] == {"mountpoint": "/etc", "compression": 15, "recordsize": 4096}
    assert dataset["snapprops"] == {"s": {"org.x:note": "n"}}


def test_holds_pass_where_they_are_asked_for() -> None:
    after, dataset = passed(package(entry()), "holds")
    assert after.header.features == Feature.HOLDS
    assert dataset["snapholds"] == {"s": {"keep": 5}}


def test_all_is_all_but_a_keylocation_and_what_makes_no_sense() -> None:
    _, dataset = passed(package(entry()), "all")
    assert dataset["props"]["mountpoint"] == "/etc"
    assert dataset["props"]["org.x:run"] == "sh"
    assert "keylocation" not in dataset["props"]
    assert "unheard-of" not in dataset


def test_the_key_of_a_root_of_encryption_is_asked_for() -> None:
    root = entry()
    root.set("is_encroot", True, NvType.BOOLEAN)
    _, dataset = passed(package(root))
    assert dataset["is_encroot"] is True
    assert dataset["props"]["keylocation"] == "prompt"


def test_a_prompt_for_the_key_is_nothing_to_tell_of() -> None:
    root = entry(props=nvlist({"keylocation": "prompt"}), snapprops=NvList(), snapholds=NvList())
    root.set("is_encroot", True, NvType.BOOLEAN)
    assert sanitize(package(root), Allowed()).dropped == []
    assert passed(package(root))[1]["props"] == {"keylocation": "prompt"}


@pytest.mark.parametrize("wrong", [{"compression": 9999}, {"compression": "lz4"}, {"recordsize": "big"}])
def test_a_value_that_makes_no_sense_does_not_pass(wrong: dict[str, Value]) -> None:
    _, dataset = passed(package(entry(props=nvlist(wrong))))
    assert dataset["props"] == {}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lambda: package(entry(name="t/../b")), "not allowed as a component"),
        (lambda: package(entry(name="t/b")), "not below t/a"),
        (lambda: package(entry(snaps=nvlist({"s;reboot": 7}))), "invalid character"),
        (lambda: package(entry(), Begin(versioninfo=2, toname=b"t/a")), "there is no '@'"),
        (lambda: package(entry(), tosnap="s/x"), "invalid character"),
        (lambda: package(entry(), fromsnap="a@b"), "more than one"),
    ],
)
def test_bad_names_are_refused(bad: Any, why: str) -> None:
    with pytest.raises(BadStream, match=why):
        sanitize(bad(), Allowed())


def test_a_header_without_a_list_stays_without() -> None:
    before = read(Writer().package(HEADER, NvList()))
    after = read(sanitize(before, Allowed()).written(Writer()))
    assert after.header.payloadlen == 0
    assert after.header.name == b"t/a@s"


@pytest.mark.parametrize("name", ["nonsense", "used", "keylocation", ""])
def test_what_no_stream_can_set_cannot_be_allowed(name: str) -> None:
    with pytest.raises(WrongUsage):
        Allowed.of([name])


def test_the_harmless_are_properties_that_a_stream_can_set() -> None:
    assert all((prop := properties.find(name)) and prop.can_be_set for name in HARMLESS)
