"""zkeep backup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click

from zkeep.backup.local import Job
from zkeep.backup.places import Path, parse_destination, parse_source
from zkeep.backup.plan import ForeignReceive
from zkeep.cli.backup import due
from zkeep.cli.backup.events import Events
from zkeep.cli.backup.ping import check_url, ping
from zkeep.cli.backup.wanted import RunsAlready, Wanted, is_running, passing_options, ssh_words
from zkeep.cli.common.pools import registry
from zkeep.cli.common.snapshot_from import NotAllRead
from zkeep.cli.common.terminal import explained
from zkeep.errors import Refused, TryAgain, WrongUsage, ZkeepError
from zkeep.pool.datasets import properties


@click.command("backup")
@click.option("-n", "dry_run", is_flag=True, help="Change nothing; say what would be done.")
@click.option("-v", "verbose", is_flag=True, help="Say what is done.")
@click.option("-j", "--json", "as_json", is_flag=True, help="The same as one JSON object a line.")
@click.option("--yes", "yes", is_flag=True, help="The first time: the key was or will be kept elsewhere, too.")
@click.option("--key-file", metavar="FILE", help="The first time: use the key in FILE, or make it there.")
@click.option("--recover", "recovers", is_flag=True, help="The state here is lost: fetch it from DEST; go on there.")
@click.option("--due", "due_text", metavar="[DAY] HH:MM", help="Only if none that was done began since that time.")
@passing_options
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DEST")
@click.pass_context
def backup_verb(
    ctx: click.Context,
    /,
    *,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    recursive: bool,
    yes: bool,
    key_file: str | None,
    recovers: bool,
    due_text: str | None,
    retention: str | None,
    url: str | None,
    sshkey: str | None,
    ssh_options: Sequence[str],
    locations: Sequence[str],
    source: str,
    destination: str,
    **excluding: Any,
) -> None:
    """Back up a folder, a disk image, a device or a dataset: encrypted here, sent there, only what changed.

    SRC is a path, or a dataset as DEST. DEST is a dataset of a pool, on a host (ssh://[user@]host[:port]/pool/dataset,
    where zkeep is installed) or on this machine; zfs:pool/dataset is one of ZFS, also ssh://host/zfs:pool/dataset.
    The same command again sends what changed since; what broke off goes on.

    The first time a key is made and shown on a recovery sheet, of which a part must be typed back; it lies in a file
    that only you can read. Without the key the backup is worth nothing: keep the sheet elsewhere. In scripts, --yes
    and --key-file FILE take the place of that. For a DEST on a host, this machine keeps, in its own pool 'local', the
    metadata that the next increment needs, and no contents once the host lists the snapshot.

    Of a dataset of ZFS a snapshot is taken first; it is held until the next one was sent, and a bookmark stays. It goes
    raw, with all snapshots since the last time; without encryption it is encrypted on its way, by the pool 'local'. Of
    a dataset of zkeep, the snapshots that it has are sent.

    A machine that lost what it knew goes on with --recover: the metadata of the newest snapshot of DEST is fetched, and
    authenticated with the key (-L). Nothing is ever destroyed at DEST; its own rules do that ('retention').

    Exit status: 0 done, or not due or running already (--due); 3 done, but some files could not be read; 5 try again:
    it broke off, or the same backup runs already; 1 refused.

    \b
        zkeep backup ~/Documents ssh://box/vault/me
        zkeep backup --exclude '*.iso' --exclude-caches ~ ssh://backup@box:2222/vault/alice/home
        zkeep backup --yes --key-file /root/backup.key --ping https://hc.example.org/uuid /srv ssh://box/vault/srv
        zkeep backup ~/Documents usb/documents
        zkeep backup -r zfs:tank/home ssh://box/vault/home
        zkeep backup ssh://nas/zfs:tank/home vault/nas
    """
    place = parse_destination(destination)
    job = Job(parse_source(source, registry().pools()), place)
    policy = properties.check("retention", retention)[1] if retention is not None else None
    wanted = Wanted(
        *(job, dry_run, verbose, as_json, yes, key_file, policy, recursive, ssh_words(ssh_options, sshkey)),
        *(tuple(locations), excluding, recovers),
    )
    wanted.reading().exclusions()  # a pattern that is none is refused before anything else
    _back_up(wanted, check_url(url) if not dry_run else None, due_text)


def _back_up(wanted: Wanted, url: str | None, due_text: str | None) -> None:
    """Do it if it is due, and note that it was done.

    That is so also if some files could not be read: nothing is gained by another try.
    """
    began = datetime.now()
    if due_text is not None:
        if not due.is_due(wanted.job, due.parse_due(due_text), began):
            return
        # A long one that runs is the one that is due. Nothing failed, and cron would mail a line each hour.
        if not wanted.dry_run and is_running(wanted.job):
            Events(wanted.as_json, wanted.verbose).say("running", f"the backup of {wanted.job.source} runs already")
            return
    try:
        with told(url, wanted) as events, _naming(wanted):
            _do(wanted, events)
    except NotAllRead:
        due.note(wanted.job, began)
        raise
    if not wanted.dry_run:
        due.note(wanted.job, began)


@contextmanager
def _naming(wanted: Wanted) -> Iterator[None]:
    """Say of errors of the system, such as those of a full disk, what could not be done; of others, what to type."""
    job = wanted.job
    try:
        yield
    except BrokenPipeError:
        raise
    except ForeignReceive as conflict:
        if not wanted.recursive:
            conflict.way = job.destination.typed("receive -A")
        raise
    except OSError as error:
        raise Refused(f"cannot back up {job.source}: {explained(error)}") from error


def _do(wanted: Wanted, events: Events) -> None:
    if wanted.recovers and (not isinstance(wanted.job.source, Path) or wanted.job.destination.host is None):
        raise WrongUsage("--recover goes with a folder that is backed up to a host")
    if isinstance(wanted.job.source, Path):
        from zkeep.cli.backup.folder import back_up_folder

        if wanted.recursive:
            raise WrongUsage("-r goes with a dataset: a folder is backed up with all that is in it")
        back_up_folder(wanted, events)
        return
    from zkeep.cli.backup.dataset import back_up_dataset

    back_up_dataset(wanted, events)


@contextmanager
def told(url: str | None, wanted: Wanted) -> Iterator[Events]:
    """Report the end of a backup: by events, and to the address that is asked for."""
    events = Events(wanted.as_json, wanted.verbose)
    ping(url, "start")
    try:
        yield events
    except RunsAlready as error:  # the other one reports its end
        events.failed(str(error), error.status)
        raise
    except NotAllRead as error:
        events.done("", error.status)
        ping(url, "fail", str(error))
        raise
    except BaseException as error:
        text = str(error) if isinstance(error, ZkeepError) else "interrupted" if _is_stop(error) else repr(error)
        status = error.status if isinstance(error, ZkeepError) else TryAgain.status if _is_stop(error) else 1
        events.failed(text, status)
        ping(url, "fail", text)
        raise
    if not wanted.dry_run:
        events.done(f"backed up {wanted.job.source} to {wanted.job.destination}")
    ping(url)


def _is_stop(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt | click.Abort)
