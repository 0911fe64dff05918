"""When two names are one: datasets with casesensitivity or normalization set, and which names such a dataset takes.

A folder's ZAP is searched by the hash of a name that was folded first: upper-cased, then normalized. A kernel folds by
the tables of Unicode 5.0, so this does: a character that came later is left as it is, and a capital letter that came
later is none. Python's own tables say the same of every character of 5.0 (tests/unit/format/test_folding.py compares
all of them), once it is known which those are.

Of three things it is not the same: what a kernel does with a subscript iota (U+0345) behind a letter where it
upper-cases and normalizes, with many marks on one letter, and with marks on ligatures where it composes. A name in
which that could matter would be one that a kernel does not find, so no such name is taken (Naming.refusal).

Source: OpenZFS module/zfs/zap.c, zap_impl.c zap_normalize(), zap_match(), zap_hash(); module/zfs/u8_textprep.c
u8_textprep_str(); module/os/linux/zfs/zfs_dir.c zfs_match_find(); include/sys/u8_textprep.h U8_TEXTPREP_*, for the
bits that a ZAP keeps as its normflags; module/zcommon/zfs_prop.c, for the values of the properties.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
Fold = Callable[[bytes], bytes]
UPPER = 0x02
CANONICAL, COMPATIBLE, COMPOSED = 0x10, 0x20, 0x40
_FORMS: dict[int, Form] = {
    CANONICAL: "NFD",
    COMPATIBLE: "NFKD",
    CANONICAL | COMPOSED: "NFC",
    COMPATIBLE | COMPOSED: "NFKC",
}
NORMFLAGS = UPPER | CANONICAL | COMPATIBLE | COMPOSED
SENSITIVE, INSENSITIVE, MIXED = 0, 1, 2
"The property casesensitivity. `mixed` is sensitive unless a client asks otherwise, which none on Linux does."
MAX_VARIANTS = 32
"Names of a folder that share a hash, as they differ in their case only: a leaf of a ZAP must have room for all."
LONGEST = 255
"Bytes of a folded name that a kernel has room for."
_IOTA = "\u0345"
_MARKS_COMPOSED, _MARKS = 2, 12
"Marks on one letter up to which a kernel composes, and sorts, as Unicode says."
_SINCE_3_2 = (
    "23a-23e 241-24f 350-35f 37b-37d 3f7-3fb 3fd-3ff 4cf 4f6-4f7 4fa-4ff 510-513 5a2 5ba 5c5 5c7 610-615 "
    "656-65e 7eb-7f3 cbc 10fc 135f 17dd 1939-193b 1a17-1a18 1b05-1b0e 1b11-1b12 1b34-1b35 1b3a-1b44 1b6b-1b73 "
    "1d2c-1d2e 1d30-1d3a 1d3c-1d4d 1d4f-1d6a 1d78 1d7d 1d9b-1dca 1dfe-1dff 2090-2094 20eb-20ef 213b-213c 214e "
    "2184 2c00-2c2e 2c30-2c5e 2c60-2c6c 2c75-2c76 2c80-2ce3 2d00-2d25 2d6f 321d-321e 3250 327c-327e 32cc-32cf "
    "3377-337a 33de-33df 33ff a806 fa70-fad9 fe10-fe19 fe47-fe48 10426-10427 1044e-1044f 10a0d 10a0f "
    "10a38-10a3a 10a3f 1d242-1d244 1d4c1 1d6a4-1d6a5 1d7ca-1d7cb "
)
"Characters that Unicode 4.0 to 5.0 added, as far as they have another case, are marks, or are joined with others."


@cache
def _added() -> frozenset[str]:
    ranges = ([int(end, 16) for end in word.split("-")] for word in _SINCE_3_2.split())
    return frozenset(chr(code) for ends in ranges for code in range(ends[0], ends[-1] + 1))


@lru_cache(1 << 14)
def _is_known(character: str) -> bool:
    """Whether the tables of Unicode 5.0 can say anything of a character."""
    return unicodedata.ucd_3_2_0.category(character) != "Cn" or character in _added()


@lru_cache(1 << 14)
def _upper(character: str) -> str:
    """The one capital letter of a character; itself where there is none in Unicode 5.0, or only several."""
    found = character.upper()
    # Where there are several, the one letter is that of titles: U+1F80 becomes U+1F88.
    found = found if len(found) == 1 else character.title()
    return found if len(found) == 1 and _is_known(character) and _is_known(found) else character


def _normalized(text: str, form: Form) -> str:
    # What is not known is a letter of its own: nothing is joined with it, or sorted across it.
    parts, known = [], ""
    for character in text:
        if _is_known(character):
            known += character
        else:
            parts += [unicodedata.normalize(form, known), character]
            known = ""
    return "".join([*parts, unicodedata.normalize(form, known)])


def _upper_bytes(name: bytes) -> bytes:
    """Upper-case character by character; bytes that are none stay, with those that their first one counts."""
    parts, at = [], 0
    while at < len(name):
        first = name[at]
        size = 1 if first < 0xC2 or first > 0xF4 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        part = name[at : at + size]
        at += size
        try:
            parts.append(_upper(part.decode()).encode() if size > 1 else part.upper())
        except UnicodeDecodeError:
            parts.append(part)
    return b"".join(parts)


@cache
def folding(flags: int, case: int = INSENSITIVE) -> Fold | None:
    """A function that maps equal names to the same bytes; None if only equal bytes are equal names.

    `flags`: the normflags of the folder's ZAP. `case`: the dataset's casesensitivity. As it is by default, the function
    gives what the hash of a name is made of.
    """
    form = _FORMS.get(flags & (CANONICAL | COMPATIBLE | COMPOSED))
    upper = bool(flags & UPPER) and case != MIXED
    if form is None:
        return _upper_bytes if upper else None

    def fold(name: bytes) -> bytes:
        if name.isascii():
            return name.upper() if upper else name
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return name
        return _normalized("".join(map(_upper, text)) if upper else text, form).encode()

    # Where names may differ in case, a kernel compares them with it, but only those that share a hash, without it.
    if case == MIXED and flags & UPPER:
        return lambda name: folding(flags)(name) + b"/" + fold(name)  # type: ignore[misc]
    return fold


@dataclass(frozen=True)
class Naming:
    """Which names a filesystem takes, and which of them are one; the numbers are those of its master node."""

    utf8only: int = 0
    normalization: int = 0
    casesensitivity: int = SENSITIVE

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Naming:
        """Read what a master node or a dataset's document says."""
        values = (fields.get(name, 0) for name in NAMES)
        return cls(*(value if isinstance(value, int) else 0 for value in values))

    @property
    def flags(self) -> int:
        """The normflags of the folders' ZAPs: names are hashed without their case where it matters at times, too."""
        return self.normalization | (UPPER if self.casesensitivity != SENSITIVE else 0)

    @property
    def hashed(self) -> Fold | None:
        """What the hash of a name is made of; None: of the name."""
        return folding(self.flags)

    @property
    def equal(self) -> Fold | None:
        """What equal names have in common; None: only names of the same bytes are equal."""
        return folding(self.flags, self.casesensitivity)

    def refusal(self, name: bytes) -> str | None:
        """Why there can be no such name; None: there can."""
        if name.isascii() or not (self.utf8only or self.flags):
            return None
        text = None
        try:
            text = name.decode()
        except UnicodeDecodeError:
            if self.utf8only:
                return NOT_UTF8
        fold = self.hashed
        if fold is not None and len(fold(name)) > LONGEST:
            return f"its name has more than {LONGEST} bytes in upper case, or normalized"
        form = _FORMS.get(self.normalization)
        if text is not None and form is not None and not _is_certain(text, form, bool(self.flags & UPPER)):
            return "a kernel might not find its name: too many marks on one letter"
        return None


NAMES = ("utf8only", "normalization", "casesensitivity")
NOT_UTF8 = "its name is not UTF-8 (utf8only=on)"


PLAIN = Naming()
"All names are taken, and no two are one: what nothing else was said of."


def _is_certain(text: str, form: Form, upper: bool) -> bool:
    """Whether a kernel normalizes a text as Unicode says."""
    if upper and _IOTA in text:
        return False
    apart: Form = "NFKD" if form in ("NFKC", "NFKD") else "NFD"
    every = [_Parts.of(character, apart) for character in text]
    composes = form in ("NFC", "NFKC")
    most = _MARKS_COMPOSED if composes else _MARKS
    run, before = 0, _Parts("", False, [False])
    for each in every:
        # Of a mark in the disguise of a letter, a kernel sees too late that it is one.
        if each.marks[0] and each.is_disguised and (composes or run):
            return False
        if composes and before.hinders(each):
            return False
        for is_mark in each.marks:
            run = run + 1 if is_mark else 0
            if run > most:
                return False
        # Marks belong to what is before them.
        before = each if not all(each.marks) else before
    return True


@dataclass
class _Parts:
    """A character taken apart. `is_disguised`: it looks like something else before."""

    text: str
    is_disguised: bool
    marks: list[bool]

    @classmethod
    def of(cls, character: str, form: Form) -> _Parts:
        parts = unicodedata.normalize(form, character)
        is_syllable = "\uac00" <= character <= "\ud7a3"
        marks = [_is_mark(part) for part in parts]
        return cls(parts, parts != character and not is_syllable and not _is_mark(character), marks)

    def hinders(self, following: _Parts) -> bool:
        """Whether a kernel may compose this with what follows otherwise than Unicode says.

        The marks of a ligature must not be among those that follow; and what only becomes a part of a Korean syllable
        when it is taken apart does not become one syllable with another part.
        """
        if following.marks[0]:
            return self.marks.count(False) > 1 and self.is_disguised
        if not "\u1161" <= following.text[0] <= "\u11ff":
            return False
        return (self.is_disguised or following.is_disguised) and "\u1100" <= self.text[-1:] <= "\u11ff"


def _is_mark(character: str) -> bool:
    return unicodedata.combining(character) > 0 and _is_known(character)
