"""zkeep encrypt: a filter, plain stream in, raw stream out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from zkeep.cli import encryption
from zkeep.cli.home import opened, settings, widen
from zkeep.cli.reencryption import Intake
from zkeep.cli.sink import Sink, stream_input
from zkeep.errors import Refused, TryAgain
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import properties

if TYPE_CHECKING:
    from zkeep.format.events import Event
    from zkeep.pool.datasets.model import Pool, Snapshot
    from zkeep.pool.transfer.package_header import PackageHeader
    from zkeep.pool.transfer.receive import Arrival
    from zkeep.pool.transfer.send import SendRequest


@click.command("encrypt")
@click.option("-o", "options", multiple=True, metavar="P=V", help="Set a property of DATASET when it is made.")
@click.argument("name", metavar="DATASET")
def encrypt_verb(*, options: Sequence[str], name: str) -> None:
    """Read a plain send stream, write the same snapshots as a raw stream, encrypted with the key of DATASET.

    DATASET keeps what the next increment needs: it is made by the first stream, below an encrypted dataset or with a
    new key (-o encryption=on -o keyformat=raw -o keylocation=file:///path). It holds the snapshots, encrypted, until
    'zkeep set contents=metadata DATASET@SNAPSHOT' says that the other end has them; then the contents of files go. When
    a stream was not taken at the other end, run the same again.

    \b
        zfs send tank/home@mon | zkeep encrypt local/enc/home | ssh vault zkeep receive vault/home
        zfs send -i @mon tank/home@tue | zkeep encrypt local/enc/home | ssh vault zkeep receive vault/home
    """
    from zkeep.pool.transfer.send import send

    target = DatasetName.parse(name)
    asked, given = encryption.split(settings(options))
    local = dict(properties.check(prop, text) for prop, text in given.items())
    if sys.stdin.isatty() or sys.stdout.isatty():
        raise Refused("cannot encrypt: streams do not go through a terminal; redirect standard input and output")
    widen(0)
    with opened(target) as pool:
        taken = _Taken()
        taken.receive(pool, target, local, Intake(asked, ()))
        for request in taken.requests(pool, target):
            try:
                send(pool, request, cast(BinaryIO, Sink()))
            except BrokenPipeError:
                gone = f"nobody reads the stream any more; {target} has it: run it again"
                raise TryAgain(f"cannot encrypt: {gone}") from None


class _Taken:
    """What came in, and so what goes out."""

    def __init__(self) -> None:
        self._header: PackageHeader | None = None
        self._names: list[SnapshotName] = []

    def receive(self, pool: Pool, target: DatasetName, local: dict[str, str], intake: Intake) -> None:
        from zkeep.format.reader import read_events
        from zkeep.pool.transfer.receive import ReceiveOptions, receive_events

        with stream_input() as source:
            options = ReceiveOptions(set_properties=local, intake=intake, on_snapshot=self._note)
            receive_events(pool, self._watched(read_events(source)), target.text, options)
        intake.say_mended(target.text)

    def _watched(self, events: Iterator[Event]) -> Iterator[Event]:
        from zkeep.format.events import Package, SubBegin
        from zkeep.pool.transfer.package_header import PackageHeader

        for event in events:
            if isinstance(event, SubBegin) and event.begin.raw:
                raise Refused("cannot encrypt: the stream is raw, and so encrypted already")
            if isinstance(event, Package):
                self._header = PackageHeader.of(event)
            yield event

    def _note(self, arrival: Arrival) -> None:
        if arrival.ignored or arrival.bytes is not None:
            self._names.append(SnapshotName.parse(arrival.kept))

    def requests(self, pool: Pool, target: DatasetName) -> list[SendRequest]:
        """The streams to send: one, for what came."""
        from zkeep.pool.transfer.send import SendRequest

        if not self._names:
            return []
        first, last = self._names[0], self._names[-1]
        source = _source_of(pool, pool.snapshot(first))
        mark = f"@{source.doc['name']}" if source is not None else None
        if self._header is None:
            return [SendRequest(snapshot=str(last), raw=True, from_=mark)]
        if self._header.recursive:
            top = [name for name in self._names if name.dataset == target][-1:] or [last]
            return [SendRequest(snapshot=str(top[0]), raw=True, replicate=True, from_all=mark)]
        return [SendRequest(snapshot=str(last), raw=True, from_all=mark, props=True)]


def _source_of(pool: Pool, snapshot: Snapshot) -> Snapshot | None:
    """The snapshot before; None: it is the first one."""
    before = [each for each in pool.snapshots(snapshot.dataset) if each.txg < snapshot.txg]
    return before[-1] if before else None
