"""What the bench seals with the writers of the product, the key opens."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from zkeep.cli.main import run
from zkeep.crypto.unwrap import first_that_opens
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

NOW = 1_700_000_000
MAKE = [sys.executable, str(Path(__file__).parents[2] / "bench" / "sealing.py")]
SIZES = ["--folders", "2", "--files", "300", "--size", "5000", "--one", "300000", "--sparse", "8388608", "--every", "7"]
LINE = re.compile(rb"-rw-r--r--    1      0      0          100 (.{12}) d0/(file-\d{6})\n")


def test_files_are_listed_by_name_whatever_order_they_lie_in(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    stream, key = tmp_path / "stream", tmp_path / "key"
    shape = ["--folders", "1", "--files", "3000", "--size", "100", "--shuffle"]
    subprocess.run([*MAKE, stream, key, *shape], check=True)
    assert run(["ls", "-lR", str(stream), "-L", f"file://{key}"]) == 0
    _, *lines = capfdbinary.readouterr().out.splitlines(keepends=True)
    found = [match.groups() for match in map(LINE.fullmatch, lines) if match]
    assert [name for _, name in found] == [b"file-%06d" % n for n in range(3000)]
    order = np.random.default_rng(1).permutation(3000).tolist()
    times = [time.localtime(NOW + 7 * (67 + at)) for at in order]
    assert [when for when, _ in found] == [time.strftime("%b %e  %Y", at).encode() for at in times]


@pytest.mark.parametrize("compress", ["off", "lz4", "zstd"])
def test_a_sealed_stream_opens(compress: str, tmp_path: Path) -> None:
    stream, key = tmp_path / "stream", tmp_path / "key"
    subprocess.run([*MAKE, stream, key, *SIZES, "--compress", compress], check=True)
    with Pool.create(tmp_path / "pool", "v", {"blind": "off"}) as pool, stream.open("rb") as source:
        receive(pool, source, "v/x", ReceiveOptions())
        (snapshot,) = [s for found in pool.all_snapshots().values() for s in found]
        with OpenSnapshot(pool, snapshot, first_that_opens([key.read_bytes()])) as opened:
            assert verify(opened).objects == 5 + 1 + 2 + 2 + 600
            filesystem = Filesystem(opened)
            assert len(list(filesystem.walk(filesystem.root))) == 604
            assert filesystem.lookup(b"d1/file-000299").size == 5000
            sparse = [(e.offset, len(e.content)) for e in filesystem.extents(filesystem.lookup(b"sparse"))]
            assert sparse == [(n * 131072, 131072) for n in range(0, 64, 7)]
            number = filesystem.lookup(b"one").number
            one = b"".join(bytes(e.content) for e in filesystem.extents(filesystem.lookup(b"one")))
            assert (one[:8], len(one)) == ((number << 24).to_bytes(8, "little"), 300_000)
