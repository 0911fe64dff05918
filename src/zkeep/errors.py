"""All errors, by whose fault they are, with their exit status.

    ZkeepError
      Refused          1  the request or the stream cannot be honoured; nothing was changed
        BadStream      1  a stream breaks the format; names the byte and the record
      WrongUsage       2  the command line makes no sense
      Damaged          3  the pool's own data is not what was stored
      NotAuthentic     4  a MAC did not verify
      TryAgain         5  busy, interrupted, or the peer is gone: the same call may work later
        Interrupted    5  a receive broke off, and what arrived is kept
"""

from __future__ import annotations


class ZkeepError(Exception):
    """Base of all errors that are shown to a person; the text is one line."""

    status = 1


class Refused(ZkeepError):
    """The request cannot be honoured; nothing was changed."""


class BadStream(Refused):
    """A send stream breaks the format.

    `offset` is the byte in the stream at which the faulty record (or field) starts, `record` its type's name.
    `ends_early`: what came is in order, but not all of it: its line broke.
    """

    def __init__(self, reason: str, offset: int, record: str = "", *, ends_early: bool = False) -> None:
        self.ends_early = ends_early
        self.reason = reason
        self.offset = offset
        self.record = record
        what = f"{record} record" if record else "stream"
        super().__init__(f"bad stream: {what} at byte {offset}: {reason}")


class WrongUsage(ZkeepError):
    """The command line makes no sense."""

    status = 2


class Damaged(ZkeepError):
    """The pool's own data is not what was stored."""

    status = 3


class NotAuthentic(ZkeepError):
    """A MAC did not verify; nothing of what it covers may be used."""

    status = 4


class TryAgain(ZkeepError):
    """Busy, interrupted, or the peer is gone: the same call may succeed later."""

    status = 5


class Interrupted(TryAgain, Refused):
    """A receive broke off, or the rest was refused; what arrived of its snapshot is kept.

    `advice`: lines that follow the error's own, in the words that zfs has for this; tools read the token from them.
    """

    def __init__(self, reason: str, advice: list[str]) -> None:
        self.advice = advice
        super().__init__(reason)
