"""zkeep send."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from zkeep.cli.common import usage
from zkeep.cli.common.pools import opened, registry
from zkeep.cli.common.sink import Sink
from zkeep.cli.common.text import nice, nice_bytes
from zkeep.errors import Refused, TryAgain, WrongUsage
from zkeep.names import DatasetName, parse_any, shown
from zkeep.pool.datasets.model import NotThere, Pool

if TYPE_CHECKING:
    from zkeep.pool.transfer.send import Decrypting, Leg, SendRequest


@click.command("send")
@click.option("-w", "--raw", "raw", is_flag=True, help="As it is stored: what is encrypted stays so.")
@click.option("-R", "--replicate", "replicate", is_flag=True, help="With all below, all snapshots, properties.")
@click.option("-p", "--props", "props", is_flag=True, help="With the dataset's properties.")
@click.option("-i", "from_", metavar="SNAP|BOOKMARK", help="Only what changed since.")
@click.option("-I", "from_all", metavar="SNAP", help="All snapshots between, one increment each.")
@click.option("-t", "token", metavar="TOKEN", help="Go on where a receive was interrupted.")
@click.option("-n", "--dryrun", "dry_run", is_flag=True, help="Send nothing; with -v, say what would be sent.")
@click.option("-v", "--verbose", "verbose", is_flag=True, help="Say what is sent, on standard error.")
@click.option("-P", "--parsable", "parsable", is_flag=True, help="As -v, for scripts.")
@click.option("-L", "--large-block", "large", is_flag=True, help="Decrypted: blocks of more than 128K go whole.")
@click.option("-e", "--embed", "embed", is_flag=True, help="Accepted: blocks go as they are stored.")
@click.option("-c", "--compressed", "compressed", is_flag=True, help="Decrypted: blocks go as compressed as they are.")
@click.option("-h", "--holds", "holds", is_flag=True, help="With the holds of snapshots.")
@click.option("-b", "--backup", "backup", is_flag=True, help="With properties as received, whatever is set here.")
@click.option("-s", "--skip-missing", "skip_missing", is_flag=True, help="With -R, pass over who lacks the snapshot.")
@click.option("-X", "--exclude", "exclude", multiple=True, metavar="DATASET,...", help="With -R, leave these out.")
@click.option("-U", "--no-preserve-encryption", "unencrypted", is_flag=True, help="With -t: plain if the token is.")
@click.option("-D", "--dedup", "dedup", is_flag=True, help="Accepted: nothing is deduplicated.")
@click.option("-V", "--proctitle", "title", is_flag=True, help="Accepted and without effect.")
@click.option("--received-name", "received_name", is_flag=True, help="Name the dataset as it was sent to us.")
@click.option("--newest-key", "newest_key", is_flag=True, help="With the newest key of its dataset, as zfs sends.")
@click.option("--metadata", "metadata", metavar="OBJECTS", help="Only an excerpt: what objects are, without contents.")
@click.option("--objects", "objects", metavar="OBJECTS", help="Only an excerpt: these objects with their contents.")
@click.argument("snapshot", required=False, metavar="SNAPSHOT")
def send_verb(
    *,
    from_: str | None,
    from_all: str | None,
    token: str | None,
    exclude: Sequence[str],
    snapshot: str | None,
    metadata: str | None,
    objects: str | None,
    **letters: bool,
) -> None:
    """Write a send stream to standard output, for 'zfs receive' or 'zkeep receive'.

    An encrypted dataset is sent raw with -w. Without -w it is authenticated, decrypted and sent as a plain stream,
    for a pool without encryption or below another encrypted parent; its key must be loaded.
    SNAP after -i or -I may be given as @name, a bookmark as #name.

    Excerpts (-w --metadata, -w --objects) are what zkeep restore fetches for some files: no stream, and nothing
    receives them. OBJECTS: numbers like 7,128-200; for --metadata also index or all.

    \b
        zkeep send -Rw vault/home@monday | zfs receive tank/home
        zkeep send -w -i '#sunday' vault/home@monday > increment.zfs
        zkeep send -Lec vault/home@monday | zfs receive -x encryption tank/home
    """
    from zkeep.pool.transfer.send import SendRequest, send

    asked = cast(dict[str, Any], {name: letters[name] for name in _ASKED})
    request = SendRequest(snapshot, from_=from_, from_all=from_all, token=token, exclude=tuple(exclude), **asked)
    _check(request)
    if metadata is not None or objects is not None:
        _send_excerpt(request, metadata, objects)
        return
    dry_run, parsable = request.dry_run, letters["parsable"]
    if not dry_run and sys.stdout.isatty():
        raise Refused("cannot send: a stream is not written to a terminal; redirect standard output")
    if token is not None and (letters["verbose"] or parsable):
        # What the token says comes first, even if its snapshot is not here.
        from zkeep.pool.transfer.token import contents

        for line in contents(token):
            click.echo(line, err=not dry_run)
    sink = Sink()
    shows = SendProgress(sink, parsable=parsable) if letters["verbose"] and not dry_run else None
    request = replace(
        request,
        exclude=_excluded(exclude),
        announce=_announcer(dry_run, parsable, request.is_package) if letters["verbose"] or parsable else None,
        begin=shows.begin if shows else None,
        decrypting=_plain_sender,
    )
    with _pool(snapshot, token) as pool, shows or nullcontext():
        try:
            send(pool, request, cast(BinaryIO, sink))
        except BrokenPipeError:
            raise TryAgain("cannot send: nobody reads the stream any more") from None


def _send_excerpt(request: SendRequest, metadata: str | None, objects: str | None) -> None:
    from zkeep.pool.transfer.excerpt import parse_excerpt, send_excerpt
    from zkeep.pool.transfer.send import SendRequest

    if request != SendRequest(request.snapshot, raw=True):
        raise WrongUsage("--metadata and --objects go with -w, a snapshot and nothing else")
    excerpt = parse_excerpt(metadata, objects)
    if sys.stdout.isatty():
        raise Refused("cannot send: an excerpt is not written to a terminal; redirect standard output")
    name = request.snapshot or ""
    with _pool(name, None) as pool:
        try:
            send_excerpt(pool, name, excerpt, cast(BinaryIO, Sink()))
        except BrokenPipeError:
            raise TryAgain("cannot send: nobody reads the excerpt any more") from None


def _plain_sender() -> Decrypting:
    """What sends encrypted snapshots as plain streams, with the keys that are loaded."""
    from zkeep.cli.common.open_snapshot import loaded_keys
    from zkeep.restore.plain.send import PlainSender

    return PlainSender(loaded_keys())


_ASKED = (
    *("raw", "large", "compressed", "replicate", "props", "holds", "backup"),
    *("skip_missing", "dry_run", "received_name", "newest_key", "unencrypted"),
)
"The letters that the request takes as they are."


def _check(request: SendRequest) -> None:
    """Raises WrongUsage: the letters make no sense together."""
    if request.token is None and request.snapshot is None:
        raise usage.missing("send needs a snapshot or a token")
    other = request.snapshot or request.from_ or request.from_all
    if request.token is not None and (other or request.is_package):
        raise WrongUsage("-t goes with no snapshot and no other source: the token names them")
    if (request.skip_missing or request.exclude) and not request.replicate:
        raise WrongUsage("-s and -X go with -R")
    if request.from_ and request.from_all:
        raise WrongUsage("-i and -I exclude each other")


def _excluded(lists: Sequence[str]) -> tuple[str, ...]:
    names = [name for text in lists for name in text.split(",")]
    if wrong := [name for name in names if DatasetName.parse(name).parent is None]:
        raise WrongUsage(f"-X {wrong[0]}: not a valid non-root dataset name")
    return tuple(names)


class SendProgress:
    """Each second a line on standard error, as zfs prints it: the time, the bytes sent of a snapshot, its name.

    Source: OpenZFS lib/libzfs/libzfs_sendrecv.c send_progress_thread().
    """

    def __init__(self, sink: Sink, *, parsable: bool, every: float = 1.0) -> None:
        self._sink = sink
        self._parsable = parsable
        self._every = every
        self._now: tuple[str, int] | None = None
        "The snapshot that is being sent, and what was written before it."
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self, leg: Leg) -> None:
        self._now = str(leg.snapshot.name), self._sink.written
        if not self._parsable:
            click.echo(f"TIME        SENT   SNAPSHOT {leg.snapshot.name}", err=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            if self._now:
                with suppress(OSError):
                    click.echo(self.line(time.strftime("%H:%M:%S"), *self._now), err=True)

    def line(self, clock: str, name: str, before: int) -> str:
        sent = self._sink.written - before
        return f"{clock}\t{sent}\t{name}" if self._parsable else f"{clock}   {nice_bytes(sent):>5}   {name}"


def _announcer(dry_run: bool, parsable: bool, short: bool) -> Callable[[list[tuple[Leg, int]]], None]:
    """Says what is going to be sent as zfs does: on standard error if the stream takes the output.

    `short`: the source by its last name, as in packages.
    """

    def announce(legs: list[tuple[Leg, int]]) -> None:
        total = sum(size for _, size in legs)
        format_line = _machine_line if parsable else _line
        lines = [format_line(leg, _source(leg, short), size) for leg, size in legs]
        lines.append(f"size\t{total}" if parsable else f"total estimated size is {nice(total)}")
        for line in lines:
            click.echo(line, err=not dry_run)

    return announce


def _source(leg: Leg, short: bool) -> str:
    if leg.source is None:
        return ""
    source = str(leg.source.name)
    return source[source.index(leg.mark) + 1 :] if short else source


def _line(leg: Leg, source: str, size: int) -> str:
    name = leg.snapshot.name
    what = f"send from {source if leg.mark in source else '@' + source} to {name}" if source else f"full send of {name}"
    return f"{what} estimated size is {nice(size)}" if size else what


def _machine_line(leg: Leg, source: str, size: int) -> str:
    kind = f"incremental\t{source}" if source else "full"
    return f"{kind}\t{leg.snapshot.name}\t{size}"


def _pool(snapshot: str | None, token: str | None) -> AbstractContextManager[Pool]:
    """The pool that the snapshot is of; with a token, the one that has the snapshot of the token's guid."""
    if snapshot:
        return opened(parse_any(snapshot))
    from zkeep.pool.transfer.token import Token

    wanted = Token.decode(token or "")
    for name in registry().pools():
        with suppress(NotThere), opened(name) as pool:
            if pool.snapshots_by_guid(wanted.toguid):
                return opened(name)
    gone = f"{shown(wanted.toname)} used in the initial send no longer exists"
    raise NotThere(f"cannot resume send: {gone} in any pool here (guid {wanted.toguid:#x})")
