"""ZAPs that lead nowhere end in an error, not in a loop."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.format.zap import Zap
from zkeep.format.zap_hash import hash_of
from zkeep.format.zap_layout import MICRO, BadZap


def micro(**entries: int) -> bytes:
    block = struct.pack("<QQQ40x", MICRO, 1, 0)
    for name, value in entries.items():
        block += struct.pack("<QIH50s", value, 0, 0, name.encode())
    return block.ljust(512, b"\0")


@pytest.mark.parametrize("swap", [False, True])
def test_a_micro_zap_in_either_byte_order(swap: bool) -> None:
    block = micro(ROOT=34, VERSION=5)
    if swap:
        block = struct.pack(">QQQ40x", MICRO, 1, 0) + struct.pack(">QIH50s", 34, 0, 0, b"ROOT")
    zap = Zap(lambda number: block.ljust(512, b"\0"), 512)
    entry = zap.get(b"ROOT")
    assert entry is not None
    assert entry.number == 34
    assert zap.get(b"root") is None


def test_the_hash_keeps_its_high_bits_only() -> None:
    assert hash_of(b"name", 1, 28) & ((1 << 36) - 1) == 0
    assert hash_of(b"name", 1, 48) >> 36 == hash_of(b"name", 1, 28) >> 36


@given(st.binary(min_size=128, max_size=600), st.sampled_from([0, 1, 3]))
def test_nonsense_is_refused(content: bytes, kind: int) -> None:
    block = struct.pack("<Q", (1 << 63) + kind) + content
    try:
        for entry in Zap(lambda number: block, 512):
            assert isinstance(entry.name, bytes)
    except (BadZap, struct.error):
        pass
