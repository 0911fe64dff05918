"""P1 and P4: below an encrypted dataset nothing that a stream says keeps its data in clear, or steers the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from badkit import DATA, stamped, taken_apart
from packagekit import Entry, package, plain

from reencryptkit import encrypted_pool, take
from zkeep.errors import Refused
from zkeep.format.nvlist import Value
from zkeep.format.records import RecordType
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View

FORGED: list[dict[str, Value]] = [
    {"encryption": 0},
    {"encryption": 2},
    {"encryption": 8, "keyformat": 1, "keylocation": "file:///etc/passwd", "pbkdf2iters": 1},
    {"keylocation": "prompt", "blind": 0, "readonly": 1},
]


def plain_named(name: str, guid: int) -> bytes:
    """The full plain stream, of another snapshot."""
    records = taken_apart(plain())
    for record in records:
        if record.rtype == RecordType.BEGIN:
            record.put("toname", name.encode())
        record.put("toguid", guid)
    return stamped(records)


@pytest.mark.parametrize("props", FORGED, ids="-".join)
def test_p1_properties_of_a_stream_do_not_keep_it_in_clear(tmp_path: Path, props: dict[str, Value]) -> None:
    substreams = [plain_named(f"t/a{child}@s", 77 + n) for n, child in enumerate(("", "/b"))]
    entries = [Entry(f"t/a{child}", {"s": 77 + n}, props) for n, child in enumerate(("", "/b"))]
    with encrypted_pool(tmp_path / "pool") as pool:
        take(pool, package("t/a@s", entries, substreams))
        for name in ("v/enc/ds", "v/enc/ds/b"):
            dataset = pool.dataset(DatasetName.parse(name))
            told = [View(pool).get(dataset, p).value for p in ("encryption", "encryptionroot", "keylocation")]
            assert told == ["aes-256-gcm", "v/enc", "none"]
            assert not {"encryption", "keyformat", "keylocation"} & dataset.doc.get("received", {}).keys()
        assert not in_clear(pool)


def in_clear(pool: Pool) -> list[Path]:
    return [path for path in pool.path.rglob("*") if path.is_file() and b"ledger.csv" in path.read_bytes()]


def test_p4_raw_and_plain_substreams_in_one_package_do_not_mix(tmp_path: Path) -> None:
    """A raw full and a plain increment of the same dataset, and the reverse: the second is refused in one line."""
    story = DATA / "opened" / "story"
    increment = taken_apart((story / "plain-blanc-2019.zfs").read_bytes())
    raw = taken_apart((DATA / "streams" / "inc-w.zfs").read_bytes())
    for records in (increment, raw):
        records[0].put("fromguid", 77)
        records[0].put("toname", b"t/a@z")
    entries = [Entry("t/a", {"s": 77, "z": 78})]
    with encrypted_pool(tmp_path / "pool") as pool:
        with pytest.raises(Refused) as refused:
            take(pool, package("t/a@z", entries, [plain_named("t/a@s", 77), stamped(raw)]))
        assert "encrypted here, from a plain stream: the increment must be plain" in str(refused.value)
        assert [s.doc["name"] for s in pool.snapshots(pool.dataset(DatasetName.parse("v/enc/ds")))] == ["s"]
        assert not in_clear(pool)
