"""A live dataset behaves as a folder of this system does, whatever is done to it, over commits and mounts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import Twins, listing, live, model_listing

Zkeep = Callable[..., int]


@pytest.mark.parametrize("seed", range(3))
def test_the_same_operations_have_the_same_results_and_errors(zkeep: Zkeep, tmp_path: Path, seed: int) -> None:
    top = tmp_path / "model"
    top.mkdir(mode=0o755)
    for mount in range(3):
        with live(tmp_path) as files:
            twins = Twins(files, top, 100 * seed + mount)
            twins.check()
            for number in range(150):
                twins.step()
                if number % 50 == 49:
                    files.dataset.commit()
                    twins.check()
    assert zkeep("snapshot", "v/home@s") == 0
    assert zkeep("verify", "-L", f"file://{tmp_path / 'key'}", "v/home@s") == 0
    assert zkeep("pool", "scrub", "v") == 0
    with live(tmp_path) as files:
        assert listing(files) == model_listing(top)
