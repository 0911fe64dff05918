"""zkeep diff: what changed between two snapshots."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from zkeep.cli.common.open_snapshot import keys_from, snapshots_of, takes_key
from zkeep.cli.common.terminal import encoded
from zkeep.errors import WrongUsage
from zkeep.names import printable_path

if TYPE_CHECKING:
    from zkeep.restore.diff import DiffEntry


@click.command("diff")
@click.option("-F", "classify", is_flag=True, help="Say what each is: F a file, / a folder, @ a link, ...")
@click.option("-H", "scripted", is_flag=True, help="Tabs, and no arrow.")
@click.option("-t", "timestamp", is_flag=True, help="Begin with the time of the change.")
@click.option("-h", "plain", is_flag=True, help="Do not escape what is not ASCII.")
@takes_key
@click.argument("arguments", nargs=-1, required=True, metavar="SNAPSHOT SNAPSHOT")
def diff_verb(
    *,
    classify: bool,
    scripted: bool,
    timestamp: bool,
    plain: bool,
    key_locations: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:
    """Show what changed from the first snapshot to the second: + made, - gone, M modified, R renamed."""
    from zkeep.restore.diff import diff
    from zkeep.snapshot.open import OpenSnapshot

    if len(arguments) == 2 and arguments[1].startswith("@"):
        arguments = (arguments[0], arguments[0].partition("@")[0] + arguments[1])
    get_key = keys_from(key_locations)
    with snapshots_of(arguments, 2) as (pool, (first, second), rest):
        if rest:
            raise WrongUsage("diff takes two snapshots")
        with OpenSnapshot(pool, first, get_key) as before, OpenSnapshot(pool, second, get_key) as after:
            for change in diff(before, after):
                sys.stdout.buffer.write(_line(change, classify, scripted, timestamp, plain))


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
