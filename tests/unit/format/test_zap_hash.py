"""The hash of names is the same whether it is compiled or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.format import zap_hash


@pytest.mark.skipif(zap_hash._crc64 is zap_hash.crc64, reason="it is not compiled here")
@given(st.binary(max_size=300), st.integers(0, (1 << 64) - 1))
def test_both_ways_agree(name: bytes, salt: int) -> None:
    assert zap_hash._crc64(name, salt) == zap_hash.crc64(name, salt)


@pytest.mark.parametrize("crc64", [zap_hash._crc64, zap_hash.crc64])
def test_it_is_the_crc_of_ecma_182(crc64: type) -> None:
    """The check value of CRC-64/XZ, which has all bits turned at the beginning and at the end."""
    turned = (1 << 64) - 1
    assert crc64(b"123456789", turned) ^ turned == 0x995DC9BBDF1939FA
