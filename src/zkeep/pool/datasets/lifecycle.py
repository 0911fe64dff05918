"""Whole pools: finding them in folders, their health and size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from zkeep.errors import Damaged, Refused, TryAgain, ZkeepError
from zkeep.names import MAX_UINT64, DatasetName
from zkeep.pool.datasets.model import FORMAT, NotThere, Pool, read_identity
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.datasets.view import View
from zkeep.pool.types import Doc

SCRUB = "scrub"
"The kind of the documents about scrubs, and the name of the lock that a scrub holds."
SCRUB_RUNNING = "running"
NO_PATH = Path("-")


@dataclass(frozen=True, slots=True)
class Status:
    """The health of a known pool. Sizes are those of its disk; None if the pool cannot be read."""

    name: str
    path: Path
    health: str
    "ONLINE, DEGRADED (a scrub found errors), FAULTED (its data is damaged), UNAVAIL (not there, or its disk fails)."
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
    shared: bool = False
    "Whether this is what one client of the pool is told: of its own part alone, and of no path."


def status(registry: Registry, name: str) -> Status:
    registry.path(name)
    try:
        with registry.open(name) as pool:
            # Whatever is wrong with a pool is shown as its health; the list of pools never fails because of one.
            return _status(pool) if pool.scope is None else _shared_status(pool, pool.scope)
    except TryAgain:
        raise
    except NotThere as error:
        return _trouble(registry, name, "UNAVAIL", str(error))
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return _trouble(registry, name, "UNAVAIL", f"{where}{error.strerror or error}")
    except ZkeepError as error:
        return _trouble(registry, name, "FAULTED", str(error))
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        return _trouble(registry, name, "FAULTED", f"its documents are not what was stored: {error!r}")


def _trouble(registry: Registry, name: str, health: str, why: str) -> Status:
    if registry.scope is not None:
        return Status(name, NO_PATH, health, "its administrator is asked to look at it", shared=True)
    return Status(name, registry.path(name), health, why)


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


def _shared_status(pool: Pool, scope: DatasetName) -> Status:
    """The pool as one client sees it: as large as what it has and may have, and as healthy as that is."""
    view, scrub = View(pool), _figures(pool, "", ("finished",)) or {}
    own = pool.dataset(scope)
    errors = [error for error in (_own_error(pool, str(text)) for text in scrub.get("errors", ())) if error]
    # A guid of the client's own: two clients cannot find out by it that they share a pool.
    digest = sha256(f"{pool.doc['guid']}/{pool.relative(scope)}".encode()).digest()
    return Status(
        name=pool.name,
        path=NO_PATH,
        health="DEGRADED" if errors else "ONLINE",
        guid=int.from_bytes(digest[:8], "big") or 1,
        allocated=view.figures(own).used.stored,
        free=view.available(own),
        scrub={"errors": errors, "finished": scrub["finished"]} if scrub else None,
        shared=True,
    )


def _own_error(pool: Pool, text: str) -> str | None:
    """An error that a scrub found, as far as it hurts snapshots in the scope (scrub.Finding)."""
    # "segments/1-0.seg: ...; hurts tank/ann@mon, tank/ben@mon": of this a client is told only its own names.
    names = text.rpartition("; hurts ")[2].split(", ")
    own = [name for name in names if "@" in name and pool.sees(DatasetName(name.partition("@")[0]))]
    return f"stored data is damaged; hurts {', '.join(own)}" if own else None


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


def refuse_taken(registry: Registry, names: Sequence[str]) -> None:
    """Refuse to import pools of which one cannot have its name: all of them are imported, or none."""
    known = registry.pools()
    for name in names:
        why = f"a pool {name} is known already: it lies in {known[name]}" if name in known else ""
        why = f"several of them are called {name}" if not why and names.count(name) > 1 else why
        if why:
            raise Refused(f"cannot import all: {why}; import each by its path, and give one another name behind it")


def formats() -> list[tuple[int, str]]:
    """The versions of the pool's files on disk that this zkeep reads and writes."""
    return [(FORMAT, "Documents, journal and index; segments of records as received")]
