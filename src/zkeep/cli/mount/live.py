"""Mounting a dataset read-write, and asking such a mount to commit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zkeep.cli.common.pools import runtime_folder
from zkeep.cli.common.terminal import say
from zkeep.errors import Refused, TryAgain
from zkeep.pool.datasets.head import HeldMounts, is_mounted
from zkeep.pool.datasets.view import View

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey
    from zkeep.live.fuse import Operations
    from zkeep.live.settings import Settings, Storage
    from zkeep.pool.datasets.model import Dataset, Pool
    from zkeep.restore.mount.fuse import ReadOnlyOperations
    from zkeep.snapshot.open import OpenSnapshot

FORBIDDING = {"suid": "setuid", "dev": "devices", "exec": "exec"}
"Options of a mount, and the properties that they come from."
IDLE = 60.0
"Seconds after which snapshots that nobody looks at are closed."


def allows(view: View, dataset: Dataset, name: str) -> bool:
    """Whether a property is `on`. What a stream said may take that away, and not grant what was set here to be off."""
    return view.get(dataset, name).value == view.policy(dataset, name) == "on"


def can_write(dataset: Dataset, pool: Pool) -> bool:
    """Whether a dataset can be mounted read-write."""
    return not pool.catalog.read_only and not _is_read_only(pool, dataset) and was_made_here(dataset, pool)


def _is_read_only(pool: Pool, dataset: Dataset) -> bool:
    view = View(pool)
    return "on" in (view.get(dataset, "readonly").value, view.policy(dataset, "readonly"))


def was_made_here(dataset: Dataset, pool: Pool) -> bool:
    """Whether a dataset is an encrypted filesystem, and nothing was received into it."""
    from zkeep.pool.datasets.head import current_state

    state = current_state(pool, dataset)
    made_here = state is None or state.is_made_here
    return bool(dataset.doc.get("crypt")) and not dataset.is_volume and made_here


def fuse_options(pool: Pool, dataset: Dataset) -> list[str]:
    """What the properties setuid, exec, devices and atime are as options of a mount.

    Where an ordinary user mounts, the system allows neither set-user-ID programs nor devices, whatever they say.
    """
    view = View(pool)
    options = {**FORBIDDING, "atime": "atime"}
    values = [(option, allows(view, dataset, name)) for option, name in options.items()]
    return [option if on else f"no{option}" for option, on in values if not on or os.geteuid() == 0]


@contextmanager
def live_operations(
    pool: Pool,
    dataset: Dataset,
    folder: str,
    get_key: GetKey,
    log: Callable[[str], object],
    on_mounted: Callable[[], object],
    on_lost: Callable[[Exception], object] = lambda error: None,
) -> Iterator[Operations]:
    """Open a dataset read-write, to be mounted on a folder, and yield its FUSE operations; all is committed at the end.

    `on_lost` is called if that fails, under the mount's lock.
    """
    from zkeep.capture.snapshot import new_snapshot
    from zkeep.live.control import answer_requests, listening, path_of
    from zkeep.live.dataset import LiveDataset
    from zkeep.live.files import LiveFiles
    from zkeep.live.fuse import Operations

    new, recordsize = new_snapshot(pool, dataset.name.snapshot("head"))
    runtime = runtime_folder()
    socket = path_of(runtime, int(pool.doc["guid"]), dataset.guid)
    with (
        LiveDataset(pool, new, recordsize, get_key, on_lost, {"runtime": str(runtime), "folder": folder}) as live,
        listening(socket) as server,
    ):

        def begun() -> None:
            answer_requests(server, live, operations)  # threads start only now: there was a fork before
            on_mounted()

        settings = settings_of(pool, dataset)
        files = LiveFiles(live, settings, lambda: settings_of(pool, live.dataset))
        with closing(_Snapshots(pool, dataset, get_key, log)) as snapshots:
            operations = Operations(files, log, begun, acls=settings.acls, snapshots=snapshots)
            yield operations


def settings_of(pool: Pool, dataset: Dataset) -> Settings:
    """What the properties say that the mount of a dataset acts on."""
    from zkeep.live.settings import Settings

    view = View(pool)
    text = {name: str(view.get(dataset, name).value) for name in ("acltype", "atime", "relatime", "xattr", "snapdir")}
    return Settings(
        is_read_only=_is_read_only(pool, dataset),
        acls=text["acltype"] == "posix",
        atime=text["atime"] == "on",
        relatime=text["relatime"] == "on",
        user_xattrs=text["xattr"] != "off",
        snapdir=text["snapdir"],
        flags=frozenset(f"no{option}" for option, name in FORBIDDING.items() if not allows(view, dataset, name)),
        storage=_storage_of(pool, dataset),
    )


def _storage_of(pool: Pool, dataset: Dataset) -> Storage | None:
    """None: what is set cannot be written."""
    from zkeep.capture.snapshot import new_snapshot
    from zkeep.live.settings import Storage

    try:
        new, recordsize = new_snapshot(pool, dataset.name.snapshot("head"))
    except Refused:
        return None
    return Storage(new, str(View(pool).get(dataset, "compression").value), recordsize)


class _Snapshots:
    """Shows the snapshots of a dataset that is mounted read-write, below .zfs/snapshot, as a read-only mount does."""

    def __init__(self, pool: Pool, dataset: Dataset, get_key: GetKey, log: Callable[[str], object]) -> None:
        self._pool = pool
        self._dataset = dataset
        self._get_key = get_key
        self._log = log
        self._stack = ExitStack()
        self._shown: list[int] = []
        self.version = 0
        self._operations: ReadOnlyOperations | None = None
        self._used = 0.0

    def operations(self) -> ReadOnlyOperations | None:
        """None: there is no snapshot."""
        from zkeep.restore.mount.fuse import ReadOnlyOperations
        from zkeep.restore.mount.layout import LazySnapshot, MountLayout
        from zkeep.snapshot.open import OpenSnapshot

        snapshots = self._pool.snapshots(self._dataset)
        guids = [snapshot.guid for snapshot in snapshots]
        self.version += guids != self._shown
        if guids != self._shown or self._operations is None:
            self.close()
            lazy = [
                LazySnapshot(s.doc["name"], int(s.doc["creation"]), partial(OpenSnapshot, self._pool, s, self._get_key))
                for s in snapshots
            ]
            if lazy:
                layout = self._stack.enter_context(MountLayout(lazy[-1], lazy))
                self._operations = ReadOnlyOperations(layout, 0, self._log, lambda: None)
            self._shown = guids
        self._used = time.monotonic()
        return self._operations

    def rest(self) -> None:
        """Close them if nobody looked for a while: as long as they are open, no space comes back."""
        if self._operations is not None and time.monotonic() - self._used > IDLE:
            self.close()

    def close(self) -> None:
        self._stack.close()
        self._operations = None


def socket_of(pool: Pool, dataset: Dataset) -> Path:
    """Where the mount of a dataset answers: in the runtime folder of the session that mounted it, which it noted."""
    from zkeep.live.control import path_of

    folder = Path(str(pool.dataset(dataset.name).doc.get("runtime") or runtime_folder()))
    return path_of(folder, int(pool.doc["guid"]), dataset.guid)


def is_live_at(dataset: Dataset, folder: str) -> bool:
    """Whether it is this folder on which a dataset was mounted read-write last; others show it read-only."""
    return str(dataset.doc.get("folder", folder)) == folder


@contextmanager
def committed(pool: Pool, datasets: Iterable[Dataset], what: str, *, named: bool = True) -> Iterator[HeldMounts]:
    """While this is held, all that was written to these datasets is committed, and their mounts change nothing.

    `named`: it gets a name, so that there must be something that has none.

    Raises:
        TryAgain: one is mounted, and its mount does not answer.
    """
    mounted = [dataset for dataset in datasets if is_mounted(pool, dataset)]
    if not mounted:
        yield HeldMounts()
        return
    if pool.scope is not None:  # what asks mounts cannot be imported in a process that serves a client
        raise TryAgain(f"{what}: it is mounted on the server")
    from zkeep.live.control import COMMIT, SNAPSHOT, held_still

    with held_still([socket_of(pool, dataset) for dataset in mounted], what, SNAPSHOT if named else COMMIT) as check:
        yield HeldMounts({dataset.id for dataset in mounted}, check)


@contextmanager
def held_mounts(pool: Pool, datasets: Iterable[Dataset], what: str) -> Iterator[HeldMounts]:
    """While this is held, those of the datasets that are mounted change nothing.

    Raises:
        TryAgain: one is mounted, and its mount does not answer.
    """
    # A client of a server does not ask mounts: they are not its own.
    with committed(pool, datasets if pool.scope is None else (), what, named=False) as mounts:
        yield mounts


@contextmanager
def opened_state(pool: Pool, dataset: Dataset, get_key: GetKey, what: str) -> Iterator[OpenSnapshot]:
    """Open what a dataset holds now: if it is mounted read-write, all that was written to it so far.

    It stays as it was, whatever is written meanwhile.

    Raises:
        Refused: it holds nothing.
    """
    from zkeep.pool.datasets.head import current_state
    from zkeep.snapshot.open import OpenSnapshot

    with ExitStack() as stack:
        with ExitStack() as held:
            try:
                held.enter_context(committed(pool, [dataset], what, named=False))
            except TryAgain as error:
                say(f"warning: {error}; what is not committed yet is left out")
            state = current_state(pool, dataset)
            if state is None:
                raise Refused(f"{what}: nothing was written to it yet")
            opened = stack.enter_context(OpenSnapshot(pool, state, get_key))
        yield opened


@contextmanager
def rolled_back(pool: Pool, dataset: Dataset, what: str) -> Iterator[HeldMounts]:
    """Roll a dataset back inside of this. If it is mounted, its mount holds still, and then shows that.

    Raises:
        TryAgain: it is mounted, and its mount does not answer.
    """
    # A client of a server does not ask mounts: they are not its own, and what asks cannot be imported there.
    if pool.scope is not None or not is_mounted(pool, dataset):
        yield HeldMounts()
        return
    from zkeep.live.control import rolling_back

    with rolling_back(socket_of(pool, dataset), what) as check:
        yield HeldMounts({dataset.id}, check)


def tell_mounts(pool: Pool, datasets: Iterable[Dataset], what: str) -> None:
    """Let the mounts of datasets, and of those below, look at their properties, of which some were set."""
    for each in {within.id: within for dataset in datasets for within in pool.tree().within(dataset)}.values():
        if not each.doc.get("live") or not is_mounted(pool, each):
            continue
        from zkeep.live.control import let_look

        try:
            let_look(socket_of(pool, each), f"{each.name}: {what}")
        except TryAgain as error:
            say(f"warning: {error}")


def commit_mounted(pool: Pool, dataset: Dataset, what: str) -> None:
    """Let the mount of a dataset commit, if it is mounted read-write.

    Raises:
        TryAgain: its mount does not answer, or cannot commit.
    """
    with committed(pool, [dataset], what, named=False):
        return


def end_mount(pool: Pool, dataset: Dataset, what: str) -> None:
    """Let the mount of a dataset end, also while it is in use.

    Raises:
        TryAgain: it does not answer.
    """
    from zkeep.live.control import end

    end(socket_of(pool, dataset), what)


def wait_for_commit(pool: Pool, dataset: Dataset, seconds: float) -> None:
    """Wait until the process that had a dataset mounted has committed and ended."""
    from zkeep.pool.datasets.head import mount_lock

    busy = f"{dataset.name} is unmounted, and its last changes are still being written"
    # Shared: where nothing can be written, only such a lock can be taken; the process that ends has one for itself.
    with pool.store.lock(mount_lock(dataset), wait=seconds, shared=True, busy=busy):
        pass
