"""A machine with the real kernel module for the whole session, and a blind pool beside it.

build.py makes the machine; without it these tests are skipped, and say so. ZKEEP_ZFS names the series (2.3, 2.1).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "vectors")]

from build import machine as built_machine  # noqa: E402
from build import missing  # noqa: E402
from lab import Lab  # noqa: E402
from machine import Guest  # noqa: E402

SERIES = os.environ.get("ZKEEP_ZFS", "2.3")
MATRIX = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.openzfs)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MATRIX] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[MATRIX]
    if lines:
        terminalreporter.section("what the real kernel took")
        for line in lines:
            terminalreporter.write_line(line)


@dataclass
class Report:
    """A line for each thing that was tried."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    return Report(request.config.stash[MATRIX])


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    at = built_machine(SERIES)
    if not (at / "ready").exists():
        lacks = missing()
        why = f"; the host lacks {' '.join(lacks)}" if lacks else ""
        pytest.skip(f"there is no machine with OpenZFS {SERIES}: python tests/interop/build.py --zfs {SERIES}{why}")
    with Guest(at) as running:
        running.run("zpool create -f -O acltype=posix -O xattr=sa -O atime=off tank /dev/vda1")
        running.run("zpool create -f -O acltype=posix -O xattr=sa -O atime=off back /dev/vdb1")
        running.run("mkdir -p /root/keys")
        yield running


@pytest.fixture
def lab(guest: Guest, tmp_path: Path) -> Iterator[Lab]:
    """The machine, and a new pool of zkeep; what the test made in the machine is gone afterwards."""
    found = Lab(guest, tmp_path)
    yield found
    found.clean()
