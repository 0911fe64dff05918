"""Beginning and end of pools: making and finding them in folders, looking at them whole, removing them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zkeep.errors import Damaged, Refused, TryAgain, ZkeepError
from zkeep.names import shown
from zkeep.pool.datasets.model import FORMAT, IDENTITY, NotThere, Pool, read_identity
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.store.catalog import INDEX, RESERVE
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.index import Document

SCRUB = "scrub"
"""The kind of the documents about scrubs, and the name of the lock that a scrub holds."""
SCRUB_RUNNING = "running"
_FOLDERS = ("journal", "segments", "summaries", "partial", "tmp", "lock")


@dataclass(frozen=True, slots=True)
class Status:
    """How a known pool does. Sizes are of the disk below it; None where the pool cannot be read."""

    name: str
    path: Path
    health: str
    "ONLINE, DEGRADED (a scrub found errors), FAULTED (its own data is damaged), UNAVAIL (not there)."
    trouble: str = ""
    guid: int | None = None
    allocated: int | None = None
    free: int | None = None
    scrub: Document | None = None
    "What the last scrub that came to its end left in the catalog."
    begun: Document | None = None
    "How far a scrub got that has not come to its end: `started`, `at`, `done`, `total`."
    scrubbing: bool = False
    "Whether it is at work."


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


def _status(pool: Pool) -> Status:
    scrub = pool.catalog.get(SCRUB, "")
    disk = os.statvfs(pool.path)
    return Status(
        name=pool.name,
        path=pool.path,
        health="DEGRADED" if scrub and scrub.get("errors") else "ONLINE",
        guid=pool.doc["guid"],
        allocated=sum(_sizes(pool.path)),
        free=disk.f_bavail * disk.f_frsize,
        scrub=scrub,
        begun=pool.catalog.get(SCRUB, SCRUB_RUNNING),
        scrubbing=scrub_runs(pool),
    )


def scrub_runs(pool: Pool) -> bool:
    """Whether a scrub of it is at work, on this host."""
    if pool.catalog.read_only:
        return False
    try:
        with pool.store.lock(SCRUB, shared=True):
            return False
    except TryAgain:
        return True


def _sizes(path: Path) -> Iterator[int]:
    """Of all files of the pool."""
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(FileNotFoundError):
                yield os.stat(os.path.join(folder, name)).st_size


def importable(folder: Path) -> dict[Path, str]:
    """Pools in `folder` or right below it, with the names they were made with."""
    found: dict[Path, str] = {}
    for candidate in [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]:
        with suppress(NotThere, Damaged):
            found[candidate.resolve()] = read_identity(candidate)["name"]
    return found


def adopt(registry: Registry, path: Path, name: str | None = None) -> str:
    """Make a pool known that lies in `path`; it is opened once to see that it can be."""
    with Pool.open(path, name) as pool:
        chosen = pool.name
        known = {p: n for n, p in registry.pools().items()}
        if path.resolve() in known:
            raise Refused(f"cannot import {path}: it is known already, as {known[path.resolve()]}")
        registry.add(chosen, path)
    return chosen


def destroy(registry: Registry, name: str) -> None:
    """Remove a pool's files and its name; from the first file on (POOL) it is no pool any more."""
    path = registry.path(name)
    store = LocalStore(path)
    identity = path / IDENTITY
    if identity.exists():
        busy = f"cannot destroy {shown(name)[1:-1]}: pool is busy"
        with store.lock("catalog", wait=1.0, busy=busy), store.lock("readers", busy=busy):
            store.delete(IDENTITY)
            for file in (RESERVE, INDEX, f"{INDEX}-wal", f"{INDEX}-shm"):
                store.delete(file)
            for folder in _FOLDERS:
                shutil.rmtree(path / folder, ignore_errors=True)
    with suppress(OSError):
        path.rmdir()
    registry.remove(name)


def formats() -> list[tuple[int, str]]:
    """The versions of the pool's files on disk that this zkeep reads and writes."""
    return [(FORMAT, "Documents, journal and index; segments of records as received")]
