"""Reports to a monitor at a URL that a backup began, succeeded or failed; the monitor notices a missing report.

URL/start, URL and URL/fail, as healthchecks.io and many others have it. What fails here is a warning.
"""

from __future__ import annotations

import subprocess
from http.client import HTTPException
from urllib.error import URLError
from urllib.parse import urlsplit, urlunsplit

from zkeep.cli.common.http_post import post
from zkeep.cli.common.terminal import say
from zkeep.cli.common.text import safe
from zkeep.errors import Refused, WrongUsage
from zkeep.names import shown


def check_url(url: str | None) -> str | None:
    """Raises WrongUsage: it is none of http or https."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or not url.isprintable() or not url.isascii() or " " in url:
        raise WrongUsage(f"--ping takes a URL of http or https, not {shown(url)}")
    return url


def ping(url: str | None, event: str = "", text: str = "") -> None:
    """POST a line to URL, or to URL/EVENT."""
    if url is None:
        return
    parts = urlsplit(url)
    path = f"{parts.path.rstrip('/')}/{event}" if event else parts.path
    try:
        post(urlunsplit(parts._replace(path=path)), safe(text).encode()[:10_000], "text/plain; charset=utf-8")
    except (Refused, ValueError, OSError, subprocess.SubprocessError, HTTPException) as error:
        reason = str(error.reason if isinstance(error, URLError) else error)[:200] or type(error).__name__
        say(safe(f"warning: cannot ping {parts.hostname}: {reason}"))
