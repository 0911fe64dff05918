"""P5: only authenticated bytes leave, whatever a store did to a snapshot.

Each forgery is a stream with right checksums, so that a pool takes it in without a word; the key tells.
"""

from __future__ import annotations

import io
import json
import lzma
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from corruption import view_of
from forgeries import Record, put_together, taken_apart
from manifests import DATA, Case, cases

from zkeep.cli.main import run
from zkeep.errors import Damaged, NotAuthentic
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import Free, Object, ObjectRange, RecordType, Write
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.restore.verify import verify
from zkeep.snapshot.errors import Forgery
from zkeep.snapshot.open import OpenSnapshot

NAME = "ccm192-lzjb-8k"
Forge = Callable[[list[Record]], list[Record]]


@pytest.fixture(autouse=True)
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes authenticate, as they do with a large snapshot."""
    monkeypatch.setattr("zkeep.restore.verify.ALONE_BYTES", 0)


@pytest.fixture(scope="module")
def case() -> Case:
    return next(case for case in cases() if case.name == f"{NAME}-composed")


def full() -> list[Record]:
    return taken_apart((DATA / "chains" / f"{NAME}.full-s0.zfs").read_bytes())


def increment() -> list[Record]:
    return taken_apart((DATA / "chains" / f"{NAME}.inc-s0-s1.zfs").read_bytes())


def all_from(pool: Pool, case: Case) -> None:
    """Open, verify, and read everything of every snapshot."""
    for found in pool.all_snapshots().values():
        for snapshot in found:
            with OpenSnapshot(pool, snapshot, case.key) as opened:
                verify(opened)
            with OpenSnapshot(pool, snapshot, case.key) as opened:
                view_of(opened)


def pool_with(path: Path, *streams: bytes) -> Pool:
    pool = Pool.create(path / "pool", "v", {"blind": "off"})
    for stream in streams:
        receive(pool, io.BytesIO(stream), "v/x", ReceiveOptions(force=True))
    return pool


def of(records: list[Record], rtype: RecordType) -> list[int]:
    return [i for i, record in enumerate(records) if record.type == rtype]


def test_what_was_not_forged_is_authentic(case: Case, tmp_path: Path) -> None:
    with pool_with(tmp_path, put_together(full()), put_together(increment())) as pool:
        all_from(pool, case)


# Forgeries


def swap_blocks_of_a_file(records: list[Record]) -> list[Record]:
    """Two blocks of one file change places, each with its own salt, IV and MAC."""
    writes = of(records, RecordType.WRITE)
    for a, b in pairwise(writes):
        one, two = records[a].header, records[b].header
        assert isinstance(one, Write)
        assert isinstance(two, Write)
        alike = (one.object, one.logical_size, one.type) == (two.object, two.logical_size, two.type)
        if alike and one.mac != two.mac:
            first, second = records[a].payload, records[b].payload
            records[a].put(replace(two, offset=one.offset), second)
            records[b].put(replace(one, offset=two.offset), first)
            return records
    raise AssertionError("no two blocks to swap")


def swap_blocks_of_two_files(records: list[Record]) -> list[Record]:
    firsts: dict[tuple[int, int, int], int] = {}
    for i in of(records, RecordType.WRITE):
        header = records[i].header
        assert isinstance(header, Write)
        shape = header.type, header.logical_size, header.compressed_size
        other = firsts.setdefault(shape, i)
        before = records[other].header
        assert isinstance(before, Write)
        if before.object != header.object:
            mine, theirs = records[i].payload, records[other].payload
            records[i].put(replace(before, object=header.object, offset=header.offset), theirs)
            records[other].put(replace(header, object=before.object, offset=before.offset), mine)
            return records
    raise AssertionError("no two blocks to swap")


def drop_a_block(records: list[Record]) -> list[Record]:
    del records[of(records, RecordType.WRITE)[-1]]
    return records


def drop_a_file(records: list[Record]) -> list[Record]:
    number = records[of(records, RecordType.OBJECT)[-1]].object
    return [r for r in records if r.object != number or r.type == RecordType.OBJECT_RANGE]


def truncate_the_dataset(records: list[Record]) -> list[Record]:
    """The last block of dnodes and all that belongs to it is gone."""
    first = records[of(records, RecordType.OBJECT_RANGE)[-1]].object
    return [r for r in records if r.object < first]


def change_the_size_in_a_dnode(records: list[Record]) -> list[Record]:
    at = _last_with_bonus(records)
    header = records[at].header
    assert isinstance(header, Object)
    records[at].put(replace(header, bonuslen=header.bonuslen - 8))
    return records


def flip_a_bonus(records: list[Record]) -> list[Record]:
    records[_last_with_bonus(records)].content[-9] ^= 1
    return records


def _last_with_bonus(records: list[Record]) -> int:
    return [i for i in of(records, RecordType.OBJECT) if records[i].payload][-1]


def change_a_compression(records: list[Record]) -> list[Record]:
    """A block that is compressed is said to be as it is."""
    for i in of(records, RecordType.WRITE):
        header = records[i].header
        assert isinstance(header, Write)
        if header.compressiontype == 3:
            records[i].put(replace(header, compressiontype=15))
            return records
    raise AssertionError("no compressed block")


def change_a_mac(records: list[Record]) -> list[Record]:
    at = of(records, RecordType.WRITE)[-1]
    header = records[at].header
    assert isinstance(header, Write)
    records[at].put(replace(header, mac=bytes([header.mac[0] ^ 1]) + header.mac[1:]))
    return records


def change_a_range(records: list[Record]) -> list[Record]:
    at = of(records, RecordType.OBJECT_RANGE)[-1]
    header = records[at].header
    assert isinstance(header, ObjectRange)
    records[at].put(replace(header, mac=bytes([header.mac[0] ^ 1]) + header.mac[1:]))
    return records


def change_a_salt(records: list[Record]) -> list[Record]:
    at = of(records, RecordType.WRITE)[-1]
    header = records[at].header
    assert isinstance(header, Write)
    records[at].put(replace(header, salt=bytes(8)))
    return records


def _bent_object(records: list[Record], **change: int) -> list[Record]:
    """The last file of several blocks, with its dnode's shape changed by so much."""
    files = [i for i in of(records, RecordType.OBJECT) if _is_large(records[i])]
    header = records[files[-1]].header
    assert isinstance(header, Object)
    records[files[-1]].put(replace(header, **{name: getattr(header, name) + by for name, by in change.items()}))
    return records


def _is_large(record: Record) -> bool:
    header = record.header
    return isinstance(header, Object) and header.type == 19 and header.maxblkid > 0


def lengthen_a_file(records: list[Record]) -> list[Record]:
    return _bent_object(records, maxblkid=1)


def raise_a_tree(records: list[Record]) -> list[Record]:
    return _bent_object(records, nlevels=1)


def change_the_fanout(records: list[Record]) -> list[Record]:
    return _bent_object(records, indblkshift=-1)


def bend_the_checksum_of_a_dnode(records: list[Record]) -> list[Record]:
    return _bent_object(records, checksumtype=1)


FORGERIES: list[Forge] = [
    lengthen_a_file,
    raise_a_tree,
    change_the_fanout,
    bend_the_checksum_of_a_dnode,
    swap_blocks_of_a_file,
    swap_blocks_of_two_files,
    drop_a_block,
    drop_a_file,
    truncate_the_dataset,
    change_the_size_in_a_dnode,
    flip_a_bonus,
    change_a_compression,
    change_a_mac,
    change_a_range,
    change_a_salt,
]


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_p5_a_forged_snapshot_is_told_from_an_authentic_one(forge: Forge, case: Case, tmp_path: Path) -> None:
    with pool_with(tmp_path, put_together(forge(full()))) as pool, pytest.raises(NotAuthentic) as caught:
        all_from(pool, case)
    assert caught.value.status == 4


@pytest.mark.parametrize("alone", [0, 1 << 30])
def test_the_first_block_that_fails_is_named(
    alone: int, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same message comes from every verb, however many records fail."""
    monkeypatch.setattr("zkeep.restore.verify.ALONE_BYTES", alone)
    monkeypatch.setattr("zkeep.restore.verify.PORTION", 1)
    records = full()
    writes = of(records, RecordType.WRITE)
    wrong = writes[len(writes) // 3 :]
    for at in wrong:
        header, payload = records[at].header, records[at].payload
        assert isinstance(header, Write)
        records[at].put(header, bytes([payload[0] ^ 1]) + payload[1:])
    with pool_with(tmp_path, put_together(records)) as pool, pytest.raises(Forgery) as caught:
        all_from(pool, case)
    assert caught.value.object == records[wrong[0]].object


@pytest.fixture
def key(tmp_path: Path) -> str:
    (tmp_path / "key").write_bytes(bytes.fromhex(manifest()["key"]["hex"]))
    (tmp_path / "key").chmod(0o600)
    return f"file://{tmp_path}/key"


def manifest() -> Any:
    return json.loads(lzma.decompress((DATA / "chains" / f"{NAME}.manifest.json.xz").read_bytes()))


def a_block_far_in_a_file(records: list[Record]) -> tuple[int, str]:
    """Which record it is, and how it is named."""
    paths = {file["ino"]: path for path, file in manifest()["snapshots"]["s0"]["files"].items()}
    for at in of(records, RecordType.WRITE):
        block = records[at].header
        if isinstance(block, Write) and block.type == ObjectType.PLAIN_FILE and block.offset:
            return at, f"{paths[block.object]}: object {block.object}, offset {block.offset}: "
    raise AssertionError("every file has one block")


def test_the_file_of_a_forged_block_is_named(key: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records = full()
    at, place = a_block_far_in_a_file(records)
    records[at].put(records[at].header, records[at].payload[::-1])
    forged = tmp_path / "forged.zfs"
    forged.write_bytes(put_together(records))
    assert run(["verify", str(forged), "-L", key]) == 4
    line = capfd.readouterr().err
    assert line.endswith(f"@s0: {place}the MAC of the block does not verify\n")
    assert line.count("\n") == 1


def test_the_file_of_a_block_that_is_not_what_came_in_is_named(
    key: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = full()
    at, place = a_block_far_in_a_file(records)
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    stream = (DATA / "chains" / f"{NAME}.full-s0.zfs").read_bytes()
    subprocess.run([sys.executable, "-m", "zkeep", "receive", "v/x"], input=stream, check=True)
    (segment,) = (tmp_path / "pool" / "segments").rglob("*.seg")
    content = bytearray(segment.read_bytes())
    content[content.index(records[at].payload) + 100] ^= 1
    segment.write_bytes(content)
    assert run(["verify", "v/x@s0", "-L", key]) == 3
    line = capfd.readouterr().err
    assert line.startswith(f"zkeep: v/x@s0: {place}segments/")
    assert line.endswith("the record is damaged\n")
    assert line.count("\n") == 1


@pytest.mark.parametrize("rtype", [RecordType.OBJECT, RecordType.WRITE, RecordType.OBJECT_RANGE], ids=lambda t: t.name)
def test_p5_what_an_increment_brought_cannot_be_rolled_back(rtype: RecordType, case: Case, tmp_path: Path) -> None:
    """The increment keeps the older dnode, block or seal of what it changes."""
    old = {_place(r): r for r in full()}
    new = increment()
    rolled = 0
    for record in new:
        before = old.get(_place(record))
        changed = before is not None and (rtype == RecordType.OBJECT_RANGE or before.payload != record.payload)
        if before is not None and record.type == rtype and changed and not rolled:
            record.content[:] = before.content
            rolled += 1
    if not rolled:
        pytest.skip("the increment rewrites none")
    guid = new[0].header
    for record in new[1:]:
        record.put(replace(record.header, toguid=guid.toguid))  # type: ignore[attr-defined, call-arg]
    with pool_with(tmp_path, put_together(full()), put_together(new)) as pool, pytest.raises(NotAuthentic):
        all_from(pool, case)


def test_p5_objects_that_an_increment_freed_cannot_be_kept(tmp_path: Path) -> None:
    old, new = gone_and_kept()
    kept = [record for record in new if record.type != RecordType.FREEOBJECTS]
    assert len(kept) < len(new)
    with pool_with(tmp_path, put_together(old), put_together(kept)) as pool, pytest.raises(NotAuthentic):
        all_from(pool, next(case for case in cases() if case.name == "gcm128-zstd-16k-composed"))


@pytest.mark.parametrize("at", range(3))
def test_p5_a_hole_that_an_increment_lost_shows_or_changes_nothing(at: int, tmp_path: Path) -> None:
    """Most FREE records are over what was a hole before."""
    case = next(case for case in cases() if case.name == "gcm128-zstd-16k-composed")
    old, new = gone_and_kept()
    frees = [record for record in new if record.type == RecordType.FREE and not _is_to_the_end(record)]
    kept = [record for record in new if record not in frees[at::3]]
    views = []
    for number, records in enumerate((new, kept)):
        with pool_with(tmp_path / str(number), put_together(old), put_together(records)) as pool:
            try:
                views.append(views_of(pool, case))
            except NotAuthentic:
                assert number
                return
    assert views[0] == views[1]


def gone_and_kept() -> tuple[list[Record], list[Record]]:
    """A full stream, and an increment that frees ranges and objects."""
    folder = DATA / "chains"
    names = ("gcm128-zstd-16k.full-s0.zfs", "gcm128-zstd-16k.inc-s0-s1.zfs")
    old, new = (taken_apart((folder / name).read_bytes()) for name in names)
    return old, new


def _is_to_the_end(record: Record) -> bool:
    header = record.header
    return isinstance(header, Free) and header.length == (1 << 64) - 1


def views_of(pool: Pool, case: Case) -> list[object]:
    found = []
    for snapshots in pool.all_snapshots().values():
        for snapshot in snapshots:
            with OpenSnapshot(pool, snapshot, case.key) as opened:
                verify(opened)
                found.append(view_of(opened))
    return found


def _place(record: Record) -> tuple[Any, ...]:
    return record.type, record.object, getattr(record.header, "offset", 0)


# Damage on the disk


def _segments(pool: Pool) -> Iterator[Path]:
    yield from sorted((pool.path / "segments").glob("*/*"))


class _flipped:  # noqa: N801
    def __init__(self, path: Path, at: int, mask: int) -> None:
        self._path, self._at, self._mask = path, at, mask

    def _flip(self) -> None:
        self._path.chmod(0o600)
        with self._path.open("r+b") as target:
            target.seek(self._at)
            byte = target.read(1)[0]
            target.seek(self._at)
            target.write(bytes([byte ^ self._mask]))

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *_: object) -> None:
        self._flip()


@pytest.mark.parametrize("rtype", [RecordType.WRITE, RecordType.OBJECT, RecordType.OBJECT_RANGE], ids=lambda t: t.name)
def test_damage_is_told_from_forgery(rtype: RecordType, case: Case, tmp_path: Path) -> None:
    """A flipped byte of a stored record is damage of the disk: exit status 3, not 4."""
    records = full()
    with pool_with(tmp_path, put_together(records)) as pool:
        path = next(_segments(pool))
        content = path.read_bytes()
        record = records[of(records, rtype)[-1]]
        head = bytes(record.content[:280]) if rtype == RecordType.OBJECT_RANGE else record.payload
        at = content.index(head) + (60 if rtype == RecordType.OBJECT_RANGE else 0)
        with _flipped(path, at, 1), pytest.raises(Damaged):
            all_from(pool, case)
