"""zkeep extract: files out of a snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zkeep.cli.common.extraction import ExtractRequest
from zkeep.cli.common.open_snapshot import keys_from, snapshots_of, takes_key
from zkeep.cli.common.recursive import SnapshotTree
from zkeep.errors import WrongUsage

if TYPE_CHECKING:

    pass


@click.command("extract")
@click.option("-C", "target", metavar="DIR", default=".", help="The folder to extract into; else this one.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.option("-r", "recursive", is_flag=True, help="With the datasets below, each in its place: theirs of this name.")
@click.option("--stdout", "to_stdout", is_flag=True, help="Write a tar archive to standard output instead.")
@click.option("-v", "--verbose", "verbose", is_flag=True, help="Say how much was extracted, and what could not be.")
@takes_key
@click.argument("arguments", nargs=-1, required=True, metavar="SNAPSHOT|STREAM... [PATH...]")
def extract_verb(
    *,
    target: str,
    force: bool,
    recursive: bool,
    to_stdout: bool,
    verbose: bool,
    key_locations: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:
    """Extract files of a snapshot with all that is stored of them, or a volume's disk image.

    Nothing is written outside DIR, nothing that is there is overwritten without --force, and a call can be repeated:
    what is there already, and is the same, is kept. Owners and devices need root; where they cannot be made, that is
    counted. A file that cannot be read, or that DIR cannot take, is named and left out; everything else is extracted,
    and the exit status is 3, 4 or 1.

    \b
        zkeep extract -C /mnt/new -L file:///root/key vault/home@monday
        zkeep extract -r -C /mnt/new vault/home@monday
        zkeep extract -L prompt full.zfs inc1.zfs.gz 'docs/*.txt'
    """
    if to_stdout and (force or target != "."):
        raise WrongUsage("--stdout goes with neither -C nor --force")
    if recursive and to_stdout:
        raise WrongUsage("--stdout writes an archive of one dataset: it does not go with -r")
    with snapshots_of(arguments, paths=True) as (pool, (snapshot,), paths):
        if recursive and paths:
            raise WrongUsage("-r extracts whole datasets: name no path in them")
        request = ExtractRequest(target, paths, force=force, recursive=recursive, to_stdout=to_stdout, verbose=verbose)
        request.extract(pool, SnapshotTree.of(pool, snapshot), keys_from(key_locations))
