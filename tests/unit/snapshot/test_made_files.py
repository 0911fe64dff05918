"""Files that are made many at once are, to the byte, those that are made one by one."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from zkeep.crypto.unwrap import MasterKeys
from zkeep.format.compress_writer import compressor
from zkeep.format.events import Batch
from zkeep.format.objtypes import ObjectType
from zkeep.format.znode import LINUX_FLAGS
from zkeep.format.znode_columns import FileColumns
from zkeep.format.znode_writer import FileFields, encode_file
from zkeep.snapshot import writer as writing
from zkeep.snapshot.changes import Block, ObjectChange
from zkeep.snapshot.made_files import NewFiles
from zkeep.snapshot.spool import Spool
from zkeep.snapshot.writer import SnapshotWriter

KEYS = MasterKeys(8, 7, 1, bytes(range(32)), bytes(64))
SECOND = 1_000_000_000
FIRST = 130


class File:
    """One file: its number, attributes, and content in whole sectors; None: all of it zeros."""

    def __init__(self, number: int, fields: FileFields, block: int, content: bytes | None) -> None:
        self.number, self.fields, self.block, self.content = number, fields, block, content


def some_files(chance: Random, count: int) -> list[File]:
    """Files of all modes, with times before 1970 as well, some of them empty or holes, with gaps between them."""
    found, number = [], FIRST
    for _ in range(count):
        number += chance.choice([1, 1, 1, 1, 2, 40])
        times = [chance.choice([0, -1, -SECOND, chance.randrange(-(1 << 62), 1 << 62)]) for _ in range(4)]
        size = chance.choice([0, 1, 512, 513, chance.randrange(20_000)])
        block = -(-size // 512) * 512
        content: bytes | None = chance.randbytes(size) if chance.random() < 0.5 else b"word" * (size // 4 + 1)
        content = None if chance.random() < 0.2 or not size else content[:size].ljust(block, b"\0")
        fields = FileFields(
            *(stat.S_IFREG | chance.randrange(0o10000), chance.randrange(1 << 32), chance.randrange(1 << 32), size),
            *(chance.choice([1, 2, 70_000]), *times, chance.randrange(1 << 48), 7),
        )
        fields.flags = chance.choice([0, 0, *LINUX_FLAGS.values()])
        found.append(File(number, fields, block, content))
    return found


def change_of(file: File, compress: str) -> ObjectChange:
    bonus, spill = encode_file(file.fields)
    assert spill is None
    blocks = (Block(0, *packed(file, compress)),) if file.block else ()
    return ObjectChange(
        file.number, ObjectType.PLAIN_FILE, file.block or 512, len(blocks) - 1, blocks, bonus, spill=spill
    )


def packed(file: File, compress: str) -> tuple[bytes | None, int | None]:
    if file.content is None:
        return None, None
    content, code = compressor(compress)(file.content)
    return bytes(content), code


def new_files(files: list[File], compress: str) -> NewFiles:
    fields = [file.fields for file in files]

    def column(name: str, kind: type = np.uint64) -> np.ndarray:
        return np.array([getattr(each, name) for each in fields], kind)

    times = (column(name, np.int64) for name in ("atime", "mtime", "ctime", "crtime"))
    attributes = FileColumns(
        [each.mode for each in fields],
        *(column(name) for name in ("uid", "gid", "size", "links")),
        *times,
        *(column("parent"), 7, column("flags")),
    )
    stored = [packed(file, compress) for file in files]
    return NewFiles(
        [file.number for file in files],
        attributes,
        [file.block for file in files],
        [content for content, _ in stored],
        [code or 0 for _, code in stored],
    )


def written(
    files: list[File], compress: str, *, together: set[int], portion: int = 50, spool: Spool | None = None
) -> tuple[bytes, bytes, list[tuple[int, int]]]:
    """All records, the portable MAC, and the types and lengths; `together`: those that are made many at once."""
    batches: list[Batch] = []
    with SnapshotWriter(KEYS, 99, compressor(compress), batches.append, spool=spool) as writer:
        made = {}
        mine = [file for file in files if file.number in together]
        for at in range(0, len(mine), portion):
            made |= {each.number: each for each in writer.make_files(new_files(mine[at : at + portion], compress))}
        for file in files:
            if file.number in made:
                writer.write_made(made[file.number])
            else:
                writer.write(change_of(file, compress))
        mac, _ = writer.finish()
    records = [pair for batch in batches for pair in zip(batch.types.tolist(), batch.lengths.tolist(), strict=True)]
    return b"".join(bytes(batch.buffer) for batch in batches), mac, records


@pytest.fixture(autouse=True)
def _no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Salts and IVs are always the same, so that ciphertexts can be compared."""
    monkeypatch.setattr(os, "urandom", lambda size: bytes([7]) * size)


@pytest.mark.parametrize("compress", ["zstd", "lz4", "off"])
@pytest.mark.parametrize("seed", range(4))
def test_records_are_the_same(compress: str, seed: int) -> None:
    files = some_files(Random(seed), 150)
    alone = written(files, compress, together=set())
    assert written(files, compress, together={file.number for file in files}) == alone


@pytest.mark.parametrize("seed", range(4))
def test_both_kinds_lie_in_one_block_of_dnodes(seed: int) -> None:
    chance = Random(seed)
    files = some_files(chance, 150)
    together = {file.number for file in files if chance.random() < 0.5}
    assert written(files, "zstd", together=together, portion=7) == written(files, "zstd", together=set())


@pytest.mark.parametrize("content", [b"", None, b"x".ljust(512, b"\0"), bytes(range(256)) * 4096])
def test_one_file_alone(content: bytes | None) -> None:
    block = len(content) if content is not None else 1024
    fields = FileFields(stat.S_IFREG | 0o644, 1, 2, block, 1, *(range(4)), 34, 7)
    files = [File(200, fields, block, content or None)]
    assert written(files, "zstd", together={200}) == written(files, "zstd", together=set())


def test_records_that_wait_on_the_disk_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = some_files(Random(5), 60)
    wanted = written(files, "off", together=set())
    monkeypatch.setattr(writing, "SPOOL", 10_000)
    with (tmp_path / "spool").open("w+b") as file:
        assert written(files, "off", together={file.number for file in files}, spool=Spool(file)) == wanted


def test_ivs_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    files = [replace_number(file, at) for at, file in enumerate(some_files(Random(6), 100), start=FIRST)]
    with SnapshotWriter(KEYS, 99, compressor("off"), lambda batch: None) as writer:
        made = writer.make_files(new_files(files, "off"))
    ivs = [bytes(each.pieces[0][112:124]) for each in made if each.pieces and not isinstance(each.pieces[0], tuple)]
    assert len(ivs) > 50
    assert len(set(ivs)) == len(ivs)


def replace_number(file: File, number: int) -> File:
    return File(number, replace(file.fields), file.block, file.content)
