"""zkeep verify as a filter: passes a stream on as far as it is authentic."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from zkeep.cli.common.open_snapshot import placed, received
from zkeep.cli.common.pools import opened as open_pool
from zkeep.cli.common.pools import widen
from zkeep.cli.common.progress import Received
from zkeep.cli.common.sink import Sink
from zkeep.cli.common.stream_files import STDIN, is_stream
from zkeep.cli.common.work_folder import work_folder
from zkeep.errors import Refused, TryAgain, WrongUsage
from zkeep.names import SnapshotName, parse_any, shown

if TYPE_CHECKING:
    from zkeep.format.events import Event
    from zkeep.pool.datasets.model import Pool, Snapshot
    from zkeep.restore.filter.sanitize import SanitizedHeader

Check = Callable[["Pool", "Snapshot", str], str]
"Called with the pool, a snapshot and its name at the sender: authenticates it, and returns a line about it."


def pass_on(check: Check, bases: Sequence[str], allow: Sequence[str], verbose: bool) -> None:
    """Filter standard input to standard output.

    Raises:
        WrongUsage, Refused: an end is a terminal, or closed; or there is no such base or property.
        NotAuthentic, BadStream: the authentic part before it was passed on.
    """
    from zkeep.restore.filter.authenticate import AuthenticatingFilter
    from zkeep.restore.filter.sanitize import Allowed

    if sys.stdin.isatty():
        raise WrongUsage("verify needs a snapshot, a dataset, stream files, or a stream on standard input")
    if sys.stdout.isatty():
        raise Refused("cannot pass a stream on: it is not written to a terminal; redirect standard output")
    meter = Received() if sys.stderr.isatty() else None
    # What the header may keep: properties and holds are not authenticated by the stream.
    allowed, say = Allowed.of(allow), _sayer(verbose, meter)
    widen(0)
    with ExitStack() as stack:
        # An increment is checked against its source, which is received from --base into a pool of its own.
        folder = stack.enter_context(work_folder())
        pool = stack.enter_context(received([_file(text, folder, n) for n, text in enumerate(bases)]))
        # A snapshot goes on only after all of it was verified: meanwhile its records lie in this file.
        aside = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(prefix="zkeep-")))
        source = stack.enter_context(open(0, "rb", buffering=0, closefd=False))

        stack.enter_context(meter or nullcontext())

        def checked(snapshot: Snapshot, sent: str) -> None:
            say(check(pool, snapshot, sent))

        def report_dropped(sanitized: SanitizedHeader) -> None:
            for of, what in sanitized.dropped:
                say(f"{of}: {what if what.isprintable() else shown(what)} is left out")

        sink = cast(BinaryIO, Sink())
        passing = AuthenticatingFilter(pool, sink, aside, checked, allowed, report_dropped, meter)
        _run(passing.run, pool, source)


def _run(run: Callable[[Iterable[Event], str], None], pool: Pool, source: BinaryIO) -> None:
    from zkeep.format.reader import read_events

    events, target = placed(pool, read_events(source))
    try:
        run(events, target)
    except BrokenPipeError:
        raise TryAgain("cannot pass the stream on: nobody reads it any more") from None


def _file(base: str, folder: Path, number: int) -> str:
    """The path of a file with a stream of the base: the argument itself, or one that is sent from a pool."""
    from zkeep.pool.transfer.send import SendRequest, send

    if is_stream(base) and base != STDIN:
        return base
    if "@" not in base:
        raise WrongUsage(f"a base is a stream file or a snapshot (pool/dataset@snapshot), not {shown(base)}")
    name = parse_any(base)
    assert isinstance(name, SnapshotName)
    path = folder / f"{number}.zfs"
    with open_pool(name) as pool, path.open("wb") as target:
        send(pool, SendRequest(snapshot=str(name), raw=True), target)
    return str(path)


def _sayer(verbose: bool, meter: Received | None) -> Callable[[str], None]:
    def say(line: str) -> None:
        if verbose and meter:
            meter.clear()
        if verbose:
            click.echo(line, err=True)

    return say
