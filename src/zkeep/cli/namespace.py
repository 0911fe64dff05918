"""zkeep create, rename, promote, bookmark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import click

from zkeep.agent import client
from zkeep.cli.common.no_mount import no_mount_option
from zkeep.cli.common.pools import note_settings, opened, settings
from zkeep.cli.keys import encryption
from zkeep.cli.mount.live import held_mounts
from zkeep.errors import Refused, WrongUsage
from zkeep.names import BookmarkName, DatasetName, SnapshotName, parse_any, shown
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.promote import promote
from zkeep.pool.datasets.properties import parse_size
from zkeep.pool.datasets.view import View


@click.command("create")
@click.option("-p", "parents", is_flag=True, help="Make missing parents too; no error if it is there already.")
@no_mount_option("-u", "unmounted")
@click.option("-o", "options", multiple=True, metavar="P=V", help="Set a property.")
@click.option("-n", "dry_run", is_flag=True, help="Create nothing; with -v, say what would be created.")
@click.option("-v", "verbose", is_flag=True, help="Say what is created.")
@click.option("-P", "parsable", is_flag=True, help="As -v, for scripts.")
@click.option("-V", "volume", metavar="SIZE", help="Make an encrypted volume, for 'zkeep snapshot --from IMAGE'.")
@click.option("-s", "sparse", is_flag=True, help="With -V; without effect: nothing is reserved here.")
@click.option("-b", "blocksize", metavar="SIZE", help="With -V: the size of its blocks (volblocksize), 16K.")
@click.argument("name", metavar="DATASET")
def create_verb(
    *,
    parents: bool,
    unmounted: bool,
    options: Sequence[str],
    dry_run: bool,
    verbose: bool,
    parsable: bool,
    volume: str | None,
    sparse: bool,
    blocksize: str | None,
    name: str,
) -> None:
    """Create a dataset that holds nothing yet: a place to receive into, or, encrypted, one for snapshots made here.

    Which names are one is chosen here, once: -o casesensitivity=sensitive|insensitive|mixed, -o
    normalization=none|formC|formD|formKC|formKD, -o utf8only=on|off, of an encrypted filesystem.

    \b
        zkeep create -o encryption=on -o keyformat=passphrase local/docs
        zkeep create -p -o quota=1T vault/clients/ann
    """
    dataset = DatasetName.parse(name)
    asked, others = encryption.split(settings(options))
    kind, shape = _volume(name, volume, sparse, blocksize, others)
    with opened(dataset) as pool:
        # Make the keys before the dataset: a wrong option or a passphrase that is not repeated leaves nothing.
        keys = encryption.new_keys(pool, dataset, asked) if not (parents and pool.find(dataset)) else None
        if kind == "volume" and keys is None and not pool.find(dataset):
            raise Refused(
                f"cannot create {name}: volumes come by 'zkeep receive'; to make one here, add -o encryption=on"
            )
        fields = {**keys.fields, **shape} if keys else {}
        also = partial(keys.put, pool) if keys else None
        ancestor = encryption.ancestor_of(pool)
        lines = namespace.create(
            pool, dataset, others, parents, kind, dry_run=dry_run, fields=fields, also=also, ancestor=ancestor
        )
        if not dry_run:
            note_settings(pool, [dataset], others)
        # As with zfs, the key of a new encryption root is loaded.
        if keys is not None and keys.is_root and not dry_run:
            with pool.afterwards(f"{name} is made", f"zkeep load-key {name}"):
                client.load(pool.doc["guid"], pool.dataset(dataset).id, keys.wrapping_key)
    for line in lines if verbose or parsable else ():
        click.echo("\t".join(line) if parsable else _report_line(line, dry_run))


def _volume(
    name: str, volume: str | None, sparse: bool, blocksize: str | None, others: dict[str, str]
) -> tuple[str, dict[str, int]]:
    """What kind of dataset, and what its document says of its blocks; `others` gets its size, in whole blocks."""
    given = others.pop("volblocksize", None) if volume is not None else None
    if volume is None:
        if sparse or blocksize is not None:
            raise WrongUsage(f"-{'s' if sparse else 'b'} can only be used when creating a volume")
        return "filesystem", {}
    try:
        blksz = parse_size(blocksize if blocksize is not None else given if given is not None else "16K")
        size = parse_size(volume)
    except ValueError as error:
        raise WrongUsage(f"bad volume size {shown(str(error))}: it is a number, like 512M or 20G") from None
    # The rules of ZFS for volblocksize and volsize.
    if blksz & (blksz - 1) or not 512 <= blksz <= 16 << 20:
        raise Refused(f"cannot create '{name}': 'volblocksize' must be power of 2 from 512B to 16M")
    # A volume has whole blocks.
    size = -(-size // blksz) * blksz
    if not 0 < size < 1 << 63:
        raise Refused(f"cannot create '{name}': volume size must be greater than zero, and less than 8E")
    others["volsize"] = str(size)
    return "volume", {"volblocksize": blksz}


def _report_line(line: Sequence[str], dry_run: bool) -> str:
    if line[0] == "property":
        return f"\t{line[1]}={line[2]}"
    verb = {"create": "create", "create_ancestors": "create ancestors of"}[line[0]]
    return f"{'would ' if dry_run else ''}{verb} {line[1]}"


@click.command("rename")
@click.option("-p", "parents", is_flag=True, help="Make missing parents of the new name.")
@click.option("-r", "recursive", is_flag=True, help="Rename the snapshots of all datasets below as well.")
@no_mount_option("-u", "unmounted")
@no_mount_option("-f", "force")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
def rename_verb(*, parents: bool, recursive: bool, unmounted: bool, force: bool, old: str, new: str) -> None:
    """Rename a dataset with all that lies below it, or a snapshot.

    \b
        zkeep rename vault/home vault/old/home
        zkeep rename -r vault/home@mon @monday
    """
    source = parse_any(old)
    with opened(source) as pool:
        if isinstance(source, SnapshotName):
            target = f"{source.dataset}{new}" if new.startswith("@") else new
            full = target if "@" in target else f"{source.dataset}@{target}"
            namespace.rename_snapshot(pool, source, SnapshotName.parse(full), recursive)
        elif isinstance(source, DatasetName):
            if recursive:
                raise WrongUsage("-r goes with snapshots: a dataset is renamed with all that lies below it")
            namespace.rename(pool, source, DatasetName.parse(new), parents, encryption.ancestor_of(pool))
        else:
            raise WrongUsage("a bookmark cannot be renamed")


@click.command("promote")
@click.argument("name", metavar="CLONE")
def promote_verb(name: str) -> None:
    """Make a clone independent of its origin.

    The snapshots that both share become the clone's, and its origin becomes a clone of it. Both may be mounted.

    \b
        zkeep promote vault/home-tried
    """
    dataset = DatasetName.parse(name)
    with opened(dataset) as pool:
        clone = pool.dataset(dataset)
        root = encryption_root(View(pool), clone)
        both = [clone, *(origin for origin, _ in pool.origins(clone)[:1])]
        with held_mounts(pool, both, f"cannot promote {name}") as mounts:
            promote(pool, dataset, mounts)
        # A root's key is its clone's from now on; where it is loaded, it stays so.
        with pool.afterwards(f"{name} is promoted", f"zkeep load-key {name}"):
            now = encryption_root(View(pool), pool.dataset(dataset))
            if root is not None and now is not None and root.id != now.id and pool.scope is None:
                client.hand_over(pool.doc["guid"], root.id, now.id)


@click.command("bookmark")
@click.option("-r", "recursive", is_flag=True, help="Of the snapshots of this name of all datasets below, too.")
@click.argument("source", metavar="SNAPSHOT|BOOKMARK")
@click.argument("name", metavar="BOOKMARK")
def bookmark_verb(recursive: bool, source: str, name: str) -> None:
    """Name the place in time of a snapshot or a bookmark.

    Increments can be sent from it after the snapshot was destroyed.

    \b
        zkeep bookmark vault/home@monday '#monday'
    """
    origin = parse_any(f"{name.partition('#')[0]}{source}" if source[:1] in "@#" else source)
    if isinstance(origin, DatasetName):
        raise WrongUsage("a bookmark is made from a snapshot or a bookmark")
    target = BookmarkName.parse(f"{origin.dataset}{name}" if name.startswith("#") else name)
    if recursive and not isinstance(origin, SnapshotName):
        raise WrongUsage("-r goes with a snapshot")
    with opened(origin) as pool:
        namespace.bookmark(pool, origin, target, recursive)
