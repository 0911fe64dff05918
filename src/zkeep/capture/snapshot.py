"""Make the next snapshot of a dataset from a folder, or name the state that is there."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zkeep.capture import previous as cache
from zkeep.capture.distinct import DistinctNames
from zkeep.capture.exclude import ExcludeOptions, Exclusions, OnLeftOut, mounts_of_zkeep
from zkeep.capture.folder import STEP as STEP_BYTES
from zkeep.capture.folder import FolderWriter
from zkeep.capture.image import take_image
from zkeep.capture.previous import Previous
from zkeep.capture.report import Watch, file_changes
from zkeep.capture.scan import READ_FOLDER, ReadProblem, Scan, Scanner
from zkeep.crypto.unwrap import GetKey
from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.format.compress_writer import compressor
from zkeep.format.folding import Naming
from zkeep.format.records import Feature
from zkeep.names import SnapshotName
from zkeep.pool.datasets import head
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.view import View
from zkeep.snapshot.commit import LARGE, NewSnapshot, commit, forget_unchanged, repeat
from zkeep.snapshot.malloc import share_freed_memory
from zkeep.snapshot.new_filesystem import empty_root, fixed_objects
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.writer import SnapshotWriter
from zkeep.tree.filesystem import Filesystem


@dataclass
class CaptureRequest:
    """What to store. `cache`: the folder in which the state of files is kept between captures."""

    name: SnapshotName
    folder: str
    cache: Path
    options: ExcludeOptions = field(default_factory=ExcludeOptions)
    on_left_out: OnLeftOut = lambda path, why: None
    watch: Watch = field(default_factory=Watch)
    dry_run: bool = False
    "Look only: nothing is stored."
    at: str | None = None
    "Where the folder is to be read: in a snapshot of its file system."
    step: int = STEP_BYTES
    "Bytes of new data after which what was read is committed, so that an interrupted capture goes on from there."


@dataclass
class Taken:
    """A snapshot that was made (None: a dry run), and what could not be stored in it as it is."""

    snapshot: Snapshot | None
    problems: list[ReadProblem] = field(default_factory=list)
    written: int = 0
    bytes: int = 0
    "Sizes of the files that were read."


def settings_of(pool: Pool, dataset: Dataset) -> tuple[str, int]:
    """The compression and the recordsize of a dataset; a volume has none, 0."""
    view = View(pool)
    return str(view.get(dataset, "compression").value), int(str(view.get(dataset, "recordsize").value or 0))


def naming_of(dataset: Dataset) -> Naming:
    """Which names a filesystem that was made here takes, as was said when it was created."""
    return Naming.of(dataset.doc.get("naming", {}))


def new_snapshot(pool: Pool, name: SnapshotName) -> tuple[NewSnapshot, int]:
    """How the next snapshot's blocks are stored, and the recordsize."""
    compression, recordsize = settings_of(pool, pool.dataset(name.dataset))
    try:
        compress = compressor(compression)
    except ValueError as error:
        raise Refused(f"cannot create snapshot {name}: {error}: set another") from None
    # A stream must say which features its blocks need, so that a receiver without them refuses it.
    features = Feature(0)
    if recordsize > LARGE:
        features |= Feature.LARGE_BLOCKS
    if compression.startswith("zstd"):
        features |= Feature.ZSTD
    return NewSnapshot(name, compress, features), recordsize


def take_folder(pool: Pool, request: CaptureRequest, get_key: GetKey) -> Taken:
    """Store the files of a folder as the next snapshot.

    Raises:
        Refused: the folder cannot be read, or the dataset takes no snapshot (see commit).
    """
    if pool.dataset(request.name.dataset).is_volume:
        raise Refused(f"cannot create snapshot {request.name}: a volume holds no folder: name a disk image or a device")
    new, recordsize = new_snapshot(pool, request.name)
    where = f"cannot create snapshot {request.name}"
    dataset = pool.dataset(request.name.dataset)
    started = time.time_ns()
    share_freed_memory()
    with ExitStack() as stack:
        # 1. What the last snapshot has of each file.
        top = _open_top(pool, request, where)
        stack.callback(os.close, top)
        path = request.cache / f"{pool.doc['guid']:x}-{dataset.guid:x}.capture"
        last = head.last_snapshot(pool, dataset)
        before = _previous(pool, last, path, top, get_key).on_device(os.fstat(top).st_dev)
        # 2. What is in the folder now: one pass of stat(), nothing is read yet.
        exclusions = Exclusions(_with_own(pool, request, top), request.on_left_out)
        distinct = DistinctNames(naming := naming_of(dataset), exclusions.choose, exclusions.keeps_all)
        scanner = Scanner(top, before, distinct.choose, request.watch.folder, distinct.keeps_all)
        stack.callback(scanner.folders.close)
        try:
            scan = scanner.scan(started)
        except OSError as error:
            raise Refused(f"{where}: {request.folder}: {error.strerror}") from None
        scan.problems += exclusions.problems + distinct.problems
        if request.dry_run:
            _report(pool, dataset, scan, request.watch, get_key)
            return Taken(None, scan.problems, len(scan.written), scan.bytes)
        # 3. Read and store what differs. Each step that is committed saves the cache, so that an interrupted
        #    capture goes on from there.
        generation = int(started // 1_000_000_000)

        def open_whole() -> OpenSnapshot | None:
            whole = (snapshot for snapshot in reversed(pool.snapshots(dataset)) if not snapshot.doc.get(STEP))
            found = next(whole, None) or (pool.snapshot_at(*dataset.origin) if dataset.origin is not None else None)
            return stack.enter_context(OpenSnapshot(pool, found, get_key, scattered=True)) if found else None

        writer_of = FolderWriter(
            *(scan, scanner.folders, before, recordsize, generation, request.watch, request.step),
            open_whole=functools.cache(open_whole),
            naming=naming,
        )
        stack.callback(writer_of.close)

        def save(made: Snapshot) -> None:
            rows = writer_of.rows_of_step() if made.doc.get(STEP) else writer_of.next_rows()
            with pool.afterwards(f"{made.name} is there", "zkeep snapshot --from"):
                cache.save(path, rows, _mark(pool, made))

        snapshot = commit(pool, new, get_key, writer_of.write, save, after=last.guid if last is not None else 0)
        written = len(scan.written)
        writer_of.forget_nodes()
        save(snapshot)
    problems = {problem.path: problem for problem in scan.problems + writer_of.result.problems}
    return Taken(snapshot, list(problems.values()), written, scan.bytes)


def _open_top(pool: Pool, request: CaptureRequest, where: str) -> int:
    """Raises Refused: the folder cannot be opened, or the pool lies around it."""
    try:
        inside = Path(request.folder).resolve().is_relative_to(pool.path.resolve())
        # The folder itself may be named by links.
        at = request.at if request.at not in (None, "", request.folder) else None
        top = _opened(at) if at else os.open(request.folder, READ_FOLDER & ~os.O_NOFOLLOW)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused(f"{where}: {request.folder}: {getattr(error, 'strerror', None) or error}") from None
    if inside:
        os.close(top)
        raise Refused(f"{where}: {request.folder} is a folder of the pool itself")
    return top


def _opened(path: str) -> int:
    """Open a folder in a snapshot of a file system. Its path was resolved before that was taken.

    A link on the way was put there in between, and may lead out of the snapshot: none is followed.
    """
    names = [name for name in path.split("/") if name not in ("", ".")]
    fd = os.open("/", READ_FOLDER)
    for at, name in enumerate(names, 1):
        above, flags = fd, READ_FOLDER if at == len(names) else READ_FOLDER | getattr(os, "O_PATH", 0)
        try:
            fd = os.open(name, flags, dir_fd=above)
        finally:
            os.close(above)
    return fd


def _with_own(pool: Pool, request: CaptureRequest, top: int) -> ExcludeOptions:
    """Add what is never stored: the pool that it would be stored in, and snapshots that are mounted."""
    status = os.stat(pool.path)
    own = request.options.own | {(status.st_dev, status.st_ino)}
    if status.st_dev == os.stat(request.folder).st_dev:  # in a snapshot of the file system it has the same inode
        own |= {(os.fstat(top).st_dev, status.st_ino)}
    return replace(request.options, own=own, own_devices=mounts_of_zkeep())


def _report(pool: Pool, dataset: Dataset, scan: Scan, watch: Watch, get_key: GetKey) -> None:
    """Say what would be stored."""
    if watch.change is None:
        return
    with ExitStack() as stack:
        last = head.last_snapshot(pool, dataset)
        tree = Filesystem(stack.enter_context(OpenSnapshot(pool, last, get_key))) if last is not None else None
        for change in file_changes(scan, tree):
            watch.change(change)


def _mark(pool: Pool, snapshot: Snapshot) -> dict[str, Any]:
    """What a cache belongs to."""
    return {"pool": pool.doc["guid"], "dataset": snapshot.dataset.guid, "snapshot": snapshot.guid}


def _previous(pool: Pool, last: Snapshot | None, path: Path, top: int, get_key: GetKey) -> Previous:
    """The state of files at the last snapshot, from the cache; without one, by looking for each of its paths."""
    if last is None:
        return Previous()
    found = cache.load(path, _mark(pool, last))
    if found is not None:
        return found
    with OpenSnapshot(pool, last, get_key) as base:
        return _matched(Filesystem(base), top)


def _matched(tree: Filesystem, top: int) -> Previous:
    """Rows of a snapshot's files that are where they were, as the folder's files are now."""
    rows: list[tuple[int, ...]] = []
    extras: list[tuple[int, int]] = []
    waiting: list[tuple[int, bytes | None, int]] = [(tree.root, b".", tree.root)]
    while waiting:
        number, path, parent = waiting.pop()
        node = tree.znode(number)
        # Objects with extended attributes belong to their file, and are freed with it.
        if node.xattr_folder:
            extras.append((number, node.xattr_folder))
            extras += [(number, entry.number) for entry in tree.names(node.xattr_folder)]
        names = list(tree.names(number)) if node.is_folder else []
        status = _status(top, path, node.mode)
        # Below what is no folder any more nothing is looked for: it may be a link to another one.
        below = path + b"/" if path is not None and status is not None else None
        waiting += [(entry.number, below + entry.name if below else None, number) for entry in names]
        if status is None:
            continue
        # The file at this path may be another one now. With a ctime of 0 it is read again in any case, and only
        # blocks that differ are stored.
        rows.append(
            (
                status.st_dev,
                status.st_ino,
                node.size if node.is_file or node.is_link else status.st_size,
                node.mtime,
                0,
                number,
                parent,
                1 if node.is_folder else node.links,
                cache.UNKNOWN,
                node.mode >> 12,
            )
        )
    unique = {(row[0], row[1]): row for row in rows}
    return Previous(cache.rows_of(unique.values()), np.array(extras, cache.EXTRA), tree.root)


def _status(top: int, path: bytes | None, mode: int) -> os.stat_result | None:
    """The status of what is at a path, if it is of the kind that a mode says."""
    if path is None:
        return None
    try:
        status = os.stat(path, dir_fd=top, follow_symlinks=False)
    except OSError:
        return None
    return None if (status.st_mode ^ mode) & 0o170000 else status


def take_state(pool: Pool, name: SnapshotName, get_key: GetKey) -> Snapshot:
    """Name the state that is there: what was written where it is mounted, what the last snapshot has, or nothing."""
    with pool.transaction() as t:
        # What a read-write mount committed has no name yet: it gets this one, and nothing else is to be done.
        made = head.give_name(pool, t, name)
    return made if made is not None else _repeat_last(pool, name, get_key)


def take_states(pool: Pool, names: Sequence[SnapshotName], get_key: GetKey, check: Callable[[], None]) -> None:
    """Name the states of several datasets at one moment: all of them or, after whatever failure, none.

    `check`: raises if one of them must not be taken any more.

    Raises:
        Exists: a name is taken.
        TryAgain: a dataset is mounted or gets another snapshot meanwhile.
    """
    try:
        # 1. Each gets a state that no snapshot names yet, if it has none.
        for name in names:
            dataset = pool.dataset(name.dataset)
            if head.unnamed(pool, dataset) is None:
                with head.not_mounted(pool, dataset, f"cannot create snapshot {name}"):
                    _repeat_last(pool, name, get_key, unnamed=True)
        # 2. All get their names.
        check()
        with pool.transaction() as t:
            for name in names:
                if head.give_name(pool, t, name) is None:
                    raise TryAgain(f"cannot create snapshot {name}: {name.dataset} got another one meanwhile")
    except BaseException:
        for name in names:
            with suppress(ZkeepError, OSError):  # then the next snapshot names it, or forgets it
                forget_unchanged(pool, pool.dataset(name.dataset), f"cannot create snapshot {name}")
        raise


def _repeat_last(pool: Pool, name: SnapshotName, get_key: GetKey, *, unnamed: bool = False) -> Snapshot:
    """Make a snapshot with the contents of the last one, or a state that is to get this name."""
    last = head.last_snapshot(pool, pool.dataset(name.dataset))
    if last is not None and last.doc.get(STEP):
        raise Refused(
            f"cannot create snapshot {name}: {last.name} is what an interrupted 'zkeep snapshot --from' left; "
            "run that again, or destroy it"
        )
    new = replace(new_snapshot(pool, name)[0], unnamed=unnamed)
    # A volume without an image, and a filesystem without files, still need their fixed objects.
    if pool.dataset(name.dataset).is_volume:
        return take_image(pool, new, None, get_key)[0]

    def fill(writer: SnapshotWriter, base: OpenSnapshot | None) -> bool:
        naming = naming_of(pool.dataset(name.dataset))
        for change in sorted([*fixed_objects(naming), empty_root(naming=naming)], key=lambda change: change.number):
            writer.write(change)
        return False

    return repeat(pool, new) or commit(pool, new, get_key, fill, after=0)
