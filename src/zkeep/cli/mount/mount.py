"""zkeep mount: datasets and snapshots as folders."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from zkeep.cli.common.open_snapshot import keys_from, parsed, snapshots_of, takes_key
from zkeep.cli.common.pools import opened as open_pool
from zkeep.cli.common.recursive import SnapshotTree
from zkeep.cli.common.stream_files import is_stream
from zkeep.cli.common.terminal import say
from zkeep.cli.common.zfs_options import accepted
from zkeep.cli.mount.all import folder_for, load_key_of, mount_all
from zkeep.cli.mount.background import background
from zkeep.cli.mount.log import MountLog
from zkeep.cli.mount.mounted import clear_dead, log_of, lost_of, mounted, named_now
from zkeep.errors import Damaged, Refused, WrongUsage
from zkeep.names import DatasetName, parse_any, shown

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey
    from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
    from zkeep.restore.mount.layout import LazySnapshot, MountLayout, MountPlace

OPTIONS = ("allow_other", "ro")


@click.command("mount")
@click.option("-a", "everything", is_flag=True, help="All that were made here, on the mountpoints that were set here.")
@click.option("-l", "load_keys", is_flag=True, help="Load the key first, from its keylocation.")
@click.option("-f", "--foreground", "foreground", is_flag=True, help="Stay in the foreground; trouble is told there.")
@click.option("-o", "options", metavar="OPTION,...", multiple=True, help="ro: read-only; allow_other: for all users.")
@click.option("-r", "recursive", is_flag=True, help="With all datasets below, each in its place.")
@accepted("-O", "-v", why="a folder need not be empty, and there is no more to tell")
@takes_key
@click.argument("arguments", nargs=-1, metavar="[DATASET[@SNAPSHOT]|STREAM... DIR]")
def mount_verb(
    *,
    everything: bool,
    load_keys: bool,
    foreground: bool,
    options: tuple[str, ...],
    recursive: bool,
    key_locations: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:
    """Mount an encrypted dataset that was made here on a folder, read-write; show any other, or a snapshot, read-only.

    What is written waits in memory, and is committed to the pool, encrypted, every 5 seconds, at fsync and when it is
    unmounted. 'zkeep snapshot' takes a snapshot while it is mounted. After a crash it is as the last commit left it.
    Without DIR, it is mounted on its mountpoint, if one was set here; with -a, all datasets that have one.

    Read-only, of a dataset, what it holds when it is mounted is shown. All snapshots lie below .zfs/snapshot.
    With -r, read-only, each dataset below lies where its name says, as zfs mounts it; of a snapshot, theirs of this
    name.

    Without arguments, list what is mounted. A block that is damaged or not authentic is an input/output error for
    who reads it, and a line in a log in the runtime folder ($XDG_RUNTIME_DIR/zkeep, root's /run/zkeep), or on
    standard error with -f, once an hour. Only who mounts it sees it, unless allow_other is set.

    \b
        zkeep mount -L file:///root/key vault/home@monday /mnt/monday
        zkeep mount vault/work /home/me/work
        zkeep mount -o ro -L prompt vault/home /mnt/home; ls /mnt/home/.zfs/snapshot
        zkeep mount -r vault/home@monday /mnt/monday
        zkeep unmount /mnt/home
    """
    chosen = _options(options)
    if everything:
        if arguments:
            raise WrongUsage("-a takes no dataset")
        mount_all(load_keys=load_keys)
        return
    if not arguments:
        for name, folder in named_now(mounted()):
            click.echo(f"{name:<30}  {folder}")
        return
    *what, folder = arguments if len(arguments) > 1 else (arguments[0], _folder_of(arguments[0], load_keys))
    if load_keys:
        _load_key(what[0])
    folder = os.path.realpath(folder)
    clear_dead(folder)
    if not os.path.lexists(folder):
        raise Refused(f"cannot mount: there is no folder {shown(folder)}: mkdir -p {shlex.quote(folder)}")
    if not os.path.isdir(folder):
        raise Refused(f"cannot mount: {folder} is not a folder")
    with background(log_of(folder), stay=foreground) as ready:
        request = _Request(what, folder, key_locations, chosen, recursive)
        if recursive or "ro" in _words(options) or not _mount_live(request, ready):
            _mount(request, ready)


def _folder_of(text: str, load_keys: bool) -> str:
    """Where a dataset is mounted that is given by its name alone. Its key must be there."""
    name = None if text.startswith("/") or is_stream(text) else parse_any(text)
    if not isinstance(name, DatasetName):
        raise WrongUsage("name what to mount, and a folder")
    with open_pool(name) as pool:
        dataset = pool.dataset(name)
        if load_keys:
            load_key_of(pool, dataset)
        _check_key(pool, dataset, any_loaded=False)
        return folder_for(pool, dataset)


def _load_key(text: str) -> None:
    name = None if is_stream(text) else parsed(text)
    if name is None:
        raise WrongUsage("-l goes with a dataset or a snapshot of a pool")
    dataset = name if isinstance(name, DatasetName) else name.dataset
    with open_pool(dataset) as pool:
        load_key_of(pool, pool.dataset(dataset))


def _check_key(pool: Pool, dataset: Dataset, *, any_loaded: bool) -> None:
    """Refuse if the key is not loaded; with `any_loaded`, only if no key at all is loaded."""
    from zkeep.agent.client import roots
    from zkeep.pool.datasets.derived import encryption_root
    from zkeep.pool.datasets.view import View

    root = encryption_root(View(pool), dataset)
    loaded = roots(pool.doc["guid"])
    if root and root.id not in loaded and not (any_loaded and loaded):
        way = f"'zkeep load-key {root.name}' loads it, -L file:///path names it for this call"
        raise Refused(f"cannot mount '{dataset.name}': encryption key not loaded; {way}")


def _words(given: Sequence[str]) -> list[str]:
    return [word for text in given for word in text.split(",") if word]


def _options(given: Sequence[str]) -> dict[str, str | bool]:
    words = _words(given)
    if unknown := [word for word in words if word not in OPTIONS]:
        raise WrongUsage(f"there is no option {unknown[0]}: -o takes {' and '.join(OPTIONS)}")
    return {"allow_other": True, "default_permissions": True} if "allow_other" in words else {}


@dataclass(frozen=True)
class _Request:
    """What to mount, as typed, and where; with the options of FUSE."""

    what: list[str]
    folder: str
    key_locations: Sequence[str]
    options: dict[str, str | bool]
    recursive: bool


def _mount_live(request: _Request, ready: Callable[[], None]) -> bool:
    """Mount a dataset read-write; False if it is none that was made here."""
    from zkeep.agent.memory import keep_secret, lock_as_used
    from zkeep.cli.mount.live import can_write, fuse_options, live_operations, was_made_here
    from zkeep.live.serve import serve

    name = None if is_stream(request.what[0]) else parsed(request.what[0])
    if not isinstance(name, DatasetName) or len(request.what) > 1:
        return False
    with open_pool(name) as pool:
        dataset = pool.dataset(name)
        if not can_write(dataset, pool):
            # As mount(8) does with a disk that is write-protected.
            if pool.catalog.read_only and was_made_here(dataset, pool):
                say(f"warning: {pool.path} cannot be written to: {name} is mounted read-only")
            return False
        if not request.key_locations and not sys.stdin.isatty():
            _check_key(pool, dataset, any_loaded=True)
        keep_secret(locked=False)
        lock_as_used()  # keys, and what was written and is not committed yet
        get_key = keys_from(request.key_locations)
        lost = lost_of(request.folder)

        def on_lost(error: Exception) -> None:
            lost.write_text(f"{error}\n", "utf-8", "backslashreplace")

        options = [*fuse_options(pool, dataset), *(word for word in ("allow_other",) if word in request.options)]
        where = request.folder
        with (
            closing(MountLog()) as log,
            live_operations(pool, dataset, where, get_key, log, ready, on_lost) as operations,
        ):
            serve(operations, where, str(name), options)
    return True


def _mount(request: _Request, ready: Callable[[], None]) -> None:
    from zkeep.agent.memory import keep_secret, lock_as_used
    from zkeep.restore.mount.fuse import ReadOnlyOperations, serve

    keep_secret(locked=False)
    lock_as_used()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with (
        closing(MountLog()) as log,
        _open_layout(request) as (name, files, size, executable),
        _quiet() as (captured, end),
    ):
        options = request.options if executable else {**request.options, "noexec": True}

        def on_mounted() -> None:
            end()
            ready()

        try:
            serve(ReadOnlyOperations(files, size, log, on_mounted), request.folder, name, options)
        except OSError as error:
            raise Refused(f"cannot mount {name}: {captured() or error.strerror}") from None


@contextmanager
def _open_layout(request: _Request) -> Iterator[tuple[str, MountLayout, int, bool]]:
    """Open what the arguments name: its name, the layout of the mount, its bytes, and whether programs may run."""
    from zkeep.cli.mount.live import allows
    from zkeep.pool.datasets.view import View
    from zkeep.restore.mount.layout import MountLayout

    what, key_locations = request.what, request.key_locations
    name = None if is_stream(what[0]) else parsed(what[0])
    whole = isinstance(name, DatasetName)
    with ExitStack() as stack:
        if isinstance(name, DatasetName):
            if len(what) > 1:
                raise WrongUsage("name one dataset, and a folder")
            pool = stack.enter_context(open_pool(name))
            tree = _current(pool, name)
            if not key_locations and not sys.stdin.isatty():
                _check_key(pool, tree.datasets[0], any_loaded=True)
        else:
            pool, (snapshot,), rest = stack.enter_context(snapshots_of(what))
            if rest and "@" in rest[0]:
                raise Refused(f"cannot open {shown(rest[0])}: the streams bring no snapshot of this name")
            if rest:
                raise WrongUsage("name one snapshot, and a folder")
            tree = SnapshotTree.of(pool, snapshot)
        get_key = keys_from(key_locations)
        chosen = tree.shown(request.recursive)
        snapshots = [state for _, state in chosen]
        places = _Places(pool, tree, get_key, stack)
        top = places.place(*chosen[0], whole=whole)
        below = [places.place(*each, whole=whole) for each in chosen[1:] if _can_open(pool, each[1], get_key)]
        files = stack.enter_context(MountLayout(top.top, top.others, below))
        tree.say_left_out(request.recursive, "mount")
        _say_what_lacks(pool, snapshots)
        view = View(pool)
        things = chosen if whole else [(state, state) for state in snapshots]
        size = sum(int(view.get(thing, "referenced").value or 0) for thing, _ in things)
        yield str(name or tree.top.name), files, size, not whole or allows(view, tree.datasets[0], "exec")


def _say_what_lacks(pool: Pool, snapshots: list[Snapshot]) -> None:
    """Say of which snapshots files can be listed, and not be read."""
    from zkeep.pool.datasets.contents import NotHere, lacking
    from zkeep.pool.datasets.history import history_of

    for snapshot in snapshots:
        if lacking(history_of(pool, snapshot.dataset).upto(snapshot.txg).runs):
            say(str(NotHere(str(snapshot.name))))


def _current(pool: Pool, name: DatasetName) -> SnapshotTree:
    try:
        return SnapshotTree.current(pool, pool.dataset(name))
    except Refused as error:
        raise Refused(f"cannot mount {error}") from None


@dataclass(frozen=True)
class _Places:
    """Makes what a read-only mount shows; `stack` closes what has to stay open."""

    pool: Pool
    tree: SnapshotTree
    get_key: GetKey
    stack: ExitStack

    def place(self, dataset: Dataset, state: Snapshot, *, whole: bool) -> MountPlace:
        """`whole`: with all snapshots of the dataset below .zfs."""
        from zkeep.pool.datasets.head import is_mounted
        from zkeep.restore.mount.layout import MountPlace

        every = [self._lazy(s) for s in self.pool.snapshots(dataset)] if whole else None
        is_named = self.pool.snapshot_at(state.dataset.id, state.txg) is not None
        changes = whole and (not is_named or is_mounted(self.pool, dataset))
        shown = self._opened(dataset) if changes else self._lazy(state)
        return MountPlace(os.fsencode(self.tree.place(dataset)), shown, every)

    def _lazy(self, snapshot: Snapshot) -> LazySnapshot:
        from zkeep.restore.mount.layout import LazySnapshot
        from zkeep.snapshot.open import OpenSnapshot

        opening = partial(OpenSnapshot, self.pool, snapshot, self.get_key)
        return LazySnapshot(snapshot.doc["name"], int(snapshot.doc["creation"]), opening)

    def _opened(self, dataset: Dataset) -> LazySnapshot:
        """A state without a name: it stays open, as it could not be opened again once a newer one is there."""
        from zkeep.cli.mount.live import opened_state
        from zkeep.restore.mount.layout import LazySnapshot

        where = f"cannot mount '{dataset.name}'"
        opened = self.stack.enter_context(opened_state(self.pool, dataset, self.get_key, where))
        doc = opened.snapshot.doc
        return LazySnapshot(doc["name"], int(doc["creation"]), lambda: nullcontext(opened))


def _can_open(pool: Pool, snapshot: Snapshot, get_key: GetKey) -> bool:
    """Whether there is a key for a child dataset; without one, it is left out and the others are mounted."""
    from zkeep.snapshot.open import OpenSnapshot

    try:
        OpenSnapshot(pool, snapshot, get_key)
    except (Refused, Damaged) as error:
        say(f"{error}; it is left out")
        return False
    return True


@contextmanager
def _quiet() -> Iterator[tuple[Callable[[], str], Callable[[], None]]]:
    """Capture what libfuse prints on standard error. Yields two functions: one returns it, one ends the capture."""
    with tempfile.TemporaryFile() as kept, ExitStack() as before:
        saved = os.dup(2)
        before.callback(os.close, saved)
        before.callback(os.dup2, saved, 2)

        def captured() -> str:
            before.close()
            kept.seek(0)
            return " ".join(kept.read(1000).decode(errors="replace").split()).removeprefix("fuse: ")

        os.dup2(kept.fileno(), 2)
        yield captured, before.close
