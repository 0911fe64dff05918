"""A file whose name exists in the target: kept if it is the same, refused if not, replaced with --force."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.crypto.unwrap import first_that_opens
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.restore.files.extract import Extraction, ExtractOptions
from zkeep.restore.files.target import InTheWay
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

CHAINS = Path(__file__).parents[3] / "data" / "opened" / "chains"
NAME = "gcm128-zstd-16k"
FILE = "ffd9cee"


@pytest.fixture(scope="module")
def filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filesystem]:
    manifest = json.loads(lzma.decompress((CHAINS / f"{NAME}.manifest.json.xz").read_bytes()))
    key = first_that_opens([bytes.fromhex(manifest["key"]["hex"])])
    pool = Pool.create(tmp_path_factory.mktemp("pool") / "pool", "v", {})
    with (CHAINS / f"{NAME}.full-s0.zfs").open("rb") as source:
        receive(pool, source, "v/x", ReceiveOptions())
    snapshot = pool.snapshots(next(d for d in pool.tree().by_id.values() if d.name.text == "v/x"))[0]
    with OpenSnapshot(pool, snapshot, key) as opened:
        yield Filesystem(opened)


def extract(filesystem: Filesystem, target: Path, *, force: bool = False) -> Extraction:
    work = Extraction(filesystem, ExtractOptions(force=force))
    work.extract(str(target), [FILE.encode()])
    return work


@pytest.mark.parametrize(
    ("there", "force", "result"),
    [
        ("nothing", False, "made"),
        ("nothing", True, "made"),
        ("same", False, "kept"),
        ("same", True, "made"),
        ("other", False, "in the way"),
        ("other", True, "made"),
    ],
)
def test_what_becomes_of_a_file_that_exists(
    filesystem: Filesystem, tmp_path: Path, there: str, force: bool, result: str
) -> None:
    path = tmp_path / FILE
    if there == "same":
        extract(filesystem, tmp_path)
    elif there == "other":
        path.write_bytes(b"mine")
    before = path.stat().st_ino if there != "nothing" else 0
    work = extract(filesystem, tmp_path, force=force)
    stays = result != "made"
    assert (path.stat().st_ino == before) == stays
    assert (path.read_bytes() == b"mine") == (result == "in the way")
    assert [type(error) for _, error in work.failed] == ([InTheWay] if result == "in the way" else [])
    assert work.progress.kept == (result == "kept")
    assert work.progress.files == (result != "in the way")
