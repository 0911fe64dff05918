"""P4: the outer header of a package has values of any type where zfs writes numbers and text."""

from __future__ import annotations

import pytest
from badkit import Box, begin_of, stream
from packagekit import Entry, package

from zkeep.format.nvlist import NvList, NvType, Pair, Value
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.properties import PROPERTIES

FULL = stream("rs512b", "full-s0")
NAME = begin_of(FULL).toname.decode()
GUID = begin_of(FULL).toguid
ODD: list[tuple[NvType, Value]] = [
    (NvType.BOOLEAN, True),
    (NvType.BOOLEAN_VALUE, True),
    (NvType.BOOLEAN_VALUE, False),
    (NvType.INT64, -1),
    (NvType.INT32, -(1 << 31)),
    (NvType.DOUBLE, 1.5),
    (NvType.UINT64_ARRAY, (1, 2)),
    (NvType.NVLIST, NvList()),
]
VALUES = pytest.mark.parametrize(("kind", "value"), ODD, ids=[f"{kind.name} {value}" for kind, value in ODD])


class OddEntry(Entry):
    """A dataset of which every property, hold and snapshot has a second one of an odd value beside it."""

    odd = Pair("", NvType.BOOLEAN, True)

    def nvlist(self) -> NvList:
        made = super().nvlist()
        names = [prop.name for prop in PROPERTIES.values() if prop.can_be_set] + ["user:property"]
        for props in (made["props"], inner(made["snapprops"], "s0")):
            assert isinstance(props, NvList)
            props.pairs.extend(Pair(name, self.odd.type, self.odd.value) for name in names)
        inner(made["snapholds"], "s0").pairs.append(Pair("odd", self.odd.type, self.odd.value))
        snaps = made["snaps"]
        assert isinstance(snaps, NvList)
        snaps.pairs.append(Pair("odd", self.odd.type, self.odd.value))
        return made


def inner(nvlist: Value, name: str) -> NvList:
    assert isinstance(nvlist, NvList)
    found = nvlist[name]
    assert isinstance(found, NvList)
    return found


def odd(kind: NvType, value: Value) -> bytes:
    entry = OddEntry(
        NAME.partition("@")[0], {"s0": GUID}, {"a:b": "c"}, {"s0": {"a:b": "c"}}, {"s0": {"keep": 5}}, is_root=True
    )
    entry.odd = Pair("", kind, value)
    return package(NAME, [entry], [FULL], holds=True)


@VALUES
def test_p4_values_of_odd_types_are_passed_over(box: Box, kind: NvType, value: Value) -> None:
    box.takes(odd(kind, value), "v/new")
    text = box.zkeep("get", "-Hp", "-o", "received", "quota,recordsize,volsize,user:property", "v/new").out
    assert set(text.split()) == {"-"}
    assert {line.split("\t")[1] for line in box.zkeep("holds", "-H", "v/new@s0").out.splitlines()} == {"keep", "odd"}
    for words in (["-Rhw"], ["-pw"], ["-bw"]):
        assert box.zkeep("send", *words, "v/new@s0").status == 0, words


@VALUES
def test_p4_an_increment_that_lists_them_is_followed(box: Box, kind: NvType, value: Value) -> None:
    box.takes(odd(kind, value), "v/new")
    entry = OddEntry(NAME.partition("@")[0], {"s0": GUID}, {}, {"s0": {}}, {"s0": {}}, is_root=True)
    entry.odd = Pair("", kind, value)
    box.takes(package(NAME, [entry], fromsnap="@s0", holds=True), "-F", "v/new")
    assert box.zkeep("list", "-H", "-t", "snapshot", "-o", "name", "v/new").out == "v/new@s0\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("quota", "abc"),
        ("quota", "-5"),
        ("refquota", "9" * 5000),
        ("recordsize", ""),
        ("compression", "none such"),
        ("readonly", "maybe"),
        ("filesystem_limit", "some"),
        ("max_age", "-1"),
        ("notify", "bogus"),
    ],
)
@pytest.mark.parametrize("where", ["local", "received"])
def test_p4_a_value_in_a_strangers_pool_that_makes_no_sense_counts_as_none(
    box: Box, name: str, text: str, where: str
) -> None:
    box.takes(FULL, "v/new")
    before = box.zkeep("get", "-Hp", "-o", "value", name, "v/new").out
    with Pool.open(box.path, "v") as pool, pool.transaction() as t:
        dataset = pool.dataset(DatasetName("v/new"))
        pool.update_dataset(t, dataset, **{where: {name: text}})
    assert box.zkeep("get", "-Hp", "-o", "value", name, "v/new").out == before
    for words in (["get", "all"], ["send", "-Rw"], ["send", "-bw"], ["list", "-o", "name,avail,quota"]):
        answer = box.zkeep(*words, "v/new@s0" if words[0] == "send" else "v/new")
        assert answer.status == 0, (words, answer)
    box.takes(FULL, "v/new/child")
    for words in (["health"], ["prune", "v/new"]):
        assert "unexpected" not in box.zkeep(*words).err
