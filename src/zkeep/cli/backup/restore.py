"""zkeep restore: files, or a dataset, back from where their backups are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from zkeep.agent.client import is_ours
from zkeep.backup.fetch import Listed, choose, fetch, list_snapshots
from zkeep.backup.peer import STALL_SECONDS, Peer
from zkeep.backup.places import Path, Place, parse_destination, parse_source
from zkeep.backup.record import Record, check_arrived, check_listing
from zkeep.cli.backup.wanted import ssh_words
from zkeep.cli.common.open_snapshot import keys_from, takes_key
from zkeep.cli.common.pools import opened, registry, wait
from zkeep.cli.common.progress import Received
from zkeep.cli.common.recursive import SnapshotTree
from zkeep.cli.common.terminal import say
from zkeep.cli.common.text import date
from zkeep.errors import NotAuthentic, Refused, WrongUsage, ZkeepError
from zkeep.names import shown
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.things import RESUME
from zkeep.pool.datasets.view import View

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey


@click.command("restore")
@click.option("-C", "target", metavar="DIR", default=".", help="The folder to restore into; made if need be.")
@click.option("--to", "destination", metavar="DEST", help="A new dataset instead: zfs:pool/ds, or pool/ds of zkeep.")
@click.option("--at", "at", metavar="TIME", help="As it was then: 2026-11-28, '2026-11-28 14:30'.")
@click.option("--snapshot", "name", metavar="NAME", help="From this snapshot; else the newest.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option("--trust-server", "trusting", is_flag=True, help="Take what differs from what was sent from here.")
@click.option("--spool", metavar="DIR", help="Keep what came in DIR when it breaks off; the same call goes on.")
@click.option("-v", "--verbose", "verbose", is_flag=True, help="Say what is restored, and what could not be.")
@click.option("--sshkey", metavar="FILE", help="As ssh -i.")
@click.option("--ssh-option", "ssh_options", multiple=True, metavar="OPTION", help="As ssh -o.")
@takes_key
@click.argument("source", metavar="SRC")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def restore_verb(
    *,
    target: str,
    destination: str | None,
    at: str | None,
    name: str | None,
    force: bool,
    trusting: bool,
    spool: str | None,
    verbose: bool,
    sshkey: str | None,
    ssh_options: Sequence[str],
    key_locations: tuple[str, ...],
    source: str,
    paths: tuple[str, ...],
) -> None:
    """Restore files, folders, or all of a backup into DIR, as 'zkeep extract' does; or, with --to, a whole dataset.

    SRC is a dataset: of a pool here, of a host (ssh://[user@]host[:port]/pool/dataset, with zkeep and a key that may
    send and list), or of real ZFS (zfs:pool/dataset, ssh://host/zfs:pool/dataset). PATHs are within the dataset; they
    may have * and ?.

    From another host the whole snapshot comes, encrypted, into a temporary pool in TMPDIR or --spool, and every byte
    is authenticated before it is written. A line that breaks is taken up again. What this machine noted when it sent
    backups there is compared: an old snapshot under a new name, or as the newest, is refused with status 4.

    A date alone means the end of that day. Exit status as that of extract: 0 done, 1 refused, 3 damaged, 4 not
    authentic, 5 try again.

    \b
        zkeep restore ssh://box/vault/me -C /mnt/new -L file:///media/usb/home.key
        zkeep restore ssh://box/vault/me 'letters/*.txt' --at '2026-11-20 18:00'
        zkeep restore vault/home letters --snapshot monday
        zkeep restore ssh://backup@box:2222/vault/alice/home --to zfs:tank/home
    """
    place = _parse_source(source)
    to = parse_destination(destination) if destination is not None else None
    if to is not None and (paths or force or target != "."):
        raise WrongUsage("--to takes a whole dataset: it goes with no PATH, -C or --force")
    if to is not None and to.host is not None:
        raise WrongUsage("--to is a dataset of this machine: run zkeep restore where the data is to be")
    if name is not None and at is not None:
        raise WrongUsage("--at and --snapshot exclude each other")
    wanted = _Wanted(place, name, parse_time(at) if at is not None else None, trusting, spool, verbose)
    get_key = keys_from(key_locations)
    with _found(wanted, ssh_words(ssh_options, sshkey)) as (pool, snapshot):
        if verbose:
            made = date(int(View(pool).get(snapshot, "creation").value or 0))
            click.echo(f"restoring {snapshot.name} of {made}", err=True)
        if to is None:
            _into_files(pool, snapshot, get_key, target, list(paths), force=force, verbose=verbose)
        else:
            _into_dataset(pool, snapshot, None if trusting else get_key, to)


@dataclass(frozen=True)
class _Wanted:
    """What was asked for. `at`: seconds since 1970; `trusting`: no record here is asked."""

    place: Place
    name: str | None
    at: float | None
    trusting: bool
    spool: str | None
    verbose: bool


def _parse_source(text: str) -> Place:
    place = parse_source(text, registry().pools())
    if isinstance(place, Path):
        way = "stream files are extracted with 'zkeep extract'"
        raise WrongUsage(f"{shown(text)} is no dataset of a pool here, nor ssh://host/pool/dataset; {way}")
    return place


def parse_time(text: str) -> float:
    """Seconds since 1970 of a time as ISO 8601 has it, local unless it says otherwise; a date alone is its end."""
    try:
        found = datetime.fromisoformat(text)
        if len(text) <= len("2026-11-28"):
            found += timedelta(days=1, microseconds=-1)
        return found.timestamp()
    except (ValueError, OverflowError, OSError):
        form = "2026-11-28, '2026-11-28 14:30' or 2026-11-28T14:30:00Z"
        raise WrongUsage(f"--at takes a time like {form}, not {shown(text)}") from None


# Where it comes from


@contextmanager
def _found(wanted: _Wanted, ssh: tuple[str, ...]) -> Iterator[tuple[Pool, Snapshot]]:
    """The snapshot, and the pool that has it: one of this machine, or a temporary one."""
    place = wanted.place
    if place.host is None and place.program == "zkeep":
        with opened(place.dataset) as pool:
            yield pool, _chosen_here(pool, wanted)
        return
    peer = Peer.of(place, ssh)
    listed = list_snapshots(peer, place.dataset)
    chosen = choose(listed, str(place), wanted.name, wanted.at)
    record = Record() if wanted.trusting else _record(place, listed)
    check_listing(record, listed, chosen, newest=wanted.name is None and wanted.at is None)
    with _spool(wanted, chosen) as pool:
        snapshot = _fetched(peer, chosen, pool, wanted)
        check_arrived(record, pool, snapshot)
        yield pool, snapshot


def _chosen_here(pool: Pool, wanted: _Wanted) -> Snapshot:
    dataset = pool.dataset(wanted.place.dataset)
    here = {s.name: s for s in pool.snapshots(dataset) if not s.doc.get(RESUME)}
    view = View(pool)
    listed = [Listed(name, s.guid, s.txg, int(view.get(s, "creation").value or 0)) for name, s in here.items()]
    return here[choose(listed, str(wanted.place), wanted.name, wanted.at).name]


def _record(place: Place, listed: Sequence[Listed]) -> Record:
    """What the pools of this machine know of what was sent to a place; one that cannot be opened is named."""
    record = Record()
    for name in registry().pools():
        try:
            with opened(name) as pool:
                record.add(pool, str(place), listed)
        except (ZkeepError, OSError) as error:
            say(f"warning: what the pool {name} noted of backups is not compared: {error}")
    return record


@contextmanager
def _spool(wanted: _Wanted, chosen: Listed) -> Iterator[Pool]:
    """A pool for what comes; it has only what is encrypted, and is gone afterwards.

    With --spool it stays when it broke off, and the next call finds it.
    """
    name, local = wanted.place.dataset.pool, {"blind": "off"}
    if wanted.spool is None:
        with (
            tempfile.TemporaryDirectory(prefix="zkeep-") as folder,
            Pool.create(FilePath(folder) / "pool", name, local) as pool,
        ):
            yield pool
        return
    digest = sha256(f"{wanted.place}\0{chosen.guid}".encode()).hexdigest()[:16]
    path = FilePath(wanted.spool) / f"zkeep-restore-{digest}"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.path.lexists(path) and not is_ours(path):  # what lies there would be taken for what came
        raise Refused(f"cannot restore: {path} belongs to somebody else or is open to others; name another --spool")
    try:
        with Pool.open(path, name, wait()) if path.exists() else Pool.create(path, name, local) as pool:
            yield pool
    except NotAuthentic:
        shutil.rmtree(path, ignore_errors=True)
        raise
    shutil.rmtree(path)


def _fetched(peer: Peer, chosen: Listed, pool: Pool, wanted: _Wanted) -> Snapshot:
    meter = Received() if sys.stderr.isatty() else None

    def retry(why: str) -> None:
        if meter:
            meter.clear()
        say(f"{why}; trying again")

    try:
        return fetch(peer, chosen, pool, raw=not wanted.trusting, on_progress=meter, on_retry=retry)
    finally:
        if meter:
            meter.clear()


# Where it goes


def _into_files(
    pool: Pool, snapshot: Snapshot, get_key: GetKey, target: str, paths: list[str], *, force: bool, verbose: bool
) -> None:
    from zkeep.cli.extract import ExtractRequest

    request = ExtractRequest(target, paths, force=force, recursive=False, to_stdout=False, verbose=verbose)
    request.extract(pool, SnapshotTree.of(pool, snapshot), get_key)


def _into_dataset(pool: Pool, snapshot: Snapshot, get_key: GetKey | None, to: Place) -> None:
    """Send a snapshot raw into a dataset of this machine, once all of it was found authentic (with a key)."""
    from zkeep.cli.verify import check_snapshot
    from zkeep.pool.transfer.send import SendRequest, send

    if get_key is not None:
        check_snapshot(pool, snapshot, get_key, str(snapshot.name))
    peer, cannot = Peer.of(to), f"cannot restore into {to}"
    words = ["receive", *(["-u"] if to.program == "zfs" else []), str(to.dataset)]
    with peer.running(*words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as run:
        sink = run.process.stdin
        assert sink is not None
        try:
            send(pool, SendRequest(snapshot=str(snapshot.name), raw=True), cast(BinaryIO, sink))
            sink.close()
        except BrokenPipeError:
            peer.check(run.end(60), cannot)
            raise Refused(f"{cannot}: {peer} ended before the stream did") from None
        peer.check(run.end(STALL_SECONDS), cannot)
