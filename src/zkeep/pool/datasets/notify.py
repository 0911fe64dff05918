"""The syntax of the property `notify`: whom to tell when the health of a dataset changes."""

from __future__ import annotations

import re
import shlex
from urllib.parse import urlsplit

NONE = "none"
MOST_TEXT = 2048
_MAIL = re.compile(r"mailto:[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9.-]{1,255}", re.ASCII)
_FORMS = "must be https://..., mailto:ANN@EXAMPLE.ORG, exec:/PROGRAM ARGUMENTS, or none"


def canonical(text: str) -> str:
    """How a value is kept. Raises ValueError: it is none."""
    text = text.strip()
    if text in (NONE, "off", ""):
        return NONE
    if len(text) > MOST_TEXT or not text.isprintable():
        raise ValueError(f"it is too long, or has characters that cannot be printed; it {_FORMS}")
    if text.startswith("exec:"):
        command(text)
    elif text.startswith(("http://", "https://")):
        _check_url(text)
    elif not _MAIL.fullmatch(text):
        raise ValueError(_FORMS)
    return text


def command(text: str) -> list[str]:
    """The program and its arguments that `exec:...` names; they are never given to a shell."""
    try:
        words = shlex.split(text.removeprefix("exec:"))
    except ValueError as error:
        raise ValueError(f"the command is not complete: {error}") from None
    if not words or not words[0].startswith("/"):
        raise ValueError("exec: needs the whole path of a program, exec:/usr/local/bin/tell")
    return words


def _check_url(text: str) -> None:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(_FORMS) from None
    if not parts.hostname or port == 0 or not text.isascii() or " " in text:
        raise ValueError(_FORMS)
