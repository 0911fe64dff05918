"""The health of the pools and datasets that are named, for `health` and `metrics`."""

from __future__ import annotations

from collections.abc import Sequence

from zkeep.cli.common import text
from zkeep.cli.common.pools import by_pool, datasets_only, parse, registry, wait
from zkeep.cli.common.terminal import explained, say
from zkeep.clock import seconds_now
from zkeep.errors import TryAgain, ZkeepError
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import NotThere
from zkeep.pool.maintenance.health import HealthProblem, PoolHealth, examine

_UNREADABLE = (ZkeepError, OSError, LookupError, TypeError, ValueError, AttributeError, AssertionError)
"What opening and reading a pool that is damaged, or that somebody prepared, may raise."


def examined(names: Sequence[str]) -> list[PoolHealth]:
    """Look at pools or datasets; a pool that cannot be read is a damaged one."""
    chosen = by_pool(datasets_only(parse(names), "examine")) or {name: [] for name in registry().pools()}
    return [_examined(pool, [n for n in some if isinstance(n, DatasetName)]) for pool, some in chosen.items()]


def _examined(pool: str, names: Sequence[DatasetName]) -> PoolHealth:
    known = registry()
    known.path(pool)
    try:
        with known.open(pool, wait()) as found:
            # A dataset that is named and not there is an error, before anything is examined.
            for name in names:
                found.dataset(name)
            return examine(found, seconds_now(), names)
    except TryAgain:
        raise
    except NotThere as error:
        if names:
            raise
        say(text.safe(str(error)))
        return PoolHealth(pool, problems=[HealthProblem("unverified", "it is not there")])
    # A pool that cannot be opened is itself the finding: report it, and go on with the next.
    except _UNREADABLE as error:
        why = str(error) if isinstance(error, ZkeepError) else repr(error)
        why = explained(error) if isinstance(error, OSError) else why
        say(text.safe(f"{pool}: {why}"))
        return PoolHealth(pool, problems=[HealthProblem("damaged", "it cannot be read")])
