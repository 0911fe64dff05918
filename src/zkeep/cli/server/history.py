"""zkeep history."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

from zkeep.cli.common import text
from zkeep.cli.common.pools import opened, registry
from zkeep.names import DatasetName
from zkeep.pool.datasets.commands import HistoryEntry, entries

_RESULTS = {0: "done", 1: "refused or failed", 2: "wrong usage", 3: "damaged", 4: "not authentic", 5: "try again"}


@click.command("history")
@click.option("-H", "scripted", is_flag=True, help="No head, one tab between columns, exact numbers.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON, one line an entry.")
@click.argument("names", nargs=-1, metavar="[POOL|DATASET]...")
def history_verb(scripted: bool, as_json: bool, names: Sequence[str]) -> None:
    """Show what clients of 'zkeep server' did: when, who, from where, the command, the bytes, and how it ended.

    Of each client the last 2000 commands that changed something or sent something back are kept, and the last 200 that
    were refused. With DATASET, those of clients whose root is there or below.

    \b
        zkeep history vault
        zkeep history -H vault/alice | cut -f 1,5,8,9
    """
    found = [pair for name in names or registry().pools() for pair in _of(DatasetName.parse(name))]
    if as_json:
        for root, entry in found:
            click.echo(json.dumps(asdict(entry) | {"root": root.text}, separators=(",", ":")))
        return
    rows = [_row(root, entry, scripted) for root, entry in found]
    if scripted:
        click.echo(text.tabbed(rows), nl=False)
    elif rows:
        click.echo(text.table(_HEAD, rows, _RIGHT), nl=False)


_HEAD = ("TIME", "ROOT", "CLIENT", "FROM", "RECEIVED", "SENT", "SECONDS", "RESULT", "COMMAND")
_RIGHT = (False, False, False, False, True, True, True, False, False)


def _of(name: DatasetName) -> Iterator[tuple[DatasetName, HistoryEntry]]:
    with opened(name) as pool:
        if not pool.is_above_scope(name):
            pool.dataset(name)
        yield from ((root, entry) for root, entry in entries(pool) if root.is_within(name))


def _row(root: DatasetName, entry: HistoryEntry, exact: bool) -> Sequence[str]:
    size = str if exact else text.nice_bytes
    when = str(entry.at) if exact else time.strftime("%Y-%m-%d.%H:%M:%S", time.localtime(entry.at))
    told = (when, root.text, text.safe(entry.client), text.safe(entry.peer), size(entry.received), size(entry.sent))
    result = str(entry.status) if exact else _RESULTS.get(entry.status, str(entry.status))
    return (*told, f"{entry.milliseconds / 1000:.1f}", result, text.safe(entry.command))
