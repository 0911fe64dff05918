"""zkeep hold, release, holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from zkeep.cli.common import text
from zkeep.cli.common.output import scripted_option
from zkeep.cli.common.pools import opened, snapshots_only
from zkeep.cli.common.terminal import program, say
from zkeep.errors import ZkeepError
from zkeep.names import SnapshotName
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.model import Pool


def _by_pool(names: Sequence[str]) -> dict[str, list[SnapshotName]]:
    found: dict[str, list[SnapshotName]] = {}
    for name in snapshots_only(names):
        found.setdefault(name.dataset.pool, []).append(name)
    return found


def _change(names: Sequence[str], act: Callable[[Pool, list[SnapshotName]], None]) -> None:
    """Change the holds of all snapshots of a pool, or of none.

    As zfs: of one after the other. One that fails keeps none of the others from it, and is reported.
    """
    if program() == "zkeep":
        for pool, snapshots in _by_pool(names).items():
            with opened(pool) as found:
                act(found, snapshots)
        return
    failed: ZkeepError | None = None
    for name in snapshots_only(names):
        try:
            with opened(name) as found:
                act(found, [name])
        except ZkeepError as error:
            if failed is not None:
                say(str(failed))
            failed = error
    if failed is not None:
        raise failed


@click.command("hold")
@click.option("-r", "recursive", is_flag=True, help="Also the snapshots of this name below.")
@click.argument("tag")
@click.argument("names", nargs=-1, required=True, metavar="SNAPSHOT...")
def hold_verb(recursive: bool, tag: str, names: Sequence[str]) -> None:
    """Put a hold with a TAG on snapshots: they cannot be destroyed while it is there.

    \b
        zkeep hold -r keep vault/home@2026-01-01
    """
    _change(names, lambda pool, snapshots: namespace.hold(pool, tag, snapshots, recursive))


@click.command("release")
@click.option("-r", "recursive", is_flag=True, help="Also on the snapshots of this name below.")
@click.argument("tag")
@click.argument("names", nargs=-1, required=True, metavar="SNAPSHOT...")
def release_verb(recursive: bool, tag: str, names: Sequence[str]) -> None:
    """Remove the hold TAG from snapshots.

    \b
        zkeep release -r keep vault/home@2026-01-01
    """
    _change(names, lambda pool, snapshots: namespace.release(pool, tag, snapshots, recursive))


@click.command("holds")
@click.option("-r", "recursive", is_flag=True, help="Also those of the snapshots of this name below.")
@scripted_option
@click.option("-p", "exact", is_flag=True, help="Times in seconds since 1970.")
@click.argument("names", nargs=-1, required=True, metavar="SNAPSHOT...")
def holds_verb(recursive: bool, scripted: bool, exact: bool, names: Sequence[str]) -> None:
    """List the holds of snapshots.

    \b
        zkeep holds -r vault/home@2026-01-01
    """
    rows = []
    for pool, snapshots in _by_pool(names).items():
        with opened(pool) as found:
            held = [s for name in snapshots for s in namespace.snapshots_named(found, name, recursive)]
        for snapshot in held:
            for tag, at in sorted(snapshot.holds.items()):
                rows.append([str(snapshot.name), text.safe(tag), str(at) if exact else text.date(at)])
    if scripted:
        click.echo(text.tabbed(rows), nl=False)
    else:
        click.echo(text.table(["NAME", "TAG", "TIMESTAMP"], rows, [False] * 3), nl=False)
