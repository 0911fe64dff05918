"""What extract and verify tell on a terminal."""

from __future__ import annotations

import pytest

from zkeep.cli.progress import Meter
from zkeep.restore.files.extract import Progress


@pytest.mark.parametrize(
    ("total", "progress", "seconds", "line"),
    [
        (10 << 20, Progress(3, 1 << 20), 1.0, "3 files, 1M of 10M, 1M/s, 0:09 left"),
        (10 << 20, Progress(3, 1 << 20, 1, 5 << 20), 1.0, "3 files, 1M of 10M, 1M/s, 0:04 left"),
        (1 << 40, Progress(3, 1 << 30), 10.0, "3 files, 1G of 1T, 102M/s, 2:50:30 left"),
        (0, Progress(3, 1 << 20), 2.0, "3 files, 1M, 512K/s"),
        (1 << 20, Progress(3, 2 << 20), 2.0, "3 files, 2M, 1M/s"),
        (1 << 20, Progress(0, 0), 0.0, "0 files, 0 of 1M, 0/s"),
    ],
)
def test_it_tells_how_much_how_fast_and_how_long_still(
    total: int, progress: Progress, seconds: float, line: str
) -> None:
    assert Meter(total).line(progress, seconds) == line
