"""Mounting datasets on the folders that their property mountpoint names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zkeep.cli.common.pools import opened as open_pool
from zkeep.cli.common.pools import registry
from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.names import DatasetName

if TYPE_CHECKING:
    from zkeep.pool.datasets.model import Dataset, Pool


def mountpoint_of(pool: Pool, dataset: Dataset) -> tuple[Path, Dataset] | None:
    """The folder that was set, for the dataset or one above it, and on which; what came in a stream is the sender's."""
    for level in (dataset, *pool.tree().ancestors(dataset)):
        path = level.doc["local"].get("mountpoint")
        if path is None and level.doc["received"].get("mountpoint") is None:
            continue
        if not path or not path.startswith("/"):
            return None
        return Path(path + dataset.name.text[len(level.name.text) :]), level
    return None


def folder_for(pool: Pool, dataset: Dataset) -> str:
    """The folder of a dataset whose name alone was given; it is made if it is not there.

    Raises:
        Refused: none was set on this machine, or it cannot be made.
    """
    found = mountpoint_of(pool, dataset)
    if found is None:
        way = f"name a folder to show it in: zkeep mount {dataset.name} DIR, or set its mountpoint here"
        raise Refused(f"cannot mount '{dataset.name}': {way}")
    path, level = found
    if not registry().was_set_here(pool, level, "mountpoint"):
        way = f"look at 'zkeep get mountpoint {level.name}', and set it here"
        raise Refused(f"cannot mount '{dataset.name}': its mountpoint was set on another machine; {way}")
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot mount '{dataset.name}': {path}: {error.strerror}") from None
    return str(path)


def load_key_of(pool: Pool, dataset: Dataset) -> None:
    """Load the key that a dataset needs (-l), if it is not loaded."""
    from zkeep.agent.client import roots
    from zkeep.cli.keys.load import load_key_verb
    from zkeep.pool.datasets.derived import encryption_root
    from zkeep.pool.datasets.view import View

    root = encryption_root(View(pool), dataset)
    if root is not None and root.id not in roots(pool.doc["guid"]) and load_key_verb.callback is not None:
        words = {"recursive": False, "every": False, "noop": False, "location": None, "lifetime": None}
        load_key_verb.callback(names=(str(root.name),), **words)


def mount_all(*, load_keys: bool) -> None:
    """Mount every dataset that was made here, has a mountpoint set here, and canmount=on; those in another after it.

    Raises:
        ZkeepError: what the first one could not be mounted for; the others are mounted all the same.
    """
    failed: ZkeepError | None = None
    for _, name in sorted(found for pool in registry().pools() for found in _mountable(pool)):
        command = [sys.executable, "-m", "zkeep", "mount", *(["-l"] if load_keys else []), str(name)]
        done = subprocess.run(command, check=False)  # noqa: S603
        if done.returncode and failed is None:
            kind = TryAgain if done.returncode == TryAgain.status else Refused
            failed = kind(f"cannot mount '{name}': not everything is mounted")
    if failed is not None:
        raise failed


def _mountable(pool_name: str) -> list[tuple[tuple[str, ...], DatasetName]]:
    """Datasets that are to be mounted, each behind the parts of its mountpoint."""
    from zkeep.cli.mount.live import allows, can_write, was_made_here
    from zkeep.cli.mount.mounted import mounted
    from zkeep.pool.datasets.head import current_state, is_mounted
    from zkeep.pool.datasets.view import View

    taken = {folder for _, folder in mounted()}
    with open_pool(pool_name) as pool:
        view, found = View(pool), []
        for dataset in pool.tree().by_id.values():
            if not was_made_here(dataset, pool) or not allows(view, dataset, "canmount"):
                continue
            place = mountpoint_of(pool, dataset)
            if place is None or str(place[0]) in taken or is_mounted(pool, dataset):
                continue
            # What is read-only must hold something that can be shown.
            if can_write(dataset, pool) or current_state(pool, dataset) is not None:
                found.append((place[0].parts, dataset.name))
        return found
