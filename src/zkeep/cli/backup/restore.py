"""zkeep restore: files, or a dataset, back from where their backups are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path as FilePath
from time import sleep
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import click

from zkeep.agent.client import is_ours
from zkeep.backup.fetch import Listed, choose, fetch, list_snapshots, name_here
from zkeep.backup.parts import NoParts, Parts
from zkeep.backup.peer import STALL_SECONDS, Peer
from zkeep.backup.places import Path, Place, parse_destination, parse_source
from zkeep.backup.record import Record, check_arrived, check_listing
from zkeep.cli.backup.wanted import ssh_words, takes_ssh_options
from zkeep.cli.common.extraction import ExtractRequest
from zkeep.cli.common.open_snapshot import keys_from, takes_key
from zkeep.cli.common.pools import opened, registry, wait
from zkeep.cli.common.progress import Received
from zkeep.cli.common.recursive import SOME, SnapshotTree
from zkeep.cli.common.terminal import say
from zkeep.cli.common.text import date, nice_bytes
from zkeep.cli.common.work_folder import work_folder
from zkeep.cli.keys.root_key import key_location
from zkeep.errors import NotAuthentic, Refused, WrongUsage, ZkeepError
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.sent import DESTINATION
from zkeep.pool.datasets.things import RESUME
from zkeep.pool.datasets.view import View

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey


@click.command("restore")
@click.option("-C", "target", metavar="DIR", default=".", help="The folder to restore into; else this one.")
@click.option("--to", "destination", metavar="DEST", help="A new dataset instead: zfs:pool/ds, or pool/ds of zkeep.")
@click.option("-r", "recursive", is_flag=True, help="With the datasets below, each in its place: theirs of this name.")
@click.option("--at", "at", metavar="TIME", help="As it was then: 2026-11-28, '2026-11-28 14:30'.")
@click.option("--snapshot", "name", metavar="NAME", help="From this snapshot; else the newest.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option("--trust-server", "trusting", is_flag=True, help="Take what differs from what was sent from here.")
@click.option("--spool", metavar="DIR", help="Keep what came in DIR when it breaks off; the same call goes on.")
@click.option("-v", "--verbose", "verbose", is_flag=True, help="Say what is restored, and what could not be.")
@takes_ssh_options
@takes_key
@click.argument("source", metavar="SRC")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def restore_verb(
    *,
    target: str,
    destination: str | None,
    at: str | None,
    name: str | None,
    recursive: bool,
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

    Without -L the key is the one that is loaded, or lies at the keylocation of the dataset or, on the machine that made
    the backups, of the dataset that was sent.

    From another host comes what the paths need, or the whole snapshot (-v says how much), encrypted, into a temporary
    pool in TMPDIR or --spool, and every byte is authenticated before it is written. A real zfs, or an older zkeep, can
    only send the whole. A line that breaks is taken up again. What this machine noted when it sent backups there is
    compared: an old snapshot under a new name, or as the newest, is refused with status 4.

    A date alone means the end of that day. Exit status as that of extract: 0 done, 1 refused, 3 damaged, 4 not
    authentic, 5 try again.

    \b
        zkeep restore ssh://box/vault/me -C /mnt/new -L file:///media/usb/home.key
        zkeep restore ssh://box/vault/me 'letters/*.txt' --at '2026-11-20 18:00'
        zkeep restore vault/home letters --snapshot monday
        zkeep restore -r vault/home -C /mnt/new
        zkeep restore ssh://backup@box:2222/vault/alice/home --to zfs:tank/home
    """
    place = _parse_source(source)
    to = parse_destination(destination) if destination is not None else None
    if recursive and paths:
        raise WrongUsage("-r restores whole datasets: name no path in them")
    if name is not None and at is not None:
        raise WrongUsage("--at and --snapshot exclude each other")
    _check_target(to, alone=not (paths or force or target != "."))
    since = parse_time(at) if at is not None else None
    wanted = _Wanted(place, paths, name, since, recursive, trusting, spool, verbose)
    get_key = keys_from(key_locations) if key_locations else own_key(place)
    with _found(wanted, ssh_words(ssh_options, sshkey), get_key) as (pool, tree):
        if verbose:
            made = date(int(View(pool).get(tree.top, "creation").value or 0))
            click.echo(f"restoring {tree.top.name} of {made}", err=True)
        if to is None:
            how = {"force": force, "recursive": recursive, "verbose": verbose}
            ExtractRequest(target, list(paths), to_stdout=False, verb="restore", **how).extract(pool, tree, get_key)
        else:
            _into_datasets(pool, tree, recursive, None if trusting else get_key, to)


def _check_target(to: Place | None, *, alone: bool) -> None:
    """Raises WrongUsage: --to is given, and not `alone`, or names a host."""
    if to is not None and not alone:
        raise WrongUsage("--to takes a whole dataset: it goes with no PATH, -C or --force")
    if to is not None and to.host is not None:
        raise WrongUsage("--to is a dataset of this machine: run zkeep restore where the data is to be")


@dataclass(frozen=True)
class _Wanted:
    """What was asked for. `at`: seconds since 1970; `trusting`: no record here is asked."""

    place: Place
    paths: Sequence[str]
    name: str | None
    at: float | None
    recursive: bool
    trusting: bool
    spool: str | None
    verbose: bool


def _parse_source(text: str) -> Place:
    place = parse_source(text, registry().pools())
    if isinstance(place, Path):
        way = "stream files are extracted with 'zkeep extract'"
        raise WrongUsage(f"{shown(text)} is no dataset of a pool here, nor ssh://host/pool/dataset; {way}")
    return place


def own_key(place: Place) -> GetKey:
    """The key that this machine has of what it restores: loaded, at the keylocation of the dataset, or typed.

    For what lies on a host, it is the keylocation of the dataset here that was sent there.
    """
    is_here = place.host is None and place.program == "zkeep"
    found = []
    for name in [place.dataset.pool] if is_here else registry().pools():
        with suppress(ZkeepError, OSError), opened(name) as pool:  # said where the pool is needed
            for dataset in pool.tree().by_name.values():
                sent_to = dataset.doc["local"].get(DESTINATION)
                if dataset.name == place.dataset if is_here else sent_to == str(place):
                    root = encryption_root(View(pool), dataset)
                    found += [key_location(root)] if root is not None else []
    return keys_from((), [location for location in found if _is_there(location)])


def _is_there(location: str) -> bool:
    path = unquote(urlsplit(location).path)
    if location == "prompt" or os.path.lexists(path):
        return location != "prompt"
    say(f"warning: the key {shown(path)} is not there")
    return False


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
def _found(wanted: _Wanted, ssh: tuple[str, ...], get_key: GetKey) -> Iterator[tuple[Pool, SnapshotTree]]:
    """The snapshot, with those below, and the pool that has it: one of this machine, or a temporary one."""
    place = wanted.place
    if place.host is None and place.program == "zkeep":
        with opened(place.dataset) as pool:
            yield pool, SnapshotTree.of(pool, _chosen_here(pool, wanted))
        return
    peer = Peer.of(place, ssh)
    listed = list_snapshots(peer, place.dataset, recursive=wanted.recursive)
    # The top dataset says which snapshot it is; those below are taken by its name.
    top = choose(listed[place.dataset], str(place), wanted.name, wanted.at)
    chosen = [one for some in listed.values() for one in some if one.name.name == top.name.name]
    records = {one.name: _record(wanted, one, listed[one.name.dataset]) for one in chosen}
    with _spool(wanted, top) as pool:
        if not _fetch_paths(peer, top, pool, wanted, records[top.name], get_key):
            _check_room(wanted, chosen)
            for one in chosen:
                check_arrived(records[one.name], pool, _fetched(peer, one, pool, wanted))
        yield pool, SnapshotTree.of(pool, pool.snapshot(name_here(top)))
    if not wanted.paths:
        _say_left_out(wanted, top, listed.keys() - {one.name.dataset for one in chosen})


def _fetch_paths(
    peer: Peer, top: Listed, pool: Pool, wanted: _Wanted, record: Record, get_key: GetKey
) -> bool:
    """Fetch what the paths need; False if there are none, or the other side can only send the whole snapshot."""
    from zkeep.cli.backup.part import fetch_paths

    if not wanted.paths or peer.program != "zkeep":
        return False
    parts = Parts(peer, top, pool, on_retry=_retry)
    try:
        fetch_paths(parts, pool, wanted.paths, get_key, lambda found: check_arrived(record, pool, found), _retry, sleep)
    except NoParts as error:
        say(f"{error}: all of it comes, about {nice_bytes(top.size)}")
        return False
    if wanted.verbose:
        click.echo(f"fetched {nice_bytes(parts.received)} of {nice_bytes(top.size)}, encrypted", err=True)
    return True


def _retry(why: str) -> None:
    say(f"{why}; trying again")


def _say_left_out(wanted: _Wanted, top: Listed, names: Iterable[DatasetName]) -> None:
    if left_out := sorted(name.text for name in names):
        why = f": they have no @{top.name.name}" if wanted.recursive else "; restore -r takes what lies below, too"
        more = f" and {len(left_out) - SOME} more" if len(left_out) > SOME else ""
        say(f"{top.name}: not included: {', '.join(left_out[:SOME])}{more}{why}")


def _chosen_here(pool: Pool, wanted: _Wanted) -> Snapshot:
    dataset = pool.dataset(wanted.place.dataset)
    here = {s.name: s for s in pool.snapshots(dataset) if not s.doc.get(RESUME)}
    view = View(pool)
    listed = [Listed(name, s.guid, s.txg, int(view.get(s, "creation").value or 0)) for name, s in here.items()]
    return here[choose(listed, str(wanted.place), wanted.name, wanted.at).name]


def _check_room(wanted: _Wanted, chosen: Sequence[Listed]) -> None:
    """Say how much comes, for it is all of the snapshot, and refuse what the disk has no room for.

    Nothing proves the size that a keeper lists: what comes is bounded by the disk all the same.
    """
    size = sum(one.size for one in chosen)
    folder = FilePath(wanted.spool or tempfile.gettempdir())
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), folder)
    free = shutil.disk_usage(there).free
    if size > free:
        need = f"it needs {nice_bytes(size)} for the time being, and {shown(str(folder))} has {nice_bytes(free)}"
        raise Refused(f"cannot restore {wanted.place}: {need}; name a folder with more room: --spool DIR")
    if wanted.verbose or sys.stderr.isatty():
        click.echo(f"fetching {chosen[0].name}: about {nice_bytes(size)}, encrypted, to {folder}", err=True)


def _record(wanted: _Wanted, chosen: Listed, listed: Sequence[Listed]) -> Record:
    """What the pools of this machine know of what was sent to a place; compared with what is listed there.

    A pool that cannot be opened is named.

    Raises:
        NotAuthentic: the listing does not fit.
    """
    record = Record()
    if wanted.trusting:
        return record
    place = replace(wanted.place, dataset=chosen.name.dataset)
    for name in registry().pools():
        try:
            with opened(name) as pool:
                record.add(pool, str(place), listed)
        except (ZkeepError, OSError) as error:
            say(f"warning: what the pool {name} noted of backups is not compared: {error}")
    check_listing(record, listed, chosen, newest=wanted.name is None and wanted.at is None)
    return record


@contextmanager
def _spool(wanted: _Wanted, chosen: Listed) -> Iterator[Pool]:
    """A pool for what comes; it has only what is encrypted, and is gone afterwards.

    With --spool it stays when it broke off, and the next call finds it.
    """
    name, local = wanted.place.dataset.pool, {"blind": "off"}
    if wanted.spool is None:
        with (
            work_folder() as folder,
            Pool.create(folder / "pool", name, local) as pool,
        ):
            yield pool
        return
    # What came for some paths is not the whole snapshot, and is never taken for it.
    kind = "\0parts" if wanted.paths else ""
    digest = sha256(f"{wanted.place}\0{chosen.guid}{kind}".encode()).hexdigest()[:16]
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
        _retry(why)

    try:
        return fetch(peer, chosen, pool, raw=not wanted.trusting, on_progress=meter, on_retry=retry)
    finally:
        if meter:
            meter.clear()


# Where it goes


def _into_datasets(pool: Pool, tree: SnapshotTree, recursive: bool, get_key: GetKey | None, to: Place) -> None:
    """Send snapshots raw into datasets of this machine, once all of them were found authentic (with a key).

    Each dataset is received by itself, and so is an encryption root of its own.
    """
    from zkeep.cli.common.check_snapshot import check_snapshot

    snapshots = tree.snapshots(recursive)
    if get_key is not None:
        for snapshot in snapshots:
            check_snapshot(pool, snapshot, get_key, str(snapshot.name))
    for snapshot in snapshots:
        below = tree.place(snapshot.dataset)
        _into_dataset(pool, snapshot, to.child(below) if below else to)


def _into_dataset(pool: Pool, snapshot: Snapshot, to: Place) -> None:
    from zkeep.pool.transfer.send import SendRequest, send

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
