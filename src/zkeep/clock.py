"""The time, as documents of a pool and streams can hold it."""

from __future__ import annotations

import time

LATEST = (1 << 63) - 1


def seconds_now() -> int:
    """Seconds since 1970, at least 0: a clock that was never set, or was set wrong, may say less.

    What is stored is compared with its shape when it is read. A negative time would make a sound pool look damaged.
    """
    return min(max(int(time.time()), 0), LATEST)
