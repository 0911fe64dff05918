"""Keys: three formats, one wrapping key; what does not open says so."""

from __future__ import annotations

import pytest

from zkeep.crypto import unwrap as module
from zkeep.crypto.unwrap import (
    MAX_ITERATIONS,
    MAX_WASTED,
    KeyFormat,
    MasterKeys,
    TooManyRounds,
    WrappedKeys,
    WrongKey,
    first_that_opens,
    from_material,
    unwrap,
    wrap,
)
from zkeep.errors import Damaged, Refused

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


# Key work is bounded

PASSPHRASE = b"correct horse"
MASTER = MasterKeys(8, 7, 1, bytes(32), bytes(64))


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds of PBKDF2 that were asked for; none is done."""
    asked: list[int] = []

    def stretched(_: str, line: bytes, salt: bytes, iterations: int, size: int) -> bytes:
        asked.append(iterations)
        return (line + salt).ljust(size, b"\0")[:size]

    monkeypatch.setattr(module.hashlib, "pbkdf2_hmac", stretched)
    return asked


def record(salt: int, iterations: int, *, opens: bool) -> WrappedKeys:
    key = (PASSPHRASE + salt.to_bytes(8, "little")).ljust(32, b"\0") if opens else bytes(32)
    return wrap(MASTER, key, KeyFormat.PASSPHRASE, iterations, salt)


def test_p1_rounds_that_lead_to_nothing_are_bounded_for_all_records_together(rounds: list[int]) -> None:
    get_key = first_that_opens([PASSPHRASE])
    for salt in range(1000):
        with pytest.raises(WrongKey):
            get_key(record(salt, MAX_ITERATIONS, opens=False))
    assert sum(rounds) == MAX_WASTED
    with pytest.raises(TooManyRounds, match="not tried"):
        get_key(record(5000, 1000, opens=True))


def test_rounds_that_open_something_are_no_waste(rounds: list[int]) -> None:
    get_key = first_that_opens([PASSPHRASE])
    for salt in range(100):
        get_key(record(salt, MAX_ITERATIONS, opens=True))
    assert len(rounds) == 100


def test_a_passphrase_is_stretched_once_for_each_salt(rounds: list[int]) -> None:
    get_key = first_that_opens([PASSPHRASE, b"battery staple"])
    for _ in range(100):
        get_key(record(7, 350_000, opens=True))
        with pytest.raises(WrongKey):
            get_key(record(8, 350_000, opens=False))
    assert rounds == [350_000] * 3


def test_a_record_that_asks_for_too_much_keeps_no_other_from_being_tried(rounds: list[int]) -> None:
    get_key = first_that_opens([PASSPHRASE])
    for iterations in (0, MAX_ITERATIONS + 1, (1 << 64) - 1):
        with pytest.raises(WrongKey):
            get_key(record(1, iterations, opens=True))
    assert get_key(record(2, 1000, opens=True))


@pytest.mark.parametrize("name", ["pbkdf2salt", "pbkdf2iters", "DSL_CRYPTO_GUID", "keyformat"])
@pytest.mark.parametrize("value", [-1, 1 << 64, None])
def test_numbers_that_are_none_are_damage(name: str, value: int | None) -> None:
    fields = record(1, 1000, opens=True).fields()
    fields.set("DSL_CRYPTO_VERSION", 1)
    WrappedKeys.of(fields)
    next(pair for pair in fields.pairs if pair.name == name).value = value
    with pytest.raises(Damaged, match=name):
        WrappedKeys.of(fields)
