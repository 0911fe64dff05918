"""zkeep prune."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from zkeep.cli.common import asjson
from zkeep.cli.common.clock import clock
from zkeep.cli.common.give_back import give_back
from zkeep.cli.common.output import json_option
from zkeep.cli.common.pools import datasets_only, opened, parse
from zkeep.cli.common.recursive import Errors
from zkeep.errors import Refused
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance import prune
from zkeep.pool.maintenance.prune import Clock, Verdict


@dataclass(frozen=True)
class _PruneOptions:
    """The letters of the verb."""

    dry_run: bool
    verbose: bool
    recursive: bool
    as_json: bool
    trust_clock: bool


@click.command("prune")
@click.option("-n", "dry_run", is_flag=True, help="Change nothing; say what would go.")
@click.option("-v", "verbose", is_flag=True, help="Say of every snapshot whether it stays, and by which rules.")
@click.option("-r", "recursive", is_flag=True, help="Also what lies below.")
@json_option
@click.option("--trust-clock", "trust_clock", is_flag=True, help="The clock is right, though it jumped.")
@click.argument("names", nargs=-1, required=True, metavar="DATASET|POOL...")
def prune_verb(
    *, dry_run: bool, verbose: bool, recursive: bool, as_json: bool, trust_clock: bool, names: Sequence[str]
) -> None:
    """Destroy the snapshots that the property 'retention' does not keep. With a pool's name: in all of it.

    Ages count from when a snapshot was received here, in the local time zone (TZ). The first snapshot of an hour, day,
    week, month or year represents it; periods in which nothing was received do not count. Whatever the rules say, the
    newest snapshot of each dataset stays, what is held, cloned, bookmarked or needed by a receive, everything younger
    than 'retention_min', and everything while the last scrub's damage stands.

    A receive prunes its dataset at its end. Space goes back to the disk in steps: one follows at once, 'zkeep pool
    compact' does the rest.

    \b
        zkeep set retention=hourly=24,daily=30,weekly=8,monthly=12,yearly=3 retention_min=7d vault
        zkeep set 'retention=1x1h(keep=all) | 24x1h | 14x1d' vault/mail
        zkeep prune -nv vault/home
        zkeep prune vault
    """
    wanted, errors = _PruneOptions(dry_run, verbose, recursive, as_json, trust_clock), Errors()
    found: asjson.Object = {}
    for name in datasets_only(parse(names), "prune"):
        with errors.spared(), opened(name) as pool:
            _prune_below(pool, name, clock(), wanted, errors, found)
    if as_json:
        sys.stdout.write(asjson.dump({"output_version": asjson.version("zkeep prune"), "datasets": found}))
    errors.conclude()


def _prune_below(
    pool: Pool, name: DatasetName, now: Clock, wanted: _PruneOptions, errors: Errors, found: asjson.Object
) -> None:
    chosen = prune.datasets(pool, name, wanted.recursive)
    if not wanted.trust_clock:
        prune.check_clock(pool, now)
    if not wanted.dry_run:
        prune.note_time(pool, now)
    several = len(chosen) > 1 or name.parent is None or wanted.recursive
    destroyed: set[int] = set()
    for dataset in chosen:
        with errors.spared():
            if _prune_one(pool, dataset, now, wanted, found, required=not several):
                destroyed.add(dataset.id)
    give_back(pool, destroyed)


def _prune_one(
    pool: Pool, dataset: Dataset, now: Clock, wanted: _PruneOptions, found: asjson.Object, *, required: bool
) -> bool:
    """Prune one dataset that has a policy; whether anything was destroyed."""
    view = View(pool)
    policy = prune.policy_of(view, dataset)
    if policy is None:
        if required:
            way = f"zkeep set retention=hourly=24,daily=30 {dataset.name}"
            raise Refused(f"cannot prune {dataset.name}: no retention is set: {way}")
        return False
    # Decided for all snapshots at once: which rule keeps one depends on the others.
    decision = prune.consider(view, dataset, policy, now)
    if wanted.as_json:
        found[dataset.name.text] = {
            "retention": decision.policy.text,
            "snapshots": [_verdict(verdict) for verdict in decision.verdicts],
        }
    else:
        will = "would" if wanted.dry_run else "will"
        # Say what is kept and why with -v, and what goes with -v or -n.
        for verdict in decision.verdicts:
            if verdict.reasons and wanted.verbose:
                click.echo(f"keep {verdict.snapshot.name}: {', '.join(verdict.reasons)}")
            elif not verdict.reasons and (wanted.verbose or wanted.dry_run):
                click.echo(f"{will} destroy {verdict.snapshot.name}: no rule of {decision.policy.text} keeps it")
    return not wanted.dry_run and bool(list(prune.execute(pool, decision)))


def _verdict(verdict: Verdict) -> asjson.Object:
    snapshot = verdict.snapshot
    return {
        "name": str(snapshot.name),
        "guid": str(snapshot.guid),
        "received_at": snapshot.received_at,
        "kept": bool(verdict.reasons),
        "rules": list(verdict.reasons),
    }
