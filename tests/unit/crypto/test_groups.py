"""Keys as groups: what is written is read again, and slips of the pen are found where they are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkeep.crypto.groups import (
    ALPHABET,
    DATA,
    MOST_LINES,
    READ_AS,
    Secret,
    WrongGroups,
    lines_of,
    read,
    read_line,
    recognized,
    typed_lines,
)
from zkeep.crypto.unwrap import KeyFormat, WrongKey

BYTES = st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
KEYS = st.one_of(
    st.builds(Secret, st.sampled_from([1, 2]), BYTES),
    st.builds(Secret, st.just(3), st.text(min_size=8, max_size=120).map(lambda s: s.encode("utf-8", "replace"))),
    st.builds(Secret, st.just(3), st.binary(min_size=500, max_size=512)),
)
KEY = Secret(1, bytes(range(7, 39)))
LINES = lines_of(KEY)


def places(line: str) -> list[int]:
    return [at for at, c in enumerate(line) if c != " "]


def where(at: int) -> str:
    """The place of a character of a line with spaces, in words."""
    return f"group {at // 5 + 1}, character {at % 5 + 1}"


@settings(max_examples=25, deadline=None)
@given(KEYS)
def test_what_is_written_is_read_again(secret: Secret) -> None:
    lines = lines_of(secret)
    assert read(lines) == (secret, [])
    assert len(lines) <= MOST_LINES
    assert set("".join(lines)) <= set(ALPHABET) | {" "}
    assert read([line.lower().replace(" ", "-").replace("0", "o").replace("1", "l") for line in lines]) == (secret, [])
    text = "\n".join(f" {number}: {line}" for number, line in enumerate(lines, 1))
    assert recognized(f"A sheet\n\nof paper: 12\n{text}\nand more 7: words\n".encode()) == secret
    assert recognized(" ".join(lines).encode()) == secret  # as a QR code has it


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_wrong_character_is_found_and_put_right(number: int) -> None:
    line = LINES[number - 1]
    for at in places(line):
        for wrong in set(ALPHABET) - {line[at]}:
            found = read_line(line[:at] + wrong + line[at + 1 :], number)
            assert found.mended == f"line {number}, {where(at)}: it is {line[at]}, not {wrong}"
            assert found.symbols == read_line(line, number).symbols


def test_characters_that_changed_places_are_found() -> None:
    line = LINES[0].replace(" ", "")
    for at in range(len(line) - 1):
        if line[at] != line[at + 1]:
            found = read_line(line[:at] + line[at + 1] + line[at] + line[at + 2 :], 1)
            assert found.symbols == read_line(line, 1).symbols
            assert "have changed places" in found.mended


def test_a_character_that_is_missing_or_too_many_is_found() -> None:
    line = LINES[1].replace(" ", "")
    right = read_line(line, 2).symbols
    for at in range(len(line)):
        fewer, more = read_line(line[:at] + line[at + 1 :], 2), read_line(line[:at] + "Q" + line[at:], 2)
        assert (fewer.symbols, more.symbols) == (right, right)
        assert fewer.mended.endswith(f"{line[at]} is missing")
        assert more.mended.endswith("Q is too much")


def test_two_and_three_wrong_characters_never_pass() -> None:
    chance = random.Random(1)
    for _ in range(150):
        line = list(LINES[0].replace(" ", ""))
        for at in chance.sample(range(len(line)), chance.choice([2, 3])):
            line[at] = ALPHABET[READ_AS[line[at]] ^ chance.randrange(1, 32)]
        try:
            found = read_line("".join(line), 1)
        except WrongGroups:
            continue
        # Two neighbours may have changed places by chance; nothing else passes as what it is not.
        assert found.symbols == read_line(LINES[0], 1).symbols


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (LINES[1], "line 1 is line 2 of a sheet"),
        (LINES[0].replace(LINES[0][7], "U", 1), "no sheet has the character 'U'"),
        (LINES[0][:12], "10 characters were read, and a line has 24"),
        ("", "0 characters were read"),
        ("0" * 200, "is wrong in more than one place"),
        ("ключ", "no sheet has the character"),
    ],
    ids=["other-line", "no-symbol", "half", "empty", "long", "letters"],
)
def test_a_line_that_is_wrong_is_told_why(typed: str, said: str) -> None:
    with pytest.raises(WrongGroups, match=said):
        read_line(typed, 1)


def test_lines_of_two_sheets_do_not_go_together() -> None:
    other = lines_of(Secret(1, bytes(32)))
    with pytest.raises(WrongGroups, match="not all from the same sheet"):
        read([LINES[0], other[1], LINES[2]])


@pytest.mark.parametrize("lines", [LINES[:2], [], [*LINES, LINES[2]], [LINES[0], LINES[2]], LINES[::-1]])
def test_lines_that_are_missing_or_too_many_are_refused(lines: list[str]) -> None:
    with pytest.raises(WrongGroups, match="line"):
        read(lines)


def test_sheets_of_another_version_are_refused() -> None:
    from zkeep.crypto import groups

    for head in (b"\x21", b"\x10", b"\x14"):
        content = head + bytes(32)
        symbols = groups._symbols(content + groups._checksum(content))
        parts = [symbols[at : at + DATA] for at in range(0, len(symbols), DATA)]
        with pytest.raises(WrongGroups, match="a newer zkeep made it"):
            read([groups._written(part, n, n == len(parts)) for n, part in enumerate(parts, 1)])


@pytest.mark.parametrize(
    "material", [b"", b"\xff" * 40, b"correct horse battery\n", b"0" * 64 + b"\n", b"1: \n", b"999: 0\n" * 9000]
)
def test_other_keys_are_no_sheets(material: bytes) -> None:
    assert recognized(material) is None


def test_numbers_may_stand_before_some_lines_only() -> None:
    for numbered in ({1}, {3}, {1, 2}, {2, 3}):
        typed = [f"{at}: {line.lower()}" if at in numbered else line for at, line in enumerate(LINES, 1)]
        assert read(typed_lines("\n".join(typed) + "\n"))[0] == read(LINES)[0]
    # Where all have one, they may be in any order, and words may stand between them.
    shuffled = [f"{at}: {line}" for at, line in enumerate(LINES, 1)][::-1]
    for between in ("\n", "\nTHE KEY. With these lines\n"):
        assert read(typed_lines(between.join(shuffled)))[0] == read(LINES)[0]


def test_too_many_lines_are_not_read() -> None:
    assert len(typed_lines("0\n" * 10_000)) == MOST_LINES + 1
    assert len(typed_lines("0" * 1_000_000)) == MOST_LINES + 1


@pytest.mark.parametrize(
    ("material", "keyformat", "content", "file"),
    [
        (bytes(32), KeyFormat.RAW, bytes(32), bytes(32)),
        (b"ab" * 32 + b"\r\n", KeyFormat.HEX, b"\xab" * 32, b"ab" * 32 + b"\n"),
        (b"correct horse\nmore", KeyFormat.PASSPHRASE, b"correct horse", b"correct horse\n"),
    ],
    ids=["raw", "hex", "passphrase"],
)
def test_key_files_and_back(material: bytes, keyformat: int, content: bytes, file: bytes) -> None:
    secret = Secret.of(material, keyformat)
    assert (secret.content, secret.material()) == (content, file)
    assert repr(content) not in repr(secret)


def test_what_is_no_hex_key_is_none() -> None:
    with pytest.raises(WrongKey):
        Secret.of(b"no hex", KeyFormat.HEX)
