"""From what is typed to an opened snapshot: of a pool, or of stream files; with keys from files or a prompt."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click

from zkeep.agent.client import keys
from zkeep.cli.home import opened as open_pool
from zkeep.errors import Refused, WrongUsage
from zkeep.format.records import HEADER, MAGIC
from zkeep.names import DatasetName, SnapshotName, parse_any, shown

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey, WrappedKeys
    from zkeep.format.events import Event
    from zkeep.pool.datasets.model import Pool, Snapshot
    from zkeep.snapshot.open import OpenSnapshot

MAX_KEY_FILE = 4096
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
    from zkeep.crypto.unwrap import first_that_opens

    materials = [read_key(location) for location in locations if location != "prompt"]
    if materials and "prompt" not in locations:
        return first_that_opens(materials)
    return _Prompt(materials, loaded=not locations)


def read_key(location: str) -> bytes:
    """What a key file holds."""
    parts = urlsplit(location)
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        raise WrongUsage(f"a key location is file:///path or prompt, not {shown(location)}")
    path = Path(unquote(parts.path))
    try:
        with path.open("rb") as source:
            return source.read(MAX_KEY_FILE)
    except OSError as error:
        raise Refused(f"cannot read the key {shown(str(path))}: {error.strerror}") from None


class _Prompt:
    """Takes the keys that are loaded, where no other was named; else asks a person, once."""

    def __init__(self, materials: list[bytes], *, loaded: bool) -> None:
        self._materials = materials
        self._loaded = list(keys()) if loaded else []
        self._asked = False

    def __call__(self, wrapped: WrappedKeys) -> bytes:
        from zkeep.crypto.unwrap import WrongKey, first_that_opens, key_that_opens

        try:
            return key_that_opens(self._loaded, wrapped)
        except WrongKey:
            pass
        try:
            return first_that_opens(self._materials)(wrapped)
        except WrongKey as error:
            if self._asked or self._loaded:
                raise error from None
        self._materials.append(self._ask(wrapped))
        return first_that_opens(self._materials)(wrapped)

    def _ask(self, wrapped: WrappedKeys) -> bytes:
        from zkeep.crypto.unwrap import KeyFormat

        self._asked = True
        way = "load it with zkeep load-key, or give it with -L file:///path"
        if not sys.stdin.isatty():
            raise Refused(f"it is encrypted and no key is here that opens it: {way}")
        if wrapped.keyformat == KeyFormat.RAW:
            raise Refused(f"its key is raw bytes, which cannot be typed: {way}")
        return typed(wrapped.keyformat, "")


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


def is_stream(text: str) -> bool:
    """Whether an argument is a file with a send stream."""
    path = Path(text)
    if not path.is_file():
        return False
    with path.open("rb") as source:
        head = source.read(HEADER)
    return len(head) == HEADER and MAGIC in (int.from_bytes(head[8:16], "little"), int.from_bytes(head[8:16], "big"))


@contextmanager
def snapshots_of(arguments: Sequence[str], count: int = 1) -> Iterator[tuple[Pool, list[Snapshot], list[str]]]:
    """The pool, `count` snapshots, and the arguments after them.

    Stream files are received into a pool of their own, in their order, which is gone afterwards; the snapshots are
    then the newest of the dataset that was sent, unless `@snap` or `child@snap` follow.
    """
    streams = []
    for text in arguments:
        if not is_stream(text):
            break
        streams.append(text)
    rest = list(arguments[len(streams) :])
    with ExitStack() as stack:
        if not streams:
            names = [_snapshot_name(text) for text in rest[:count]]
            if len(names) < count:
                raise WrongUsage("name a snapshot (pool/dataset@snapshot) or stream files")
            pool = stack.enter_context(open_pool(names[0]))
            yield pool, [pool.snapshot(name) for name in names], rest[count:]
            return
        pool = stack.enter_context(received(streams))
        given = [text for text in rest[:count] if "@" in text]
        yield pool, _chosen(pool, given, count), rest[len(given) :]


def _snapshot_name(text: str) -> SnapshotName:
    name = parse_any(text)
    if not isinstance(name, SnapshotName):
        raise WrongUsage(f"{shown(text)} is not a snapshot: name it as pool/dataset@snapshot")
    return name


@contextmanager
def received(streams: Sequence[str]) -> Iterator[Pool]:
    """A pool with what the stream files bring, gone afterwards."""
    from zkeep.format.reader import read_events
    from zkeep.pool.datasets.model import Pool
    from zkeep.pool.transfer.receive import ReceiveOptions, receive

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="zkeep-"))
        pool = stack.enter_context(Pool.create(Path(folder) / "pool", "streams", {"blind": "off"}))
        for path in streams:
            with open(path, "rb") as source:
                target = target_of(pool, read_events(source))
            with open(path, "rb") as source:
                receive(pool, source, target, ReceiveOptions(force=True))
        yield pool


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


def _chosen(pool: Pool, given: list[str], count: int) -> list[Snapshot]:
    if given:
        names = [SnapshotName.parse(TOP + ("" if text.startswith("@") else "/") + text) for text in given]
        return [pool.snapshot(name) for name in names]
    dataset = pool.dataset(DatasetName(TOP))
    newest = pool.snapshots(dataset)[-count:]
    if len(newest) < count:
        raise WrongUsage(f"the streams bring {len(newest)} snapshot(s), {count} are needed")
    return newest


@contextmanager
def opened_snapshot(arguments: Sequence[str], locations: Sequence[str]) -> Iterator[tuple[OpenSnapshot, list[str]]]:
    """The snapshot that the arguments begin with, opened, and the arguments after it."""
    from zkeep.snapshot.open import OpenSnapshot

    with ExitStack() as stack:
        pool, (snapshot,), rest = stack.enter_context(snapshots_of(arguments))
        yield stack.enter_context(OpenSnapshot(pool, snapshot, keys_from(locations))), rest
