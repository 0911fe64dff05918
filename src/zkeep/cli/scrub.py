"""What `zkeep pool scrub` prints."""

from __future__ import annotations

import sys

import click

from zkeep.cli.home import wait
from zkeep.errors import Damaged
from zkeep.pool.catalog import Catalog
from zkeep.pool.files import LocalStore
from zkeep.pool.registry import Registry

_STEP = 64 << 20


def scrub_pool(registry: Registry, name: str, rebuild: bool) -> None:
    """Damaged if there is anything that is not what was stored."""
    from zkeep.pool.scrub import scrub

    if rebuild:
        Catalog.rebuild(LocalStore(registry.path(name)), wait()).close()
    progress = Progress(name)
    with registry.open(name, wait()) as pool:
        result = scrub(pool, progress)
    progress.end()
    for fault in result.errors:
        click.echo(f"zkeep: {fault}", err=True)
    if result.errors:
        raise Damaged(f"{name}: {len(result.errors)} errors; 'zkeep pool status -v {name}' lists them")


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
