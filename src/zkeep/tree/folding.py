"""When two names are one: datasets with normalization or casesensitivity set.

Source: OpenZFS module/zfs/zap.c zap_normalize(), zap_match(); module/os/linux/zfs/zfs_dir.c zfs_match_find();
include/sys/u8_textprep.h U8_TEXTPREP_*, for the bits that a ZAP keeps as its normflags.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Literal

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
UPPER = 0x02
CANONICAL, COMPATIBLE, COMPOSED = 0x10, 0x20, 0x40
_FORMS: dict[int, Form] = {
    CANONICAL: "NFD",
    COMPATIBLE: "NFKD",
    CANONICAL | COMPOSED: "NFC",
    COMPATIBLE | COMPOSED: "NFKC",
}
SENSITIVE, INSENSITIVE, MIXED = 0, 1, 2
"The property casesensitivity. `mixed` is sensitive unless a client asks otherwise, which none on Linux does."


def folding(flags: int, case: int) -> Callable[[bytes], bytes] | None:
    """A function that maps equal names to the same bytes; None if only equal bytes are equal names.

    `flags`: the normflags of the folder's ZAP. `case`: the dataset's casesensitivity.
    """
    # As the kernel: first decompose or compose, then upper case, where the dataset asks for it.
    form = _FORMS.get(flags & (CANONICAL | COMPATIBLE | COMPOSED))
    upper = bool(flags & UPPER) and case != MIXED
    if form is None and not upper:
        return None

    def fold(name: bytes) -> bytes:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return name
        text = unicodedata.normalize(form, text) if form else text
        return (text.upper() if upper else text).encode()

    return fold
