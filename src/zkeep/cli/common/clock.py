"""The time, and the local time zone: TZ, else what the system has set."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from zkeep.clock import seconds_now
from zkeep.errors import WrongUsage
from zkeep.names import shown
from zkeep.pool.datasets.pruning import Offset
from zkeep.pool.maintenance.prune import Clock

_POSIX = re.compile(r"(?:[A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)[+-]?[0-9]{1,2}(?::[0-9:]+)?.{0,80}", re.ASCII)
"`CET-1CEST,M3.5.0,M10.5.0/3`, which the C library reads."


def clock() -> Clock:
    """Raises WrongUsage: TZ names no time zone (the C library would take it for UTC, without a word)."""
    return Clock(seconds_now(), _offset())


def _offset() -> Offset:
    name = os.environ.get("TZ", "").removeprefix(":")
    # Without TZ, or with a file, the system's own functions answer.
    if not name or os.path.isabs(name):
        return _of_the_system
    try:
        zone = ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        # 'CET-1CEST' and the like: the C library knows them, zoneinfo does not.
        if _POSIX.fullmatch(name):
            return _of_the_system
        raise WrongUsage(f"TZ must be a time zone, like Europe/Berlin, not {shown(name)}") from None

    # Lists have many snapshots, and most dates are asked for again and again.
    @lru_cache(1 << 16)
    def offset(at: int) -> int:
        east = datetime.fromtimestamp(at, zone).utcoffset()
        return int(east.total_seconds()) if east else 0

    return offset


def _of_the_system(at: int) -> int:
    return int(time.localtime(at).tm_gmtoff)
