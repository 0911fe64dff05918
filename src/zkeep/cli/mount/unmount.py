"""zkeep unmount."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from zkeep.cli.common.pools import opened as open_pool
from zkeep.cli.common.terminal import say
from zkeep.cli.mount.mounted import Mounted, log_of, lost_of, mounted, named_now
from zkeep.errors import Refused, TryAgain, WrongUsage
from zkeep.names import BadName, DatasetName, parse_any
from zkeep.pool.datasets.model import NotThere

if TYPE_CHECKING:
    from zkeep.pool.datasets.model import Dataset, Pool

COMMITTING = 60.0
"Seconds that the last commit of a mount may take."


@click.command("unmount")
@click.option("-a", "everything", is_flag=True, help="All that is mounted.")
@click.option("-f", "force", is_flag=True, help="Also when it is in use: it goes when nobody uses it any more.")
@click.argument("arguments", nargs=-1, metavar="DIR|DATASET[@SNAPSHOT]...")
def unmount_verb(*, everything: bool, force: bool, arguments: tuple[str, ...]) -> None:
    """Take away what 'zkeep mount' shows, by its folder or by its name.

    \b
        zkeep unmount /mnt/monday
    """
    if everything == bool(arguments):
        raise WrongUsage("name a folder, or -a for all")
    mounts = named_now(mounted())
    chosen = mounts if everything else [_chosen(mounts, text) for text in arguments]
    for name, folder in sorted(chosen, key=mounts.index, reverse=True):
        _unmount(name, folder, force)


def _chosen(mounts: list[Mounted], text: str) -> Mounted:
    path = os.path.realpath(text)
    found = [(name, folder) for name, folder in mounts if text == name or path == folder]
    if not found:
        raise Refused(f"cannot unmount '{text}': not currently mounted")
    return found[-1]


def _unmount(name: str, folder: str, force: bool) -> None:
    _commit_first(name, folder, force)
    if reason := _taken_away(folder, force):
        raise _refusal(f"cannot unmount {name} from {folder}", reason)
    _wait_for_commit(name, folder)
    _tell_what_is_lost(name, folder)
    _forget(folder)


def _taken_away(folder: str, force: bool) -> str:
    """Unmount a folder; why that failed, or nothing."""
    tool = next((tool for tool in ("fusermount3", "fusermount") if shutil.which(tool)), None)
    command = [tool, "-u", *(["-z"] if force else [])] if tool else ["umount", *(["-l"] if force else [])]
    done = subprocess.run([*command, "--", folder], check=False, capture_output=True, text=True)  # noqa: S603
    return " ".join(done.stderr.split()) if done.returncode else ""


def _refusal(what: str, reason: str) -> Refused | TryAgain:
    """What to raise where a folder could not be unmounted."""
    return (TryAgain if "busy" in reason else Refused)(f"{what}: {reason}")


def _commit_first(name: str, folder: str, force: bool) -> None:
    """Have everything committed before it is unmounted. If that fails, the mount stays, and nothing is lost yet.

    `force`: then it is a warning.
    """
    from zkeep.cli.mount.live import is_live_at

    with suppress(BadName, NotThere):
        parsed_name = parse_any(name)
        if isinstance(parsed_name, DatasetName):
            with open_pool(parsed_name) as pool:
                dataset = pool.dataset(parsed_name)
                if is_live_at(dataset, folder):
                    _commit(pool, dataset, f"cannot unmount {name} from {folder}", force)


def _commit(pool: Pool, dataset: Dataset, what: str, force: bool) -> None:
    from zkeep.cli.mount.live import commit_mounted

    try:
        commit_mounted(pool, dataset, what)
    except TryAgain as error:
        if not force:
            raise TryAgain(f"{error}; with -f it goes, and what is not committed may be lost") from None
        say(f"warning: {error}")


def _tell_what_is_lost(name: str, folder: str) -> None:
    """Fail if the last commit did."""
    lost = lost_of(folder)
    with suppress(FileNotFoundError):
        reason = " ".join(lost.read_text("utf-8", "replace").split())
        lost.unlink()
        raise Refused(f"{name} is unmounted, and what was written to it last is lost: {reason}")


def _wait_for_commit(name: str, folder: str) -> None:
    """Return when what was written to a dataset is on disk: its mount commits when it is unmounted."""
    from zkeep.cli.mount.live import is_live_at, wait_for_commit

    with suppress(BadName, NotThere):
        parsed_name = parse_any(name)
        if isinstance(parsed_name, DatasetName):
            with open_pool(parsed_name) as pool:
                dataset = pool.find(parsed_name)
                if dataset is not None and is_live_at(dataset, folder):
                    wait_for_commit(pool, dataset, COMMITTING)


def _forget(folder: str) -> None:
    """Remove the log of a mount if it is empty."""
    with suppress(OSError):
        log = log_of(folder)
        if not log.stat().st_size:
            log.unlink()


@contextmanager
def unmounted(pool: Pool, datasets: Iterable[Dataset], what: str, *, force: bool) -> Iterator[None]:
    """Unmount, in this order, datasets that are destroyed inside of this; if that fails, they hold what was written.

    `force`: also what is in use, which fails from then on, and what cannot be committed, which is lost then.

    Raises:
        TryAgain: one is in use, or cannot be committed.
    """
    from zkeep.pool.datasets.head import is_mounted

    shown = [path for _, path in mounted()] if pool.scope is None else []
    going = [d for d in datasets if str(d.doc.get("folder")) in shown and is_mounted(pool, d)]
    # 1. Nothing is unmounted yet: it may turn out that they cannot be destroyed.
    for dataset in [] if force else going:
        _commit(pool, dataset, what, force)
    # 2. What was written since is committed when it is unmounted.
    try:
        _unmount_all(pool, going, what, force)
        yield
    except BaseException:
        for dataset in going:
            try:
                _tell_what_is_lost(str(dataset.name), str(dataset.doc.get("folder")))
            except Refused as error:
                say(f"warning: {error}")
        raise
    for dataset in going:
        lost_of(str(dataset.doc.get("folder"))).unlink(missing_ok=True)  # it is gone anyway


def _unmount_all(pool: Pool, datasets: Iterable[Dataset], what: str, force: bool) -> None:
    from zkeep.cli.mount.live import end_mount, wait_for_commit

    for dataset in datasets:
        folder = str(dataset.doc.get("folder"))
        if reason := _taken_away(folder, force=False):
            if not force:
                raise _refusal(f"{what}: cannot unmount '{folder}'", reason)
            end_mount(pool, dataset, what)
        wait_for_commit(pool, dataset, COMMITTING)
        _forget(folder)
