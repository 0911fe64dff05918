"""zkeep verify: with the key, is everything authentic?"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import click

from zkeep.cli.home import opened as open_pool
from zkeep.cli.main import say
from zkeep.cli.open_snapshot import keys_from, parsed, snapshots_of, takes_key
from zkeep.cli.progress import Meter
from zkeep.cli.stream_files import is_stream
from zkeep.cli.text import nice
from zkeep.errors import Damaged, NotAuthentic, WrongUsage, ZkeepError
from zkeep.names import BookmarkName, DatasetName

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey
    from zkeep.pool.datasets.model import Pool, Snapshot
    from zkeep.restore.verify import Verified
    from zkeep.snapshot.errors import BadRecord, Forgery
    from zkeep.snapshot.open import OpenSnapshot


@click.command("verify")
@click.option("-r", "recursive", is_flag=True, help="With all datasets below.")
@click.option("-v", "--verbose", "verbose", is_flag=True, help="Say what was verified.")
@takes_key
@click.option("--base", "bases", metavar="STREAM|SNAPSHOT", multiple=True, help="Filter: what an increment needs.")
@click.option("--allow", "allow", metavar="PROPERTY", multiple=True, help="Filter: let it pass; or holds, or all.")
@click.argument("arguments", nargs=-1, metavar="[DATASET[@SNAPSHOT]|STREAM]...")
def verify_verb(
    *,
    recursive: bool,
    verbose: bool,
    key_locations: tuple[str, ...],
    bases: tuple[str, ...],
    allow: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:
    """Authenticate one snapshot, or every snapshot of datasets, without writing a file.

    All that lies between the key and the content is checked: the MAC of the object set, of every block of dnodes, the
    trees of MACs, every block. The first object and offset that fail are named; the exit status is 4, or 3 where a
    stored record is not what came in.

    Without an argument it is a filter: a raw stream on standard input goes on to standard output, each snapshot only
    when all of it is authentic, so that the host that receives it need not trust who kept it. Of the properties of
    -R and -p only harmless ones pass: atime, compression, dnodesize, logbias, recordsize, relatime. It needs room for
    the stream in TMPDIR.

    \b
        ssh vault zkeep send -Rw vault/home@monday | zkeep verify -L file:///media/usb/key | zfs receive -u tank/home
        zkeep verify -L file:///media/usb/key --base full.zfs < increment.zfs | zfs receive -u tank/home
    """
    get_key = keys_from(key_locations)
    if not arguments:
        from zkeep.cli.verify_filter import pass_on

        if recursive:
            raise WrongUsage("-r needs a dataset")
        pass_on(partial(_check_sent, get_key), bases, allow, verbose)
        return
    if bases or allow:
        raise WrongUsage("--base and --allow are for a stream on standard input")
    _verify_named(arguments, get_key, recursive, verbose)


def _verify_named(arguments: tuple[str, ...], get_key: GetKey, recursive: bool, verbose: bool) -> None:
    if is_stream(arguments[0]):
        with snapshots_of(arguments) as (pool, _, rest):
            if rest:
                raise WrongUsage(f"{rest[0]} is not a stream")
            _all(pool, [s for found in pool.all_snapshots().values() for s in found], get_key, verbose)
        return
    for text in arguments:
        name = parsed(text)
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
                say(str(worst))
            worst = error
    if worst is not None:
        raise worst


def _one(pool: Pool, snapshot: Snapshot, get_key: GetKey, verbose: bool) -> None:
    line = _check(pool, snapshot, get_key, str(snapshot.name))
    if verbose:
        click.echo(line)


def _check_sent(get_key: GetKey, pool: Pool, snapshot: Snapshot, sent: str) -> str:
    """Of a stream the key must open its own key record, too: that is the one a receiving host will have."""
    from zkeep.crypto.unwrap import WrongKey
    from zkeep.snapshot.keys import own_keys

    try:
        own_keys(pool, snapshot, get_key)
    except WrongKey as error:
        raise WrongKey(f"cannot authenticate {sent}: {error}") from None
    return _check(pool, snapshot, get_key, sent)


def _check(pool: Pool, snapshot: Snapshot, get_key: GetKey, name: str) -> str:
    """Raises as verify(), with the name; else a line that tells what was found."""
    from zkeep.snapshot.errors import BadRecord, Forgery
    from zkeep.snapshot.open import OpenSnapshot

    started = time.monotonic()
    try:
        with OpenSnapshot(pool, snapshot, get_key) as opened:
            try:
                done = _metered(opened)
            except (BadRecord, Forgery) as error:
                raise _named(error, name, _path(error, opened)) from None
    except (BadRecord, Forgery) as error:
        raise _named(error, name) from None
    except Damaged as error:
        raise Damaged(str(error) if name in str(error) else f"{name}: {error}") from None
    seconds = max(time.monotonic() - started, 1e-6)
    how = "authentic" if opened.begin.raw else "whole (it is not encrypted)"
    rate = nice(int(done.bytes / seconds))
    return f"{name}: {how}: {done.objects} objects, {nice(done.bytes)}, {rate}/s"


def _metered(opened: OpenSnapshot) -> Verified:
    """Verify; on a terminal, tell how far it is."""
    from zkeep.restore.verify import verify

    if not sys.stderr.isatty():
        return verify(opened)
    from zkeep.pool.datasets.view import View
    from zkeep.restore.files.extract import Progress

    meter = Meter(int(View(opened.pool).get(opened.snapshot, "referenced").value or 0), "objects")
    try:
        return verify(opened, lambda done: meter(Progress(done.objects, done.bytes)))
    finally:
        meter.end()


def _named(error: BadRecord | Forgery, name: str, path: str = "") -> ZkeepError:
    kind = Damaged if isinstance(error, Damaged) else NotAuthentic
    return kind(f"{name}: {path}{error.place}{error.what}")


def _path(error: BadRecord | Forgery, opened: OpenSnapshot) -> str:
    """Of the file that a block belongs to, where that can still be found."""
    from zkeep.tree.filesystem import Filesystem, shown

    if error.object < 0 or error.offset < 0 or opened.is_volume:
        return ""
    try:
        return f"{shown(Filesystem(opened).path_of(error.object))}: "
    except ZkeepError:
        return ""
