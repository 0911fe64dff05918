"""Datasets without contents (contents=metadata): what goes, what stays, and what works without."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from capturekit import change_tree, extracted, make_tree, sent
from historykit import KEY, check_objects, stored_listing

from zkeep.format.records import HEADER, RecordType
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import contents
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import drop_contents
from zkeep.pool.store.port import segment_name
from zkeep.pool.timeline.segment import Segment
from zkeep.snapshot.open import OpenSnapshot

Zkeep = Callable[..., int]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    make_tree(source)
    return source


def take(zkeep: Zkeep, source: Path, name: str, dataset: str = "v/home") -> None:
    assert zkeep("snapshot", "--from", str(source), f"{dataset}@{name}") == 0


def drop(zkeep: Zkeep, name: str) -> None:
    assert zkeep("set", "contents=metadata", name) == 0
    assert zkeep("pool", "compact", "v") == 0


def size(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "pool" / "segments").rglob("*") if path.is_file())


def asked(zkeep: Zkeep, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert zkeep(*words) == 0
    return capsys.readouterr().out.strip()


def moved(zkeep: Zkeep, tmp_path: Path, *words: str) -> None:
    """Send to the other pool, w."""
    stream = sent(zkeep, tmp_path / "stream", *words)
    with stream.open("rb") as given:
        saved = os.dup(0)
        os.dup2(given.fileno(), 0)
        try:
            assert zkeep("receive", "w/home") == 0
        finally:
            os.dup2(saved, 0)
            os.close(saved)


@pytest.fixture
def other(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("pool", "create", "w", str(tmp_path / "other")) == 0


@pytest.mark.parametrize("compression", ["lz4", "zstd", "off"])
@pytest.mark.usefixtures("other")
def test_a_dataset_goes_on_without_its_contents(
    zkeep: Zkeep, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], compression: str
) -> None:
    """Five increments, each dropped when the other side has it; that has all of it, at every snapshot."""
    assert zkeep("set", f"compression={compression}", "v/home") == 0
    want = {}
    for turn in range(5):
        if turn:
            change_tree(source, turn)
        take(zkeep, source, f"{turn}")
        want[turn] = stored_listing(source)
        moved(zkeep, tmp_path, f"v/home@{turn}", *(["-i", f"@{turn - 1}"] if turn else []))
        drop(zkeep, f"v/home@{turn}")
        check_objects(tmp_path / "pool", f"v/home@{turn}")
        assert zkeep("verify", f"v/home@{turn}") == 0
        assert zkeep("pool", "scrub", "v") == 0
    for turn, listing in want.items():
        assert extracted(zkeep, tmp_path, f"w/home@{turn}") == listing
        assert_no_payload_here(tmp_path, f"v/home@{turn}")
    kept = [int(asked(zkeep, capsys, "get", "-Hp", "-o", "value", "used", name)) for name in ("v/home", "w/home")]
    assert kept[0] < kept[1]
    assert_figures_add_up(tmp_path)


def assert_no_payload_here(tmp_path: Path, name: str) -> None:
    with Pool.open(tmp_path / "pool", "v") as pool, OpenSnapshot(
        pool, pool.snapshot(SnapshotName.parse(name)), lambda wrapped: KEY
    ) as opened:
        assert opened.lacks_contents()
        for chunk in opened.state.chunks():
            objects, blocks = chunk.table.objects, chunk.table.blocks
            files = set(objects["object"][(objects["type"] == 19) & (objects["bonustype"] == 44)].tolist())
            mine = [number in files for number in blocks["object"].tolist()]
            assert set(blocks["kind"].tolist()) == {RecordType.WRITE}
            assert all((size == HEADER) == bare for size, bare in zip(blocks["size"].tolist(), mine, strict=True))


def assert_figures_add_up(tmp_path: Path) -> None:
    """What the runs' documents say of one another is what their tables say."""
    with Pool.open(tmp_path / "pool", "v") as pool:
        for dataset in pool.tree().by_id.values():
            for snapshot in pool.snapshots(dataset):
                with OpenSnapshot(pool, snapshot, lambda wrapped: KEY) as opened:
                    tables = [chunk.table for chunk in opened.state.chunks()]
                view = View(pool)
                assert view.get(snapshot, "referenced").value == sum(table.stored for table in tables)
                assert view.get(snapshot, "logicalreferenced").value == sum(table.logical for table in tables)


def test_figures_add_up_whatever_is_dropped_and_destroyed(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    dice = random.Random(5)
    names = []
    for turn in range(12):
        change_tree(source, turn)
        take(zkeep, source, f"{turn}")
        names.append(f"v/home@{turn}")
        if turn % 3 == 2:
            assert zkeep("set", "contents=metadata", dice.choice(names)) == 0
        if turn % 4 == 3:
            assert zkeep("destroy", names.pop(dice.randrange(len(names) - 1))) == 0
        if turn % 5 == 4:
            assert zkeep("pool", "compact", "v") == 0
        assert_figures_add_up(tmp_path)
    for name in names:
        assert zkeep("verify", name) == 0
    assert zkeep("pool", "scrub", "v") == 0
    assert zkeep("pool", "scrub", "--rebuild-catalog", "v") == 0
    assert zkeep("pool", "scrub", "v") == 0
    assert_figures_add_up(tmp_path)
    assert zkeep("rollback", "-r", names[1]) == 0
    assert zkeep("pool", "compact", "v") == 0
    assert zkeep("destroy", "-r", "v/home") == 0
    assert zkeep("pool", "scrub", "v") == 0


def test_only_what_was_confirmed_goes(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    take(zkeep, source, "1")
    change_tree(source, 1)
    (source / "new").write_bytes(os.urandom(500_000))
    take(zkeep, source, "2")
    want = sent(zkeep, tmp_path / "before", "-i", "@1", "v/home@2").read_bytes()
    drop(zkeep, "v/home@1")
    assert sent(zkeep, tmp_path / "after", "-i", "@1", "v/home@2").read_bytes() == want
    assert zkeep("send", "-w", "v/home@2") == 1
    assert zkeep("cat", "-L", f"file://{tmp_path / 'key'}", "v/home@2", "new") == 0


def test_what_needs_contents_says_where_they_are(
    zkeep: Zkeep, tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    take(zkeep, source, "1")
    drop(zkeep, "v/home@1")
    key = ("-L", f"file://{tmp_path / 'key'}")
    target = tmp_path / "out"
    for words in (
        ("send", "-w", "v/home@1"),
        ("send", "-nvw", "v/home@1"),
        ("send", "-Rw", "v/home@1"),
        ("cat", *key, "v/home@1", "text"),
        ("extract", *key, "-C", str(target), "v/home@1"),
        ("extract", *key, "-C", str(target), "v/home@1", "folders", "text"),
        ("extract", *key, "--stdout", "v/home@1"),
    ):
        capfd.readouterr()
        assert zkeep(*words) == 1, words
        done = capfd.readouterr()
        assert "are not here (contents=metadata): get them from where its snapshots were sent to" in done.err
        assert len(done.err.splitlines()) <= 2
        assert not done.out
    assert not (target / "text").exists()
    capfd.readouterr()
    assert zkeep("ls", "-lR", *key, "v/home@1") == 0
    assert "file-131073" in capfd.readouterr().out


def test_listing_and_differences_need_no_contents(
    zkeep: Zkeep, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    take(zkeep, source, "1")
    change_tree(source, 3)
    take(zkeep, source, "2")
    key = ("-L", f"file://{tmp_path / 'key'}")
    questions = ("ls", "-lR", *key, "v/home@2"), ("diff", *key, "v/home@1", "v/home@2")
    before = [asked(zkeep, capsys, *words) for words in questions]
    drop(zkeep, "v/home@2")
    assert [asked(zkeep, capsys, *words) for words in questions] == before


@pytest.mark.parametrize("kept", [True, False])
def test_an_unchanged_block_is_not_stored_again(zkeep: Zkeep, tmp_path: Path, kept: bool) -> None:
    """Also without the cache of the files' states, when all of them are read again."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(6 << 20))
    (source / "small").write_bytes(os.urandom(3000))
    take(zkeep, source, "1")
    drop(zkeep, "v/home@1")
    before = size(tmp_path)
    with (source / "large").open("r+b") as sink:
        sink.seek(2 << 20)
        sink.write(b"changed")
    (source / "small").touch()
    if not kept:
        for cache in (tmp_path / "state" / "capture").iterdir():
            cache.unlink()
    take(zkeep, source, "2")
    assert 128 << 10 < size(tmp_path) - before < 200 << 10


def test_a_volume(zkeep: Zkeep, tmp_path: Path) -> None:
    options = ("encryption=on", "keyformat=raw", f"keylocation=file://{tmp_path / 'key'}")
    assert zkeep("create", *(word for option in options for word in ("-o", option)), "-V", "8M", "v/disk") == 0
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(4 << 20) + bytes(4 << 20))
    take(zkeep, image, "1", "v/disk")
    drop(zkeep, "v/disk@1")
    assert size(tmp_path) < 200_000
    with image.open("r+b") as sink:
        sink.seek(1 << 20)
        sink.write(os.urandom(16384) + bytes(16384))
    take(zkeep, image, "2", "v/disk")
    assert size(tmp_path) < 250_000
    assert zkeep("verify", "v/disk@2") == 0
    assert zkeep("cat", "-L", f"file://{tmp_path / 'key'}", "v/disk@2") == 1
    assert zkeep("pool", "scrub", "v") == 0


def test_the_property(zkeep: Zkeep, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def value(name: str) -> str:
        return asked(zkeep, capsys, "get", "-H", "-o", "value,source", "contents", name)

    take(zkeep, source, "1")
    assert value("v/home") == value("v/home@1") == "all\tdefault"
    assert zkeep("set", "contents=metadata", "v/home") == 0
    assert value("v/home") == value("v/home@1") == "metadata\tlocal"
    assert value("v") == "all\tdefault"
    change_tree(source, 1)
    take(zkeep, source, "2")
    assert value("v/home@2") == "all\tdefault"
    assert zkeep("create", "-o", "contents=metadata", "v/home/below") == 0
    assert value("v/home/below") == "metadata\tlocal"
    assert zkeep("set", "contents=all", "v/home") == 0
    assert value("v/home") == "all\tlocal"
    assert zkeep("set", "contents=some", "v/home") == 1
    assert zkeep("create", "-o", "blind=off", "v/plain") == 0


def test_a_word_that_is_taken_back_in_time_keeps_contents(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    take(zkeep, source, "1")
    with Pool.open(tmp_path / "pool", "v") as pool, pool.transaction() as t:
        contents.confirm(pool, t, pool.snapshot(SnapshotName.parse("v/home@1")))
        assert contents.droppable(pool, pool.dataset(DatasetName.parse("v/home")))
    assert zkeep("inherit", "contents", "v/home") == 0
    assert zkeep("pool", "compact", "v") == 0
    assert extracted(zkeep, tmp_path, "v/home@1") == stored_listing(source)


def test_a_part_of_a_snapshot_is_not_confirmed(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted capture goes on, although the dataset was said to be stored elsewhere meanwhile."""
    from zkeep.snapshot import commit

    genuine, left = commit._commit, [2]

    def interrupted(*words):  # type: ignore[no-untyped-def]
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return genuine(*words)

    monkeypatch.setenv("ZKEEP_STEP", "70000")
    with monkeypatch.context() as patch:
        patch.setattr(commit, "_commit", interrupted)
        assert zkeep("snapshot", "--from", str(source), "v/home@1") != 0
    drop(zkeep, "v/home")
    take(zkeep, source, "1")
    assert extracted(zkeep, tmp_path, "v/home@1") == stored_listing(source)


@pytest.mark.usefixtures("other")
def test_a_damaged_header_is_found_and_healed(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    take(zkeep, source, "1")
    moved(zkeep, tmp_path, "v/home@1")
    drop(zkeep, "v/home@1")
    (segment,) = (tmp_path / "pool" / "segments").rglob("*.seg")
    with Pool.open(tmp_path / "pool", "v") as pool:
        (run,) = pool.runs.of(pool.dataset(DatasetName.parse("v/home")).key).runs
        blob = pool.store.open(segment_name(run.segments[0]))
        rows = Segment(lambda: blob, "it").rows("blocks")
        assert run.doc["bare"] == np.count_nonzero(rows["bare"]) > 10
        places = rows["pos"][rows["bare"] > 0].tolist()
        blob.close()
    for place in places[3], places[7]:
        content = bytearray(segment.read_bytes())
        content[place + 100] ^= 1
        segment.chmod(0o600)
        segment.write_bytes(content)
    assert zkeep("pool", "scrub", "v") == 3
    stream = sent(zkeep, tmp_path / "healing", "w/home@1")
    with stream.open("rb") as given:
        saved = os.dup(0)
        os.dup2(given.fileno(), 0)
        try:
            assert zkeep("receive", "-c", "v/home@1") == 0
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    assert zkeep("pool", "scrub", "v") == 0
    assert zkeep("verify", "-L", f"file://{tmp_path / 'key'}", "v/home@1") == 0


def test_a_new_snapshot_is_not_elsewhere(zkeep: Zkeep, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zkeep("snapshot", "--from", str(source), "-o", "contents=metadata", "v/home@1") == 1
    assert zkeep("snapshot", "-o", "contents=metadata", "v/home@1") == 1
    assert "when the snapshot is stored elsewhere" in capsys.readouterr().err


def test_a_program_drops_contents_by_one_call(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    take(zkeep, source, "1")
    with Pool.open(tmp_path / "pool", "v") as pool:
        report = drop_contents(pool, pool.snapshot(SnapshotName.parse("v/home@1")))
        assert report.dropped > 500_000
        assert not report.skipped
    assert_no_payload_here(tmp_path, "v/home@1")


def test_long_histories_and_their_summaries(zkeep: Zkeep, tmp_path: Path) -> None:
    """Tables of many runs are summed up before and after payloads go."""
    source = tmp_path / "source"
    source.mkdir()
    for turn in range(70):
        (source / f"{turn % 7}").write_bytes(os.urandom(5000 + turn))
        take(zkeep, source, f"{turn}")
        if turn in (20, 40, 45, 68):
            drop(zkeep, f"v/home@{turn}")
    assert list((tmp_path / "pool" / "summaries").rglob("*-*"))
    assert zkeep("pool", "scrub", "v") == 0
    assert zkeep("verify", "v/home@69") == 0
    assert zkeep("verify", "v/home@30") == 0
    with Pool.open(tmp_path / "pool", "v") as pool:
        view = View(pool)
        for name in ("v/home@15", "v/home@44", "v/home@69"):
            snapshot = pool.snapshot(SnapshotName.parse(name))
            with OpenSnapshot(pool, snapshot, lambda wrapped: KEY) as opened:
                stored = sum(chunk.table.stored for chunk in opened.state.chunks())
            assert view.get(snapshot, "referenced").value == stored


def test_what_is_said_meanwhile_counts(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word is taken back while the payloads are being dropped: nothing of the step stays."""
    from zkeep.pool.maintenance import step

    genuine = step.rewrite

    def meddle(*words: object) -> None:
        genuine(*words)  # type: ignore[arg-type]
        assert zkeep("set", "contents=all", "v/home") == 0

    take(zkeep, source, "1")
    with Pool.open(tmp_path / "pool", "v") as pool, pool.transaction() as t:
        contents.confirm(pool, t, pool.snapshot(SnapshotName.parse("v/home@1")))
    monkeypatch.setattr(step, "rewrite", meddle)
    assert zkeep("pool", "compact", "v") == 0
    assert extracted(zkeep, tmp_path, "v/home@1") == stored_listing(source)
    assert zkeep("pool", "scrub", "v") == 0


def test_what_died_before_is_not_counted_again(zkeep: Zkeep, tmp_path: Path) -> None:
    """Neighbours of what dies had died in a snapshot that the search for it did not reach."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number}").touch()
    # Objects are numbered as the folder lists them. One in four has a block.
    files = [folder / entry.name for entry in os.scandir(folder)]
    for file in files[0::4]:
        file.write_bytes(b"content")
    take(zkeep, folder, "all")
    # Neighbours die one after the other; each time the metadnode blocks are written again.
    for name, gone in (("fewer", files[0::4] + files[2::4]), ("fewest", files[1::4]), ("none", files[3::4])):
        for file in gone:
            file.unlink()
        take(zkeep, folder, name)
        assert_figures_add_up(tmp_path)
    for file in files:
        file.write_bytes(b"new")
    take(zkeep, folder, "new")
    assert_figures_add_up(tmp_path)
