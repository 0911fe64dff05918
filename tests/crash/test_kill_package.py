"""P3: a package of many small snapshots, received many in one transaction, and killed at random moments."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crashkit import leftovers

from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.send import SendRequest, send

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import scaling

KILLS = max(int(os.environ.get("ZKEEP_KILLS", "15")) // 5, 1)
WORKER = Path(__file__).with_name("package_worker.py")
DATA = DatasetName("b/data")
COUNT = 80


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "stream"
    path.write_bytes(scaling.many_small(1, COUNT))
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with the snapshot that the package goes on from."""
    folder = tmp_path_factory.mktemp("first") / "pool"
    with Pool.create(folder, "b") as pool:
        receive(pool, io.BytesIO(scaling.small(0)), "b/data", ReceiveOptions())
    return folder


@pytest.fixture(scope="module")
def uninterrupted(first: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    with Pool.open(shutil.copytree(first, tmp_path_factory.mktemp("whole") / "pool")) as pool:
        with package.open("rb") as data:
            receive(pool, data, "b/data", ReceiveOptions())
        return listed(pool)


def listed(pool: Pool) -> list[tuple[object, ...]]:
    view, dataset = View(pool), pool.dataset(DATA)
    asked = ("name", "guid", "used", "referenced", "written", "creation")
    figures = [tuple(view.get(s, name).value for name in asked) for s in pool.snapshots(dataset)]
    return [*figures, (view.charged(dataset), view.get(dataset, "used").value)]


def killed(root: Path, package: Path, letter: str, dice: random.Random) -> list[str]:
    """Begin to receive the package, and be killed; returns what was acknowledged."""
    words = [sys.executable, str(WORKER), str(root), str(package), letter]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"!ready\n"
        time.sleep(dice.random() * 0.6)
        assert process.poll() is None, "the worker failed"
        process.kill()
        return process.stdout.read().decode().splitlines()


@pytest.mark.parametrize("letter", ["-s", "-v"])
def test_p3_a_killed_package_is_a_prefix_and_sent_again_is_whole(
    letter: str, first: Path, package: Path, uninterrupted: list[tuple[object, ...]], tmp_path: Path
) -> None:
    root, dice = shutil.copytree(first, tmp_path / "pool"), random.Random(letter)
    for _ in range(KILLS):
        told = killed(root, package, letter, dice)
        with Pool.open(root) as pool:
            there = [str(s.name) for s in pool.snapshots(pool.dataset(DATA))]
            assert there == [f"b/data@s{number}" for number in range(len(there))], "whole ones, and none is left out"
            assert set(told) - {"!done"} <= set(there)
            assert scrub(pool).clean
    with Pool.open(root) as pool:
        with package.open("rb") as data:
            receive(pool, data, "b/data", ReceiveOptions(resumable=letter == "-s"))
        assert listed(pool) == uninterrupted
        compact(pool)
        assert leftovers(pool) == []
        assert scrub(pool).clean
        for number in dice.sample(range(1, COUNT), 3):
            sink = io.BytesIO()
            send(pool, SendRequest(f"b/data@s{number}", raw=True, from_=f"@s{number - 1}", received_name=True), sink)
            assert sink.getvalue() == scaling.small(number)
