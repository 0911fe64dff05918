"""zkeep snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from zkeep.cli.common.pools import opened, settings
from zkeep.cli.common.pruning import prune_taken
from zkeep.cli.common.snapshot_from import FromOptions, NotAllRead, from_options, take
from zkeep.cli.common.terminal import explained
from zkeep.errors import Refused, WrongUsage
from zkeep.names import SnapshotName
from zkeep.pool.datasets import contents, namespace
from zkeep.pool.datasets.model import Dataset, Pool

_NO_KEY = "no key is ever used for clients; take it where the data lives and send it here, or mark one: zfs bookmark"


@click.command("snapshot")
@click.option("-r", "recursive", is_flag=True, help="Also of all encrypted datasets below that were made here.")
@click.option("-o", "options", multiple=True, metavar="P=V", help="Set a property of the snapshots.")
@from_options
@click.option("-L", "locations", multiple=True, metavar="KEYLOCATION", help="file:///path or prompt: a key to use.")
@click.argument("names", nargs=-1, required=True, metavar="SNAPSHOT...")
def snapshot_verb(
    *,
    recursive: bool,
    options: Sequence[str],
    locations: Sequence[str],
    names: Sequence[str],
    **given: Any,
) -> None:
    """Take a snapshot of an encrypted dataset that was made here.

    With --from, it holds the files of a folder: what changed since the last one is read and stored. Without, it names
    the state that is there, also while the dataset is mounted and written to; with -r, that of all of them at one
    moment. A dataset that is received into takes its snapshots where the data lives.

    Files that cannot be read are reported, what the last snapshot has of them stays, and the exit status is 3.
    Into a volume (zkeep create -V) --from stores a disk image or a block device: the blocks that changed.
    Take a device at rest, or a snapshot of it (LVM): when a write to it is noticed meanwhile, the exit status is 3.
    Files keep their objects, however they are renamed; of a changed one, the changed blocks are stored. Compression and
    recordsize are the dataset's properties. Beyond 4 GiB of new data (ZKEEP_STEP, in bytes) it is stored in steps: an
    interrupted snapshot goes on where it was when the same is called again.

    -j prints objects with "what": + M - R (with "type", "path", and R with "renamed"), "left out" and "problem" (with
    "path" and "why"), and as the last one "snapshot" with "name", "guid", and how many were "written", "bytes" of
    files that were read, and "problems". Bytes of paths that are no UTF-8 are escaped as Python's surrogates.

    With --fs-snapshot the files are read from a snapshot of their file system (a btrfs subvolume, an LVM volume, a ZFS
    dataset), so that what is stored is of one moment. It needs what the file system's own tools need, mostly root, and
    is removed at the end. What is mounted below the folder is not in it: say --one-file-system. 'auto' reads as
    without, with a warning, where there can be none.

    Patterns are those of .gitignore, from the folder on; a file .zkeepignore in any folder adds its own. Never stored
    are the pool itself and mounted snapshots.

    \b
        zkeep create -o encryption=on -o keyformat=raw -o keylocation=file:///root/key vault/home
        zkeep snapshot --from /home vault/home@monday
        zkeep snapshot --from /home --exclude '*.iso' --exclude-caches -n -v vault/home@tuesday
    """
    local = namespace.check_settings(settings(options), "s")
    if local.get(contents.CONTENTS) == contents.METADATA:
        raise Refused("cannot set contents=metadata of a new snapshot: set it when the snapshot is stored elsewhere")
    source = FromOptions(**given)
    if source.source is None and source.any:
        raise WrongUsage("-n, -v, -j, --one-file-system, --fs-snapshot and --exclude... go with --from")
    if source.source is not None and (recursive or len(names) > 1):
        raise WrongUsage("--from takes one snapshot, without -r")
    for text in names:
        name = SnapshotName.parse(text)
        with opened(name) as pool:
            # In a process that serves a client there are no keys.
            if pool.scope is not None:
                raise Refused(f"cannot create snapshot {pool.dataset(name.dataset).name}@{name.name}: {_NO_KEY}")
            taken, incomplete = _take(pool, name, source, recursive, locations)
            if local and taken:
                with pool.afterwards(f"{name} is there", f"zkeep set ... {name}"):
                    namespace.set_properties(pool, [name], local)
            prune_taken(pool, taken)
            if incomplete:
                raise incomplete


def _take(
    pool: Pool, name: SnapshotName, source: FromOptions, recursive: bool, locations: Sequence[str]
) -> tuple[list[str], NotAllRead | None]:
    """The names of the snapshots that were taken, and what is missing in them.

    Raises:
        Refused: it cannot be taken; the disk is full, or fails.
    """
    try:
        if source.source is None:
            return _take_states(pool, name, recursive, locations), None
        return _take_from(pool, name, source, locations)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Refused(f"cannot create snapshot {name}: {explained(error)}") from None


def _take_states(pool: Pool, name: SnapshotName, recursive: bool, locations: Sequence[str]) -> list[str]:
    """Name the state of a dataset, or of all that were made here below it; returns the names of the snapshots."""
    from zkeep.capture.snapshot import take_state, take_states
    from zkeep.cli.common.open_snapshot import keys_from
    from zkeep.cli.mount.live import committed

    first = pool.dataset(name.dataset)
    datasets = pool.tree().within(first) if recursive else [first]
    wanted = [dataset for dataset in datasets if _is_made_here(pool, dataset)]
    if not wanted or (not recursive and first not in wanted):
        raise Refused(_why_not(pool, name))
    for dataset in wanted:
        if pool.find_snapshot(dataset.name.snapshot(name.name)):
            raise Refused(f"cannot create snapshot {dataset.name}@{name.name}: dataset already exists")
    keys = keys_from(locations)
    # Where a dataset is mounted read-write, its mount writes what it holds back, and waits.
    taken = [dataset.name.snapshot(name.name) for dataset in wanted]
    with committed(pool, wanted, f"cannot create snapshot {name}") as mounts:
        if len(taken) > 1:
            take_states(pool, taken, keys, mounts.check)
        else:
            take_state(pool, taken[0], keys)
    return [str(snapshot) for snapshot in taken]


def _take_from(
    pool: Pool, name: SnapshotName, source: FromOptions, locations: Sequence[str]
) -> tuple[list[str], NotAllRead | None]:
    """Store a folder; returns the name of the snapshot, unless nothing was to be stored, and what it lacks."""
    if not _is_made_here(pool, pool.dataset(name.dataset)):
        raise Refused(_why_not(pool, name))
    if pool.find_snapshot(name):
        raise Refused(f"cannot create snapshot {name}: dataset already exists")
    try:
        take(pool, name, source, locations)
    except NotAllRead as error:
        return [] if source.dry_run else [str(name)], error
    return [] if source.dry_run else [str(name)], None


def _is_made_here(pool: Pool, dataset: Dataset) -> bool:
    """Whether its next snapshot can be taken here: it is encrypted, and nothing was received into it."""
    from zkeep.pool.datasets.head import last_snapshot

    last = last_snapshot(pool, dataset)
    return bool(dataset.doc.get("crypt")) and (last is None or last.is_made_here)


def _why_not(pool: Pool, name: SnapshotName) -> str:
    from zkeep.pool.datasets.contents import STEP
    from zkeep.snapshot.commit import REENCRYPTED

    dataset = pool.dataset(name.dataset)
    last = pool.snapshots(dataset)[-1:]
    way_out = "take it on the sending side and send it here"
    if last:
        way_out += f", or mark @{last[0].doc['name']} with 'zkeep bookmark' or 'zkeep hold'"
    why = "nothing is written to it here but by 'zkeep receive'"
    if last and last[0].doc.get(STEP):
        return f"cannot create snapshot {name}: a receive was interrupted: go on with it, or zkeep receive -A it"
    if last and last[0].doc.get(REENCRYPTED):
        why = "it is encrypted here as it is received, and nothing else is written to it"
    return f"cannot create snapshot {name}: {why}; {way_out}"
