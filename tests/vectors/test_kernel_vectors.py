"""What the real kernel once found fault with: tests/interop/vectors.py made these streams.

That the key opens them, and what they then show, test_open_vectors.py and its like hold against their manifests.
"""

from __future__ import annotations

import io
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
from manifests import DATA, Case, cases, received

from zkeep.format.events import Package
from zkeep.format.nvlist import NvList
from zkeep.format.reader import read_events
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.send import SendRequest, send

FOLDER = DATA / "kernel"
SCRIPT = Path(__file__).parents[1] / "interop" / "vectors.py"
MANIFESTS = sorted(FOLDER.glob("*.zfs.json.xz"))


def case(name: str) -> Case:
    return next(found for found in cases() if found.name == name)


def replicated(pool: Pool, snapshot: str) -> list[NvList]:
    """The datasets that the outer header of zkeep send -R -w tells of."""
    out = io.BytesIO()
    send(pool, SendRequest(snapshot=snapshot, raw=True, replicate=True), out)
    package = next(iter(read_events(io.BytesIO(out.getvalue()))))
    assert isinstance(package, Package)
    fss = package.nvlist["fss"]
    assert isinstance(fss, NvList)
    return [entry for entry in fss.values() if isinstance(entry, NvList)]


def test_every_root_of_encryption_has_a_keylocation(tmp_path: Path) -> None:
    """zfs receive aborts on an assertion where `is_encroot` comes without it."""
    with received(case("roots"), tmp_path) as pool:
        entries = replicated(pool, "v/x@s0")
    roots = {entry["name"]: entry["props"] for entry in entries if "is_encroot" in entry}
    told = {name: props["keylocation"] for name, props in roots.items() if isinstance(props, NvList)}
    assert told == {"v/x": "prompt", "v/x/y": "prompt"}


def origins(pool: Pool) -> dict[str, str]:
    """What each clone is a clone of."""
    found = {str(d.name): pool.snapshot_at(*d.origin) for d in pool.tree().by_name.values() if d.origin}
    return {name: str(origin and origin.name) for name, origin in found.items()}


def test_a_promoted_clone_is_the_origin_now(tmp_path: Path) -> None:
    with received(case("promoted"), tmp_path) as pool:
        assert origins(pool) == {"v/x/a": "v/x/b@r0"}


def test_a_past_is_parted_where_the_source_parted_it(tmp_path: Path) -> None:
    with received(case("parted"), tmp_path) as pool:
        assert origins(pool) == {"v/x/a": "v/x/b@r0", "v/x/c": "v/x/a@r1"}
        kept = {str(s.name) for some in pool.all_snapshots().values() for s in some}
    assert {f"v/x/a/child@r{number}" for number in range(4)} <= kept
    assert {"v/x/b@r0", "v/x/b@r3", "v/x/a@r1", "v/x/a@r2", "v/x/a@r3"} <= kept
    assert not {"v/x/a@r0", "v/x/b@r1"} & kept


def test_a_parent_is_sent_before_its_child_and_an_origin_before_its_clone(tmp_path: Path) -> None:
    with received(case("crossed"), tmp_path) as pool:
        names = [str(entry["name"]) for entry in replicated(pool, "v/x@r1")]
    assert names == ["v/x", "v/x/z", "v/x/z/k", "v/x/a"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name.removesuffix(".zfs.json.xz"))
def test_a_vector_is_small_and_says_how_it_was_made(path: Path) -> None:
    manifest: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
    made = re.match(r"tests/interop/vectors\.py (\w+): ", manifest["made"])
    assert made
    assert f"def {made[1]}(lab: Lab)" in SCRIPT.read_text()
    streams = [name for name in (*manifest["base"].split(","), manifest["stream"]) if name]
    assert sum((FOLDER / name).stat().st_size for name in streams) < 200_000
    assert manifest["keys"]


def test_no_stream_is_without_its_manifest() -> None:
    named: set[str] = set()
    for path in MANIFESTS:
        named |= set(json.loads(lzma.decompress(path.read_bytes()))["into"])
    assert named == {path.name for path in FOLDER.glob("*.zfs")}
