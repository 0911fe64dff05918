"""zkeep diff: what changed between two snapshots."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from zkeep.cli.common.open_snapshot import keys_from, snapshots_of, takes_key
from zkeep.cli.common.pools import opened as open_pool
from zkeep.cli.common.stream_files import is_stream
from zkeep.cli.common.terminal import encoded
from zkeep.cli.mount.live import opened_state
from zkeep.errors import WrongUsage
from zkeep.names import DatasetName, SnapshotName, printable_path

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey
    from zkeep.restore.diff import DiffEntry
    from zkeep.snapshot.open import OpenSnapshot


@click.command("diff")
@click.option("-F", "classify", is_flag=True, help="Say what each is: F a file, / a folder, @ a link, ...")
@click.option("-H", "scripted", is_flag=True, help="Tabs, and no arrow.")
@click.option("-t", "timestamp", is_flag=True, help="Begin with the time of the change.")
@click.option("-h", "plain", is_flag=True, help="Do not escape what is not ASCII.")
@takes_key
@click.argument("arguments", nargs=-1, required=True, metavar="SNAPSHOT [SNAPSHOT|DATASET]")
def diff_verb(
    *,
    classify: bool,
    scripted: bool,
    timestamp: bool,
    plain: bool,
    key_locations: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:
    """Show what changed from the first snapshot to the second: + made, - gone, M modified, R renamed.

    With a dataset in place of the second, or alone: what changed since then, also while it is mounted.

    \b
        zkeep diff vault/home@monday @tuesday
        zkeep diff vault/home@monday
    """
    from zkeep.restore.diff import diff

    with _sides(arguments, keys_from(key_locations)) as (before, after):
        for change in diff(before, after):
            sys.stdout.buffer.write(_line(change, classify, scripted, timestamp, plain))


@contextmanager
def _sides(arguments: tuple[str, ...], get_key: GetKey) -> Iterator[tuple[OpenSnapshot, OpenSnapshot]]:
    """Open what the arguments name: two snapshots, or one and what a dataset holds now."""
    from zkeep.snapshot.open import OpenSnapshot

    first, second = arguments[0], arguments[1] if len(arguments) == 2 else ""
    if len(arguments) == 2 and second.startswith("@"):
        arguments = (first, first.partition("@")[0] + second)
    live = _dataset(first, second) if len(arguments) < 3 else None
    if live is not None:
        snapshot = SnapshotName.parse(first)
        with (
            open_pool(snapshot) as pool,
            OpenSnapshot(pool, pool.snapshot(snapshot), get_key) as before,
            opened_state(pool, pool.dataset(live), get_key, f"cannot diff '{live}'") as after,
        ):
            yield before, after
        return
    with snapshots_of(arguments, 2) as (pool, (one, other), rest):
        if rest:
            raise WrongUsage("diff takes two snapshots")
        with OpenSnapshot(pool, one, get_key) as before, OpenSnapshot(pool, other, get_key) as after:
            yield before, after


def _dataset(first: str, second: str) -> DatasetName | None:
    """The dataset whose present state is the second side; None if that is a snapshot."""
    if is_stream(first) or "@" not in first or "@" in second:
        return None
    name = DatasetName.parse(second or first.partition("@")[0])
    if name.pool != SnapshotName.parse(first).dataset.pool:
        raise WrongUsage(f"{first} and {name} are not in the same pool")
    return name


def _line(change: DiffEntry, classify: bool, scripted: bool, timestamp: bool, plain: bool) -> bytes:
    shown = _same if plain else _escaped
    parts = []
    if timestamp:
        parts.append(b"%10d.%09d" % divmod(change.node.ctime, 1_000_000_000))
    parts.append(change.kind.encode())
    if classify:
        parts.append(change.letter.encode())
    text = shown(change.path)
    # Columns are those of zfs diff -t and -F, so that scripts for it read ours.
    if change.renamed is not None:
        text += (b"\t" if scripted else b" -> ") + shown(change.renamed)
    parts.append(text)
    if change.links:
        parts.append(b"(%+d)" % change.links)
    return b"\t".join(parts) + b"\n"


def _same(path: bytes) -> bytes:
    """Letters of any language, but nothing that steers a terminal."""
    return encoded(printable_path(path))


def _escaped(path: bytes) -> bytes:
    """Bytes beyond printable ASCII as a backslash and four octal digits, as zfs diff writes them."""
    return b"".join(bytes([b]) if 0x20 < b < 0x7F and b != 0x5C else b"\\%04o" % b for b in path)
