"""What is encrypted here has the shapes that the kernel's own raw stream of the same snapshot has.

A chain of an encrypted dataset comes raw, and its last snapshot in clear as well: objects, their trees, sizes of blocks
and holes must be the same when the plain one was encrypted here, whatever the keys are.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from reencryptkit import encrypted_pool, raw_stream, take
from zkeep.format.events import Batch
from zkeep.format.reader import read_events
from zkeep.format.records import RecordType

FOLDERS = [Path(__file__).parents[1] / "data" / "plain"]
FOLDERS += [Path(where) / "chains" for where in [os.environ.get("ZKEEP_VECTORS", "")] if where]
PLAIN = sorted({path.name: path for folder in FOLDERS for path in folder.glob("*.plainLec-s*.zfs")}.values())
COMPARED = {
    RecordType.OBJECT_RANGE: ("firstobj", "numslots", "flags"),
    RecordType.OBJECT: (
        *("object", "type", "bonustype", "blksz", "bonuslen", "checksumtype", "compress", "dn_slots", "flags"),
        *("raw_bonuslen", "indblkshift", "nlevels", "nblkptr", "maxblkid"),
    ),
    RecordType.WRITE: ("object", "type", "offset", "logical_size"),
    RecordType.FREE: ("object", "offset", "length"),
    RecordType.FREEOBJECTS: ("firstobj", "numobjs"),
    RecordType.SPILL: ("object", "length"),
}


def shapes(source: BinaryIO) -> dict[str, list[tuple[int, ...]]]:
    found: dict[str, list[tuple[int, ...]]] = {rtype.name: [] for rtype in COMPARED}
    for event in read_events(source):
        if isinstance(event, Batch):
            for rtype, names in COMPARED.items():
                found[rtype.name] += event.select(rtype)[1][list(names)].tolist()
    # A plain stream does not say how many blocks of dnodes there ever were behind its last object.
    last = found["OBJECT"][-1][0]
    freed = [(first, min(count, last + 1 - first)) for first, count in found["FREEOBJECTS"]]
    found["FREEOBJECTS"] = [(first, count) for first, count in freed if count > 0]
    return found


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.name.partition(".")[0])
def test_objects_and_blocks_have_the_shapes_that_the_kernel_gives_them(path: Path, tmp_path: Path) -> None:
    chain, _, name = path.name.removesuffix(".zfs").partition(".plainLec-")
    with encrypted_pool(tmp_path / "pool") as pool:
        take(pool, path.read_bytes())
        ours = shapes(io.BytesIO(raw_stream(pool, f"v/enc/ds@{name}")))
    with (path.parent / f"{chain}.full-{name}.zfs").open("rb") as source:
        theirs = shapes(source)
    for kind, want in theirs.items():
        assert ours[kind] == want, kind
