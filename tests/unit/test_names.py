from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.errors import Refused
from zkeep.names import (
    BookmarkName,
    DatasetName,
    SnapshotName,
    is_user_property,
    parse_any,
    parse_pool,
    parse_tag,
)

HOSTILE = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/..",
    "a/../b",
    "a/./b",
    "a\0b",
    "a\nb",
    "a/\x1b[2J",
    "a\tb",
    "a%b",
    "a/%recv",
    "é",
    "a\udcff",
    "a;rm -rf",
    "a$(x)",
    "a'b",
    'a"b',
    "a\\b",
    "a*",
    "x" * 256,
    "a/" * 2500 + "a",
    "a/" * 50 + "a",
    "a@b/c",
    "a#b",
    "a@b",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_dataset_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(Refused) as caught:
        DatasetName.parse(name)
    text = str(caught.value)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 300


@pytest.mark.parametrize("tail", ["", ".", "..", "a@b", "a#b", "a/b", "a%b", "a\0", "a\x7f", "x" * 250, "é"])
@pytest.mark.parametrize("kind", [SnapshotName, BookmarkName])
def test_hostile_snapshot_names(kind: type[SnapshotName] | type[BookmarkName], tail: str) -> None:
    mark = "@" if kind is SnapshotName else "#"
    with pytest.raises(Refused) as caught:
        kind.parse(f"pool/a{mark}{tail}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "1a", "-a", "a/b", "a@b", "mirror", "mirror1", "raidz2", "log", "spare"])
def test_pool_names_that_are_refused(name: str) -> None:
    with pytest.raises(Refused):
        parse_pool(name)


def test_pool_name_length() -> None:
    assert parse_pool("p" * 237)
    with pytest.raises(Refused, match="238 bytes"):
        parse_pool("p" * 238)


def test_parts_of_a_dataset_name() -> None:
    name = DatasetName.parse("tank/a b/c-_.:d")
    assert name.pool == "tank"
    assert name.parent == DatasetName("tank/a b")
    assert name.base == "c-_.:d"
    assert name.depth == 2
    assert name.components == ["tank", "a b", "c-_.:d"]
    assert str(name.snapshot("s 1")) == "tank/a b/c-_.:d@s 1"
    assert str(name.bookmark("b")) == "tank/a b/c-_.:d#b"
    assert name.child("x/y").text == "tank/a b/c-_.:d/x/y"
    assert DatasetName("tank").parent is None


def test_within() -> None:
    assert DatasetName("t/a/b").is_within(DatasetName("t/a"))
    assert DatasetName("t/a").is_within(DatasetName("t/a"))
    assert not DatasetName("t/ab").is_within(DatasetName("t/a"))


def test_depth_and_length_limits() -> None:
    assert DatasetName.parse("/".join(["a"] * 50)).depth == 49
    assert DatasetName.parse("x" * 255)
    assert SnapshotName.parse("x" * 200 + "@" + "y" * 54)


def test_parse_any() -> None:
    assert parse_any("t/a") == DatasetName("t/a")
    assert parse_any("t/a@s") == SnapshotName(DatasetName("t/a"), "s")
    assert parse_any("t/a#s") == BookmarkName(DatasetName("t/a"), "s")


@given(st.text(max_size=300))
def test_any_text_is_a_name_or_refused_in_one_line(text: str) -> None:
    try:
        outcome = str(parse_any(text))
    except Refused as error:
        outcome = text if str(error).isprintable() else ""
    assert outcome == text


def test_tags_and_user_properties() -> None:
    assert parse_tag("keep me") == "keep me"
    for bad in ("", "a\n", "x" * 256):
        with pytest.raises(Refused):
            parse_tag(bad)
    assert is_user_property("org.example:owner")
    assert not is_user_property("owner")
    assert not is_user_property("Org:x")
    assert not is_user_property("a:" + "x" * 300)
