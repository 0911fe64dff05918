"""Notices about changes of health: the property `notify`, and what a pool remembers of the last ones.

    https://host/path           a POST of JSON
    mailto:ann@example.org      a mail
    exec:/path/to/program a b   runs it, with the JSON on its standard input; words as a shell reads them, without one

The last state that was reported lies in the pool, a document for each dataset that has a problem; so a change is
reported once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.notify import NONE
from zkeep.pool.maintenance.health import HealthProblem, PoolHealth

STATE = "health"
"The kind of the documents that remember what was reported; key: a dataset's, or empty for the pool."
_POOL = "pool"
_GRAVEST_FIRST = ("damaged", "unwritable", "full", "late", "unverified", "clock")


@dataclass(frozen=True, slots=True)
class HealthChange:
    """What became of one dataset, or of the pool."""

    name: str
    key: str
    problems: list[HealthProblem]
    "All that there are now."
    began: list[str]
    "Kinds that are new."
    ended: list[str]

    @property
    def event(self) -> str:
        """What it is called: the gravest kind that is new, `recovered`, or `better`: some problems ended."""
        new = [kind for kind in _GRAVEST_FIRST if kind in self.began]
        return new[0] if new else "better" if self.problems else "recovered"


def gravest(events: Iterable[str]) -> str:
    """The event by which several changes are called."""
    found = set(events)
    return next(event for event in (*_GRAVEST_FIRST, "better", "recovered") if event in found)


@dataclass(frozen=True, slots=True)
class NoticeTarget:
    """Whom to tell: a value of `notify`, and the dataset that it was set on. Not `ours`: on another machine."""

    to: str
    set_on: str
    ours: bool = True


def changes(
    pool: Pool, found: PoolHealth, is_ours: Callable[[Dataset], bool]
) -> Iterator[tuple[HealthChange, NoticeTarget]]:
    """The changes since the last report, each with its target.

    `is_ours`: whether a dataset's own value of `notify` was set on this machine.
    """
    top = pool.dataset(DatasetName(pool.name))
    things = [(pool.name, _POOL, top, found.problems)]
    for each in found.datasets:
        dataset = pool.dataset(DatasetName(each.name))
        things.append((each.name, dataset.key, dataset, each.problems))
    for name, key, dataset, problems in things:
        place = _place(pool, dataset, is_ours)
        # Where nobody is told, nothing counts as told: who is named later hears of what there is then.
        to_tell = [] if place.to == NONE else problems
        reported = set((pool.catalog.get(STATE, key) or {}).get("kinds", []))
        now: set[str] = {problem.kind for problem in to_tell}
        if reported != now:
            began: list[str] = sorted(now - reported)
            ended: list[str] = sorted(reported - now)
            yield HealthChange(name, key, to_tell, began, ended), place


def _place(pool: Pool, dataset: Dataset, is_ours: Callable[[Dataset], bool]) -> NoticeTarget:
    for level in (dataset, *pool.tree().ancestors(dataset)):
        if (to := level.doc["local"].get("notify")) is not None:
            return NoticeTarget(to, level.name.text, to == NONE or is_ours(level))
    return NoticeTarget(NONE, pool.name)


def remember(pool: Pool, reported: list[HealthChange]) -> None:
    """Note what was reported, so that it is not reported again."""
    with pool.transaction() as t:
        for change in reported:
            is_there = change.key == _POOL or t.get("dataset", change.key) is not None
            if change.problems and is_there:
                t.put(STATE, change.key, {"kinds": sorted({problem.kind for problem in change.problems})})
            else:
                t.delete(STATE, change.key)
