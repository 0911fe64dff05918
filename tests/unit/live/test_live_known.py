"""What a commit made is not read again by the next one, and never taken for what another state has."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from livekit import OWNER, RECORD, ByPath, answering, live

from zkeep.crypto.unwrap import MasterKeys
from zkeep.live import merging
from zkeep.pool.datasets.head import current_state
from zkeep.pool.datasets.model import Snapshot
from zkeep.pool.timeline.segment import Segment
from zkeep.snapshot.known import Known
from zkeep.snapshot.open import OpenSnapshot

Zkeep = Callable[..., int]


def make(files: ByPath, name: bytes, content: bytes = b"content", offset: int = 0) -> None:
    files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), content, offset)


def everything(opened: OpenSnapshot) -> dict[int, tuple[Any, ...]]:
    """All that a reader gets of each object: its dnode, its attributes, its blocks."""
    found = {}
    for index in opened.numbers():
        for number, obj in sorted(opened.dnodes(index).items()):
            size = obj.dnode.blksz
            blocks = [int(n) for part in opened.blocks.leaves(obj, 0, 1 << 40) for n in part["offset"] // size]
            content = [(block, opened.read_block(number, block)) for block in blocks]
            data = [(at, bytes(part)) for at, part in opened.data(number, 0, (obj.dnode.maxblkid + 1) * size)]
            first = obj.tree.first if obj.tree is not None else None
            found[number] = obj.dnode, obj.roots, first, opened.spill_of(number), opened.bonus(number), content, data
    return found


def fresh(files: ByPath, state: Snapshot, known: Known | None = None) -> dict[int, tuple[Any, ...]]:
    with OpenSnapshot(files.dataset.pool, state, files.dataset._get_key, known=known) as opened:
        return everything(opened)


def damage_bodies(files: ByPath) -> None:
    """Overwrite all records that the pool has; the tables that say where they lie stay."""
    pool, dataset = files.dataset.pool, files.dataset.dataset
    for run in pool.runs.of(dataset.key).runs:
        for segment_id in run.segments:
            name = f"segments/{int(segment_id.partition('-')[0], 16) % 256:02x}/{segment_id}.seg"
            with pool.store.open(name) as blob:
                start, end = Segment(lambda blob=blob: blob, name).body  # type: ignore[misc]
            path = pool.path / name
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.seek(start)
                file.write(os.urandom(end - start))


def known_of(files: ByPath) -> Known:
    known = files.dataset.base.known
    assert known is not None
    return known


def some_files(files: ByPath) -> None:
    for number in range(40):
        make(files, b"file %d" % number, b"x" * (100 * number))
    make(files, b"large", b"y" * RECORD, 3000 * RECORD)  # it has indirect blocks
    make(files, b"attributes")
    files.xattrs.set(files.lookup(b"attributes"), b"user.large", b"z" * 3000, 0)


def test_a_commit_reads_nothing_of_what_the_last_one_wrote(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        some_files(files)
        files.dataset.commit()
        damage_bodies(files)
        for turn in range(3):
            files.write(files.lookup(b"file 7"), b"new", 10 + turn)
            files.write(files.lookup(b"large"), b"new", 2000 * RECORD)
            make(files, b"added %d" % turn)
            files.unlink(b"file %d" % (20 + turn))
            files.dataset.commit()
        assert files.read(files.lookup(b"file 7"), 0, 20) == b"x" * 10 + b"nnnew" + b"x" * 5


@pytest.mark.parametrize("seed", range(2))
def test_what_is_known_is_what_one_reads_who_knows_nothing(zkeep: Zkeep, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    states: list[tuple[Snapshot, dict[int, tuple[Any, ...]]]] = []
    with answering(tmp_path) as files:
        some_files(files)
        for turn in range(8):
            for _ in range(chance.randrange(1, 6)):
                name = b"file %d" % chance.randrange(4)
                files.write(files.lookup(name), chance.randbytes(50), chance.randrange(9000))
            files.write(files.lookup(b"large"), b"new", chance.randrange(4000) * RECORD)
            if chance.random() < 0.4:
                files.truncate(files.lookup(b"large"), chance.randrange(3500) * RECORD)
            make(files, b"added %d" % turn)
            if chance.random() < 0.5:
                files.xattrs.set(files.lookup(b"attributes"), b"user.other", chance.randbytes(500), 0)
            files.unlink(b"file %d" % (20 + turn))
            files.dataset.commit()
            assert zkeep("snapshot", f"v/home@{turn}") == 0
            state = current_state(files.dataset.pool, files.dataset.dataset)
            assert state is not None
            expected = fresh(files, state)
            assert everything(files.dataset.base) == expected
            states.append((state, expected))
        # Older states have other MACs: nothing of what is known of the newest one is taken for theirs.
        for state, expected in states:
            assert fresh(files, state, known_of(files)) == expected


def test_after_a_rollback_nothing_is_taken_from_what_was_rolled_back(zkeep: Zkeep, tmp_path: Path) -> None:
    with answering(tmp_path) as files:
        some_files(files)
        files.dataset.commit()
        assert zkeep("snapshot", "v/home@a") == 0
        expected = fresh(files, files.dataset.state)
        for turn in range(3):
            files.write(files.lookup(b"file 1"), b"later", turn)
            files.unlink(b"file %d" % (20 + turn))
            files.dataset.commit()
        assert zkeep("rollback", "v/home@a") == 0
        assert everything(files.dataset.base) == expected
        make(files, b"then")
        files.dataset.commit()
        assert everything(files.dataset.base) == fresh(files, files.dataset.state)


def test_what_is_known_under_other_keys_is_not_used(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        make(files, b"file")
        files.dataset.commit()
        known, keys = known_of(files), known_of(files).keys
        known.keys = MasterKeys(keys.suite, keys.guid, keys.version, bytes(32), keys.hmac)
        with OpenSnapshot(files.dataset.pool, files.dataset.state, files.dataset._get_key, known=known) as opened:
            assert opened.known is None


def test_what_compaction_moved_is_found(zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MERGE_AFTER", 4)
    with live(tmp_path) as files:
        some_files(files)
        for turn in range(10):
            make(files, b"added %d" % turn)
            files.dataset.commit()
            assert everything(files.dataset.base) == fresh(files, files.dataset.state)
        assert files.dataset.pool.runs.count(files.dataset.dataset.key) < 8


def test_commits_merge_beside_more_than_may_be_merged_at_once(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "MERGE_BYTES", 1 << 20)
    monkeypatch.setattr(merging, "MERGE_AFTER", 6)
    with live(tmp_path) as files:
        for turn in range(4):
            make(files, b"large %d" % turn, os.urandom(600 << 10))
            files.dataset.commit()
        make(files, b"small")
        for turn in range(20):
            files.write(files.lookup(b"small"), b"x", turn)
            files.dataset.commit()
        count = files.dataset.pool.runs.count(files.dataset.dataset.key)
        assert count <= 4 + merging.MERGE_AFTER + 2, count
