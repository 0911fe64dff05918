"""What the bench seals, the key opens: the sealing side, which only the bench has, agrees with the opening side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zkeep.crypto.unwrap import first_that_opens
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.restore.opened import Opened
from zkeep.restore.verify import verify
from zkeep.tree.filesystem import Filesystem

MAKE = [sys.executable, str(Path(__file__).parents[2] / "bench" / "sealing.py")]
SIZES = ["--folders", "2", "--files", "300", "--size", "5000", "--one", "300000", "--sparse", "8388608", "--every", "7"]


@pytest.mark.parametrize("compress", ["off", "lz4", "zstd"])
def test_a_sealed_stream_opens(compress: str, tmp_path: Path) -> None:
    stream, key = tmp_path / "stream", tmp_path / "key"
    subprocess.run([*MAKE, stream, key, *SIZES, "--compress", compress], check=True)
    with Pool.create(tmp_path / "pool", "v", {"blind": "off"}) as pool, stream.open("rb") as source:
        receive(pool, source, "v/x", ReceiveOptions())
        (snapshot,) = [s for found in pool.all_snapshots().values() for s in found]
        with Opened(pool, snapshot, first_that_opens([key.read_bytes()])) as opened:
            assert verify(opened).objects == 5 + 1 + 2 + 2 + 600
            filesystem = Filesystem(opened)
            assert len(list(filesystem.walk(filesystem.root))) == 604
            assert filesystem.lookup(b"d1/file-000299").size == 5000
            sparse = [(e.offset, len(e.content)) for e in filesystem.extents(filesystem.lookup(b"sparse"))]
            assert sparse == [(n * 131072, 131072) for n in range(0, 64, 7)]
            number = filesystem.lookup(b"one").number
            one = b"".join(bytes(e.content) for e in filesystem.extents(filesystem.lookup(b"one")))
            assert (one[:8], len(one)) == ((number << 24).to_bytes(8, "little"), 300_000)
