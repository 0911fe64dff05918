"""A changed file stores only the blocks that changed, whether the last snapshot's payloads are there or not."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.crypto.block import BlockKeys
from zkeep.format.compress_writer import compressor
from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.timeline.spans import Array
from zkeep.snapshot.block_reader import BlockReader
from zkeep.snapshot.changes import Block
from zkeep.snapshot.compare import Comparison
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.verified import VerifiedObject
from zkeep.tree.filesystem import Filesystem

KEY = bytes(range(32))
BLOCK = 16 << 10
COUNT = 3000
"More blocks than one indirect block has, so that the leaves come in parts."


def content_of(number: int) -> bytes | None:
    """Words, noise, and a hole now and then."""
    if number % 7 == 3:
        return None
    return b"%06d words" % number * (BLOCK // 12) + b"end!" if number % 2 else random.Random(number).randbytes(BLOCK)


@pytest.fixture(params=["lz4", "zstd", "off"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Comparison]:
    """A file of COUNT blocks, as the last snapshot has it."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "file").open("wb") as sink:
        for number in range(COUNT):
            content = content_of(number)
            if content is not None:
                os.pwrite(sink.fileno(), content, number * BLOCK)
        sink.truncate(COUNT * BLOCK)
    options = [f"compression={request.param}", "recordsize=16K", "encryption=on", "keyformat=raw"]
    options.append(f"keylocation=file://{tmp_path / 'key'}")
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    assert run(["create", *(word for option in options for word in ("-o", option)), "v/home"]) == 0
    assert run(["snapshot", "--from", str(tmp_path / "source"), "v/home@1"]) == 0
    with Pool.open(tmp_path / "pool", "v") as pool:
        snapshot = pool.snapshot(SnapshotName.parse("v/home@1"))
        with OpenSnapshot(pool, snapshot, lambda wrapped: KEY) as base:
            tree = Filesystem(base)
            (number,) = [entry.number for entry in tree.names(tree.root)]
            yield Comparison(base, base.object(number), compressor(request.param))
    run(["unload-key", "-a"])


def source(changes: dict[int, bytes | None], first: int = 0, end: int = COUNT) -> list[Block]:
    """The blocks of the file now: without those that are holes, as they are read."""
    every = {number: content_of(number) for number in range(end)} | changes
    return [Block(n, content) for n, content in sorted(every.items()) if content is not None and n >= first]


def drop_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leaves say that no payload is stored here, as those of a metadata-only dataset do."""
    genuine = BlockReader.leaves

    def leaves(self: BlockReader, obj: VerifiedObject, first: int, end: int) -> Iterator[Array]:
        for part in genuine(self, obj, first, end):
            without = part.copy()
            without["bare"] = 1
            yield without

    monkeypatch.setattr(BlockReader, "leaves", leaves)


@pytest.fixture(params=[False, True])
def bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether all payloads were dropped: then nothing may read one."""
    if request.param:
        drop_payloads(monkeypatch)
        monkeypatch.setattr("zkeep.snapshot.records.StoredRecords.whole", None)
    return bool(request.param)


@pytest.mark.parametrize(
    ("changes", "end", "expected"),
    [
        ({}, COUNT, {}),
        ({4: b"new".ljust(BLOCK, b"\1")}, COUNT, {4: True}),
        ({0: None, 2999: b"!".ljust(BLOCK, b"\1")}, COUNT, {0: False, 2999: True}),
        ({3: b"in a hole".ljust(BLOCK, b"\1")}, COUNT, {3: True}),
        ({3: bytes(BLOCK), 5: bytes(BLOCK)}, COUNT, {5: True}),
        ({}, 2990, dict.fromkeys((n for n in range(2990, COUNT) if n % 7 != 3), False)),
        ({COUNT + 9: b"behind".ljust(BLOCK, b"\1")}, COUNT, {COUNT + 9: True}),
    ],
)
def test_only_what_differs_is_given(
    opened: Comparison, bare: bool, changes: dict[int, bytes | None], end: int, expected: dict[int, bool]
) -> None:
    found = list(opened.changed(source(changes, end=end)))
    assert {block.number: block.content is not None for block in found} == expected
    assert [block.number for block in found] == sorted(expected)


def test_a_part_of_a_file(opened: Comparison, bare: bool) -> None:
    changes = {9: b"before".ljust(BLOCK, b"\1"), 2000: b"behind".ljust(BLOCK, b"\1")}
    found = list(opened.changed(source(changes, first=1500), 1500))
    assert [block.number for block in found] == [2000]


def test_another_compression_costs_a_record_and_is_never_taken_for_the_same(opened: Comparison, bare: bool) -> None:
    opened._compress = compressor("gzip-9")
    found = {block.number for block in opened.changed(source({4: b"other".ljust(BLOCK, b"\1")}))}
    assert 4 in found
    if not bare:
        assert found == {4}


def test_what_a_trial_encrypts_goes_nowhere(opened: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second ciphertext under a stored IV must not outlive the comparison."""
    made: list[bytearray] = []
    genuine = BlockKeys.encrypt_into

    def encrypt_into(self: BlockKeys, salt: bytes, iv: bytes, plain: bytes, out: bytearray) -> None:
        genuine(self, salt, iv, plain, out)
        made.append(out)

    monkeypatch.setattr(BlockKeys, "encrypt_into", encrypt_into)
    drop_payloads(monkeypatch)
    changes: dict[int, bytes | None] = {2: b"other".ljust(BLOCK, b"\1"), 4: os.urandom(BLOCK)}
    found = list(opened.changed(source(changes, end=8)))
    assert {block.number: block.content for block in found if block.number < 8} == changes
    assert len(made) >= len(changes), "they were tried"
    kept = [out for out in made if sys.getrefcount(out) > 3]
    assert not kept, "nothing but this list, the loop and the call hold them"
