"""zkeep rollback."""

from __future__ import annotations

import click

from zkeep.cli.common.give_back import give_back
from zkeep.cli.common.no_mount import no_mount_option
from zkeep.cli.common.pools import opened
from zkeep.names import SnapshotName
from zkeep.pool.datasets.destroy import DestroyOptions, execute
from zkeep.pool.datasets.rollback import plan_rollback
from zkeep.pool.datasets.view import View


@click.command("rollback")
@click.option("-r", "recursive", is_flag=True, help="Also destroy snapshots and bookmarks that are newer.")
@click.option("-R", "clones", is_flag=True, help="As -r, and clones of those snapshots.")
@no_mount_option("-f", "force")
@click.argument("name", metavar="SNAPSHOT")
def rollback_verb(recursive: bool, clones: bool, force: bool, name: str) -> None:
    """Bring a dataset back to one of its snapshots: all that is newer is dropped, for good.

    Nothing is written to a dataset between two receives, so without newer snapshots there is nothing to do. Held
    snapshots stay, and then so does everything. The next increment may start from the snapshot.

    \b
        zkeep rollback -r vault/home@monday
    """
    snapshot = SnapshotName.parse(name)
    with opened(snapshot) as pool:
        view = View(pool)
        plan = plan_rollback(view, snapshot, DestroyOptions(recursive or clones, clones))
        execute(pool, plan)
        with pool.afterwards("rolled back"):
            give_back(pool, {pool.dataset(snapshot.dataset).id})
