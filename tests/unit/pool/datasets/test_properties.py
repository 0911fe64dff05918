from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.errors import Refused
from zkeep.pool.datasets.properties import PROPERTIES, check, find, from_stream, parse_size, to_stream


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("quota", "none", "0"),
        ("quota", "10G", str(10 << 30)),
        ("quota", "1.5k", "1536"),
        ("recordsize", "1M", str(1 << 20)),
        ("recsize", "128K", "131072"),
        ("compression", "zstd-19", "zstd-19"),
        ("compress", "lz4", "lz4"),
        ("mountpoint", "/a/b/", "/a/b"),
        ("mountpoint", "none", "none"),
        ("readonly", "on", "on"),
        ("blind", "off", "off"),
        ("snapshot_limit", "none", "none"),
        ("org.x:y", "any\ttext é", "any\ttext é"),
    ],
)
def test_what_may_be_set(name: str, text: str, kept: str) -> None:
    prop = find(name)
    assert prop
    assert check(name, text) == (prop.name, kept)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("quota", "-1", "must be a number"),
        ("quota", "9" * 30, "must be a number"),
        ("recordsize", "1000", "power of 2"),
        ("recordsize", "32M", "power of 2"),
        ("compression", "best", "must be one of"),
        ("mountpoint", "relative", "absolute path"),
        ("mountpoint", "/a\n/b", "absolute path"),
        ("mountpoint", "/" + "x" * 300, "255 bytes"),
        ("used", "1", "read-only"),
        ("encryption", "on", "set once"),
        ("nonsense", "1", "none of this name"),
        ("written@a", "1", "none of this name"),
        ("a:b", "x" * 9000, "more than 8191 bytes"),
        ("a:b", "\0", "NUL"),
        ("context", "\x1b[2J", "printed"),
    ],
)
def test_what_may_not_be_set(name: str, text: str, why: str) -> None:
    with pytest.raises(Refused, match=why) as caught:
        check(name, text)
    assert str(caught.value).isprintable()


def test_types() -> None:
    with pytest.raises(Refused, match="does not apply"):
        check("recordsize", "1M", "v")
    with pytest.raises(Refused, match="does not apply"):
        check("quota", "1M", "s")
    assert check("a:b", "1", "s")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("compression", 15, "lz4"),
        ("compression", 16, "zstd"),
        ("compression", 16 | 19 << 7, "zstd-19"),
        ("compression", 10, "gzip"),
        ("checksum", 1, "on"),
        ("atime", 0, "off"),
        ("recordsize", 4096, "4096"),
        ("quota", 0, "0"),
        ("filesystem_limit", 2**64 - 1, "none"),
        ("acltype", 1, "posix"),
        ("mountpoint", "/x", "/x"),
        ("x:y", "z", "z"),
        ("volsize", 1 << 30, str(1 << 30)),
    ],
)
def test_streams_carry_numbers(name: str, value: int | str, text: str) -> None:
    assert from_stream(name, value) == text
    if name != "gzip":
        assert to_stream(name, text) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [("used", 1), ("nonsense", 1), ("compression", 9999), ("mountpoint", 3), ("atime", "on"), ("x:y", "a\0b")],
)
def test_streams_are_not_believed(name: str, value: int | str) -> None:
    assert from_stream(name, value) is None


@given(st.sampled_from(sorted(PROPERTIES)), st.one_of(st.integers(-5, 2**65), st.text()))
def test_whatever_a_stream_says_comes_back_or_is_dropped(name: str, value: int | str) -> None:
    text = from_stream(name, value)
    assert text is None or to_stream(name, text) == value or PROPERTIES[name].kind == "index"


def test_default_values_are_values() -> None:
    for prop in PROPERTIES.values():
        if prop.can_be_set and prop.kind == "index":
            assert prop.default in prop.codes
        if prop.can_be_set and prop.kind == "size" and prop.default:
            assert int(prop.default) >= 0


def test_sizes() -> None:
    assert parse_size("1.5G") == 3 << 29
    assert parse_size("2KiB") == 2048
    assert parse_size("512B") == 512
    assert parse_size("1.0K") == 1024
    for bad in ("x", "1.5.2", "G", "1 G", "١", "1.5", "1.0", ".5"):
        with pytest.raises(ValueError, match=bad):
            parse_size(bad)


@pytest.mark.parametrize("name", ["recordsize", "volsize"])
def test_a_size_that_must_be_one_is_never_none(name: str) -> None:
    with pytest.raises(Refused, match="must be a number"):
        check(name, "none", "fv")


@pytest.mark.parametrize("name", ["quota", "refquota", "reservation", "refreservation", "special_small_blocks"])
def test_none_is_no_bytes(name: str) -> None:
    assert check(name, "none") == (name, "0")


def test_small_blocks_are_as_large_as_blocks_can_be() -> None:
    for text, kept in (("0", "0"), ("512", "512"), ("32K", "32768"), ("1M", "1048576")):
        assert check("special_small_blocks", text) == ("special_small_blocks", kept)
    for text in ("1", "256", "513", "3K", "2M", "8E"):
        with pytest.raises(Refused, match="must be 0, or a power of 2 from 512 to 1M"):
            check("special_small_blocks", text)


@pytest.mark.parametrize("name", ["filesystem_limit", "snapshot_limit"])
def test_counts_are_whole(name: str) -> None:
    assert check(name, "none") == (name, "none")
    with pytest.raises(Refused, match="must be a number"):
        check(name, "1.5")
