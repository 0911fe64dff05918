"""Every snapshot of a random history comes back as the folder was, however it was taken and whatever was pruned."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from capturekit import extracted, make_tree
from historykit import KEY, change, check_objects, stored_listing

from zkeep.capture import ahead
from zkeep.capture.contents import SourceError
from zkeep.capture.objects import ObjectWriter
from zkeep.format.events import Batch
from zkeep.format.records import RecordType
from zkeep.pool.transfer.session import ReceiveSession

Zkeep = Callable[..., int]
SEEDS = range(int(os.environ.get("ZKEEP_HISTORIES", "2")))


def take(zkeep: Zkeep, source: Path, name: str, status: int = 0) -> None:
    assert zkeep("snapshot", "--from", str(source), f"v/home@{name}") == status


def test_the_key_of_the_kit_is_that_of_the_pool(zkeep: Zkeep, tmp_path: Path) -> None:
    assert (tmp_path / "key").read_bytes() == KEY


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_history_comes_back(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    source, aside, wanted, chance = tmp_path / "source", tmp_path / "aside", {}, random.Random(seed)
    aside.mkdir()
    make_tree(source, seed)
    for turn in range(5):
        if turn:
            change(source, aside, seed * 1000 + turn)
        monkeypatch.setenv("ZKEEP_STEP", chance.choice(["4000000000", "70000", "600000"]))
        if turn and chance.random() < 0.25:
            for cache in (tmp_path / "state" / "capture").iterdir():
                cache.unlink()
        take(zkeep, source, str(turn))
        wanted[turn] = stored_listing(source)
        check_objects(tmp_path / "pool", f"v/home@{turn}")
    capsys.readouterr()
    assert zkeep("list", "-H", "-t", "snapshot", "-o", "name") == 0
    assert capsys.readouterr().out.split() == [f"v/home@{turn}" for turn in range(5)]
    for turn in (1, 3):
        assert extracted(zkeep, tmp_path, f"v/home@{turn}") == wanted[turn]
        assert zkeep("destroy", f"v/home@{turn}") == 0
    for turn in (0, 2, 4):
        assert zkeep("verify", f"v/home@{turn}") == 0
        assert extracted(zkeep, tmp_path, f"v/home@{turn}") == wanted[turn]


def test_a_folder_grows_out_of_one_block_and_shrinks_again(zkeep: Zkeep, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "0").write_bytes(b"all the others are links to it")
    for name, count in (("a", 2047), ("b", 2048), ("c", 2060), ("d", 30), ("e", 2100)):
        for number in range(1, 2100):
            path = source / str(number)
            if number < count and not path.exists():
                os.link(source / "0", path)
            elif number >= count:
                path.unlink(missing_ok=True)
        take(zkeep, source, name)
        check_objects(tmp_path / "pool", f"v/home@{name}")
    assert extracted(zkeep, tmp_path, "v/home@e") == stored_listing(source)


def fail_at(monkeypatch: pytest.MonkeyPatch, names: set[bytes], error: OSError) -> None:
    """Files of these names cannot be read any more once they were listed."""
    genuine = ObjectWriter._write_file

    def write(self: ObjectWriter, node):  # type: ignore[no-untyped-def]
        if node.name in names:
            raise SourceError(error) from error
        return genuine(self, node)

    monkeypatch.setattr(ahead, "_read_files", None)  # what is left out there comes here
    monkeypatch.setattr(ObjectWriter, "_write_file", write)


@pytest.mark.parametrize(("error", "status"), [(OSError(2, "No such file"), 0), (OSError(5, "I/O error"), 3)])
def test_a_new_file_that_cannot_be_read_has_no_name(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, status: int
) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "good").write_bytes(b"good")
    for turn in (1, 2):
        (source / "folder" / f"bad{turn}").write_bytes(b"bad")
        os.link(source / "folder" / f"bad{turn}", source / f"other name {turn}")
        bad = {name.encode() for name in (f"bad{turn}", f"other name {turn}")}
        with monkeypatch.context() as patch:
            fail_at(patch, bad, error)
            take(zkeep, source, f"{turn}", status)
        check_objects(tmp_path / "pool", f"v/home@{turn}")
        found = extracted(zkeep, tmp_path, f"v/home@{turn}")
        assert not {os.fsdecode(name) for name in bad} & {Path(path).name for path in found}
        take(zkeep, source, f"{turn}-again")
        assert extracted(zkeep, tmp_path, f"v/home@{turn}-again") == stored_listing(source)


def test_a_file_is_read_by_another_name_when_one_is_gone(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"content")
    os.link(source / "a", source / "b")
    for name in (b"a", b"b"):
        with monkeypatch.context() as patch:
            fail_at(patch, {name}, OSError(2, "No such file"))
            take(zkeep, source, f"without-{name.decode()}")
    assert extracted(zkeep, tmp_path, "v/home@without-a") == stored_listing(source)


def test_a_known_file_that_cannot_be_read_stays_and_its_links_are_counted(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "known").write_bytes(b"as it was")
    take(zkeep, source, "1")
    (source / "known").write_bytes(b"as it is now")
    (source / "known").rename(source / "folder" / "known")
    os.link(source / "folder" / "known", source / "link")
    fail_at(monkeypatch, {b"known", b"link"}, OSError(5, "I/O error"))
    take(zkeep, source, "2", 3)
    check_objects(tmp_path / "pool", "v/home@2")
    extracted(zkeep, tmp_path, "v/home@2")
    assert (tmp_path / "out-v-home@2" / "link").read_bytes() == b"as it was"
    assert (tmp_path / "out-v-home@2" / "link").stat().st_nlink == 2


def test_a_new_folder_that_is_gone_when_it_is_written_has_no_name(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_bytes(b"x")
    genuine = ObjectWriter.write

    def write(self: ObjectWriter, node):  # type: ignore[no-untyped-def]
        if (source / "folder").exists():
            (source / "folder").rename(tmp_path / "moved")
        self._folders.close()
        return genuine(self, node)

    monkeypatch.setattr(ObjectWriter, "write", write)
    take(zkeep, source, "1")
    check_objects(tmp_path / "pool", "v/home@1")
    assert set(extracted(zkeep, tmp_path, "v/home@1")) == {"."}


def test_an_inode_that_is_used_again_for_another_kind_is_another_object(zkeep: Zkeep, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "x").mkdir(parents=True)
    (source / "x" / "below").write_bytes(b"x")
    take(zkeep, source, "1")
    for name in ("2", "3", "4"):
        is_folder = (source / "x").is_dir()
        shutil.rmtree(source / "x") if is_folder else (source / "x").unlink()
        (source / "x").write_bytes(b"y" * 70_000) if is_folder else (source / "x").mkdir()
        take(zkeep, source, name)
        check_objects(tmp_path / "pool", f"v/home@{name}")
        assert extracted(zkeep, tmp_path, f"v/home@{name}") == stored_listing(source)


@pytest.mark.parametrize("step", ["4000000000", "300000"])
def test_no_iv_is_used_twice_under_one_salt(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setenv("ZKEEP_STEP", step)
    used: Counter[tuple[bytes, bytes]] = Counter()
    genuine = ReceiveSession.add

    def add(self: ReceiveSession, batch: Batch) -> None:
        for rtype in (RecordType.WRITE, RecordType.SPILL, RecordType.OBJECT_RANGE):
            _, headers = batch.select(rtype)
            pairs = zip(headers["salt"].tolist(), headers["iv"].tolist(), strict=True)
            used.update((bytes(salt), bytes(iv)) for salt, iv in pairs if any(bytes(iv)))
        genuine(self, batch)

    monkeypatch.setattr(ReceiveSession, "add", add)
    source, aside = tmp_path / "source", tmp_path / "aside"
    aside.mkdir()
    make_tree(source)
    for turn in range(3):
        if turn:
            change(source, aside, turn)
        take(zkeep, source, str(turn))
    assert len(used) > 100
    assert max(used.values()) == 1


@pytest.mark.parametrize("step", ["1000000", "2500000", "7000000"])
def test_what_became_a_hole_behind_a_step_is_one(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    large = source / "large"
    large.write_bytes(os.urandom(12 << 20))
    take(zkeep, source, "1")
    with large.open("r+b") as sink:
        sink.write(os.urandom(6 << 20))
        sink.truncate(8 << 20)
        sink.seek(9 << 20)
        sink.write(os.urandom(1 << 20))
        sink.truncate(12 << 20)
    monkeypatch.setenv("ZKEEP_STEP", step)
    take(zkeep, source, "2")
    assert zkeep("verify", "v/home@2") == 0
    assert extracted(zkeep, tmp_path, "v/home@2") == stored_listing(source)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    from zkeep.snapshot import commit

    genuine, left = commit._commit, [steps]

    def commit_one(*words):  # type: ignore[no-untyped-def]
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return genuine(*words)

    monkeypatch.setattr(commit, "_commit", commit_one)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("loses_cache", [False, True])
def test_an_interrupted_first_snapshot_goes_on_where_it_was(
    zkeep: Zkeep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: int,
    loses_cache: bool,
) -> None:
    monkeypatch.setenv("ZKEEP_STEP", "3000000")
    source = tmp_path / "source"
    make_tree(source)
    (source / "large").write_bytes(os.urandom(10 << 20))
    (source / "more").write_bytes(os.urandom(3 << 20))
    with monkeypatch.context() as patch:
        interrupt_after(patch, steps)
        assert zkeep("snapshot", "--from", str(source), "v/home@1") != 0
    assert zkeep("snapshot", "v/home@part") == 1
    assert "interrupted" in capsys.readouterr().err
    if loses_cache:
        for cache in (tmp_path / "state" / "capture").iterdir():
            cache.unlink()
    before = sum(path.stat().st_size for path in (tmp_path / "pool" / "segments").rglob("*") if path.is_file())
    (source / "folders" / "of-8" / "3").unlink()
    take(zkeep, source, "1")
    after = sum(path.stat().st_size for path in (tmp_path / "pool" / "segments").rglob("*") if path.is_file())
    if not loses_cache:
        assert after - before < (15 << 20) - steps * 2_500_000, "what is there was stored again"
    check_objects(tmp_path / "pool", "v/home@1")
    assert zkeep("pool", "scrub", "v") == 0
    assert extracted(zkeep, tmp_path, "v/home@1") == stored_listing(source)
    assert zkeep("list", "-H", "-t", "snapshot", "-o", "name") == 0
    assert capsys.readouterr().out.split()[-1:] == ["v/home@1"]
