"""zkeep health: what is late, damaged, unwritable, full or unverified; and telling somebody when that changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from zkeep.cli.common import asjson, text
from zkeep.cli.common.examined import examined
from zkeep.cli.common.output import json_option
from zkeep.clock import seconds_now
from zkeep.errors import TryAgain
from zkeep.pool.datasets.retention import span
from zkeep.pool.maintenance.health import DatasetHealth, HealthProblem, PoolHealth, status


@click.command("health")
@click.option("-v", "verbose", is_flag=True, help="Name datasets that are fine, too.")
@json_option
@click.option("--notify", "notify", is_flag=True, help="Tell what changed since the last time, as 'notify' says.")
@click.argument("names", nargs=-1, metavar="[POOL|DATASET]...")
def health_verb(verbose: bool, as_json: bool, notify: bool, names: Sequence[str]) -> None:
    """Say what is late, damaged, unwritable, full, or was not verified for long. Without a name, of all pools.

    A dataset is late when its newest snapshot was received longer ago than 'max_age' allows, or, where 'zkeep backup'
    sends it to a host, the last one that arrived there; a pool is unverified when its last scrub was longer ago than
    'max_scrub_age'. A disk or a quota is full when 5 % of it are left, and a dataset as long as nothing came since a
    snapshot was refused for lack of room. A pool is unwritable when its disk is read-only, as file systems become
    after an error.

    Exit status: 0 all is well, 1 something is late, full, unwritable or unverified, 3 something is damaged, 5 somebody
    could not be told: that is tried again the next time.

    With --notify, run by a timer, the target in 'notify' gets a notice when a dataset or a pool changes to late,
    damaged, unwritable, full, unverified, or recovers: a URL gets a POST of JSON, mailto:ADDRESS a mail through
    sendmail, exec:COMMAND runs with the JSON on standard input, without a shell.

    \b
        zkeep set max_age=36h vault/clients
        zkeep set notify=mailto:ann@example.org vault
        zkeep health -v vault
    """
    pools = examined(names)
    if as_json:
        objects = {pool.name: _pool_object(pool) for pool in pools}
        sys.stdout.write(asjson.dump({"output_version": asjson.version("zkeep health"), "pools": objects}))
    else:
        for pool in pools:
            late = [d for d in pool.datasets if d.problems]
            scrub = "never scrubbed" if pool.scrubbed_at is None else f"scrubbed {_ago(pool.scrubbed_at)}"
            room = f"{text.nice_bytes(pool.free)} of {text.nice_bytes(pool.size)} free"
            count = f"{len(pool.datasets) - len(late)} of {text.count(len(pool.datasets), 'dataset')} fine"
            # A line for the pool, then one for each dataset that is not fine; with -v for all.
            lines = [f"{pool.name}: {_verdict(pool.problems)}{scrub}, {room}, {count}"]
            click.echo("\n".join(lines + [f"  {_line(d)}" for d in (pool.datasets if verbose else late)]))
    failed = False
    # The status says both: what was found, and whether telling somebody failed.
    if notify:
        from zkeep.cli.health.notify import notify_changes

        failed = not all([notify_changes(pool) for pool in pools])
    found = status(pools)
    click.get_current_context().find_root().meta["status"] = TryAgain.status if failed and found != 3 else found


# What is printed


def _verdict(problems: Sequence[HealthProblem]) -> str:
    return "".join(f"{p.kind.upper()}: {p.text}; " for p in problems)


def _line(dataset: DatasetHealth) -> str:
    newest = "no snapshot"
    if dataset.newest is not None:
        how = "taken" if dataset.is_made_here else "received"
        when = "at an unknown time" if dataset.received_at is None else _ago(dataset.received_at)
        newest = f"@{text.safe(dataset.newest)} {how} {when}"
    words = f"{dataset.name}: {_verdict(dataset.problems)}{newest}{_arrived(dataset)}"
    if dataset.verified_at is not None:
        words += f", verified with the key {_ago(dataset.verified_at)}"
    if dataset.partial:
        at = dataset.partial.started
        began = "" if at is None else f", begun {_ago(at)}"
        words += f"; unfinished receive of {text.nice_bytes(dataset.partial.bytes)} so far{began}"
    return words


def _arrived(dataset: DatasetHealth) -> str:
    """What became of the backups at their destination."""
    arrival = dataset.arrival
    if arrival is None:
        return ""
    if arrival.newest is None or arrival.at is None:
        return f", none arrived at {text.safe(arrival.to)} yet"
    which = "" if arrival.newest == dataset.newest else f"@{text.safe(arrival.newest)} "
    return f", {which}arrived at {text.safe(arrival.to)} {_ago(arrival.at)}"


def _ago(at: int) -> str:
    return f"{span(seconds_now() - at)} ago"


def _pool_object(pool: PoolHealth) -> asjson.Object:
    return {
        "size": pool.size,
        "free": pool.free,
        "scrubbed_at": pool.scrubbed_at,
        "scrub_errors": pool.scrub_errors,
        "problems": problems_object(pool.problems),
        "datasets": {d.name: _dataset_object(d) for d in pool.datasets},
    }


def _dataset_object(dataset: DatasetHealth) -> asjson.Object:
    partial, arrival = dataset.partial, dataset.arrival
    return {
        "newest": dataset.newest,
        "received_at": dataset.received_at,
        "made_here": dataset.is_made_here,
        "arrived": {"to": arrival.to, "newest": arrival.newest, "at": arrival.at} if arrival else None,
        "max_age": dataset.max_age,
        "quota": dataset.quota,
        "quota_used": dataset.quota_used,
        "verified_at": dataset.verified_at,
        "partial": {"started": partial.started, "bytes": partial.bytes} if partial else None,
        "problems": problems_object(dataset.problems),
    }


def problems_object(problems: Sequence[HealthProblem]) -> list[dict[str, str]]:
    return [{"kind": problem.kind, "text": problem.text} for problem in problems]
