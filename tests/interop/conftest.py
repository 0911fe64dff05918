"""A machine with the real kernel module for the whole session, and a blind pool beside it.

`python tests/interop` builds the machine and runs the tests in it; without it they are skipped, and say why. ZKEEP_ZFS
names the series (2.1, 2.3, 2.4).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "vectors")]

from build import RELEASES, missing  # noqa: E402
from build import machine as built_machine  # noqa: E402
from found import write_down  # noqa: E402
from lab import Lab  # noqa: E402
from machine import Guest  # noqa: E402

SERIES = os.environ.get("ZKEEP_ZFS", "2.3")
MATRIX = pytest.StashKey[list[str]]()
FOUND = Path(os.environ.get("ZKEEP_FOUND") or HERE / "found")
"What a test that fails had to do with is written down there; see CONTRIBUTING.md."


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.openzfs)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MATRIX] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a failed test gave to zkeep becomes a vector, while the machine still has it."""
    report = yield
    used = getattr(item, "funcargs", {}).values()
    labs = [lab for lab in (getattr(value, "lab", value) for value in used) if isinstance(lab, Lab)]
    if report.when == "call" and report.failed and labs and labs[0].given:
        report.sections.append(("written down", _written(item, labs[0], str(call.excinfo and call.excinfo.value))))
    return report


def _written(item: pytest.Item, lab: Lab, error: str) -> str:
    name = re.sub(r"\W+", "-", item.name).strip("-")
    folder = FOUND / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        write_down(lab, folder, name, f"pytest -m openzfs {item.nodeid} (series {SERIES}): {error}")
    except Exception as problem:  # the test's own failure is what is to be told
        return f"the vector could not be written: {problem!r}"
    return f"streams, keys, and what the kernel shows: {folder}; try ZKEEP_VECTORS={folder} pytest tests/vectors"


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
    lacks = missing(RELEASES[SERIES])
    if not (at / "ready").exists() or not shutil.which("qemu-system-x86_64"):
        why = f": the host lacks {' '.join(lacks)}" if lacks else ""
        pytest.skip(f"no machine with OpenZFS {SERIES}{why}; python tests/interop --zfs {SERIES} builds and runs it")
    with Guest(at) as running:
        running.make_pools()
        yield running


@pytest.fixture
def lab(guest: Guest, tmp_path: Path) -> Iterator[Lab]:
    """The machine, and a new pool of zkeep; what the test made in the machine is gone afterwards."""
    found = Lab(guest, tmp_path)
    yield found
    found.clean()
