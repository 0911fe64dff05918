"""A POST that takes a bounded time, for notices and pings."""

from __future__ import annotations

import urllib.request
from threading import Thread
from typing import IO

from zkeep.errors import Refused

SECONDS = 30
"How long telling may take; an answer is not waited for beyond it."


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: what was set is where it goes."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def post(url: str, body: bytes, kind: str) -> None:
    """Send a body. An answer that never ends is not waited for: the thread is left to end with the process."""
    failed: list[Exception] = []

    def work() -> None:
        try:
            request = urllib.request.Request(url, body, {"Content-Type": kind}, method="POST")  # noqa: S310
            answer: IO[bytes]
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=SECONDS) as answer:
                answer.read(1 << 10)
        except Exception as error:  # handed on below
            failed.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        raise Refused(f"no answer within {SECONDS} seconds")
    if failed:
        raise failed[0]
