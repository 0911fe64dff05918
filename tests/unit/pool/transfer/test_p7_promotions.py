"""P7: many promotions that one replication follows cost as much each as few."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from zkeep.format.records import End
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.model import Dataset, Pool, dataset_key, new_guid, txg_key
from zkeep.pool.datasets.promote import promote
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.transfer import replication
from zkeep.pool.transfer.package import Wrapping, outer_header
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.types import Doc

sys.path.insert(0, str(Path(__file__).parents[4] / "bench"))
import scaling

TOP = DatasetName("b/top")
KINDS = ("run", "begin", "snapshot")


def tree(folder: Path, count: int) -> Pool:
    """A pool with b/top and below it as many datasets, each with two snapshots and a clone of the first."""
    pool = Pool.create(folder, "b")
    receive(pool, io.BytesIO(scaling.stream(0)), "b/top", ReceiveOptions())
    top = pool.dataset(TOP)
    docs = {kind: pool.catalog.get(kind, pool.snapshots(top)[-1].key) or {} for kind in KINDS}
    with pool.transaction() as t:
        for number in range(count):
            origin = add(t, top, docs, f"top/f{number}", ("a", "b"))
            add(t, top, docs, f"top/g{number}", ("c",), origin)
    return pool


def add(
    t: Transaction, like: Dataset, docs: dict[str, Doc], name: str, names: tuple[str, ...], origin: Doc | None = None
) -> Doc:
    """Make a dataset with empty snapshots; returns the first one, as an origin."""
    one, txgs = t.next_id(), [t.next_txg() for _ in names]
    fields = {"id": one, "guid": new_guid(), "name": name, "createtxg": txgs[0], "origin": origin}
    t.put("dataset", dataset_key(one), {**like.doc, **fields})
    empty = {"segments": [], "bytes": 0, "logical": 0, "records": 0, "file_bytes": 0, "dead": {}}
    for txg, snapshot in zip(txgs, names, strict=True):
        t.put("run", txg_key(one, txg), {**docs["run"], **empty, "txg": txg})
        t.put("begin", txg_key(one, txg), docs["begin"])
        t.put("snapshot", txg_key(one, txg), {**docs["snapshot"], "txg": txg, "guid": new_guid(), "name": snapshot})
    return {"dataset": one, "txg": txgs[0]}


def outline(pool: Pool) -> bytes:
    """A replication of all that brings no snapshot."""
    found = pool.tree().within(pool.dataset(TOP))
    legs = [(snapshot, None) for dataset in found for snapshot in pool.snapshots(dataset)]
    return outer_header(pool, Wrapping("b/top@s0", "s0", True, True), legs) + End(payloadlen=0).pack("little")


def origins(pool: Pool) -> dict[str, str]:
    """The datasets that clones are of, by the clones' names."""
    found = pool.tree().by_id
    return {d.name.base: found[d.origin[0]].name.base for d in found.values() if d.origin}


@pytest.mark.parametrize("letter", ["g", "f"])
def test_p7_each_dataset_is_looked_at_a_few_times(letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where promotions were taken back."""
    count, looked = 12, [0]
    tree(tmp_path / "there", count).close()
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    with Pool.open(tmp_path / "there") as there, Pool.open(tmp_path / "here") as here:
        for number in range(count):
            promote(there, DatasetName(f"b/top/g{number}"))
            if letter == "f":  # and back
                promote(there, DatasetName(f"b/top/f{number}"))
        really = replication._is_promoted

        def counted(work: replication._Replication, dataset: Dataset) -> bool:
            looked[0] += 1
            return really(work, dataset)

        monkeypatch.setattr(replication, "_is_promoted", counted)
        receive(here, io.BytesIO(outline(there)), "b/top", ReceiveOptions())
        assert origins(here) == origins(there)
        assert looked[0] <= 4 * count + 1


def test_clones_of_one_dataset_and_chains_of_them(tmp_path: Path) -> None:
    with tree(tmp_path / "there", 1) as there:
        top = there.dataset(TOP)
        docs = {kind: there.catalog.get(kind, there.snapshots(top)[-1].key) or {} for kind in KINDS}
        with there.transaction() as t:
            oldest = there.snapshot(SnapshotName.parse("b/top/f0@a"))
            first = {"dataset": oldest.dataset.id, "txg": oldest.txg}
            second = add(t, top, docs, "top/h", ("d", "e"), first)
            third = add(t, top, docs, "top/a", ("k", "l"), second)
            add(t, top, docs, "top/z", ("m",), third)
        with Pool.open(shutil.copytree(tmp_path / "there", tmp_path / "here")) as here:
            for name in ("z", "z", "g0", "a", "z"):
                promote(there, DatasetName(f"b/top/{name}"))
            receive(here, io.BytesIO(outline(there)), "b/top", ReceiveOptions())
            assert origins(here) == origins(there)
