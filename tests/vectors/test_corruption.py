"""P5: whichever single byte of a pool changes, nobody is shown wrong content, and nothing falls over.

ZKEEP_CORRUPTIONS=10000 tries that many, over all vectors at hand, instead of the few that the usual run has time for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from corruption import KINDS, Bench, Trial
from manifests import WHERE, Case, cases, received

from zkeep.crypto.unwrap import WrongKey, first_that_opens

COUNT = int(os.environ.get("ZKEEP_CORRUPTIONS", "150"))
SEED = int(os.environ.get("ZKEEP_SEED", "1"))
PLAIN = ("plain",)
"Streams that are not encrypted have no MACs: there a changed record is caught, but not all of a catalog is."


def _holes() -> Iterator[Case]:
    """Histories that have no manifest; here only what they show before and after counts. Their keys may not be here."""
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


def benches(folder: Path) -> list[Bench]:
    """The streams of the cases that a key at hand opens."""
    found = []
    for case in chosen():
        (folder / case.name).mkdir()
        received(case, folder / case.name).close()
        with suppress(WrongKey):
            found.append(Bench(folder / case.name / "pool", case, SEED))
    return found


def test_p5_ten_thousand_changed_bytes(tmp_path: Path) -> None:
    bad: list[Trial] = []
    outcomes: Counter[tuple[str, str]] = Counter()
    every = benches(tmp_path)
    for number in range(COUNT):
        trial = every[number % len(every)].trial()
        outcomes[trial.kind, trial.outcome[:60]] += 1
        if not trial.is_good:
            print(trial, flush=True)
            bad.append(trial)
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:8} {outcome:60} {count:6}")
    assert not bad
    assert {kind for kind, _ in outcomes} == set(KINDS)
    assert all(outcomes[kind, "caught"] for kind in KINDS if kind not in ("page", "journal"))
