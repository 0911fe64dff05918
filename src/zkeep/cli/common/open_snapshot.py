"""Open the snapshot that the arguments name, in a pool or in stream files; find the keys that it needs."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

import click

from zkeep.agent.client import borrowed
from zkeep.agent.in_use import InUse
from zkeep.agent.memory import keep_secret
from zkeep.cli.common.pools import opened as open_pool
from zkeep.cli.common.pools import registry
from zkeep.cli.common.stream_files import is_stream, opened_stream, why_no_stream
from zkeep.cli.common.terminal import say
from zkeep.cli.common.work_folder import work_folder
from zkeep.errors import BadStream, Refused, WrongUsage
from zkeep.names import BadName, BookmarkName, DatasetName, SnapshotName, parse_any, shown

if TYPE_CHECKING:
    from zkeep.crypto.groups import Secret
    from zkeep.crypto.unwrap import GetKey, WrappedKeys
    from zkeep.format.events import Event
    from zkeep.pool.datasets.model import Pool, Snapshot
    from zkeep.snapshot.open import OpenSnapshot

Asks = Literal["prompt", "person"] | None
MAX_KEY_FILE = 1 << 16
"Bytes: the text of a recovery sheet, with a passphrase and its QR code, is the largest."
TRIES = 3
"How often a line of a sheet may be typed wrong."
KEY_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
OTHERS_READ = stat.S_IRGRP | stat.S_IROTH
NOT_REGULAR = "it is not a regular file; a key from a pipe comes with -L prompt"
TOP = "streams/sent"

key_option = click.option(
    "-L", "key_locations", metavar="KEYLOCATION", multiple=True, help="file:///path of a key, or prompt; for this call."
)


def takes_key(function: Callable[..., Any]) -> Callable[..., Any]:
    return key_option(function)


# Keys


def keys_from(locations: Sequence[str], own: Sequence[str] = ()) -> GetKey:
    """A callback that finds the key for a snapshot: a named or loaded one, or else one that the user types.

    `own`: if none is named, the key files of the dataset itself, tried before anybody is asked.
    """
    named = [read_key(location) for location in locations if location != "prompt"]
    asks: Asks = "prompt" if "prompt" in locations else "person" if not named else None
    beside = [] if locations else [read_key(location) for location in own if location != "prompt"]
    return _held(_Keys([*named, *beside], loaded=not locations, asks=asks))


def loaded_keys() -> GetKey:
    """A callback that finds the key for a snapshot among the loaded ones, and asks nobody."""
    return _held(_Keys([], loaded=True, asks=None))


def _held(source: _Keys) -> GetKey:
    """Keep the keys that were used from being unloaded until the command ends."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.call_on_close(source.in_use.release)
    return source


def read_key(location: str) -> bytes:
    """Read a key file, or the text of a recovery sheet.

    Only a regular file of the size of a key is read: opening a pipe or a device may block, or have side effects.
    """
    keep_secret(locked=False)
    parts = urlsplit(location)
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc or not path.startswith("/") or "\0" in path:
        raise WrongUsage(f"a key location is file:///path or prompt, not {shown(location)}")
    try:
        why = _no_key_file(os.stat(path))  # before it is opened: opening a device may have side effects
        if not why:
            with open(os.open(path, KEY_FLAGS), "rb", buffering=0) as source:
                status = os.fstat(source.fileno())
                why = _no_key_file(status)
                material = b"" if why else source.read(MAX_KEY_FILE)
                why = NOT_REGULAR if material is None else why  # a file of /proc that waits for an event
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise Refused(f"cannot read the key {shown(path)}: {why}")
    # Say that others can read a key file, once. It is used: zfs takes it, too.
    if status.st_mode & OTHERS_READ and path not in _warned():
        _warned().add(path)
        say(f"warning: others can read the key {shown(path)} (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 it")
    return _of_sheet(material)


def _of_sheet(material: bytes) -> bytes:
    """The key, if this is the text of a recovery sheet; else what was given."""
    from zkeep.crypto.groups import recognized
    from zkeep.crypto.unwrap import WRAPPING_KEY

    found = recognized(material) if len(material) != WRAPPING_KEY else None
    return material if found is None else found.material()


@cache
def _warned() -> set[str]:
    """The key files that this process has warned of."""
    return set()


def _no_key_file(status: os.stat_result) -> str:
    """Why this cannot be a key file; empty if it can."""
    if not stat.S_ISREG(status.st_mode):
        return NOT_REGULAR
    if not status.st_size:  # like all files of /proc, whatever a read would give, or take away from other readers
        return "it is empty"
    return f"it has {status.st_size} bytes, a key has {MAX_KEY_FILE} at most" if status.st_size > MAX_KEY_FILE else ""


_NO_KEY = (
    "it is encrypted and no key is here that opens it: "
    "load it with zkeep load-key, or give it with -L file:///path or -L prompt"
)


class _Keys:
    """Looks for a key among those named; if none was named, among the loaded ones; then asks, once.

    `asks`: `person` asks on a terminal only; `prompt` reads standard input, as keylocation=prompt does.
    """

    def __init__(self, named: list[bytes], *, loaded: bool, asks: Asks) -> None:
        if find_spec("cryptography") is None:
            raise Refused("opening snapshots needs the package cryptography, which is not there: install zkeep again")
        from zkeep.crypto.unwrap import Materials

        self.in_use = InUse()
        self._materials = Materials(named)
        self._asks = asks
        self._loaded: bytes | None = None
        self._may_be_loaded = loaded

    def __call__(self, wrapped: WrappedKeys) -> bytes:
        from zkeep.crypto.unwrap import WrongKey

        self.in_use.hold(wrapped.guid)
        # In this order: a key that is loaded, what -L gave, and then ask, but only once.
        if self._may_be_loaded and (key := self._loaded_key(wrapped)) is not None:
            return key
        try:
            return self._materials(wrapped)
        except WrongKey:
            asks, self._asks = self._asks, None
            if asks is None or self._loaded is not None:
                if self._materials.materials:
                    raise  # it says what is wrong with what -L gave
                raise WrongKey(_NO_KEY) from None
        self._materials.materials.append(_asked(wrapped) if asks == "person" else prompted(wrapped.keyformat, ""))
        return self._materials(wrapped)

    def _loaded_key(self, wrapped: WrappedKeys) -> bytes | None:
        """Find the loaded key that opens it; this process forgets all others."""
        from zkeep.crypto.unwrap import WrongKey, key_that_opens, unwrap

        with suppress(WrongKey):
            # Most often the same key opens the next dataset, too.
            if self._loaded is not None:
                unwrap(wrapped, self._loaded)
                return self._loaded
        # The agent lends all that it has; only the one that opens this is kept.
        with suppress(WrongKey), borrowed() as loaded:
            self._asks = None if loaded else self._asks
            self._loaded = bytes(key_that_opens(loaded, wrapped))
            return self._loaded
        return None


def _asked(wrapped: WrappedKeys) -> bytes:
    if not sys.stdin.isatty():
        raise Refused(_NO_KEY)
    return prompted(wrapped.keyformat, "")


def prompted(keyformat: int, of: str) -> bytes:
    """Read a key as keylocation=prompt does: typed on a terminal, or else from standard input."""
    from zkeep.crypto.unwrap import KeyFormat

    if not sys.stdin.isatty():
        return piped(keyformat)
    return typed_groups(of).material() if keyformat == KeyFormat.RAW else typed(keyformat, of)


def piped(keyformat: int) -> bytes:
    """Read a key from standard input, not a terminal: all of it if it is raw, else one line, as more may follow."""
    from zkeep.crypto.unwrap import KeyFormat

    keep_secret(locked=False)
    source = sys.stdin.buffer
    return _of_sheet(source.read(MAX_KEY_FILE)) if keyformat == KeyFormat.RAW else source.readline(MAX_KEY_FILE)


def typed_groups(of: str, first: str | None = None, *, tell: Callable[[str], None] | None = None) -> Secret:
    """Let the user type the lines of a recovery sheet, without echo; a line that is wrong is asked for again.

    `first`: what was typed as the first line; `tell`: is called with a word on each line.

    Raises:
        WrongGroups: a line was wrong too often.
    """
    import getpass

    from zkeep.crypto.groups import Reading, WrongGroups

    keep_secret(locked=False)
    reading, tries = Reading(), 0
    while not reading.complete:
        number = len(reading.lines) + 1
        whose = f" for {shown(of)}" if of else ""
        # The first line may have been typed already, where a hex key was asked for.
        typed_line = first or getpass.getpass(f"Enter line {number} of the recovery sheet{whose}: ")
        first = None
        try:
            line = reading.add(typed_line)
        except WrongGroups as error:
            # A wrong line is asked for again, a few times: the person may have the wrong sheet.
            tries += 1
            if tries == TRIES:
                raise
            say(f"{error}; type it again")
            continue
        tries = 0
        if line.mended:
            say(f"{line.mended}; read as that")
        if tell:
            tell(f"line {number} is {'put right' if line.mended else 'right'}")
    return reading.secret()


def typed(keyformat: int, of: str, *, again: bool = False) -> bytes:
    """Let the user type a key, without echo; `again`: twice, for a new one."""
    import getpass

    from zkeep.crypto.unwrap import KeyFormat

    keep_secret(locked=False)
    what = "hex key" if keyformat == KeyFormat.HEX else "passphrase"
    enter = f"{'new ' if again else ''}{what}{f' for {shown(of)}' if of else ''}: "
    material = getpass.getpass(f"Enter {enter}").encode()
    if again and getpass.getpass(f"Re-enter {enter}").encode() != material:
        raise Refused("the two keys that were typed are not the same")
    # A recovery sheet in the hand is as good as a hex key: take its lines instead.
    if keyformat == KeyFormat.HEX and not again and _begins_sheet(material):
        return typed_groups(of, material.decode()).material()
    return material


def _begins_sheet(material: bytes) -> bool:
    """Whether a person who is asked for a hex key types the first line of a recovery sheet instead."""
    from zkeep.crypto.groups import WrongGroups, read_line

    try:
        return bool(read_line(material.decode("ascii"), 1))
    except (UnicodeDecodeError, WrongGroups):
        return False


# Snapshots


@contextmanager
def snapshots_of(
    arguments: Sequence[str], count: int = 1, *, paths: bool = False
) -> Iterator[tuple[Pool, list[Snapshot], list[str]]]:
    """Find the pool, `count` snapshots, and the arguments after them.

    Stream files are received into a pool of their own, in their order, which is gone afterwards; the snapshots are
    then the newest of the dataset that was sent, unless `@snap` or `child@snap` follow.
    """
    streams, rest = parted(arguments)
    with ExitStack() as stack:
        if not streams:
            # Snapshots of a pool, by name.
            names = [_snapshot_name(text) for text in rest[:count]]
            if len(names) < count:
                raise WrongUsage("name a snapshot (pool/dataset@snapshot) or stream files")
            pool = stack.enter_context(open_pool(names[0]))
            yield pool, [pool.snapshot(name) for name in names], rest[count:]
            return
        # Or of stream files, which are received into a pool that lasts as long as this.
        pool = stack.enter_context(received(streams))
        given = _given(pool, rest, count, paths)
        # Unnamed, the newest that the streams bring are meant.
        yield pool, given or _newest(pool, count), rest[len(given) :]


@contextmanager
def received_from(arguments: Sequence[str]) -> Iterator[tuple[Pool, list[Snapshot]]]:
    """Receive stream files into a temporary pool; yields it, and the snapshots that are named after them."""
    streams, rest = parted(arguments)
    with received(streams) as pool:
        given = [_brought(pool, text) if "@" in text else None for text in rest]
        for text, snapshot in zip(rest, given, strict=True):
            if snapshot is None:
                raise WrongUsage(f"{shown(text)} is neither a stream nor a snapshot that the streams bring")
        yield pool, [snapshot for snapshot in given if snapshot is not None]


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into the stream files at their beginning, and the rest."""
    streams = list(takewhile(is_stream, arguments))
    return streams, list(arguments[len(streams) :])


def parsed(text: str) -> DatasetName | SnapshotName | BookmarkName:
    """Parse an argument that is not a stream file as a name.

    Raises:
        Refused: it is a file, but not a usable stream; the message says why.
    """
    if "@" not in text and (why := why_no_stream(text)) and text.partition("/")[0] not in registry().pools():
        raise Refused(f"cannot open {shown(text)}: {why}")
    return parse_any(text)


def _snapshot_name(text: str) -> SnapshotName:
    name = parsed(text)
    if not isinstance(name, SnapshotName):
        raise WrongUsage(f"{shown(text)} is not a snapshot: name it as pool/dataset@snapshot")
    return name


@contextmanager
def received(streams: Sequence[str]) -> Iterator[Pool]:
    """Receive stream files into a temporary pool."""
    from zkeep.pool.datasets.model import Pool

    with ExitStack() as stack:
        folder = stack.enter_context(work_folder())
        # An ordinary pool, so that streams are checked as any others; plain ones may come in.
        pool = stack.enter_context(Pool.create(folder / "pool", "streams", {"blind": "off"}))
        for path in streams:
            _receive(pool, path)
        yield pool


def _receive(pool: Pool, path: str) -> None:
    """Receive all streams in a file, each into the dataset where it belongs."""
    from zkeep.format.reader import read_streams
    from zkeep.pool.transfer.receive import ReceiveOptions, receive_events

    with opened_stream(path) as source:
        try:
            for stream in read_streams(source):
                events, target = placed(pool, stream)
                receive_events(pool, events, target, ReceiveOptions(force=True))
        except BadStream as error:
            raise Refused(f"cannot open {shown(path)}: {error}") from None


def placed(pool: Pool, events: Iterator[Event]) -> tuple[Iterator[Event], str]:
    """Return all events, and the dataset where they belong, which the first events say."""
    from zkeep.format.events import SubBegin

    head = []
    # Only the first BEGIN says what the stream is an increment of; put back what was read.
    for event in events:
        head.append(event)
        if isinstance(event, SubBegin):
            break
    return chain(head, events), target_of(pool, head)


def target_of(pool: Pool, events: Iterable[Event]) -> str:
    """Find the dataset for a stream: an increment goes where its source is, all else to the top."""
    from zkeep.format.events import Package, SubBegin

    top = ""
    for event in events:
        if isinstance(event, Package):
            top = _dataset(event.header.name)
        if isinstance(event, SubBegin):
            sent = _dataset(event.begin.name)
            below = sent[len(top) :] if top and sent.startswith(top) else ""
            # The dataset with the snapshot of a guid
            found = pool.snapshots_by_guid(event.begin.fromguid) if event.begin.fromguid else []
            return (found[0].dataset.name.text if found else TOP).removesuffix(below)
    return TOP


def _dataset(name: bytes) -> str:
    return name.split(b"@")[0].decode("utf-8", "replace")


def _given(pool: Pool, rest: list[str], count: int, paths: bool) -> list[Snapshot]:
    """Find the snapshots that are named after streams. If paths may follow, @name can also be a file."""
    named = [text for text in rest[:count] if "@" in text]
    found = [(text, _brought(pool, text)) for text in named]
    for text, snapshot in found:
        if snapshot is None and not paths:
            raise Refused(f"cannot open {shown(text)}: the streams bring no such snapshot")
    if found and not paths and len(found) != count:
        raise WrongUsage(f"name {count} snapshots of the streams, as @snapshot or child@snapshot, or none")
    return [snapshot for _, snapshot in found if snapshot is not None]


def _brought(pool: Pool, text: str) -> Snapshot | None:
    try:
        return pool.find_snapshot(SnapshotName.parse(TOP + ("" if text.startswith("@") else "/") + text))
    except BadName:
        return None


def _newest(pool: Pool, count: int) -> list[Snapshot]:
    newest = pool.snapshots(pool.dataset(DatasetName(TOP)))[-count:]
    if len(newest) < count:
        raise WrongUsage(f"the streams bring {len(newest)} snapshot(s), {count} are needed")
    return newest


@contextmanager
def opened_snapshot(arguments: Sequence[str], locations: Sequence[str]) -> Iterator[tuple[OpenSnapshot, list[str]]]:
    """Open the snapshot that the arguments begin with; yields it, and the arguments after it."""
    from zkeep.snapshot.open import OpenSnapshot

    with ExitStack() as stack:
        pool, (snapshot,), rest = stack.enter_context(snapshots_of(arguments, paths=True))
        yield stack.enter_context(OpenSnapshot(pool, snapshot, keys_from(locations))), rest
