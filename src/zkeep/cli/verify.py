"""zkeep verify: with the key, is everything authentic?"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import click

from zkeep.backup.record import AllSent
from zkeep.cli.common.check_snapshot import check_snapshot
from zkeep.cli.common.open_snapshot import keys_from, parsed, received_from, takes_key
from zkeep.cli.common.pools import opened as open_pool
from zkeep.cli.common.pools import registry
from zkeep.cli.common.recursive import Errors, SnapshotTree, say_left_out
from zkeep.cli.common.stream_files import is_stream
from zkeep.clock import seconds_now
from zkeep.errors import Damaged, NotAuthentic, WrongUsage, ZkeepError
from zkeep.names import BookmarkName, SnapshotName

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey
    from zkeep.pool.datasets.model import Pool, Snapshot


@click.command("verify")
@click.option("-r", "recursive", is_flag=True, help="With all datasets below; of a snapshot: theirs of this name.")
@click.option("-v", "--verbose", "verbose", is_flag=True, help="Say what was verified.")
@takes_key
@click.option("--base", "bases", metavar="STREAM|SNAPSHOT", multiple=True, help="Filter: what an increment needs.")
@click.option("--allow", "allow", metavar="PROPERTY", multiple=True, help="Filter: let it pass; or holds, or all.")
@click.option("--trust-server", "trusting", is_flag=True, help="Do not compare with what was sent from here.")
@click.argument("arguments", nargs=-1, metavar="[DATASET[@SNAPSHOT]|STREAM]...")
def verify_verb(
    *,
    recursive: bool,
    verbose: bool,
    key_locations: tuple[str, ...],
    bases: tuple[str, ...],
    allow: tuple[str, ...],
    trusting: bool,
    arguments: tuple[str, ...],
) -> None:
    """Authenticate one snapshot, or every snapshot of datasets, without writing a file.

    With -r, the snapshots of the same name of all datasets below, too; without, what is not included is said.

    All that lies between the key and the content is checked: the MAC of the object set, of every block of dnodes, the
    trees of MACs, every block. The first object and offset that fail are named; the exit status is 4, or 3 where a
    stored record is not what came in. What this machine noted when it sent backups is compared: an old snapshot under
    the name of another is not authentic, too.

    Without an argument it is a filter: a raw stream on standard input goes on to standard output, each snapshot only
    when all of it is authentic, so that the host that receives it need not trust who kept it. Of the properties of
    -R and -p only harmless ones pass: atime, compression, dnodesize, logbias, recordsize, relatime. It needs room for
    the stream in TMPDIR.

    \b
        ssh vault zkeep send -Rw vault/home@monday | zkeep verify -L file:///media/usb/key | zfs receive -u tank/home
        zkeep verify -L file:///media/usb/key --base full.zfs < increment.zfs | zfs receive -u tank/home
    """
    if not arguments and "prompt" in key_locations:
        raise WrongUsage("-L prompt reads standard input, on which the stream comes: name a file with -L file:///path")
    get_key, known = keys_from(key_locations), AllSent() if trusting else _all_sent()
    # Without a name it is a filter: what is authentic in the stream goes on to standard output.
    if not arguments:
        from zkeep.cli.verify_filter import pass_on

        if recursive:
            raise WrongUsage("-r needs a dataset")
        pass_on(partial(_check_sent, get_key, known), bases, allow, verbose)
        return
    if bases or allow:
        raise WrongUsage("--base and --allow are for a stream on standard input")
    _Verification(get_key, known, recursive, verbose).verify(arguments)


@dataclass(frozen=True)
class _Verification:
    """The options of a call, and what failed so far."""

    get_key: GetKey
    known: AllSent
    recursive: bool
    verbose: bool
    errors: Errors = field(default_factory=Errors)

    def verify(self, arguments: tuple[str, ...]) -> None:
        """Verify everything that is named, then fail if any part did."""
        if is_stream(arguments[0]):
            with received_from(arguments) as (pool, given):
                for snapshot in given:
                    self._tree(pool, snapshot)
                if not given:
                    self._each(pool, chain.from_iterable(pool.all_snapshots().values()))
        else:
            for text in arguments:
                self._named(text)
        self.errors.conclude()

    def _named(self, text: str) -> None:
        """Verify a snapshot, or all snapshots of a dataset."""
        name = parsed(text)
        if isinstance(name, BookmarkName):
            raise WrongUsage(f"{name} is a bookmark: it holds nothing")
        with self.errors.spared(), open_pool(name) as pool:
            if isinstance(name, SnapshotName):
                self._tree(pool, pool.snapshot(name))
                return
            top, *below = pool.tree().within(pool.dataset(name))
            self._each(pool, chain.from_iterable(map(pool.snapshots, [top, *below] if self.recursive else [top])))
            if not self.recursive:
                say_left_out(str(name), below, "verify")

    def _tree(self, pool: Pool, snapshot: Snapshot) -> None:
        """Verify a snapshot, and with -r those of the same name below its dataset."""
        tree = SnapshotTree.of(pool, snapshot)
        self._each(pool, tree.snapshots(self.recursive))
        tree.say_left_out(self.recursive, "verify")

    def _each(self, pool: Pool, snapshots: Iterable[Snapshot]) -> None:
        for snapshot in list(snapshots):
            with self.errors.spared():
                self._one(pool, snapshot)

    def _one(self, pool: Pool, snapshot: Snapshot) -> None:
        """Verify a snapshot, and note the result in its pool. A wrong key says nothing about the snapshot."""
        from zkeep.crypto.unwrap import WrongKey
        from zkeep.pool.maintenance.verified import note

        try:
            line = check_snapshot(pool, snapshot, self.get_key, str(snapshot.name))
            self.known.check(pool, snapshot, str(snapshot.name))
        except (NotAuthentic, Damaged) as error:
            if not isinstance(error, WrongKey):
                note(pool, snapshot, seconds_now(), authentic=False)
            raise
        note(pool, snapshot, seconds_now(), authentic=True)
        if self.verbose:
            click.echo(line)


def _all_sent() -> AllSent:
    """What the pools of this machine noted; one that is not at hand, or damaged, is passed over."""
    known = AllSent()
    for name in registry().pools():
        with suppress(ZkeepError, OSError), open_pool(name) as pool:
            known.add(pool)
    return known


def _check_sent(get_key: GetKey, known: AllSent, pool: Pool, snapshot: Snapshot, sent: str) -> str:
    """Check a received snapshot. The key must also open the stream's own key record: a receiving host has only that."""
    from zkeep.crypto.unwrap import WrongKey
    from zkeep.snapshot.keys import own_keys

    try:
        own_keys(pool, snapshot, get_key)
    except WrongKey as error:
        raise WrongKey(f"cannot authenticate {sent}: {error}") from None
    line = check_snapshot(pool, snapshot, get_key, sent)
    known.check(pool, snapshot, sent)
    return line
