"""zkeep clone."""

from __future__ import annotations

from collections.abc import Sequence

import click

from zkeep.cli.common.no_mount import no_mount_option
from zkeep.cli.common.pools import note_settings, opened, settings
from zkeep.cli.keys import encryption
from zkeep.errors import Refused
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.clone import clone


@click.command("clone")
@click.option("-p", "parents", is_flag=True, help="Make missing parents too; no error if it is there already.")
@no_mount_option("-u", "unmounted")
@click.option("-o", "options", multiple=True, metavar="P=V", help="Set a property.")
@click.argument("source", metavar="SNAPSHOT")
@click.argument("name", metavar="DATASET")
def clone_verb(*, parents: bool, unmounted: bool, options: Sequence[str], source: str, name: str) -> None:
    """Make a dataset that holds what a snapshot holds, and can be written to.

    The snapshot must have been made here. Both share what they have in common on the disk, and the key: a clone opens
    with its origin's, wherever it lies. The snapshot cannot be destroyed before the clone, unless that is promoted.

    \b
        zkeep clone vault/home@monday vault/try
        zkeep mount vault/try /mnt/try
    """
    snapshot, dataset = SnapshotName.parse(source), DatasetName.parse(name)
    chosen = settings(options)
    with opened(snapshot) as pool:
        if not pool.snapshot(snapshot).is_made_here:
            way = "look at it with 'zkeep mount', or clone it where it comes from"
            raise Refused(f"cannot create '{name}': {source} was received, and nothing can be written to that; {way}")
        clone(pool, snapshot, dataset, chosen, parents=parents, ancestor=encryption.ancestor_of(pool))
        note_settings(pool, [dataset], chosen)
