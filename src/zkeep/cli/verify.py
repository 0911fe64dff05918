"""zkeep verify: with the key, is everything authentic?"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from zkeep.cli.home import opened as open_pool
from zkeep.cli.opening import is_stream, keys_from, snapshots_of, takes_key
from zkeep.cli.text import nice
from zkeep.errors import Damaged, NotAuthentic, WrongUsage, ZkeepError
from zkeep.names import BookmarkName, DatasetName, parse_any

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey
    from zkeep.pool.datasets.model import Pool, Snapshot
    from zkeep.restore.errors import Forgery
    from zkeep.restore.opened import Opened


@click.command("verify")
@click.option("-r", "recursive", is_flag=True, help="With all datasets below.")
@click.option("-v", "--verbose", "verbose", is_flag=True, help="Say what was verified.")
@takes_key
@click.argument("arguments", nargs=-1, required=True, metavar="DATASET[@SNAPSHOT]|STREAM...")
def verify_verb(*, recursive: bool, verbose: bool, key_locations: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Authenticate one snapshot, or every snapshot of datasets, without writing a file.

    All that lies between the key and the content is checked: the MAC of the object set, of every block of dnodes, the
    trees of MACs, every block. The first object and offset that fail are named; the exit status is 4, or 3 where a
    stored record is not what came in.
    """
    get_key = keys_from(key_locations)
    if is_stream(arguments[0]):
        with snapshots_of(arguments) as (pool, _, rest):
            if rest:
                raise WrongUsage(f"{rest[0]} is not a stream")
            _all(pool, [s for found in pool.all_snapshots().values() for s in found], get_key, verbose)
        return
    for text in arguments:
        name = parse_any(text)
        if isinstance(name, BookmarkName):
            raise WrongUsage(f"{name} is a bookmark: it holds nothing")
        with open_pool(name) as pool:
            if isinstance(name, DatasetName):
                datasets = pool.tree().within(pool.dataset(name), None if recursive else 0)
                _all(pool, [s for dataset in datasets for s in pool.snapshots(dataset)], get_key, verbose)
            else:
                _all(pool, [pool.snapshot(name)], get_key, verbose)


def _all(pool: Pool, snapshots: list[Snapshot], get_key: GetKey, verbose: bool) -> None:
    """Verify every one, then fail if any did."""
    worst: ZkeepError | None = None
    for snapshot in snapshots:
        try:
            _one(pool, snapshot, get_key, verbose)
        except (Damaged, NotAuthentic) as error:
            if worst is not None:
                print(f"zkeep: {worst}", file=sys.stderr)
            worst = error
    if worst is not None:
        raise worst


def _one(pool: Pool, snapshot: Snapshot, get_key: GetKey, verbose: bool) -> None:
    from zkeep.restore.errors import Forgery
    from zkeep.restore.opened import Opened
    from zkeep.restore.verify import verify

    started = time.monotonic()
    with Opened(pool, snapshot, get_key) as opened:
        try:
            done = verify(opened)
        except Forgery as error:
            raise _with_path(error, opened) from None
    if verbose:
        seconds = max(time.monotonic() - started, 1e-6)
        how = "authentic" if opened.begin.raw else "whole (it is not encrypted)"
        rate = nice(int(done.bytes / seconds))
        click.echo(f"{snapshot.name}: {how}: {done.objects} objects, {nice(done.bytes)}, {rate}/s")


def _with_path(error: Forgery, opened: Opened) -> NotAuthentic:
    """The same, with the file's path where that can still be found."""
    from zkeep.tree.filesystem import Filesystem, shown

    if error.object < 0 or error.offset < 0 or opened.is_volume:
        return error
    try:
        path = Filesystem(opened).path_of(error.object)
    except ZkeepError:
        return error
    return NotAuthentic(f"{error.snapshot}: {shown(path)}: {error.place}{error.what}")
