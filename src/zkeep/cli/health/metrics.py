"""zkeep metrics: the health of pools in Prometheus's text format."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import click

from zkeep.cli.common.examined import examined
from zkeep.cli.common.named_files import replace_file
from zkeep.errors import WrongUsage
from zkeep.names import shown, whole_number
from zkeep.pool.maintenance.health import PoolHealth

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily

_LOCAL = ("127.0.0.1", "::1", "localhost")
_KINDS = ("late", "damaged", "unwritable", "full", "unverified", "clock")


@click.command("metrics")
@click.option("-o", "file", metavar="FILE", help="Write to FILE, whole or not at all: for node_exporter's textfiles.")
@click.option("--listen", "listen", metavar="127.0.0.1:PORT", help="Answer Prometheus there, until interrupted.")
@click.argument("names", nargs=-1, metavar="[POOL|DATASET]...")
def metrics_verb(file: str | None, listen: str | None, names: Sequence[str]) -> None:
    """Print the health of pools and datasets as metrics, in Prometheus's text format.

    \b
        zkeep metrics -o /var/lib/node_exporter/textfile/zkeep.prom
        zkeep metrics --listen 127.0.0.1:9133
    """
    from prometheus_client import generate_latest

    if file and listen:
        raise WrongUsage("-o and --listen exclude each other")
    if listen:
        _serve(*_address(listen), names)
        return
    content = generate_latest(_registry(names))
    if file:
        # Replaced whole, so that a collector never reads half of it.
        replace_file(Path(file), content)
    else:
        sys.stdout.write(content.decode())


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    try:
        number = whole_number(port, 65535, 1)
    except ValueError:
        raise WrongUsage(f"--listen is an address and a port, like 127.0.0.1:9133, not {shown(text)}") from None
    # There is no password: names of datasets are not for the network.
    if host not in _LOCAL:
        raise WrongUsage(f"--listen is for this machine only, as names are told: 127.0.0.1, not {shown(host)}")
    return host, number


def _serve(host: str, port: int, names: Sequence[str]) -> None:
    from prometheus_client import start_http_server

    start_http_server(port, host, _registry(names))
    Event().wait()


class _Collector:
    """Looks at the pools each time that it is asked."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def collect(self) -> Iterator[GaugeMetricFamily]:
        return families(examined(self._names))


def _registry(names: Sequence[str]) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(names))
    return registry


def families(pools: Sequence[PoolHealth]) -> Iterator[GaugeMetricFamily]:
    """The metrics; a figure that is not known is left out."""
    from prometheus_client.core import GaugeMetricFamily

    # Prometheus wants all samples of a metric together, each with its label.
    def family(name: str, text: str, label: str, values: Sequence[tuple[str, int | None]]) -> GaugeMetricFamily:
        made = GaugeMetricFamily(f"zkeep_{name}", text, labels=[label])
        for thing, value in values:
            if value is not None:
                made.add_metric([thing], value)
        return made

    yield family("pool_size_bytes", "Bytes of the disk.", "pool", [(p.name, p.size) for p in pools])
    yield family("pool_free_bytes", "Bytes that are free on the disk.", "pool", [(p.name, p.free) for p in pools])
    when = [(p.name, p.scrubbed_at) for p in pools]
    yield family("scrub_finished_timestamp_seconds", "When the last scrub ended.", "pool", when)
    yield family("scrub_errors", "What the last scrub found.", "pool", [(p.name, p.scrub_errors) for p in pools])
    every = [d for p in pools for d in p.datasets]
    newest, told = [(d.name, d.received_at) for d in every], "When the newest snapshot was received, or taken here."
    yield family("newest_snapshot_timestamp_seconds", told, "dataset", newest)
    arrived = [(d.name, d.arrival.at if d.arrival else None) for d in every]
    yield family("last_arrival_timestamp_seconds", "When a backup last arrived at its destination.", "dataset", arrived)
    yield family("max_age_seconds", "The property max_age.", "dataset", [(d.name, d.max_age) for d in every])
    quotas = [(d.name, d.quota or None) for d in every]
    yield family("quota_bytes", "The property quota.", "dataset", quotas)
    used = [(d.name, d.quota_used if d.quota else None) for d in every]
    yield family("quota_used_bytes", "Bytes that count against the quota.", "dataset", used)
    partial = [(d.name, d.partial.bytes if d.partial else 0) for d in every]
    yield family("partial_receive_bytes", "Bytes of an unfinished receive.", "dataset", partial)
    verified = [(d.name, d.verified_at) for d in every]
    yield family("verified_timestamp_seconds", "When it was last verified with the key.", "dataset", verified)
    problems = GaugeMetricFamily("zkeep_problem", "1: there is a problem of this kind.", labels=["name", "kind"])
    for name, kinds in _kinds(pools).items():
        for kind in _KINDS:
            problems.add_metric([name, kind], int(kind in kinds))
    yield problems


def _kinds(pools: Sequence[PoolHealth]) -> dict[str, set[str]]:
    """By name; a pool and its top dataset have one."""
    found: dict[str, set[str]] = {}
    for pool in pools:
        for name, problems in [(pool.name, pool.problems), *((d.name, d.problems) for d in pool.datasets)]:
            found.setdefault(name, set()).update(problem.kind for problem in problems)
    return found
