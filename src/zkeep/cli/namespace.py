"""zkeep create, rename, bookmark, snapshot."""

from __future__ import annotations

from collections.abc import Sequence

import click

from zkeep.cli.home import opened, unencrypted
from zkeep.errors import Refused, WrongUsage
from zkeep.names import BookmarkName, DatasetName, SnapshotName, parse_any
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.promote import promote


@click.command("create")
@click.option("-p", "parents", is_flag=True, help="Make missing parents too; no error if it is there already.")
@click.option("-u", "unmounted", is_flag=True, help="Accepted and without effect: nothing is mounted here.")
@click.option("-o", "options", multiple=True, metavar="P=V", help="Set a property.")
@click.option("-n", "dry_run", is_flag=True, help="Create nothing; with -v, say what would be created.")
@click.option("-v", "verbose", is_flag=True, help="Say what is created.")
@click.option("-P", "parsable", is_flag=True, help="As -v, for scripts.")
@click.option("-V", "volume", metavar="SIZE", help="Refused: volumes come by 'zkeep receive'.")
@click.option("-s", "sparse", is_flag=True, help="Refused, as -V.")
@click.option("-b", "blocksize", metavar="SIZE", help="Refused, as -V.")
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
    """Create a dataset that holds nothing yet: a place to receive into.

    \b
        zkeep create -p -o quota=1T vault/clients/ann
    """
    dataset = DatasetName.parse(name)
    if volume or sparse or blocksize:
        raise Refused(f"cannot create {name}: nothing could write to a volume here; volumes come by 'zkeep receive'")
    with opened(dataset) as pool:
        lines = namespace.create(pool, dataset, unencrypted(options, f"cannot create {name}"), parents, dry_run=dry_run)
    for line in lines if verbose or parsable else ():
        click.echo("\t".join(line) if parsable else _told(line, dry_run))


def _told(line: Sequence[str], dry_run: bool) -> str:
    if line[0] == "property":
        return f"\t{line[1]}={line[2]}"
    verb = {"create": "create", "create_ancestors": "create ancestors of"}[line[0]]
    return f"{'would ' if dry_run else ''}{verb} {line[1]}"


@click.command("rename")
@click.option("-p", "parents", is_flag=True, help="Make missing parents of the new name.")
@click.option("-r", "recursive", is_flag=True, help="Rename the snapshots of all datasets below as well.")
@click.option("-u", "unmounted", is_flag=True, help="Accepted and without effect: nothing is mounted here.")
@click.option("-f", "force", is_flag=True, help="Accepted and without effect: nothing is mounted here.")
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
            namespace.rename(pool, source, DatasetName.parse(new), parents)
        else:
            raise WrongUsage("a bookmark cannot be renamed")


@click.command("promote")
@click.argument("name", metavar="CLONE")
def promote_verb(name: str) -> None:
    """Make a clone independent of its origin.

    The snapshots that both share become the clone's, and its origin becomes a clone of it.

    \b
        zkeep promote vault/home-tried
    """
    dataset = DatasetName.parse(name)
    with opened(dataset) as pool:
        promote(pool, dataset)


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


@click.command("snapshot")
@click.option("-r", "recursive", is_flag=True, help="Accepted, for the sake of scripts.")
@click.option("-o", "options", multiple=True, metavar="P=V", help="Accepted, for the sake of scripts.")
@click.argument("names", nargs=-1, required=True, metavar="SNAPSHOT...")
def snapshot_verb(recursive: bool, options: Sequence[str], names: Sequence[str]) -> None:
    """Refused, with the reason: nothing changes here between two receives.

    Take the snapshot where the data lives and send it; or keep a place in time with 'zkeep bookmark'.
    """
    for text in names:
        name = SnapshotName.parse(text)
        with opened(name) as pool:
            raise Refused(_why_not(pool, name))


def _why_not(pool: Pool, name: SnapshotName) -> str:
    dataset = pool.dataset(name.dataset)
    last = pool.snapshots(dataset)[-1:]
    way_out = "take it on the sending side and send it here"
    if last:
        way_out += f", or mark @{last[0].doc['name']} with 'zkeep bookmark' or 'zkeep hold'"
    why = "nothing is written to it here but by 'zkeep receive'"
    if dataset.doc.get("crypt"):
        why = "it is encrypted and no key is ever loaded here"
    return f"cannot create snapshot {name}: {why}; {way_out}"
