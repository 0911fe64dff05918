"""Telling somebody that the health of a dataset changed: by a POST, a mail, or a program. Each takes a bounded time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from urllib.error import URLError

from zkeep.cli.common.http_post import SECONDS, post
from zkeep.cli.common.pools import opened, registry
from zkeep.cli.common.terminal import say
from zkeep.cli.common.text import safe
from zkeep.errors import Refused, ZkeepError
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.notify import NONE, canonical, command
from zkeep.pool.maintenance.health import PoolHealth
from zkeep.pool.maintenance.notice import HealthChange, NoticeTarget, changes, gravest, remember

SENDMAIL = ("/usr/sbin/sendmail", "/usr/lib/sendmail")


def notify_changes(health: PoolHealth) -> bool:
    """Send notices of what changed in a pool; returns whether all were delivered. The others are sent the next time.

    Everything that goes to one place is one notice, however many datasets it is about.
    """
    try:
        with opened(health.name) as pool:
            is_ours = partial(registry().was_set_here, pool, name="notify")
            places: dict[NoticeTarget, list[HealthChange]] = {}
            for change, place in changes(pool, health, is_ours):
                places.setdefault(place, []).append(change)
            delivered = {place: _notify(Notice(pool.name, found), place) for place, found in places.items()}
            _remember(pool, [change for place, found in places.items() if delivered[place] for change in found])
            return all(delivered.values())
    except (ZkeepError, OSError) as error:
        say(safe(f"cannot notify of {health.name}: {error}"))
        return False


def _remember(pool: Pool, reported: list[HealthChange]) -> None:
    """Note what was reported. On a disk that takes no note it is reported each time: better than not at all."""
    if not reported:
        return
    try:
        remember(pool, reported)
    except (ZkeepError, OSError) as error:
        say(safe(f"warning: {pool.name}: what was reported cannot be noted, and is reported again: {error}"))


@dataclass(frozen=True)
class Notice:
    """The changes that one place is notified of."""

    pool: str
    changes: list[HealthChange]

    @property
    def event(self) -> str:
        return gravest(change.event for change in self.changes)

    def subject(self) -> str:
        first = next(change.name for change in self.changes if change.event == self.event)
        more = f" and {len(self.changes) - 1} more" if len(self.changes) > 1 else ""
        return f"zkeep: {self.event}: {first}{more}"

    def json(self) -> bytes:
        changes = [
            {
                "name": change.name,
                "event": change.event,
                "began": change.began,
                "ended": change.ended,
                "problems": [{"kind": problem.kind, "text": problem.text} for problem in change.problems],
            }
            for change in self.changes
        ]
        content = {
            "host": socket.gethostname(),
            "pool": self.pool,
            "event": self.event,
            "subject": self.subject(),
            "changes": changes,
        }
        return json.dumps(content).encode() + b"\n"


def _notify(notice: Notice, place: NoticeTarget) -> bool:
    to = place.to
    if to == NONE:
        return True
    if not place.ours:
        way = f"look at 'zkeep get notify {place.set_on}', and set it here"
        say(safe(f"cannot notify of {notice.pool}: {to.partition(':')[0]}: it was set on another machine; {way}"))
        return False
    try:
        _tell(notice, canonical(to))
    except (Refused, ValueError, OSError, subprocess.SubprocessError, HTTPException) as error:
        reason = str(error.reason if isinstance(error, URLError) else error)[:200] or type(error).__name__
        say(safe(f"cannot notify of {notice.pool}: {to.partition(':')[0]}: {reason}"))
        return False
    return True


def _tell(notice: Notice, to: str) -> None:
    if to.startswith("exec:"):
        _run(command(to), notice.json())
    elif to.startswith("mailto:"):
        _mail(to.removeprefix("mailto:"), notice)
    else:
        post(to, notice.json(), "application/json")


def _run(words: list[str], given: bytes) -> None:
    """What the program prints goes nowhere, however much that is."""
    done = subprocess.run(  # noqa: S603 (the administrator's own words; no shell)
        words, input=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS, check=False
    )
    if done.returncode:
        raise Refused(f"{words[0]} ended with status {done.returncode}")


def _mail(address: str, notice: Notice) -> None:
    program = next((path for path in SENDMAIL if os.access(path, os.X_OK)), None)
    if program is None:
        raise Refused(f"there is no {SENDMAIL[0]}")
    lines = [f"To: {address}", f"Subject: {safe(notice.subject())}", ""]
    for change in notice.changes:
        what = "; ".join(f"{problem.kind}: {problem.text}" for problem in change.problems) or "all is well again"
        lines.append(safe(f"{change.name}: {what}"))
    _run([program, "-oi", "--", address], "\n".join([*lines, ""]).encode())
