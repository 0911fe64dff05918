"""What `zkeep pool scrub` prints."""

from __future__ import annotations

import sys

import click

from zkeep.cli.home import wait
from zkeep.cli.main import say
from zkeep.cli.text import count, nice_bytes, safe
from zkeep.errors import Damaged
from zkeep.pool.datasets.registry import Registry

_STEP = 64 << 20


def scrub_pool(registry: Registry, name: str, rebuild: bool) -> None:
    """Damaged if there is anything that is not what was stored; each fault is a line on standard error."""
    from zkeep.pool.maintenance.scrub import rebuild_catalog, scrub

    lost = rebuild_catalog(registry.path(name), wait()) if rebuild else []
    progress = Progress(name)
    with registry.open(name, wait()) as pool:
        report = scrub(pool, progress)
    progress.end()
    faults = [*lost, *report.errors]
    for fault in faults:
        say(safe(str(fault)))
    if faults:
        raise Damaged(f"{name}: {count(len(faults), 'error')}; 'zkeep pool status -v {name}' lists them")
    click.echo(f"{name}: {nice_bytes(report.bytes)} verified in {report.seconds:.1f} seconds, no errors")


class Progress:
    """One line on a terminal's standard error, renewed as bytes are verified."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown = -_STEP
        self._live = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        if self._live and done - self._shown >= _STEP:
            self._shown = done
            share = 100 * done // max(total, 1)
            click.echo(f"\rscrub {self._name}: {share}% of {total >> 20} MiB", err=True, nl=False)

    def end(self) -> None:
        if self._live and self._shown >= 0:
            click.echo("\r\x1b[K", err=True, nl=False)
