"""Whole pools: finding them in folders, their health and size."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zkeep.errors import Damaged, Refused, TryAgain, ZkeepError
from zkeep.pool.datasets.model import FORMAT, NotThere, Pool, read_identity
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.types import MAX_UINT64, Doc

SCRUB = "scrub"
"""The kind of the documents about scrubs, and the name of the lock that a scrub holds."""
SCRUB_RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Status:
    """The health of a known pool. Sizes are those of its disk; None if the pool cannot be read."""

    name: str
    path: Path
    health: str
    "ONLINE, DEGRADED (a scrub found errors), FAULTED (its own data is damaged), UNAVAIL (not there)."
    trouble: str = ""
    guid: int | None = None
    allocated: int | None = None
    free: int | None = None
    scrub: Doc | None = None
    "What the last complete scrub left in the catalog."
    begun: Doc | None = None
    "How far a scrub got that is not complete: `started`, `at`, `done`, `total`."
    scrubbing: bool = False
    "Whether a scrub is running."


def status(registry: Registry, name: str) -> Status:
    path = registry.path(name)
    try:
        with registry.open(name) as pool:
            return _status(pool)
    except TryAgain:
        raise
    except NotThere as error:
        return Status(name, path, "UNAVAIL", str(error))
    except (ZkeepError, OSError) as error:
        return Status(name, path, "FAULTED", str(error))
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        return Status(name, path, "FAULTED", f"its documents are not what was stored: {error!r}")


def _status(pool: Pool) -> Status:
    scrub = _figures(pool, "", ("seconds", "bytes", "finished"))
    disk = os.statvfs(pool.path)
    return Status(
        name=pool.name,
        path=pool.path,
        health="DEGRADED" if scrub and scrub.get("errors") else "ONLINE",
        guid=pool.doc["guid"],
        allocated=pool.store.used(),
        free=disk.f_bavail * disk.f_frsize,
        scrub=scrub,
        begun=_figures(pool, SCRUB_RUNNING, ("done", "total", "at", "started")),
        scrubbing=scrub_runs(pool),
    )


def scrub_runs(pool: Pool) -> bool:
    """Whether a scrub of the pool is running on this host."""
    if pool.catalog.read_only:
        return False
    try:
        with pool.store.lock(SCRUB, shared=True):
            return False
    except TryAgain:
        return True


def _figures(pool: Pool, key: str, names: tuple[str, ...]) -> Doc | None:
    """What a scrub noted in the catalog. Raises Damaged if it makes no sense: the pool may be hostile."""
    doc = pool.catalog.get(SCRUB, key)
    figures = [doc.get(name, 0) for name in names] if doc else []
    are_sound = all(isinstance(figure, int | float) and 0 <= figure <= MAX_UINT64 for figure in figures)
    if not are_sound or not isinstance((doc or {}).get("errors", []), list):
        raise Damaged("catalog: scrub is not what was stored")
    return doc


def importable(folder: Path) -> dict[Path, str]:
    """Pools in `folder` or right below it, with the names they were made with."""
    found: dict[Path, str] = {}
    for candidate in [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]:
        with suppress(ZkeepError, OSError):
            found[candidate.resolve()] = read_identity(candidate)["name"]
    return found


def adopt(registry: Registry, path: Path, name: str | None = None) -> str:
    """Add the pool in `path` to the registry, after it was opened once."""
    with Pool.open(path, name) as pool:
        chosen = pool.name
        known = {p: n for n, p in registry.pools().items()}
        if path.resolve() in known:
            raise Refused(f"cannot import {path}: it is known already, as {known[path.resolve()]}")
        registry.add(chosen, path)
    return chosen


def formats() -> list[tuple[int, str]]:
    """The versions of the pool's files on disk that this zkeep reads and writes."""
    return [(FORMAT, "Documents, journal and index; segments of records as received")]
