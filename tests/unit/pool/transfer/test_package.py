"""What a compound stream's outer header tells a real zfs receive."""

from __future__ import annotations

import io
from pathlib import Path

from zkeep.format.events import Package
from zkeep.format.nvlist import NvList
from zkeep.format.reader import read_events
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.send import SendRequest, send

STREAM = Path(__file__).parents[3] / "data" / "streams" / "full-Rw.zfs"


def test_a_root_of_encryption_has_a_keylocation(tmp_path: Path) -> None:
    """zfs receive aborts on an assertion where `is_encroot` comes without it."""
    with Pool.create(tmp_path / "pool", "v") as pool:
        with STREAM.open("rb") as source:
            receive(pool, source, "v/x", ReceiveOptions())
        out = io.BytesIO()
        send(pool, SendRequest(snapshot="v/x@to-remote-server", raw=True, replicate=True), out)
    out.seek(0)
    package = next(iter(read_events(out)))
    assert isinstance(package, Package)
    fss = package.nvlist["fss"]
    assert isinstance(fss, NvList)
    entries = [entry for entry in fss.values() if isinstance(entry, NvList)]
    roots = [entry for entry in entries if "is_encroot" in entry]
    assert [entry["name"] for entry in roots] == ["v/x"]
    assert [dict(entry["props"])["keylocation"] for entry in roots] == ["prompt"]  # type: ignore[call-overload]
