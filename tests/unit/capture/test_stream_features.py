"""A stream asks no more of a pool than its blocks need: by default, what every pool with encryption has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from capturekit import make_tree, sent

from zkeep.format.events import Batch, SubBegin
from zkeep.format.reader import read_events
from zkeep.format.records import Feature, RecordType

Zkeep = Callable[..., int]
LEAST = Feature.RAW | Feature.COMPRESSED | Feature.LZ4 | Feature.SA_SPILL
LZ4, ZSTD = 15, 16


def features(zkeep: Zkeep, tmp_path: Path, *words: str) -> tuple[Feature, int, set[int]]:
    """What the BEGIN of a stream asks for; the longest block in it, and the compressions of blocks."""
    asked, longest, compressions = Feature(0), 0, set()
    with sent(zkeep, tmp_path / "stream", *words).open("rb") as source:
        for event in read_events(source):
            if isinstance(event, SubBegin):
                asked = Feature(event.begin.features)
            elif isinstance(event, Batch):
                _, headers = event.select(RecordType.WRITE)
                longest = max([longest, *headers["logical_size"].tolist()])
                compressions |= set(headers["compressiontype"].tolist())
    return asked, longest, compressions


def fill(source: Path) -> None:
    make_tree(source)
    (source / "large").write_bytes(b"words that shrink " * 200_000)


@pytest.mark.parametrize(
    ("properties", "more"),
    [
        ((), Feature(0)),
        (("recordsize=128K", "compression=off"), Feature(0)),
        (("compression=gzip",), Feature(0)),
        (("recordsize=1M",), Feature.LARGE_BLOCKS),
        (("compression=zstd-5",), Feature.ZSTD),
        (("recordsize=256K", "compression=zstd"), Feature.LARGE_BLOCKS | Feature.ZSTD),
    ],
)
def test_a_dataset_asks_for_what_its_properties_need(
    zkeep: Zkeep, tmp_path: Path, properties: tuple[str, ...], more: Feature
) -> None:
    source = tmp_path / "source"
    fill(source)
    assert zkeep("create", *(word for each in properties for word in ("-o", each)), "v/home/it") == 0
    assert zkeep("snapshot", "--from", str(source), "v/home/it@1") == 0
    (source / "new").write_bytes(os.urandom(9))
    assert zkeep("snapshot", "--from", str(source), "v/home/it@2") == 0
    for words in (("v/home/it@1",), ("-i", "@1", "v/home/it@2"), ("v/home/it@2",)):
        asked, longest, compressions = features(zkeep, tmp_path, *words)
        assert asked == LEAST | more
        assert (longest > 128 << 10) <= (Feature.LARGE_BLOCKS in asked)
        assert (ZSTD in compressions) <= (Feature.ZSTD in asked)


def test_what_was_asked_for_once_stays(zkeep: Zkeep, tmp_path: Path) -> None:
    """Blocks of earlier snapshots are still there, so an increment that has none of them asks for as much."""
    source = tmp_path / "source"
    fill(source)
    assert zkeep("create", "-o", "recordsize=1M", "-o", "compression=zstd", "v/home/it") == 0
    assert zkeep("snapshot", "--from", str(source), "v/home/it@1") == 0
    assert zkeep("set", "recordsize=128K", "compression=lz4", "v/home/it") == 0
    (source / "new").write_bytes(b"x")
    assert zkeep("snapshot", "--from", str(source), "v/home/it@2") == 0
    asked, _, _ = features(zkeep, tmp_path, "-i", "@1", "v/home/it@2")
    assert asked == LEAST | Feature.LARGE_BLOCKS | Feature.ZSTD


def test_volumes_and_children_ask_for_no_more(zkeep: Zkeep, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(os.urandom(100_000))
    assert zkeep("create", "-V", "1M", "v/home/disk") == 0
    assert zkeep("snapshot", "--from", str(tmp_path / "disk"), "v/home/disk@1") == 0
    asked, _, _ = features(zkeep, tmp_path, "v/home/disk@1")
    assert asked == LEAST
    assert zkeep("snapshot", "v/home@empty") == 0
    assert features(zkeep, tmp_path, "v/home@empty")[0] == LEAST
