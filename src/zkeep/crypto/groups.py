"""A key as lines of groups, which a person can keep on paper and type: what a recovery sheet holds.

    content   1 byte: version 1 and keyformat, 4 bits each | the key, or the passphrase | checksum of both, 4 bytes
    symbols   5 bits of the content each, in Crockford's base 32, which has no I, L, O and U
    line      up to 20 symbols in groups of 4, then a group of 4 check symbols; only the last line may be shorter

The check symbols make each line a word of a Reed-Solomon code over GF(32). The word begins with symbols that are not
written: the number of the line, and whether it is the last one. Any two words differ in at least 5 symbols. So one
wrong symbol, two that changed places, and one that is missing or too many are found where they are; any three wrong
ones are noticed. The checksum of the content then tells whether all lines belong together.

Source: I. S. Reed, G. Solomon, Polynomial codes over certain finite fields (1960); Crockford, Base 32 (crockford.com).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from zkeep.crypto.unwrap import MAX_PASSPHRASE, KeyFormat, WrongKey

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
READ_AS = {**{symbol: at for at, symbol in enumerate(ALPHABET)}, "O": 0, "I": 1, "L": 1}
"The value of each character that may be typed, in capitals."
VERSION = 1
GROUP = 4
DATA, CHECK = 20, 4
"Symbols of a whole line: those of the content, and those that check them."
LINE = DATA + CHECK
HIDDEN = 3
"Symbols of a word that are not written: the line's number (two), and 1 on the last line."
CHECKSUM = 4
MOST_LINES = (8 * (1 + MAX_PASSPHRASE + CHECKSUM) + 5 * DATA - 1) // (5 * DATA)
_NUMBERED = re.compile(r"^[ \t]*([0-9]{1,3}):[ \t]*(.*)$", re.MULTILINE)
_TYPED = re.compile(r"[ \t]*(?:[0-9]{1,3}:)?[ \t\r0-9A-Za-z-]+")


@dataclass(frozen=True)
class Secret:
    """A key as its dataset's keyformat has it: the bytes of a raw or hex key, or a passphrase."""

    keyformat: int
    content: bytes = field(repr=False)

    @classmethod
    def of(cls, material: bytes, keyformat: int) -> Secret:
        """Read the content of a key file, or what a person typed. Raises WrongKey: it cannot be such a key."""
        if keyformat == KeyFormat.RAW:
            return cls(keyformat, material)
        # As zfs reads key files: the first line counts, without its line end.
        line = material.split(b"\n", 1)[0].removesuffix(b"\r")
        if keyformat == KeyFormat.PASSPHRASE:
            return cls(keyformat, line)
        try:
            return cls(keyformat, bytes.fromhex(line.decode("ascii")))
        except ValueError:
            raise WrongKey("a hex key has hexadecimal digits only") from None

    def material(self) -> bytes:
        """What a key file of it holds."""
        if self.keyformat == KeyFormat.RAW:
            return self.content
        return (self.content if self.keyformat == KeyFormat.PASSPHRASE else self.content.hex().encode()) + b"\n"


class WrongGroups(WrongKey):
    """What was typed is not what a sheet holds; the text says where."""


@dataclass(frozen=True)
class Line:
    """One line as it was read: its symbols (numbers below 32), check symbols included, as they should be.

    `mended`: what was wrong and is put right; empty if nothing was.
    """

    symbols: tuple[int, ...]
    last: bool
    mended: str = ""


# Writing


def lines_of(secret: Secret) -> list[str]:
    """The lines that stand for a key, without their numbers."""
    head = bytes([VERSION << 4 | secret.keyformat]) + secret.content
    # Symbols of 5 bits, with zero bits behind the last.
    symbols = _symbols(head + _checksum(head))
    parts = [symbols[at : at + DATA] for at in range(0, len(symbols), DATA)]
    return [_written(part, number, number == len(parts)) for number, part in enumerate(parts, 1)]


def _checksum(head: bytes) -> bytes:
    return blake2b(head, digest_size=CHECKSUM, person=b"zkeep sheet").digest()


def _symbols(content: bytes) -> list[int]:
    """Cut bytes into symbols of 5 bits, with zero bits behind the last."""
    count = -(-8 * len(content) // 5)
    number = int.from_bytes(content, "big") << (5 * count - 8 * len(content))
    return [number >> 5 * (count - 1 - at) & 31 for at in range(count)]


def _written(part: Sequence[int], number: int, last: bool) -> str:
    check = _check_symbols([*_hidden(number, last), *part])
    groups = [part[at : at + GROUP] for at in range(0, len(part), GROUP)]
    return " ".join("".join(ALPHABET[symbol] for symbol in group) for group in [*groups, check])


def _hidden(number: int, last: bool) -> list[int]:
    return [number >> 5, number & 31, int(last)]


# Reading


def read_line(text: str, number: int) -> Line:
    """Read what was typed for one line of a sheet, the first of which is 1.

    Small letters, spaces and hyphens do not matter; O is read as 0, I and L as 1.

    Raises:
        WrongGroups: it is wrong in more than one place, or another line.
    """
    characters = [c for c in text.upper() if c not in " \t\r-"]
    if wrong := [c for c in characters if c not in READ_AS]:
        place = _place(characters.index(wrong[0]))
        raise WrongGroups(f"line {number}, {place}: no sheet has the character {wrong[0]!a}")
    symbols = [READ_AS[c] for c in characters]
    for last in (False, True):
        if _fits(symbols, number, last):
            return Line(tuple(symbols), last)
    for last in (False, True):
        for mended, at, what in _repairs(symbols, number, last):
            if _fits(mended, number, last):
                return Line(tuple(mended), last, f"line {number}, {_place(at)}: {what}")
    raise WrongGroups(f"line {number} {_why_wrong(symbols, number)}")


def _place(at: int) -> str:
    return f"group {at // GROUP + 1}, character {at % GROUP + 1}"


def _fits(symbols: Sequence[int], number: int, last: bool) -> bool:
    size_fits = CHECK < len(symbols) <= LINE if last else len(symbols) == LINE
    return size_fits and not any(_syndromes([*_hidden(number, last), *symbols]))


def _repairs(symbols: list[int], number: int, last: bool) -> Iterator[tuple[list[int], int, str]]:
    """Lines of which this may be a slip of the pen: each with the place and the kind of the slip, in words."""
    hidden, name = _hidden(number, last), ALPHABET.__getitem__
    # One wrong symbol: the code says where and by how much.
    if len(symbols) <= LINE and (found := _one_wrong([*hidden, *symbols])) and found[0] >= HIDDEN:
        at = found[0] - HIDDEN
        mended = [*symbols[:at], symbols[at] ^ found[1], *symbols[at + 1 :]]
        yield mended, at, f"it is {name(mended[at])}, not {name(symbols[at])}"
    # Two that changed places, one too many, one missing: try each place, and let the code judge.
    for at in range(len(symbols) - 1):
        swapped = [*symbols[:at], symbols[at + 1], symbols[at], *symbols[at + 2 :]]
        yield swapped, at, f"{name(symbols[at])} and {name(symbols[at + 1])} have changed places"
    for at in range(len(symbols)):
        yield [*symbols[:at], *symbols[at + 1 :]], at, f"{name(symbols[at])} is too much"
    for at in range(len(symbols) + 1 if len(symbols) < LINE else 0):
        longer = [*symbols[:at], 0, *symbols[at:]]
        # The code says by how much the 0 that was put in is wrong.
        if (found := _one_wrong([*hidden, *longer])) and found[0] == HIDDEN + at:
            longer[at] = found[1]
        yield longer, at, f"{name(longer[at])} is missing"


def _why_wrong(symbols: Sequence[int], number: int) -> str:
    for other in range(1, MOST_LINES + 1):
        if other != number and any(_fits(symbols, other, last) for last in (False, True)):
            return f"is line {other} of a sheet"
    if len(symbols) < LINE:
        return f"is wrong: {len(symbols)} characters were read, and a line has {LINE}"
    return "is wrong in more than one place"


@dataclass
class Reading:
    """The lines of a sheet as they are read, one after another."""

    lines: list[Line] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.lines) and self.lines[-1].last

    def add(self, text: str) -> Line:
        """Read the next line. Raises WrongGroups: it is not that line."""
        line = read_line(text, len(self.lines) + 1)
        self.lines.append(line)
        return line

    def secret(self) -> Secret:
        """The key that the lines stand for.

        Raises:
            WrongGroups: lines are missing, or are not all from one sheet.
        """
        if not self.complete:
            raise WrongGroups(f"line {len(self.lines) + 1} is missing")
        # Put the symbols together again; the bits behind the last whole byte are dropped.
        symbols = [symbol for line in self.lines for symbol in line.symbols[:-CHECK]]
        number = 0
        for each in symbols:
            number = number << 5 | each
        size = 5 * len(symbols) // 8
        content = (number >> (5 * len(symbols) - 8 * size)).to_bytes(size, "big")
        # Each line proves itself; the checksum proves that they belong together.
        head, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
        if len(head) < 2 or _checksum(head) != checksum:
            raise WrongGroups("each line is right, but they are not all from the same sheet")
        version, keyformat = head[0] >> 4, head[0] & 15
        if version != VERSION or keyformat not in set(KeyFormat) - {KeyFormat.NONE}:
            raise WrongGroups(f"the sheet is of version {version}, keyformat {keyformat}: a newer zkeep made it")
        return Secret(keyformat, head[1:])


def typed_lines(text: str) -> list[str]:
    """Find the lines of groups in a text: the numbered ones of a whole sheet, or else all; or those of a QR code."""
    lines = [line for line in text.splitlines() if line.strip()]
    if numbered := _NUMBERED.findall(text):
        # Who types may write the number before one line and not before the next: no words stand between them then.
        if len(numbered) < len(lines) <= MOST_LINES and all(_TYPED.fullmatch(line) for line in lines):
            return [_NUMBERED.sub(r"\2", line) for line in lines]
        return [groups for _, groups in sorted(numbered, key=lambda found: int(found[0]))][: MOST_LINES + 1]
    if len(lines) == 1:
        symbols = re.sub(r"[ \t\r-]", "", lines[0])
        lines = [symbols[at : at + LINE] for at in range(0, len(symbols), LINE)]
    return lines[: MOST_LINES + 1]


def read(lines: Iterable[str]) -> tuple[Secret, list[str]]:
    """Read all lines of a sheet; also returns what was wrong in them and is put right.

    Raises:
        WrongGroups: they are not right; says which.
    """
    reading = Reading()
    for text in lines:
        if reading.complete:
            raise WrongGroups(f"there is something behind line {len(reading.lines)}, which is the last one")
        reading.add(text)
    return reading.secret(), [line.mended for line in reading.lines if line.mended]


def recognized(material: bytes) -> Secret | None:
    """The key on a sheet, if this is the text of one, whole or only its lines; None if it is anything else."""
    try:
        return read(typed_lines(material.decode()))[0]
    except (UnicodeDecodeError, WrongGroups):
        return None


# The code: GF(32) with x^5 + x^2 + 1; the roots of the generator are the powers 1 to 4 of x


def _tables() -> tuple[list[int], list[int]]:
    powers, value = [], 1
    for _ in range(31):
        powers.append(value)
        # Multiply by x: shift left, and reduce by x^5 + x^2 + 1 where the fifth bit falls out.
        value = value << 1 ^ (0b100101 if value & 16 else 0)
    logs = [0] * 32
    for exponent, value in enumerate(powers):
        logs[value] = exponent
    return powers, logs


_POWERS, _LOGS = _tables()


def _times(a: int, b: int) -> int:
    return _POWERS[(_LOGS[a] + _LOGS[b]) % 31] if a and b else 0


_BY_ROOT = [[_times(value, _POWERS[root]) for value in range(32)] for root in range(1, CHECK + 1)]
"The products of each root of the generator with all symbols."


def _generator() -> list[int]:
    """The product of (x - root), highest power first."""
    product = [1]
    for root in range(1, CHECK + 1):
        shifted = [*product, 0]
        scaled = [0, *(_times(value, _POWERS[root]) for value in product)]
        product = [a ^ b for a, b in zip(shifted, scaled, strict=True)]
    return product


_GENERATOR = _generator()


def _check_symbols(message: Sequence[int]) -> list[int]:
    """The remainder of the message, moved up by the check symbols, divided by the generator."""
    # Long division in GF(32), where subtraction is xor.
    rest = [*message, *[0] * CHECK]
    for at in range(len(message)):
        factor = rest[at]
        for offset, value in enumerate(_GENERATOR):
            rest[at + offset] ^= _times(value, factor)
    return rest[len(message) :]


def _syndromes(word: Sequence[int]) -> list[int]:
    """The word's values at the roots of the generator; all are zero if the word is of the code."""
    found = []
    for products in _BY_ROOT:
        value = 0
        for symbol in word:
            value = products[value] ^ symbol
        found.append(value)
    return found


def _one_wrong(word: Sequence[int]) -> tuple[int, int] | None:
    """Where one symbol is wrong, and by what; None if none is, or more than one."""
    first, second, third, fourth = _syndromes(word)
    if not (first and second and third and fourth):
        return None
    # With one error e at x^p the syndromes are e x^p, e x^2p, e x^3p, e x^4p.
    if _times(second, second) != _times(first, third) or _times(third, third) != _times(second, fourth):
        return None
    power = (_LOGS[second] - _LOGS[first]) % 31
    at = len(word) - 1 - power
    return (at, _POWERS[(_LOGS[first] - power) % 31]) if at >= 0 else None
