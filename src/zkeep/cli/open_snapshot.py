"""From what is typed to an opened snapshot: of a pool, or of stream files; with keys from files or a prompt."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

import click

from zkeep.agent.client import borrowed
from zkeep.agent.in_use import InUse
from zkeep.cli.home import opened as open_pool
from zkeep.cli.home import registry
from zkeep.cli.stream_files import is_stream, opened_stream, why_no_stream
from zkeep.errors import BadStream, Refused, WrongUsage
from zkeep.names import BadName, BookmarkName, DatasetName, SnapshotName, parse_any, shown

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey, WrappedKeys
    from zkeep.format.events import Event
    from zkeep.pool.datasets.model import Pool, Snapshot
    from zkeep.snapshot.open import OpenSnapshot

Asks = Literal["prompt", "person"] | None
MAX_KEY_FILE = 4096
KEY_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
NOT_REGULAR = "it is not a regular file; a key from a pipe comes with -L prompt"
TOP = "streams/sent"

key_option = click.option(
    "-L", "key_locations", metavar="KEYLOCATION", multiple=True, help="file:///path of a key, or prompt; for this call."
)


def takes_key(function: Callable[..., Any]) -> Callable[..., Any]:
    return key_option(function)


# Keys


def keys_from(locations: Sequence[str]) -> GetKey:
    """Whichever of the named keys opens a snapshot; asks a person where none is named and one is there."""
    if find_spec("cryptography") is None:
        raise Refused("opening snapshots needs the package cryptography, which is not there: install zkeep anew")
    named = [read_key(location) for location in locations if location != "prompt"]
    asks: Asks = "prompt" if "prompt" in locations else "person" if not named else None
    source = _Keys(named, loaded=not locations, asks=asks)
    context = click.get_current_context(silent=True)
    if context is not None:
        context.call_on_close(source.in_use.release)
    return source


def read_key(location: str) -> bytes:
    """What a key file holds.

    Only a regular file of a key's size is read: to open a pipe or a device may wait for ever, or set something off.
    """
    parts = urlsplit(location)
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc or not path.startswith("/") or "\0" in path:
        raise WrongUsage(f"a key location is file:///path or prompt, not {shown(location)}")
    try:
        why = _no_key_file(os.stat(path))  # before it is opened: opening some devices does something
        if not why:
            with open(os.open(path, KEY_FLAGS), "rb", buffering=0) as source:
                why = _no_key_file(os.fstat(source.fileno()))
                material = b"" if why else source.read(MAX_KEY_FILE)
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise Refused(f"cannot read the key {shown(path)}: {why}")
    return material


def _no_key_file(status: os.stat_result) -> str:
    """Why this is none; empty if it may be one."""
    if not stat.S_ISREG(status.st_mode):
        return NOT_REGULAR
    return f"it has {status.st_size} bytes, a key has {MAX_KEY_FILE} at most" if status.st_size > MAX_KEY_FILE else ""


class _Keys:
    """The keys that were named; or those that are loaded, where none was; else what is asked for, once.

    `asks`: a person where one is there; or, as keylocation=prompt has it, who or whatever is at standard input.
    """

    def __init__(self, named: list[bytes], *, loaded: bool, asks: Asks) -> None:
        from zkeep.crypto.unwrap import Materials

        self.in_use = InUse()
        self._materials = Materials(named)
        self._asks = asks
        self._loaded: bytes | None = None
        self._may_be_loaded = loaded

    def __call__(self, wrapped: WrappedKeys) -> bytes:
        from zkeep.crypto.unwrap import WrongKey

        self.in_use.hold(wrapped.guid)
        if self._may_be_loaded and (key := self._loaded_key(wrapped)) is not None:
            return key
        try:
            return self._materials(wrapped)
        except WrongKey:
            asks, self._asks = self._asks, None
            if asks is None or self._loaded is not None:
                raise
        self._materials.materials.append(_asked(wrapped) if asks == "person" else prompted(wrapped.keyformat, ""))
        return self._materials(wrapped)

    def _loaded_key(self, wrapped: WrappedKeys) -> bytes | None:
        """Of the keys that are loaded only the one that opens it stays in this process."""
        from zkeep.crypto.unwrap import WrongKey, key_that_opens, unwrap

        with suppress(WrongKey):
            if self._loaded is not None:
                unwrap(wrapped, self._loaded)
                return self._loaded
        with suppress(WrongKey), borrowed() as loaded:
            self._asks = None if loaded else self._asks
            self._loaded = bytes(key_that_opens(loaded, wrapped))
            return self._loaded
        return None


def _asked(wrapped: WrappedKeys) -> bytes:
    if not sys.stdin.isatty():
        way = "load it with zkeep load-key, or give it with -L file:///path or -L prompt"
        raise Refused(f"it is encrypted and no key is here that opens it: {way}")
    return prompted(wrapped.keyformat, "")


def prompted(keyformat: int, of: str) -> bytes:
    """What `keylocation=prompt` gives: what a person types, or what standard input brings where nobody types."""
    from zkeep.crypto.unwrap import KeyFormat

    if not sys.stdin.isatty():
        return piped(keyformat)
    if keyformat == KeyFormat.RAW:
        whose = f"the key of '{of}'" if of else "its key"
        raise Refused(f"{whose} is raw bytes, which cannot be typed: name a file with -L file:///path")
    return typed(keyformat, of)


def piped(keyformat: int) -> bytes:
    """A key from standard input where nobody types: all of it if it is raw, else a line, as more may follow."""
    from zkeep.crypto.unwrap import KeyFormat

    source = sys.stdin.buffer
    return source.read(MAX_KEY_FILE) if keyformat == KeyFormat.RAW else source.readline(MAX_KEY_FILE)


def typed(keyformat: int, of: str, *, again: bool = False) -> bytes:
    """What a person types, unseen; `again`: twice the same, for a new one."""
    import getpass

    from zkeep.crypto.unwrap import KeyFormat

    what = "hex key" if keyformat == KeyFormat.HEX else "passphrase"
    enter = f"{'new ' if again else ''}{what}{f' for {shown(of)}' if of else ''}: "
    material = getpass.getpass(f"Enter {enter}").encode()
    if again and getpass.getpass(f"Re-enter {enter}").encode() != material:
        raise Refused("the two keys that were typed are not the same")
    return material


# Snapshots


@contextmanager
def snapshots_of(
    arguments: Sequence[str], count: int = 1, *, paths: bool = False
) -> Iterator[tuple[Pool, list[Snapshot], list[str]]]:
    """The pool, `count` snapshots, and the arguments after them.

    Stream files are received into a pool of their own, in their order, which is gone afterwards; the snapshots are
    then the newest of the dataset that was sent, unless `@snap` or `child@snap` follow.
    """
    streams, rest = parted(arguments)
    with ExitStack() as stack:
        if not streams:
            names = [_snapshot_name(text) for text in rest[:count]]
            if len(names) < count:
                raise WrongUsage("name a snapshot (pool/dataset@snapshot) or stream files")
            pool = stack.enter_context(open_pool(names[0]))
            yield pool, [pool.snapshot(name) for name in names], rest[count:]
            return
        pool = stack.enter_context(received(streams))
        given = _given(pool, rest, count, paths)
        yield pool, given or _newest(pool, count), rest[len(given) :]


@contextmanager
def received_from(arguments: Sequence[str]) -> Iterator[tuple[Pool, list[Snapshot]]]:
    """A pool with what stream files bring, and the snapshots that are named behind them."""
    streams, rest = parted(arguments)
    with received(streams) as pool:
        given = [_brought(pool, text) if "@" in text else None for text in rest]
        for text, snapshot in zip(rest, given, strict=True):
            if snapshot is None:
                raise WrongUsage(f"{shown(text)} is neither a stream nor a snapshot that the streams bring")
        yield pool, [snapshot for snapshot in given if snapshot is not None]


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files with streams with which arguments begin, and the rest."""
    streams = list(takewhile(is_stream, arguments))
    return streams, list(arguments[len(streams) :])


def parsed(text: str) -> DatasetName | SnapshotName | BookmarkName:
    """The name that an argument is, where it is no stream.

    Raises:
        Refused: it is a file, and what is wrong with that.
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
    """A pool with what the stream files bring, gone afterwards."""
    from zkeep.pool.datasets.model import Pool

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="zkeep-"))
        pool = stack.enter_context(Pool.create(Path(folder) / "pool", "streams", {"blind": "off"}))
        for path in streams:
            _receive(pool, path)
        yield pool


def _receive(pool: Pool, path: str) -> None:
    """All streams in a file, each where it belongs."""
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
    """All events, and where in the pool they belong: their first ones tell."""
    from zkeep.format.events import SubBegin

    head = []
    for event in events:
        head.append(event)
        if isinstance(event, SubBegin):
            break
    return chain(head, events), target_of(pool, head)


def target_of(pool: Pool, events: Iterable[Event]) -> str:
    """Where a stream belongs: an increment where its source is, all else at the top."""
    from zkeep.format.events import Package, SubBegin

    top = ""
    for event in events:
        if isinstance(event, Package):
            top = _dataset(event.header.name)
        if isinstance(event, SubBegin):
            sent = _dataset(event.begin.name)
            below = sent[len(top) :] if top and sent.startswith(top) else ""
            return _holder(pool, event.begin.fromguid).removesuffix(below)
    return TOP


def _dataset(name: bytes) -> str:
    return name.split(b"@")[0].decode("utf-8", "replace")


def _holder(pool: Pool, guid: int) -> str:
    """The dataset with the snapshot of a guid."""
    found = pool.snapshots_by_guid(guid) if guid else []
    return found[0].dataset.name.text if found else TOP


def _given(pool: Pool, rest: list[str], count: int, paths: bool) -> list[Snapshot]:
    """The snapshots that are named behind streams. Where paths may follow, @name can be a file's, too."""
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
    """The snapshot that the arguments begin with, opened, and the arguments after it."""
    from zkeep.snapshot.open import OpenSnapshot

    with ExitStack() as stack:
        pool, (snapshot,), rest = stack.enter_context(snapshots_of(arguments, paths=True))
        yield stack.enter_context(OpenSnapshot(pool, snapshot, keys_from(locations))), rest
