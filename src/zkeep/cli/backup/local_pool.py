"""The pool of this machine's own, in which `zkeep backup` keeps what it needs for the next increment."""

from __future__ import annotations

from pathlib import Path

from zkeep.cli.common.pools import registry
from zkeep.pool.datasets import destroyed, lifecycle
from zkeep.pool.datasets.model import Exists

LOCAL = "local"
"Its name."


def make_pool() -> Path:
    """Make the pool, or know it again; returns its folder."""
    path = registry().home / LOCAL
    try:
        destroyed.create(registry(), LOCAL, path, {})
    except Exists:  # an earlier call ended before the pool was known
        lifecycle.adopt(registry(), path, LOCAL)
    return path
