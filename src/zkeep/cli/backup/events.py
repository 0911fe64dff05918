"""The events of a backup, printed as lines for a person or as JSON objects."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from zkeep.backup.plan import Point
from zkeep.cli.common.progress import Meter
from zkeep.cli.common.text import nice_bytes
from zkeep.names import printable


class Events:
    """Prints what happens. Without -v, only what is made and, on a terminal, how far a stream is."""

    def __init__(self, as_json: bool, verbose: bool) -> None:
        self._as_json = as_json
        self._verbose = verbose
        self._meter: Meter | None = None
        self._name = ""

    def __call__(self, event: str, **fields: Any) -> None:
        """An event of a stream (backup/run.py)."""
        if event == "progress":
            self._progress(int(fields["bytes"]))
            return
        self._clear()
        if event == "send":
            self._name = f"send {fields['to'].name}"
            self._meter = Meter(0) if sys.stderr.isatty() and not self._as_json else None
            since = f" since {fields['source'].name}" if fields["source"] else " in full"
            rest = f", from byte {fields['resumed']} on" if fields["resumed"] else ""
            self.say(event, f"sending {fields['to'].name}{since}{rest}", **fields)
        else:
            self.say(event, f"sent {fields['to'].name}: {nice_bytes(int(fields['bytes']))}", **fields)

    def say(self, event: str, text: str, *, always: bool = False, **fields: Any) -> None:
        """An event, in words and as it is."""
        if self._as_json:
            self._json(event, **fields)
        elif self._verbose or always:
            click.echo(printable(text))

    def done(self, text: str, status: int = 0) -> None:
        self._clear()
        if self._as_json:
            self._json("done", status=status)
        elif self._verbose or sys.stdout.isatty():
            click.echo(printable(text))

    def failed(self, text: str, status: int) -> None:
        self._clear()
        if self._as_json:
            self._json("failed", status=status, why=text)

    def _json(self, event: str, **fields: Any) -> None:
        plain = {name: _plain(value) for name, value in fields.items()}
        sys.stdout.write(json.dumps({"what": event, **plain}, separators=(",", ":")) + "\n")
        sys.stdout.flush()

    def _progress(self, size: int) -> None:
        if self._meter is not None:
            self._meter.bytes(self._name, size)

    def _clear(self) -> None:
        if self._meter is not None:
            self._meter.end()
            self._meter = None


def _plain(value: Any) -> Any:
    if isinstance(value, Point):
        return {"name": value.name, "guid": str(value.guid)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
