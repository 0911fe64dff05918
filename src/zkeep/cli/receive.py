"""zkeep receive (recv)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal

import click

from zkeep.cli.common.no_mount import no_mount_option
from zkeep.cli.common.pools import Name, dataset_of, is_confined, note_settings, opened, settings, widen
from zkeep.cli.common.progress import Received
from zkeep.cli.common.sink import stream_input
from zkeep.cli.common.terminal import explained
from zkeep.cli.common.text import nice_bytes
from zkeep.cli.keys import encryption
from zkeep.cli.keys.reencryption import EncryptingIntake, KeylessIntake, refuse_missing_key
from zkeep.errors import Damaged, Refused, WrongUsage, ZkeepError
from zkeep.names import DatasetName, SnapshotName, parse_any
from zkeep.pool.datasets import properties

if TYPE_CHECKING:
    from zkeep.pool.datasets.model import Pool
    from zkeep.pool.transfer.receive import Arrival, ReceiveOptions


@click.command("receive")
@click.option("-v", "verbose", is_flag=True, help="Say what is received, how much and how fast.")
@click.option("-n", "dry_run", is_flag=True, help="Store nothing; with -v, say what would be received.")
@click.option("-s", "resumable", is_flag=True, help="If interrupted, keep what came, to be resumed.")
@no_mount_option("-u", "unmounted")
@click.option("-F", "force", is_flag=True, help="Roll back to the increment's source first.")
@click.option("-d", "drop_pool", is_flag=True, help="Name it as sent, without the pool, below DATASET.")
@click.option("-e", "last_only", is_flag=True, help="Name it by the last part of its name, below DATASET.")
@click.option("-o", "options", multiple=True, metavar="P=V", help="Set a property, over what is received.")
@click.option("-x", "exclude", multiple=True, metavar="P", help="Let a received property have no effect.")
@click.option("-h", "skip_holds", is_flag=True, help="Do not set the holds that the stream brings.")
@click.option("--append-only", "append_only", is_flag=True, help="Destroy no snapshot, whatever -F and the stream say.")
@click.option("-M", "unmount", is_flag=True, help="Accepted and without effect: nothing is mounted here.")
@click.option("-c", "corrective", is_flag=True, help="Replace damaged records of what is there by the stream's.")
@click.option("-A", "abort", is_flag=True, help="Give up an interrupted receive into DATASET.")
@click.argument("target", metavar="DATASET|SNAPSHOT")
def receive_verb(*, options: Sequence[str], exclude: Sequence[str], target: str, **letters: bool) -> None:
    """Store the send stream that comes on standard input.

    All or nothing: a snapshot is there once all of it is verified and on the disk. Raw streams ('zfs send -w')
    are stored as they come. Plain ones are encrypted below an encrypted dataset whose key is loaded, or with a new
    key (-o encryption=on -o keyformat=raw -o keylocation=file:///path), and else refused unless 'blind' is off.

    \b
        zfs send -Rw tank/home@monday | ssh vault zkeep receive -s vault/home
        zfs send -w -i @monday tank/home@tuesday | ssh vault zkeep receive vault/home
        zkeep get -H -o value receive_resume_token vault/home
        zfs send -w tank/home@monday | ssh vault zkeep receive -cv vault/home@monday
        zfs send -R tank/plain@monday | zkeep receive -x encryption vault/secret/plain
    """
    from zkeep.pool.transfer.receive import ReceiveOptions

    call, name = _Letters(**letters), parse_any(target)
    meter = Received() if call.verbose and not call.dry_run and sys.stderr.isatty() else None
    tell, arrived = _arrival_printer(call.dry_run, meter) if call.verbose else None, _Arrived()
    call.check(name, sets=bool(options or exclude))
    asked, given, excluded = _wishes(options, exclude)
    # Options of zfs receive become one object, which is checked here and carried out below.
    wanted = ReceiveOptions(
        dry_run=call.dry_run,
        resumable=call.resumable,
        force=call.force,
        name_from=call.name_from,
        set_properties=given,
        exclude=excluded,
        abort=call.abort,
        skip_holds=call.skip_holds,
        append_only=call.append_only,
        on_progress=meter,
        intake=KeylessIntake() if is_confined() else EncryptingIntake(asked, excluded),
        on_snapshot=arrived.then(tell),
    )
    if not call.abort and sys.stdin.isatty():
        raise Refused("cannot receive: a stream is not read from a terminal; redirect standard input")
    widen(0)
    with opened(name) as pool, stream_input() as source:
        # -c heals damaged records of a snapshot that is there, and receives nothing new.
        if call.corrective:
            return _heal(pool, source, name, call)
        with arrived.pruned(pool), _explained(target), meter or nullcontext():
            _receive(pool, source, target, wanted)
            note_settings(pool, {SnapshotName.parse(kept).dataset for kept in arrived.names}, given)


@dataclass(frozen=True)
class _Letters:
    """The letters of the call that take no value."""

    verbose: bool
    dry_run: bool
    resumable: bool
    unmounted: bool
    force: bool
    drop_pool: bool
    last_only: bool
    skip_holds: bool
    append_only: bool
    unmount: bool
    corrective: bool
    abort: bool

    def check(self, name: Name, *, sets: bool) -> None:
        """`sets`: with -o or -x. Raises WrongUsage: they make no sense together."""
        elsewhere = self.drop_pool or self.last_only
        if self.abort and not isinstance(name, DatasetName):
            raise WrongUsage("-A needs a dataset")
        if self.abort and (elsewhere or self.dry_run or self.resumable or self.unmounted):
            raise WrongUsage("-A goes with no other letter")
        if self.corrective and (self.abort or elsewhere or self.resumable or self.force or sets):
            raise WrongUsage("-c goes with -n, -v and -u only")

    @property
    def name_from(self) -> Literal["d", "e"] | None:
        """Raises WrongUsage: there are two answers."""
        if self.drop_pool and self.last_only:
            raise WrongUsage("-d and -e exclude each other")
        return "d" if self.drop_pool else "e" if self.last_only else None


def _receive(pool: Pool, source: BinaryIO, target: str, wanted: ReceiveOptions) -> None:
    from zkeep.pool.transfer.receive import receive

    name = dataset_of(parse_any(target))
    if "encryption" in wanted.exclude:
        refuse_missing_key(pool, name, below=wanted.name_from is not None)
    receive(pool, source, target, wanted)
    if isinstance(wanted.intake, EncryptingIntake):
        wanted.intake.say_what_differs(target)
    if wanted.force and not wanted.dry_run:
        # Give back the space of snapshots that -F may have destroyed
        from zkeep.cli.common.give_back import give_back

        with pool.afterwards("received"):
            top = pool.find(name)
            give_back(pool, {d.id for d in pool.tree().within(top)} if top else set())


class _Arrived:
    """Notes which snapshots were received, so that their datasets are pruned at the end."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def then(self, tell: Callable[[Arrival], None] | None) -> Callable[[Arrival], None]:
        def note(arrival: Arrival) -> None:
            if arrival.bytes is not None:
                self.names.append(arrival.kept)
            if tell:
                tell(arrival)

        return note

    @contextmanager
    def pruned(self, pool: Pool) -> Iterator[None]:
        """Prune at the end; also where a later snapshot of the stream was refused: what came before it is there."""
        try:
            yield
        except ZkeepError:
            self._prune(pool)
            raise
        self._prune(pool)

    def _prune(self, pool: Pool) -> None:
        if self.names:
            from zkeep.cli.common.pruning import prune_received

            prune_received(pool, self.names)


def _heal(pool: Pool, source: BinaryIO, name: Name, call: _Letters) -> None:
    """Replace damaged records by those of the stream; report what it does not have."""
    from zkeep.cli.common.terminal import say
    from zkeep.format.reader import read_events
    from zkeep.pool.maintenance.heal import heal

    dataset = pool.dataset(dataset_of(name))
    snapshot = pool.snapshot(name) if isinstance(name, SnapshotName) else None
    with _explained(str(name)):
        done = heal(pool, dataset, snapshot, read_events(source), dry_run=call.dry_run)
    if call.verbose:
        verb = "would heal" if call.dry_run else "healed"
        click.echo(f"{verb} {done.healed} of {done.damaged} damaged records of {name}")
    # All that is left is named; the first one with the status.
    for line in done.left[1:]:
        say(f"cannot heal {name}: {line}")
    if done.left:
        raise Damaged(f"cannot heal {name}: {done.left[0]}")


def _arrival_printer(dry_run: bool, meter: Received | None) -> Callable[[Arrival], None]:
    """A callback that prints what is received, in zfs's words."""

    def tell(arrival: Arrival) -> None:
        if meter:
            meter.clear()
        if arrival.ignored:
            click.echo(f"snap {arrival.kept} already exists; ignoring")
        # Called twice for a snapshot: when it begins, and when it is there.
        elif arrival.bytes is None:
            verb = "would receive" if dry_run else "receiving"
            kind = "incremental" if arrival.incremental else "full"
            click.echo(f"{verb} {kind} stream of {arrival.sent} into {arrival.kept}")
        else:
            rate = nice_bytes(int(arrival.bytes / max(arrival.seconds, 0.001)))
            click.echo(f"received {nice_bytes(arrival.bytes)} stream in {arrival.seconds:.2f} seconds ({rate}/sec)")

    return tell


@contextmanager
def _explained(target: str) -> Iterator[None]:
    """Turn a full or failing disk into an error that names the target."""
    try:
        yield
    except OSError as error:
        # Without the path: a client is told nothing of what lies around its datasets.
        why = explained(OSError(error.errno, error.strerror or str(error)))
        raise Refused(f"cannot receive {target}: {why}") from None


def _wishes(options: Sequence[str], exclude: Sequence[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Check what -o sets, first what concerns encryption, and what -x excludes."""
    asked, others = encryption.split(settings(options))
    # By itself it says where the key of a raw stream is, as with zfs: it stands at the new encryption root.
    if asked.keys() == {"keylocation"}:
        others |= asked
    # The origin is no property that has a value to check: it names a snapshot.
    origin = {"origin": others.pop("origin")} if "origin" in others else {}
    given = origin | dict(properties.check(name, value) for name, value in others.items())
    excluded = [_known(prop) for prop in exclude]
    if twice := [prop for prop in excluded if prop in {**given, **asked} or excluded.count(prop) > 1]:
        raise WrongUsage(f"property '{twice[0]}' specified multiple times")
    return asked, given, excluded


def _known(name: str) -> str:
    """The full name of a property; like zfs, -x accepts it whether or not the stream has it."""
    prop = properties.find(name)
    if not prop:
        raise WrongUsage(f"invalid property {name!a} after -x")
    return prop.name
