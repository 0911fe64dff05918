"""P1, P4: what a stream says of its properties is shown and sent back, and decides nothing."""

from __future__ import annotations

import pytest
from badkit import Box, begin_of, forged, stream, taken_apart
from packagekit import Entry, package, plain

from zkeep.format.nvlist import Value
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.properties import PROPERTIES, Property
from zkeep.pool.datasets.view import View

FULL = stream("rs512b", "full-s0")
NEXT = stream("rs512b", "inc-s0-s1")
PLAIN = plain()
POLICY = [prop for prop in PROPERTIES.values() if prop.is_policy]


def named(data: bytes, name: str) -> bytes:
    return forged(data, lambda records: records[0].put("toname", name.encode()))


def tree(props: dict[str, Value], open_: bytes = b"") -> bytes:
    """t/a, below it t/a/b with these properties, and below that a third."""
    guid = begin_of(FULL).toguid
    entries = [Entry("t/a", {"s0": guid}, props, is_root=True), Entry("t/a/b", {"s0": guid}, props)]
    substreams = [named(FULL, "t/a@s0"), named(FULL, "t/a/b@s0")]
    if open_:
        entries.append(Entry("t/a/b/c", {"s0": begin_of(open_).toguid}))
        substreams.append(named(open_, "t/a/b/c@s0"))
    return package("t/a@s0", entries, substreams)


def shown(box: Box, name: str, dataset: str) -> list[str]:
    return box.zkeep("get", "-Hp", "-o", "value,received,source", name, dataset).out[:-1].split("\t")


def on_disk(box: Box, data: bytes) -> int:
    """How many blocks of a stream lie in the pool's files."""
    blocks = [r.payload[:64] for r in taken_apart(data)[1:] if len(r.payload) >= 512 and len(set(r.payload[:64])) > 16]
    assert blocks
    files = [path.read_bytes() for path in box.path.rglob("*") if path.is_file()]
    return sum(any(block in file for file in files) for block in blocks)


@pytest.mark.parametrize("value", [0, "off"])
@pytest.mark.parametrize("target", ["v/client", "v/new"])
def test_p1_a_stream_does_not_switch_blind_off(box: Box, target: str, value: Value) -> None:
    assert box.zkeep("create", "-o", "blind=on", "v/client").status == 0
    answer = box.receive(tree({"blind": value}, PLAIN), "-F", target)
    assert answer.status == 1
    assert "blind=on" in answer.err
    assert shown(box, "blind", f"{target}/b")[:2] == ["on", "-"]
    assert on_disk(box, PLAIN) == 0
    box.refuses(PLAIN, f"{target}/b/later", why="blind=on")


def test_p1_a_received_value_of_an_older_pool_is_not_acted_on(kept: Box) -> None:
    """It may have come in before this was so, or by another hand."""
    with Pool.open(kept.path, "v") as pool, pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(DatasetName.parse("v/x")), received={"blind": "off"})
    kept.refuses(PLAIN, "v/x/y", why="blind=on")
    assert shown(kept, "blind", "v/x") == ["on", "off", "default"]


def test_p1_what_is_set_here_still_counts(box: Box) -> None:
    assert box.zkeep("create", "-o", "blind=off", "v/open").status == 0
    box.takes(PLAIN, "v/open/x")
    box.takes(PLAIN, "-o", "blind=off", "v/one")
    box.refuses(PLAIN, "v/two", why="blind=on")


@pytest.mark.parametrize("prop", POLICY, ids=lambda prop: prop.name)
def test_p1_no_received_policy_has_effect(box: Box, prop: Property) -> None:
    """For every property that zkeep acts on, now or later: a stream's value is at most shown."""
    value: Value = {"text": "file:///dev/null", "size": 1, "count": 1}.get(prop.kind, 0)
    box.takes(tree({prop.name: value}), "-F", "v/h")
    with Pool.open(box.path, "v") as pool:
        dataset = pool.dataset(DatasetName.parse("v/h/b"))
        assert View(pool).policy(dataset, prop.name) == prop.default
        root = pool.dataset(DatasetName.parse("v/h"))
        assert str(View(pool).get(root, prop.name).value) in (prop.default, "prompt")
        assert prop.is_own or prop.name in root.doc["received"]
    box.takes(named(NEXT, "t/a@s1"), "v/h")


def test_p1_a_received_keylocation_is_not_opened(box: Box) -> None:
    box.takes(tree({"keylocation": "file:///dev/zero"}), "v/h")
    assert shown(box, "keylocation", "v/h") == ["prompt", "file:///dev/zero", "local"]
    assert box.zkeep("inherit", "-S", "keylocation", "v/h").status == 0
    assert shown(box, "keylocation", "v/h")[0] == "prompt"
    assert "file:///dev/zero" in box.zkeep("get", "-Hp", "-o", "received", "keylocation", "v/h").out
    assert box.zkeep("set", "keylocation=file:///here", "v/h").status == 0
    again = Entry("t/a", {"s0": begin_of(FULL).toguid}, {"keylocation": "file:///b"}, is_root=True)
    box.takes(package("t/a@s0", [again], [named(FULL, "t/a@s0")]), "v/h")
    assert shown(box, "keylocation", "v/h")[0] == "file:///here"


def test_p1_own_properties_are_policy_and_in_no_stream() -> None:
    """Each property of zkeep's own that can be set is policy; none of them is taken from a stream."""
    from zkeep.pool.datasets.properties import from_stream

    own = [prop for prop in PROPERTIES.values() if prop.is_own]
    assert {"blind"} <= {prop.name for prop in own}
    for prop in own:
        assert prop.is_policy or not prop.can_be_set
        for value in (0, 1, "on", "off", *prop.codes):
            assert from_stream(prop.name, value) is None


def test_p4_a_property_beyond_measure_is_not_kept(box: Box) -> None:
    long = "/" + "x" * 8191
    box.takes(tree({"com.example:long": long, "com.example:short": long[:-1], "mountpoint": long}), "v/h")
    assert shown(box, "com.example:long", "v/h")[0] == "-"
    assert len(shown(box, "com.example:short", "v/h")[0]) == 8191
    assert shown(box, "mountpoint", "v/h")[2] == "default"
