"""From what is typed to pools, names and settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from zkeep.errors import Refused, WrongUsage
from zkeep.names import BookmarkName, DatasetName, SnapshotName, parse_any, shown
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.store.catalog import WAIT

Name = DatasetName | SnapshotName | BookmarkName


class _Confinement:
    """The dataset to which the process, with all its threads, is confined."""

    root: DatasetName | None = None


@contextmanager
def confined(root: DatasetName) -> Iterator[None]:
    """Inside, verbs find nothing but what lies in `root`, whatever they are asked for (Pool.scope)."""
    before, _Confinement.root = _Confinement.root, root
    try:
        yield
    finally:
        _Confinement.root = before


def is_confined() -> bool:
    """Whether a client of a server is served."""
    return _Confinement.root is not None


def registry() -> Registry:
    """ZKEEP_HOME, else root's /var/lib/zkeep, else the user's data folder."""
    return Registry(_home(), _warn, _Confinement.root)


def _home() -> Path:
    if home := os.environ.get("ZKEEP_HOME"):
        return Path(home)
    if os.geteuid() == 0:
        return Path("/var/lib/zkeep")
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "zkeep"


def _warn(text: str) -> None:
    from zkeep.cli.common.terminal import say
    from zkeep.cli.common.text import safe

    with suppress(OSError, ValueError):  # what was asked for is done, whether or not anybody hears more
        say(safe(f"warning: {text}"))


def runtime_folder() -> Path:
    """Where sockets and logs of what runs lie, closed to others: XDG_RUNTIME_DIR, else root's /run, else /tmp.

    Raises:
        Refused: somebody else made it, or may write to it.
    """
    from zkeep.agent.client import is_ours, own_folder

    own = own_folder()
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_ours(own):
        raise Refused(f"cannot use {own}: it is not a folder of this user's alone")
    return own


MOST_WAIT = 1e9
"Seconds; more is more than some clocks can wait."


def wait() -> float:
    """Seconds to wait for another writer: ZKEEP_WAIT."""
    text = os.environ.get("ZKEEP_WAIT", "")
    try:
        seconds = float(text) if text else WAIT
        if not 0 <= seconds <= MOST_WAIT:  # neither is what is no number
            raise ValueError(text)
    except ValueError:
        raise WrongUsage(f"ZKEEP_WAIT must be a number of seconds, not {shown(text)}") from None
    return seconds


@contextmanager
def opened(name: Name | str) -> Iterator[Pool]:
    """The pool that `name` begins with."""
    pool = name if isinstance(name, str) else dataset_of(name).pool
    with registry().open(pool, wait()) as found:
        yield found


def dataset_of(name: Name) -> DatasetName:
    return name if isinstance(name, DatasetName) else name.dataset


def parse(texts: Iterable[str]) -> list[Name]:
    return [parse_any(text) for text in texts]


def by_pool(names: Iterable[Name]) -> dict[str, list[Name]]:
    """Names by their pool, pools in the order of first mention."""
    found: dict[str, list[Name]] = {}
    for name in names:
        found.setdefault(dataset_of(name).pool, []).append(name)
    return found


def settings(texts: Iterable[str]) -> dict[str, str]:
    """Parse words `P=V`. Raises WrongUsage: there is no `=`, or a property comes twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise WrongUsage(f"bad property list: {shown(text)} is not property=value")
        if name in found:
            raise WrongUsage(f"bad property list: {name} is given twice")
        found[name] = value
    return found


def note_settings(pool: Pool, names: Iterable[Name], made: Mapping[str, str]) -> None:
    """Remember on this machine that datasets of the pool were given settings that reach out of it."""
    with pool.afterwards("it is set", "zkeep set"):
        datasets = [found for name in names if isinstance(name, DatasetName) and (found := pool.find(name))]
        registry().note_settings(pool, datasets, made)


def unencrypted(texts: Iterable[str], cannot: str) -> dict[str, str]:
    """Settings of a dataset that is created: `encryption=off` is what it has, another it cannot have."""
    found = settings(texts)
    if found.pop("encryption", "off") != "off":
        raise Refused(f"{cannot}: no key is here to encrypt with; what is received stays encrypted as it was sent")
    return found


def datasets_only(names: Iterable[Name], verb: str) -> list[DatasetName]:
    found = list(names)
    for name in found:
        if not isinstance(name, DatasetName):
            raise WrongUsage(f"cannot {verb} {name}: it is not a dataset")
    return [name for name in found if isinstance(name, DatasetName)]


def snapshots_only(texts: Iterable[str]) -> list[SnapshotName]:
    return [SnapshotName.parse(text) for text in texts]


def widen(fd: int) -> None:
    """Ask for a large pipe, where there is one and the system can: fewer turns between the two ends."""
    import fcntl

    if size := getattr(fcntl, "F_SETPIPE_SZ", None):
        with suppress(OSError):
            fcntl.fcntl(fd, size, 1 << 20)
