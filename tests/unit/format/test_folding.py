"""Names are folded as OpenZFS folds them, whatever Unicode this Python knows."""

from __future__ import annotations

import json
from hashlib import sha256
from itertools import chain
from pathlib import Path

import pytest

from zkeep.format.folding import (
    CANONICAL,
    COMPATIBLE,
    COMPOSED,
    INSENSITIVE,
    MIXED,
    NOT_UTF8,
    SENSITIVE,
    UPPER,
    Naming,
    folding,
)

FOLDED = Path(__file__).parents[2] / "data" / "names" / "folded.json"
E_ACUTE, E_AND_ACUTE = "\u00e9".encode(), "e\u0301".encode()


@pytest.mark.parametrize(
    ("flags", "digest"),
    [
        (UPPER, "9194862ced9264650221816d8bbfc4f44b4ce4509b65b4b67942e4583689e66f"),
        (CANONICAL, "e253020137c392b6e8c0216414be1d45a601f91816b2940a07420b30ca0d278f"),
        (COMPATIBLE, "599ffaaa92d8fb2ad8030df12093c8170840cdb10d1cab0d43b34c0674c47666"),
    ],
)
def test_every_character_is_folded_as_openzfs_does(flags: int, digest: str) -> None:
    """All but ideographs and syllables, which have no tables; the digests are of what u8_textprep_str() gives."""
    fold, found = folding(flags), sha256()
    assert fold is not None
    ranges = (0x80, 0x3400), (0xA000, 0xAC00), (0xE000, 0x20000), (0x2F800, 0x2FA20)
    for code in chain(*(range(*ends) for ends in ranges)):
        found.update(fold(chr(code).encode()) + b"\0")
    assert found.hexdigest() == digest


def test_whole_names_are_folded_as_openzfs_does() -> None:
    rows = json.loads(FOLDED.read_text())
    for row in rows:
        name = row.pop("name").encode()
        for flags, want in row.items():
            code = int(flags, 16)
            naming = Naming(1, code & ~UPPER, INSENSITIVE if code & UPPER else SENSITIVE)
            assert (naming.refusal(name) is None) == (want is not None), (name, flags)
            if want is not None:
                assert naming.hashed is not None
                assert naming.hashed(name) == want.encode(), (name, flags)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("stra\u00dfe", "STRA\u00dfE", True),
        ("stra\u00dfe", "STRASSE", False),  # a capital of two letters is none
        ("k\u0131s", "KIS", True),
        ("\u0130", "i", False),
        ("\u03c3\u03c2", "\u03a3\u03a3", True),
        ("\u0250", "\u2c6f", False),  # the capital came with Unicode 5.1
        ("\U0001e922", "\U0001e900", False),  # both are newer
        ("\u1f80", "\u1f88", True),  # the one letter of titles
    ],
)
def test_a_letter_has_one_capital_or_none(one: str, other: str, equal: bool) -> None:
    fold = folding(UPPER)
    assert fold is not None
    assert (fold(one.encode()) == fold(other.encode())) == equal


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        (b"\xffa\xfe", b"\xffA\xfe"),
        (b"\xc3a", b"\xc3a"),  # the first byte says that there are two
        (b"a\xe2\x82", b"A\xe2\x82"),
        (b"\xf5a\xf4abc", b"\xf5A\xf4abc"),
        (b"\xc0a\x80b", b"\xc0A\x80B"),
    ],
)
def test_bytes_that_are_no_text_stay(name: bytes, folded: bytes) -> None:
    fold = folding(UPPER)
    assert fold is not None
    assert fold(name) == folded


def test_letters_are_upper_cased_before_they_are_taken_apart() -> None:
    """What becomes a small letter by normalization stays one: a feminine ordinal is no A."""
    fold = folding(UPPER | COMPATIBLE)
    assert fold is not None
    assert fold("\u00aa".encode()) == b"a" != fold(b"a")


@pytest.mark.parametrize(
    ("apart", "composed"),
    [
        ("\u1b05\u1b35", "\u1b06"),  # Balinese, the newest script of which letters are composed
        ("\u1100\u1161\u11a8", "\uac01"),
        ("e\u0302\u0301", "\u1ebf"),
        ("\U00011131\U00011127", "\U00011131\U00011127"),  # Chakma is newer
    ],
)
def test_letters_are_composed_that_unicode_5_knows(apart: str, composed: str) -> None:
    fold = folding(CANONICAL | COMPOSED)
    assert fold is not None
    assert fold(apart.encode()) == fold(composed.encode()) == composed.encode()


@pytest.mark.parametrize(
    ("naming", "name", "reason"),
    [
        (Naming(), b"\xff", None),
        (Naming(casesensitivity=INSENSITIVE), b"\xff", None),
        (Naming(utf8only=1), b"\xff", NOT_UTF8),
        (Naming(utf8only=1), "\ud800".encode(errors="surrogatepass"), NOT_UTF8),
        (Naming(utf8only=1), E_AND_ACUTE, None),
        (Naming(1, CANONICAL), "e\u0301\u0323\u0302".encode(), None),
        (Naming(1, CANONICAL), ("e" + "\u0301" * 13).encode(), "too many marks"),
        (Naming(1, CANONICAL | COMPOSED), "e\u0302\u0301".encode(), None),
        (Naming(1, CANONICAL | COMPOSED), "e\u0302\u0301\u0323".encode(), "too many marks"),
        (Naming(1, CANONICAL, SENSITIVE), "\u03b1\u0345".encode(), None),
        (Naming(1, CANONICAL, INSENSITIVE), "\u03b1\u0345".encode(), "might not find"),
        (Naming(1, CANONICAL, INSENSITIVE), "\u1fb3".encode(), None),
        (Naming(1, COMPATIBLE | COMPOSED), "\ufef6\u0334".encode(), "might not find"),
        (Naming(1, COMPATIBLE | COMPOSED), "\uff76\uff9e".encode(), "might not find"),
        (Naming(1, COMPATIBLE), "\uff76\uff9e".encode(), None),
        (Naming(1, COMPATIBLE | COMPOSED), "\u1110\uffdc".encode(), "might not find"),
        (Naming(1, CANONICAL | COMPOSED), "\u1110\u1175\uac00\u11a8".encode(), None),
        (Naming(casesensitivity=INSENSITIVE), "\u026b".encode() * 127, "more than 255 bytes"),
        (Naming(casesensitivity=MIXED), "\u026b".encode() * 127, "more than 255 bytes"),
        (Naming(1, COMPATIBLE), "\ufdfa".encode() * 16, "more than 255 bytes"),
    ],
)
def test_which_names_are_refused(naming: Naming, name: bytes, reason: str | None) -> None:
    found = naming.refusal(name)
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


def test_mixed_names_share_a_hash_and_are_not_one() -> None:
    naming = Naming(casesensitivity=MIXED)
    assert naming.flags == UPPER
    assert naming.equal is None
    assert naming.hashed is not None
    assert naming.hashed(b"a") == naming.hashed(b"A")
    both = Naming(1, CANONICAL, MIXED)
    assert both.equal is not None
    assert both.equal(E_ACUTE) == both.equal(E_AND_ACUTE) != both.equal("\u00c9".encode())


def test_a_master_node_says_how_names_are_taken() -> None:
    assert Naming.of({"ROOT": 4, "normalization": 0x60, "utf8only": 1, "casesensitivity": 2}) == Naming(1, 0x60, 2)
    assert Naming.of({}) == Naming()
