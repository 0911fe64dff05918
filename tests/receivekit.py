"""A pool, the streams of one chain, and receives that break off."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from zkeep.errors import TryAgain
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive

CHAINS = Path(__file__).parent / "data" / "opened" / "chains"
REPLICATION = CHAINS.parent.parent / "streams" / "full-Rw.zfs"
CHAIN = "ccm192-lzjb-8k"


def receiving(txg: int) -> dict[str, Any]:
    """The document of a receive that has just begun."""
    return {
        **dict.fromkeys(("toguid", "fromguid", "features", "object", "offset"), 1),
        **dict.fromkeys(("resumable", "clone", "new"), False),
        **dict.fromkeys(("source", "state", "last")),
        "txg": txg,
        "snapshot": "s",
        "toname": "tank/a@s",
        "begin": {"header": "", "payload": "", "byteorder": "little"},
        "fields": {},
        "snapshot_fields": {},
        "tally": {"segments": [], "bytes": 0, "logical": 0, "records": 0, "file_bytes": 0, "dead": {}},
    }


def stream(name: str) -> bytes:
    """`full-s0`, `inc-s0-s1` or `inc-s1-s2`."""
    return (CHAINS / f"{CHAIN}.{name}.zfs").read_bytes()


def take(pool: Pool, content: bytes, target: str = "p/a", **options: object) -> None:
    receive(pool, io.BytesIO(content), target, ReceiveOptions(**options))  # type: ignore[arg-type]


def take_chain(pool: Pool, *names: str, target: str = "p/a") -> None:
    for name in names or ("full-s0", "inc-s0-s1", "inc-s1-s2"):
        take(pool, stream(name), target)


def cut(pool: Pool, content: bytes, size: int, target: str = "p/a", **options: object) -> None:
    """A resumable receive of the first `size` bytes."""
    with pytest.raises(TryAgain):
        take(pool, content[:size], target, resumable=True, **options)


def kept(pool: Pool) -> dict[str, list[str]]:
    """The names of snapshots by dataset, without the pool's own."""
    found = pool.all_snapshots().items()
    return {pool.by_id(key).name.text: [s.doc["name"] for s in some] for key, some in found if key > 1}


def partial(pool: Pool, name: str = "p/a") -> bool:
    """Whether the dataset keeps the state of an interrupted receive."""
    return pool.catalog.get("receive", pool.dataset(DatasetName.parse(name)).key) is not None
