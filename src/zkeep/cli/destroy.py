"""zkeep destroy."""

from __future__ import annotations

import click

from zkeep.cli.common import text
from zkeep.cli.common.give_back import give_back
from zkeep.cli.common.pools import opened
from zkeep.cli.mount.unmount import unmounted
from zkeep.errors import WrongUsage
from zkeep.names import BookmarkName, DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View


@click.command("destroy")
@click.option("-r", "recursive", is_flag=True, help="Also what lies below; snapshots of this name below.")
@click.option("-R", "clones", is_flag=True, help="As -r, and all clones of what is destroyed.")
@click.option("-d", "defer", is_flag=True, help="Snapshots that are held or have clones go later.")
@click.option("-f", "force", is_flag=True, help="Unmount what is mounted also while it is in use.")
@click.option("-n", "dry_run", is_flag=True, help="Change nothing.")
@click.option("-p", "parsable", is_flag=True, help="Say what goes, for scripts.")
@click.option("-v", "verbose", is_flag=True, help="Say what goes and what it gives back.")
@click.argument("name", metavar="DATASET|DATASET@SNAP[%SNAP][,...]|BOOKMARK")
def destroy_verb(
    *,
    recursive: bool,
    clones: bool,
    defer: bool,
    force: bool,
    dry_run: bool,
    parsable: bool,
    verbose: bool,
    name: str,
) -> None:
    """Destroy a dataset, snapshots or a bookmark.

    'a%b' means all snapshots from a to b, both included; without a or b, from the first or to the last. What
    is held stays: all of the request is refused. What is mounted is unmounted first, unless it is in use. Space
    goes back to the disk in steps: one follows at once, 'zkeep pool compact' does the rest.

    \b
        zkeep destroy -nv vault/home@%2025-12-31
        zkeep destroy vault/home@monday,tuesday
        zkeep destroy -r vault/old
    """
    # The mark in the name says what it is: # a bookmark, @ snapshots, none a dataset.
    if "#" in name:
        _destroy_bookmark(BookmarkName.parse(name), dry_run)
        return
    dataset_text, mark, spec = name.partition("@")
    dataset = DatasetName.parse(dataset_text)
    if mark and not spec.strip(","):
        raise WrongUsage(f"cannot destroy {dataset}@: no snapshot is named")
    if defer and not mark:
        raise WrongUsage("-d goes with snapshots")
    options = destroy.DestroyOptions(recursive or clones, clones, defer)
    with opened(dataset) as pool:
        view = View(pool)
        # Plan first: the plan is what -n and -v show, and what is carried out.
        plan = (
            destroy.plan_snapshots(view, dataset, spec, options)
            if mark
            else destroy.plan_dataset(view, dataset, options)
        )
        if verbose or parsable:
            _report(view, plan, dry_run, parsable, bool(mark))
        if not dry_run:
            with unmounted(pool, plan.datasets, f"cannot destroy '{name}'", force=force):
                _execute(pool, plan)


def _report(view: View, plan: destroy.DestroyPlan, dry_run: bool, parsable: bool, of_snapshots: bool) -> None:
    names = [*plan.names(), *(str(s.name) for s in plan.deferred)]
    will = "would" if dry_run else "will"
    for name in names:
        click.echo(f"destroy\t{name}" if parsable else f"{will} destroy {name}")
    if of_snapshots:
        size = destroy.reclaims(view, plan)
        click.echo(f"reclaim\t{size}" if parsable else f"{will} reclaim {text.nice_bytes(size)}")


def _execute(pool: Pool, plan: destroy.DestroyPlan) -> None:
    gone = {dataset.id for dataset in plan.datasets}
    destroy.execute(pool, plan)
    if gone:
        from zkeep.agent import client

        with pool.afterwards("destroyed", "zkeep unload-key -a"):
            client.unload_gone(pool.doc["guid"], gone)
    give_back(pool, {s.dataset.id for s in plan.snapshots} - gone)


def _destroy_bookmark(name: BookmarkName, dry_run: bool) -> None:
    with opened(name) as pool:
        if dry_run:
            pool.bookmark(name)
        else:
            destroy.destroy_bookmark(pool, name)
            with pool.afterwards("destroyed"):
                give_back(pool, {pool.dataset(name.dataset).id})
