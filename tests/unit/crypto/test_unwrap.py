"""Keys: three formats, one wrapping key; what does not open says so."""

from __future__ import annotations

import pytest

from zkeep.crypto.unwrap import KeyFormat, MasterKeys, WrappedKeys, WrongKey, first_that_opens, from_material, unwrap
from zkeep.errors import Refused

RAW = bytes(range(32))


def wrapped(keyformat: KeyFormat, iterations: int = 1000) -> WrappedKeys:
    """A key record that RAW opens: AES-256-GCM over a master key of 32 ones and an HMAC key of 64 twos."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    aad = b"".join(word.to_bytes(8, "little") for word in (7, 8, 1))
    sealed = AESGCM(RAW).encrypt(bytes(12), b"\1" * 32 + b"\2" * 64, aad)
    return WrappedKeys(8, 7, 1, sealed[:32], sealed[32:96], bytes(12), sealed[96:], keyformat, iterations, 99)


def test_a_raw_and_a_hex_key_open_the_same() -> None:
    for keyformat, material in ((KeyFormat.RAW, RAW), (KeyFormat.HEX, RAW.hex().encode() + b"\n")):
        record = wrapped(keyformat)
        keys = unwrap(record, from_material(material, record))
        assert (keys.master, keys.hmac) == (b"\1" * 32, b"\2" * 64)


def test_the_aad_is_checked() -> None:
    from dataclasses import replace

    with pytest.raises(WrongKey):
        unwrap(replace(wrapped(KeyFormat.RAW), guid=8), RAW)


@pytest.mark.parametrize(
    ("keyformat", "material"),
    [
        (KeyFormat.RAW, RAW + b"\n"),
        (KeyFormat.HEX, b"00"),
        (KeyFormat.HEX, b"zz" * 32),
        (KeyFormat.PASSPHRASE, b"short"),
    ],
)
def test_material_of_the_wrong_form_is_refused(keyformat: KeyFormat, material: bytes) -> None:
    with pytest.raises(WrongKey):
        from_material(material, wrapped(keyformat))


@pytest.mark.parametrize("iterations", [0, 10_000_001, 1 << 63])
def test_rounds_that_a_stream_names_are_capped(iterations: int) -> None:
    with pytest.raises(Refused, match="rounds of PBKDF2"):
        from_material(b"correct horse", wrapped(KeyFormat.PASSPHRASE, iterations))


def test_of_several_keys_the_one_that_opens_is_taken() -> None:
    record = wrapped(KeyFormat.RAW)
    assert first_that_opens([bytes(32), b"no key", RAW])(record) == RAW
    with pytest.raises(WrongKey):
        first_that_opens([bytes(32)])(record)


def test_keys_do_not_show() -> None:
    assert "111" not in repr(MasterKeys(8, 7, 1, b"111", b"111"))
