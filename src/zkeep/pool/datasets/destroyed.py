"""Destroying a pool, and the time in which it can be brought back.

A folder is a pool by its file POOL. Destroying replaces that by the file DESTROYED, and takes the name of the pool
from the registry, which remembers the folder. All else stays, so that `pool import -D` can bring it back, until
`pool compact` or KEPT seconds remove the files for good.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zkeep.clock import seconds_now
from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.names import shown
from zkeep.pool.datasets.model import IDENTITY, Exists, NotThere, Pool, read_identity
from zkeep.pool.datasets.orphans import READERS
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.store.catalog import INDEX, RESERVE
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.index import ROLLBACK, SUFFIXES

MARK = "DESTROYED"
"The file that stands in the place of POOL: what POOL said, and when it was destroyed."
KEPT = 7 * 86400
"Seconds in which a destroyed pool can be brought back."
SEVERAL = "several pools of this name were destroyed: give the path of one, which 'zkeep pool import -D' lists"
_FOLDERS = ("journal", "segments", "summaries", "partial", "tmp", "lock")


@dataclass(frozen=True, slots=True)
class Destroyed:
    """A pool that can be brought back."""

    path: Path
    name: str
    "The name that it had here."
    at: int
    "When it was destroyed, in seconds since 1970."

    @property
    def until(self) -> int:
        return self.at + KEPT


def contents(pool: Pool) -> list[tuple[str, int]]:
    """What is destroyed with a pool: its datasets, by name, and how many snapshots each has.

    Raises:
        Refused: a snapshot is held.
    """
    found = []
    for dataset in sorted(pool.tree().by_id.values(), key=lambda d: d.name.text):
        snapshots = pool.snapshots(dataset)
        for snapshot in snapshots:
            if snapshot.holds:
                tags = ", ".join(sorted(snapshot.holds)[:3])
                raise Refused(f"cannot destroy {pool.name}: {snapshot.name} is held ({tags}); release it first")
        found.append((dataset.name.text, len(snapshots)))
    return found


def destroy(registry: Registry, name: str) -> Destroyed | None:
    """Destroy a pool, for now so that it can be brought back; None if only its name was known.

    Callers have shown contents() before. What fails after the pool is destroyed is a warning.

    Raises:
        TryAgain: another process is working in it.
    """
    path = registry.path(name)
    store = LocalStore(path)
    found = None
    if path.is_dir():
        # A folder whose POOL is gone already was half destroyed before: only its name is left to forget.
        there = store.exists(IDENTITY)
        found = _mark(store, read_identity(path), name) if there else read_mark(path)
    try:
        registry.remove(name, buried=found is not None)
    except (ZkeepError, OSError) as error:
        if found is None:
            raise
        registry.warn(f"{name} is destroyed, but the list of pools could not be changed: {error}")
    return found


def _mark(store: LocalStore, identity: dict[str, object], name: str) -> Destroyed:
    now = seconds_now()
    text = json.dumps({**identity, "known": name, "destroyed": now}, indent=1)
    # DESTROYED is written before POOL goes: at no moment is the folder neither a pool nor a destroyed one.
    with _locked(store, f"cannot destroy {shown(name)[1:-1]}: pool is busy"):
        store.delete(MARK)  # of a destruction that was not finished
        store.put(MARK, text.encode() + b"\n")
        try:
            store.delete(IDENTITY)
        except OSError as error:
            if _is_there(store, IDENTITY, name, error):
                with suppress(OSError):  # beside POOL it means nothing
                    store.delete(MARK)
                raise
    return Destroyed(store.root, name, now)


def _is_there(store: LocalStore, file: str, name: str, error: OSError) -> bool:
    """Whether a file whose deletion failed still exists. TryAgain if the disk fails at that, too."""
    try:
        return store.exists(file)
    except OSError:
        unsure = "whether it is destroyed is seen once the disk works again"
        raise TryAgain(f"{name}: {error.strerror}: {unsure}") from None


def check_idle(path: Path, busy: str) -> None:
    """Raises TryAgain with `busy` if something is received into the pool in `path`, or sent from it, at this moment."""
    # A folder that is gone, or that nobody can write to, is not in use.
    with suppress(OSError), _locked(LocalStore(path), busy):
        pass


@contextmanager
def _locked(store: LocalStore, busy: str) -> Iterator[None]:
    with store.lock("catalog", wait=1.0, busy=busy), store.lock(READERS, busy=busy):
        yield


def read_mark(path: Path) -> Destroyed | None:
    """The destroyed pool in `path`; None if there is none."""
    try:
        return None if LocalStore(path).exists(IDENTITY) else _read_mark(path)
    except (NotThere, FileNotFoundError, NotADirectoryError):
        return None


def _read_mark(path: Path) -> Destroyed:
    identity = read_identity(path, MARK)
    return Destroyed(path, str(identity["known"]), int(identity["destroyed"]))


def known(registry: Registry, folder: Path | None = None) -> list[Destroyed]:
    """Destroyed pools: those that the registry remembers, and those in `folder` or right below it."""
    places = dict.fromkeys(registry.buried())
    if folder is not None:
        places |= dict.fromkeys(p.resolve() for p in (folder, *sorted(folder.iterdir())) if p.is_dir())
    found = []
    for path in places:
        with suppress(ZkeepError, OSError, KeyError, ValueError, TypeError):
            if each := read_mark(path) or _half_back(registry, path):
                found.append(each)
    return found


def named(found: Sequence[Destroyed], which: str) -> list[Destroyed]:
    """The destroyed pools that a name, or the path of the folder, stands for."""
    return [pool for pool in found if which == pool.name or Path(which).resolve() == pool.path]


def _half_back(registry: Registry, path: Path) -> Destroyed | None:
    """A pool that was being brought back when something failed: POOL is there again, but no name leads to it."""
    if path not in registry.buried() or path in registry.pools().values():
        return None
    return _read_mark(path)


def bring_back(registry: Registry, pool: Destroyed, name: str | None = None) -> str:
    """Make it a pool again, and known by `name`, or as it was; returns its name.

    The file DESTROYED goes last, so that what fails before can be taken back, or the call repeated.
    """
    chosen = name or pool.name
    if chosen in registry.pools():
        raise Exists(f"cannot import {chosen}: a pool of this name is known already; give another name behind it")
    store = LocalStore(pool.path)
    with _locked(store, f"cannot import {chosen}: pool is busy"):
        # POOL first, then the registry, DESTROYED last: until that is gone, the call can be repeated.
        identity = read_identity(pool.path, MARK)
        text = json.dumps({key: identity[key] for key in ("format", "guid", "name")}, indent=1)
        store.delete(IDENTITY)  # of a call that failed halfway
        store.put(IDENTITY, text.encode() + b"\n")
    try:
        Pool.open(pool.path, chosen).close()
        registry.add(chosen, pool.path)
    except BaseException as error:
        with suppress(OSError, ZkeepError):
            if not (isinstance(error, KeyboardInterrupt) and _leads_to(registry, chosen, pool.path)):
                store.delete(IDENTITY)
        raise
    with suppress(OSError):  # beside POOL it means nothing
        store.delete(MARK)
    return chosen


def remove(registry: Registry, pool: Destroyed) -> int:
    """Remove its files for good; returns how many bytes they took."""
    store = LocalStore(pool.path)
    size = store.used()
    with ExitStack() as stack:
        stack.enter_context(_locked(store, f"cannot remove what is left of {pool.name}: it is busy"))
        if store.exists(IDENTITY):
            raise Refused(f"cannot remove what is left of {pool.name}: there is a pool in {pool.path}")
        erase(store)
    with suppress(OSError):  # other files may be there, or it is where a disk is mounted
        pool.path.rmdir()
    registry.forget(pool.path)
    return size


def erase(store: LocalStore) -> None:
    """Remove all files of a pool that is none any more, its documents first and the mark last."""
    for suffix in (*SUFFIXES, ROLLBACK):
        store.delete(INDEX + suffix)
    store.erase(_FOLDERS)
    for name in (RESERVE, IDENTITY, MARK):
        store.delete(name)


def expire(registry: Registry) -> None:
    """Remove destroyed pools whose time is over; what cannot be removed now is tried again later."""
    with suppress(ZkeepError, OSError):
        for pool in known(registry):
            if pool.until < time.time():
                with suppress(ZkeepError, OSError):
                    remove(registry, pool)


def create(registry: Registry, name: str, path: Path, local: dict[str, str]) -> None:
    """Make a pool, and make it known: both or nothing.

    Raises:
        Exists: the name or the place is taken.
    """
    if name in registry.pools():
        raise Exists(f"cannot create pool {name}: it lies in {registry.path(name)} already")
    if path.is_dir() and (there := read_mark(path)):
        ways = f"'zkeep pool import -D {there.name}' brings it back, 'zkeep pool compact {there.name}' removes it"
        raise Exists(f"cannot create pool {name}: a destroyed pool lies in {path}; {ways}")
    was_there = path.is_dir()
    Pool.create(path, name, local).close()
    try:
        registry.add(name, path)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and _leads_to(registry, name, path):
            raise  # just after it was made known
        try:
            erase(LocalStore(path))
        except (OSError, ZkeepError):
            way = f"'zkeep pool import {path} {name}' makes it known, or remove the folder"
            raise TryAgain(f"there is a pool in {path}, but it could not be made known ({error}): {way}") from None
        if not was_there:
            with suppress(OSError):
                path.rmdir()
        raise


def _leads_to(registry: Registry, name: str, path: Path) -> bool:
    with suppress(OSError, ZkeepError):
        return registry.pools().get(name) == path.resolve()
    return False
