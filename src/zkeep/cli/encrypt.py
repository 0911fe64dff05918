"""zkeep encrypt: a filter, plain stream in, raw stream out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from zkeep.cli.common.pools import opened, settings, widen
from zkeep.cli.common.sink import Sink, stream_input
from zkeep.cli.keys import encryption
from zkeep.cli.keys.reencryption import EncryptingIntake, in_clear
from zkeep.errors import Damaged, Refused, TryAgain, ZkeepError
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import contents, properties

if TYPE_CHECKING:
    from zkeep.format.events import Event
    from zkeep.pool.datasets.model import Pool
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

    With contents=metadata on DATASET (-o contents=metadata when it is made) a stream of any size needs little room: it
    leaves in steps while it comes in, and only metadata stays. At the other end the steps are snapshots, @step-GUID,
    which zkeep takes away when the last one came; zfs destroy does it in ZFS. A stream with -R or -p is kept as a whole
    before it leaves.

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
        arrival = _Arrival(pool, target, local, Sink())
        try:
            # Two passes: the stream is stored encrypted, then sent raw. With contents=metadata it leaves step by step.
            with _in_own_words():
                arrival.receive(local, asked)
        except OSError as error:
            raise arrival.broken_off(error) from None
        for request in arrival.requests():
            try:
                send(pool, request, cast(BinaryIO, arrival.sink))
            except BrokenPipeError:
                gone = f"nobody reads the stream any more; {target} has it: run it again"
                raise TryAgain(f"cannot encrypt: {gone}") from None
            except OSError as error:
                why = f"the stream cannot be written: {error.strerror or error}; {target} has it: run it again"
                raise TryAgain(f"cannot encrypt: {why}") from None
            except Damaged as error:
                if not arrival.is_new:
                    raise
                # Something was changed. If it is damage, the next call says so: the snapshot is there already then.
                raise TryAgain(f"cannot encrypt: {error}; {target} has what came: run it again") from None


class _Arrival:
    """Receives the plain stream, and plans the raw one."""

    def __init__(self, pool: Pool, target: DatasetName, local: dict[str, str], sink: Sink) -> None:
        self._pool = pool
        self._target = target
        self._in_steps = _keeps_metadata(pool, target, local)
        self.sink = sink
        self._header: PackageHeader | None = None
        self._guid = 0
        "Of the snapshot that comes."
        self._names: list[SnapshotName] = []
        self.is_new = False
        "Whether a snapshot came that was not here before."

    def receive(self, local: dict[str, str], asked: dict[str, str]) -> None:
        from zkeep.format.reader import read_events
        from zkeep.pool.transfer.receive import ReceiveOptions, receive_events
        from zkeep.reencrypt.outgoing import StepSender, remove_unsent

        _refuse_clear(self._pool, self._target, asked)
        remove_unsent(self._pool, self._target)
        sender = StepSender(self.sink.write, lambda: self._leaves_in_steps, lambda: self._header is not None)
        intake = EncryptingIntake(asked, (), follower=sender)
        with stream_input() as source:
            # Whether the dataset is there and holds nothing, as zkeep create makes it: a full stream may go there
            dataset = self._pool.find(self._target)
            options = ReceiveOptions(
                set_properties=local,
                intake=intake,
                on_snapshot=self._note,
                force=(dataset is not None and self._pool.newest_snapshot(dataset) is None),
            )
            receive_events(self._pool, self._watched(read_events(source)), self._target.text, options)
        sender.finish()
        intake.say_what_differs(self._target.text)

    @property
    def _leaves_in_steps(self) -> bool:
        """Whether the stream leaves while it comes: it is no package that says more than its snapshots do."""
        return self._in_steps and (self._header is None or not self._header.datasets)

    def _watched(self, events: Iterator[Event]) -> Iterator[Event]:
        from zkeep.format.events import Package, SubBegin
        from zkeep.pool.transfer.package_header import PackageHeader

        for event in events:
            if isinstance(event, SubBegin) and event.begin.raw:
                raise Refused("cannot encrypt: the stream is raw, and so encrypted already")
            if isinstance(event, Package):
                self._header = PackageHeader.of(event)
            if isinstance(event, SubBegin):
                self._guid = event.begin.toguid
            yield event

    def broken_off(self, error: OSError) -> ZkeepError:
        """The error to raise: it says whether the snapshot that came is kept, whose contents may be gone by now."""
        from zkeep.reencrypt.outgoing import sent_before

        is_unread = isinstance(error, BrokenPipeError)
        why = "nobody reads the stream any more" if is_unread else f"{error.strerror or error}"
        try:
            dataset = self._pool.find(self._target)
            there = self._pool.snapshots_by_guid(self._guid, dataset) if dataset is not None else []
        except (ZkeepError, OSError):
            return TryAgain(f"cannot encrypt: {why}; whether the snapshot is kept, zkeep list says")
        if not there or there[0].doc.get(contents.STEP):
            text = f"cannot encrypt: {why}; nothing is kept: run it again"
            return TryAgain(text) if is_unread else Refused(text)
        gone = sent_before(self._pool, there[0].name) if self._leaves_in_steps else "it is here: run it again"
        return TryAgain(f"cannot encrypt: {why}; {gone}")

    def _note(self, arrival: Arrival) -> None:
        from zkeep.reencrypt.outgoing import refuse_sent

        if arrival.ignored:
            kept = SnapshotName.parse(arrival.kept)
            # What was received in clear before would leave in clear.
            if not self._pool.dataset(kept.dataset).doc.get("crypt"):
                raise Refused(f"cannot encrypt into {self._target}: {in_clear(self._pool, kept.dataset)}")
            if self._leaves_in_steps:
                refuse_sent(self._pool, kept)
        if arrival.ignored or arrival.bytes is not None:
            self._names.append(SnapshotName.parse(arrival.kept))
            self.is_new = self.is_new or not arrival.ignored

    def requests(self) -> list[SendRequest]:
        """The streams to send: one, for what came and has not left yet."""
        from zkeep.pool.transfer.send import SendRequest

        pool, target = self._pool, self._target
        if not self._names or self._leaves_in_steps:
            return []
        first, last = self._names[0], self._names[-1]
        # The snapshot before; None: it is the first one
        snapshot = pool.snapshot(first)
        before = [each for each in pool.snapshots(snapshot.dataset) if each.txg < snapshot.txg]
        source = before[-1] if before else None
        mark = f"@{source.doc['name']}" if source is not None else None
        if self._header is None:
            return [SendRequest(snapshot=str(last), raw=True, from_=mark)]
        if self._header.recursive:
            top = [name for name in self._names if name.dataset == target][-1:] or [last]
            return [SendRequest(snapshot=str(top[0]), raw=True, replicate=True, from_all=mark)]
        return [SendRequest(snapshot=str(last), raw=True, from_all=mark, props=True)]


def _refuse_clear(pool: Pool, target: DatasetName, asked: dict[str, str]) -> None:
    """Refuse, before a byte is read, a target where nothing would be encrypted: it would leave in clear.

    Raises:
        Refused: it is in clear, or neither it nor anything above it is encrypted, and it gets no key of its own.
    """
    from zkeep.reencrypt.receive import encrypted_above

    dataset = pool.find(target)
    if dataset is not None and dataset.doc.get("crypt"):
        return
    has_past = dataset is not None and pool.newest_snapshot(dataset) is not None
    if has_past or (encrypted_above(pool, target) is None and "keyformat" not in asked):
        raise Refused(f"cannot encrypt into {target}: {in_clear(pool, target)}")


_WORDS = {
    "cannot receive incremental stream into ": "cannot encrypt into ",
    "cannot receive into ": "cannot encrypt into ",
    "cannot receive: ": "cannot encrypt: ",
    "cannot receive ": "cannot encrypt into ",
}
"How the errors of a receive begin, which is a means here, and how those of encrypt do."


@contextmanager
def _in_own_words() -> Iterator[None]:
    """Let errors of the receive say what was asked for, and no way out that zkeep encrypt does not have."""
    try:
        yield
    except ZkeepError as error:
        text = str(error).replace(", or name the source with -o origin=SNAPSHOT", "")
        for begins, ours in _WORDS.items():
            if text.startswith(begins):
                error.args = (ours + text.removeprefix(begins),)
                break
        raise


def _keeps_metadata(pool: Pool, target: DatasetName, local: dict[str, str]) -> bool:
    """Whether contents=metadata is set on the dataset, or will be when it is made."""
    dataset = pool.find(target)
    return (dataset.doc["local"] if dataset is not None else local).get(contents.CONTENTS) == contents.METADATA
