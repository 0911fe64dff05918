"""Reading system attributes: layouts, sizes that vary, byte orders, and buffers that make no sense."""

from __future__ import annotations

import struct

import pytest

from zkeep.format.records import ByteOrder
from zkeep.format.sa import LEGACY, MAGIC, BadAttributes, Schema, columns_of, decode_legacy
from zkeep.format.zap import ZapEntry

GEN, MODE, MTIME, SYMLINK, DXATTR = 4, 5, 1, 17, 20
LAYOUTS = {
    2: (MODE, GEN, MTIME),
    3: (MODE, SYMLINK, GEN),
    4: (SYMLINK, DXATTR),
}
COLUMNS = ("ZPL_MODE", "ZPL_GEN", "ZPL_MTIME", "ZPL_MTIME+")


def schema(layouts: dict[int, tuple[int, ...]] | None = None) -> Schema:
    """A dataset that has registered the two attributes whose sizes vary, beside those of old."""
    names = {SYMLINK: "ZPL_SYMLINK", DXATTR: "ZPL_DXATTR"}
    registry = [ZapEntry(name.encode(), 8, number.to_bytes(8, "big")) for number, name in names.items()]
    found = LAYOUTS if layouts is None else layouts
    return Schema(
        registry,
        [ZapEntry(b"%d" % n, 2, struct.pack(f">{len(numbers)}H", *numbers)) for n, numbers in found.items()],
        COLUMNS,
    )


def buffer(layout: int, sizes: tuple[int, ...], content: bytes, order: ByteOrder = "little") -> bytes:
    """The header, as long as its sizes need, and what follows it."""
    mark = "<" if order == "little" else ">"
    words = -(-(6 + 2 * len(sizes)) // 8)
    head = struct.pack(f"{mark}IH{len(sizes)}H", MAGIC, layout | words << 10, *sizes)
    return head.ljust(8 * words, b"\0") + content


@pytest.mark.parametrize("order", ["little", "big"])
def test_numbers_and_times_come_out_in_either_byte_order(order: ByteOrder) -> None:
    mark = "<" if order == "little" else ">"
    content = struct.pack(f"{mark}QQqq", 0o100644, 7, -1, 999)
    found = schema().decode_numbers(buffer(2, (), content, order))
    assert found == ((0o100644, 7, -1, 999), {}, order)
    attributes, read_as = schema().decode(buffer(2, (), content, order))
    assert columns_of(attributes, COLUMNS, read_as) == (0o100644, 7, -1, 999)


@pytest.mark.parametrize(
    ("layout", "sizes", "content", "expected"),
    [
        pytest.param(4, (3, 2), b"abc" + bytes(5) + b"de", {"ZPL_SYMLINK": b"abc", "ZPL_DXATTR": b"de"}, id="two"),
        pytest.param(4, (8, 1), b"12345678x", {"ZPL_SYMLINK": b"12345678", "ZPL_DXATTR": b"x"}, id="no padding"),
        pytest.param(4, (0, 0), b"", {"ZPL_SYMLINK": b"", "ZPL_DXATTR": b""}, id="empty ones"),
    ],
)
def test_attributes_of_varying_size(
    layout: int, sizes: tuple[int, ...], content: bytes, expected: dict[str, bytes]
) -> None:
    assert schema().decode(buffer(layout, sizes, content)) == (expected, "little")


def test_a_number_behind_an_attribute_that_varies_is_found_as_well() -> None:
    content = struct.pack("<Q", 0o120777) + b"to".ljust(8, b"\0") + struct.pack("<Q", 42)
    numbers, rest, _ = schema().decode_numbers(buffer(3, (2,), content))
    assert numbers == (0o120777, 42, 0, 0)
    assert rest["ZPL_SYMLINK"] == b"to"


GOOD = buffer(2, (), bytes(32))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "does not begin", id="nothing"),
        pytest.param(GOOD[:7], "does not begin", id="less than a header"),
        pytest.param(b"\0" + GOOD[1:], "does not begin", id="another magic"),
        pytest.param(GOOD[:-1], "not fit in a buffer of 39 bytes", id="cut short"),
        pytest.param(buffer(9, (), bytes(32)), "layout 9 is not registered", id="an unknown layout"),
        pytest.param(buffer(4, (60000, 0), bytes(16)), "ZPL_SYMLINK does not fit", id="longer than the buffer"),
    ],
)
def test_a_buffer_that_makes_no_sense(content: bytes, why: str) -> None:
    for decode in (schema().decode, schema().decode_numbers):
        with pytest.raises(BadAttributes, match=why if decode.__name__ == "decode" else "."):
            decode(content)


@pytest.mark.parametrize("numbers", [(MODE, 999), (MODE,) * 1025], ids=["not registered", "too many"])
def test_a_layout_that_makes_no_sense(numbers: tuple[int, ...]) -> None:
    with pytest.raises(BadAttributes, match="not registered"):
        schema({2: numbers})


def test_a_znode_of_old() -> None:
    size = sum(size for _, size in LEGACY)
    bonus = bytearray(size)
    bonus[72:80] = (0o120777).to_bytes(8, "little")
    found = decode_legacy(bytes(bonus) + b"target", "little")
    assert found["ZPL_SYMLINK"] == b"target"
    assert "ZPL_SYMLINK" not in decode_legacy(bytes(size) + b"target", "little")
    with pytest.raises(BadAttributes):
        decode_legacy(bytes(size - 1), "little")
