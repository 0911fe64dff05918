"""Whether a backup is due: cron knows nothing of a time at which the machine was off, asleep or without a network.

So cron calls `zkeep backup --due 02:30` every hour. When a backup that was done began is noted in a file of the home.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from zkeep.backup import timers
from zkeep.backup.local import Job, digest
from zkeep.backup.timers import When
from zkeep.cli.common.pools import registry
from zkeep.names import MAX_UINT64, whole_number
from zkeep.pool.store.disk import make_folder, replace_durably

FOLDER = "backups"


def parse_due(text: str) -> When:
    """Parse `HH:MM` or `DAY HH:MM`. Raises WrongUsage: it is neither."""
    is_daily = text[:1].isdigit()
    return timers.parse_when(False, text if is_daily else None, None if is_daily else text, None, 0)


def is_due(job: Job, when: When, now: datetime) -> bool:
    """Whether none that was done began since the last time at which one is to begin.

    A note from the future is that of a clock that was wrong: it counts for nothing.
    """
    began = _noted(job)
    # As moments: in the night in which the clock goes back, its times come twice.
    moments = [at.timestamp() for at in (when.last_before(now), began or now, now)]
    return began is None or moments != sorted(moments)


def note(job: Job, began: datetime) -> None:
    """Note when a backup that is done began. Where that fails, the next one is only earlier than it had to be."""
    path = _path(job)
    with suppress(OSError):
        make_folder(path.parent, 0o700)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(f"{int(began.timestamp())}\n")
        replace_durably(fresh, path)


def begin_with(job: Job, now: datetime) -> None:
    """Let the first backup be due at its next time, not at once, if nothing is noted yet."""
    if _noted(job) is None:
        note(job, now)


def _path(job: Job) -> Path:
    return registry().home / FOLDER / digest(job)[:16]


def _noted(job: Job) -> datetime | None:
    try:
        with _path(job).open(encoding="ascii") as file:
            return datetime.fromtimestamp(whole_number(file.read(32).strip(), MAX_UINT64))
    except (OSError, ValueError, OverflowError):
        return None
