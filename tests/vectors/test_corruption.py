"""P5: whichever single byte of a pool changes, nobody is shown wrong content, and nothing falls over.

ZKEEP_CORRUPTIONS=10000 tries that many, over all vectors at hand, instead of the few that the usual run has time for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from corruption import Bench, Trial
from manifests import WHERE, Case, cases, received

from zkeep.crypto.unwrap import first_that_opens

COUNT = int(os.environ.get("ZKEEP_CORRUPTIONS", "150"))
SEED = int(os.environ.get("ZKEEP_SEED", "1"))
PLAIN = ("plain",)
"Streams that are not encrypted have no MACs: there a changed record is caught, but not all of a catalog is."


def _holes() -> Iterator[Case]:
    """Histories that have no manifest; here only what they show before and after counts."""
    for first in sorted(Path(WHERE).glob("holes/*.full-s0.zfs")) if WHERE else ():
        name = first.name.partition(".")[0]
        count = len(list(first.parent.glob(f"{name}.full-s*.zfs")))
        steps = [first.parent / f"{name}.inc-s{n}-s{n + 1}.zfs" for n in range(count - 1)]
        keys = [path.read_bytes() for path in sorted(Path(WHERE).glob("keys/*"))]
        yield Case(f"holes-{name}", [first, *steps], first_that_opens(keys))


def chosen() -> list[Case]:
    """Small pools with several snapshots, of as many suites as there are."""
    found = [case for case in cases() if not any(word in case.name for word in PLAIN)]
    small = [case for case in found if sum(path.stat().st_size for path in case.streams) < 3 << 20]
    composed = [case for case in small if not case.name.rpartition(".")[2].startswith("full-s")]
    return [*composed, *_holes()]


def test_p5_ten_thousand_changed_bytes(tmp_path: Path) -> None:
    every = chosen()
    each = -(-COUNT // len(every))
    bad: list[Trial] = []
    outcomes: Counter[str] = Counter()
    for case in every:
        (tmp_path / case.name).mkdir()
        received(case, tmp_path / case.name).close()
        bench = Bench(tmp_path / case.name / "pool", case, SEED)
        for _ in range(each):
            trial = bench.trial()
            outcomes[trial.outcome[:60]] += 1
            if not trial.is_good:
                print(trial, flush=True)
                bad.append(trial)
    print(outcomes)
    assert not bad
    assert outcomes["caught"] > COUNT // 4
