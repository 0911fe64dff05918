"""What `zkeep pool scrub` prints, and what `zkeep pool status` says of scrubs."""

from __future__ import annotations

import sys
from functools import partial

import click

from zkeep.cli.common import text
from zkeep.cli.common.pools import wait
from zkeep.cli.common.progress import Meter
from zkeep.cli.common.terminal import say
from zkeep.cli.common.text import count, nice_bytes, safe
from zkeep.errors import Damaged
from zkeep.pool.datasets.lifecycle import Status
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.types import Doc


def scrub_pool(registry: Registry, name: str, rebuild: bool) -> None:
    """Scrub a pool, and print each fault as a line on standard error. Raises Damaged if there is any."""
    from zkeep.pool.maintenance.scrub import rebuild_catalog, scrub

    # The catalog first, from the pool's other files: without it no pool opens.
    lost = rebuild_catalog(registry.path(name), wait()) if rebuild else []
    meter = Meter(0) if sys.stderr.isatty() else None
    try:
        with registry.open(name, wait()) as pool:
            report = scrub(pool, partial(meter.bytes, f"scrub {name}") if meter else None)
    finally:
        if meter:
            meter.end()
    faults = [*lost, *report.errors]
    # Every fault is named; the status says that there are any.
    for fault in faults:
        say(safe(str(fault)))
    if faults:
        raise Damaged(f"{name}: {count(len(faults), 'error')}; 'zkeep pool status -v {name}' lists them")
    rate = nice_bytes(int(report.bytes / max(report.seconds, 0.001)))
    click.echo(f"{name}: {nice_bytes(report.bytes)} verified in {report.seconds:.1f} seconds ({rate}/s), no errors")


def cancel(registry: Registry, name: str) -> None:
    """Have the scrub of a pool stop; it says so, and ends, within a second."""
    from zkeep.pool.maintenance.scrub_state import request_cancel

    with registry.open(name, wait()) as pool:
        request_cancel(pool)


def scan_lines(pool: Status) -> list[str]:
    """The lines that zpool prints after `scan:`."""
    if pool.begun and pool.scrubbing:
        return _in_progress(pool.begun)
    if pool.scrubbing:
        return ["scrub in progress"]
    last = _last(pool.scrub) if pool.scrub else "none requested"
    if pool.begun and pool.begun.get("at", 0) > (pool.scrub or {}).get("finished", 0):
        done = f"{_share(pool.begun):.2f}% done"
        return [f"scrub canceled or interrupted on {text.date(int(pool.begun['at']), True)}, {done}", f"before: {last}"]
    return [last]


def _in_progress(doc: Doc) -> list[str]:
    """Progress as last noted; the clock has advanced since then."""
    done, total = int(doc["done"]), int(doc["total"])
    rate = done / max(float(doc["at"]) - int(doc["started"]), 1.0)
    left = f"{_hours((total - done) / rate)} to go" if rate else "no estimated completion time"
    return [
        f"scrub in progress since {text.date(int(doc['started']), True)}",
        f"{nice_bytes(done)} / {nice_bytes(total)} scanned at {nice_bytes(int(rate))}/s",
        f"0B repaired, {_share(doc):.2f}% done, {left}",
    ]


def _share(doc: Doc) -> float:
    return min(100.0, 100 * int(doc["done"]) / max(int(doc["total"]), 1))


def _last(done: Doc) -> str:
    size = nice_bytes(int(done.get("bytes", 0)))
    when = text.date(int(done.get("finished", 0)), with_seconds=True)
    found = count(len(done.get("errors", [])), "error")
    return f"scrub verified {size} in {_hours(float(done.get('seconds', 0)))} with {found} on {when}"


def _hours(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"
