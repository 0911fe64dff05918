"""zkeep rollback."""

from __future__ import annotations

import click

from zkeep.cli.common.give_back import give_back
from zkeep.cli.common.pools import opened
from zkeep.cli.mount.live import rolled_back
from zkeep.cli.mount.unmount import unmounted
from zkeep.names import SnapshotName
from zkeep.pool.datasets.destroy import DestroyOptions, execute
from zkeep.pool.datasets.rollback import plan_rollback
from zkeep.pool.datasets.view import View


@click.command("rollback")
@click.option("-r", "recursive", is_flag=True, help="Also destroy snapshots and bookmarks that are newer.")
@click.option("-R", "clones", is_flag=True, help="As -r, and clones of those snapshots.")
@click.option("-f", "force", is_flag=True, help="With -R, unmount clones also while they are in use.")
@click.argument("name", metavar="SNAPSHOT")
def rollback_verb(recursive: bool, clones: bool, force: bool, name: str) -> None:
    """Bring a dataset back to one of its snapshots: all that is newer is dropped, for good.

    A dataset that is mounted stays so, and shows the snapshot's files; what was written since is dropped, committed or
    not. Held snapshots stay, and then so does everything. The next increment may start from the snapshot.

    \b
        zkeep rollback -r vault/home@monday
    """
    snapshot = SnapshotName.parse(name)
    with opened(snapshot) as pool:
        view = View(pool)
        plan = plan_rollback(view, snapshot, DestroyOptions(recursive or clones, clones))
        dataset = pool.dataset(snapshot.dataset)
        what = f"cannot rollback to '{snapshot}'"
        with unmounted(pool, plan.datasets, what, force=force), rolled_back(pool, dataset, what) as mounts:
            execute(pool, plan, mounts)
        with pool.afterwards("rolled back"):
            give_back(pool, {pool.dataset(snapshot.dataset).id})
