from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from zkeep.errors import Damaged, Refused, TryAgain
from zkeep.pool.store.catalog import INDEX, Catalog
from zkeep.pool.store.disk import Disk
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.journal import Journal, JournalPlace

POOL = {"next_id": 1, "next_txg": 1}


def make(path: Path) -> Catalog:
    catalog = Catalog(LocalStore(path), wait=0.1)
    with catalog.transaction() as t:
        t.put("pool", "", POOL)
    return catalog


def put(catalog: Catalog, key: str, **document: object) -> None:
    with catalog.transaction() as t:
        t.put("thing", key, document)


def log_of(path: Path) -> Path:
    return max((path / "journal").glob("*.log"))


def test_a_transaction_is_there_after_reopening(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=2**64 - 1, text="é\udcff\0")
    catalog.close()
    assert Catalog(LocalStore(tmp_path)).get("thing", "a") == {"n": 2**64 - 1, "text": "é\udcff\0"}


def test_scan_and_keys_by_prefix(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    for key in ("1/b", "1/a", "2/a", "10/a"):
        put(catalog, key, k=key)
    assert catalog.keys("thing", "1/") == ["1/a", "1/b"]
    assert catalog.scan("thing", "1/") == [("1/a", {"k": "1/a"}), ("1/b", {"k": "1/b"})]
    assert catalog.keys("thing") == ["1/a", "1/b", "10/a", "2/a"]
    assert catalog.scan("other") == []


def test_inside_a_transaction_its_changes_are_seen_and_undone_if_it_raises(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    version = catalog.version()
    with suppress(KeyError), catalog.transaction() as t:
        t.put("thing", "a", {"n": 2})
        t.delete("pool", "")
        assert catalog.get("thing", "a") == t.get("thing", "a") == {"n": 2}
        assert catalog.get("pool", "") is None
        inside = catalog.version()
        raise KeyError
    assert catalog.get("thing", "a") == {"n": 1}
    assert catalog.get("pool", "") == POOL
    assert len({version, inside, catalog.version()}) == 3


def test_a_transaction_without_changes_writes_nothing(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    before = log_of(tmp_path).read_bytes()
    with catalog.transaction() as t:
        t.get("pool", "")
    assert log_of(tmp_path).read_bytes() == before


def test_numbers_are_given_once(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    with catalog.transaction() as t:
        assert [t.next_id(), t.next_id(), t.next_txg()] == [1, 2, 1]
    with suppress(KeyError), catalog.transaction() as t:
        t.next_id()
        raise KeyError
    with catalog.transaction() as t:
        assert t.next_id() == 3


def test_another_writer_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    first, second = make(tmp_path), Catalog(LocalStore(tmp_path), wait=0.05)
    with first.transaction() as t:
        t.put("thing", "a", {})
        with pytest.raises(TryAgain, match="busy"), second.transaction():
            pass
        assert second.get("thing", "a") is None
    assert second.get("thing", "a") == {}


def test_writers_take_turns_and_see_each_other(tmp_path: Path) -> None:
    first, second = make(tmp_path), Catalog(LocalStore(tmp_path))
    for _ in range(5):
        for catalog in (first, second):
            with catalog.transaction() as t:
                t.put("thing", str(t.next_id()), {})
    assert first.keys("thing") == second.keys("thing") == [str(n) for n in (1, 10, *range(2, 10))]


def test_reading_is_of_one_moment(tmp_path: Path) -> None:
    first, second = make(tmp_path), Catalog(LocalStore(tmp_path))
    with second.reading():
        assert second.get("thing", "a") is None
        put(first, "a", n=1)
        assert second.get("thing", "a") is None
    assert second.get("thing", "a") == {"n": 1}


def test_what_the_index_lacks_is_applied_on_opening(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    catalog.close()
    shutil.copy(tmp_path / INDEX, tmp_path / "old")
    catalog = Catalog(LocalStore(tmp_path))
    put(catalog, "a", n=1)
    catalog.close()
    shutil.move(tmp_path / "old", tmp_path / INDEX)
    assert Catalog(LocalStore(tmp_path)).get("thing", "a") == {"n": 1}


def test_the_index_is_made_anew_if_it_is_gone(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    catalog.close()
    (tmp_path / INDEX).unlink()
    assert Catalog(LocalStore(tmp_path)).get("thing", "a") == {"n": 1}


@pytest.mark.parametrize("cut", [1, 2, 10, 40, 60])
def test_a_torn_tail_is_passed_over(tmp_path: Path, cut: int) -> None:
    """A line that lacks only its end of line is whole."""
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    put(catalog, "torn", n=1)
    catalog.close()
    log = log_of(tmp_path)
    log.write_bytes(log.read_bytes()[:-cut])
    (tmp_path / INDEX).unlink()
    catalog = Catalog(LocalStore(tmp_path))
    put(catalog, "b", n=2)
    log.write_bytes(log.read_bytes() + b"\0" * 20)
    catalog.close()
    (tmp_path / INDEX).unlink()
    catalog = Catalog(LocalStore(tmp_path))
    assert catalog.keys("thing") == ["a", "b", "torn"][: 3 if cut == 1 else 2]
    put(catalog, "c", n=3)
    assert catalog.verify() == []


def test_a_line_damaged_in_the_middle_is_noticed(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    put(catalog, "b", n=1)
    log = log_of(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + lines[1].replace(b'"n":1', b'"n":7') + lines[2])
    assert "transaction 2 is missing or damaged" in catalog.verify()[0]
    catalog.close()
    (tmp_path / INDEX).unlink()
    with pytest.raises(Damaged, match="transaction 2"):
        Catalog(LocalStore(tmp_path))


def test_a_damaged_row_is_noticed_and_rebuilt(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    catalog.close()
    db = sqlite3.connect(tmp_path / INDEX)
    db.execute("""UPDATE doc SET value = '{"n":2}' WHERE key = 'a'""")
    db.commit()
    db.close()
    catalog = Catalog(LocalStore(tmp_path))
    with pytest.raises(Damaged, match="thing a is not what was stored"):
        catalog.get("thing", "a")
    assert catalog.verify() == [str(f) for f in catalog.verify()]
    assert len(catalog.verify()) == 1
    catalog.close()
    assert Catalog.rebuild(LocalStore(tmp_path)).get("thing", "a") == {"n": 1}


def test_a_row_that_the_journal_does_not_know_is_noticed(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    catalog.close()
    db = sqlite3.connect(tmp_path / INDEX)
    db.execute("DELETE FROM doc WHERE key = 'a'")
    db.execute("UPDATE tally SET places = places - ?", [zlib.crc32(b"thing\0a")])
    db.commit()
    db.close()
    assert Catalog(LocalStore(tmp_path)).verify() == ["catalog: thing a is not as the journal says"]


@pytest.mark.parametrize("garbage", [b"", b"not a database at all" * 500])
def test_a_garbled_index_is_named_and_rebuilt(tmp_path: Path, garbage: bytes) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    catalog.close()
    (tmp_path / INDEX).write_bytes(garbage)
    if garbage:
        with pytest.raises(Damaged, match="rebuild-catalog"):
            Catalog(LocalStore(tmp_path))
    catalog = Catalog.rebuild(LocalStore(tmp_path))
    assert catalog.get("thing", "a") == {"n": 1}
    assert catalog.verify() == []


def test_a_damaged_journal_is_written_anew_from_a_sound_index(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    put(catalog, "b", n=1)
    catalog.close()
    log_of(tmp_path).write_bytes(b"gone\n")
    with pytest.raises(Damaged, match="where the index has seen"):
        Catalog(LocalStore(tmp_path))
    catalog = Catalog.rebuild(LocalStore(tmp_path))
    assert catalog.keys("thing") == ["a", "b"]
    put(catalog, "c", n=1)
    assert catalog.verify() == []


def test_nothing_is_rebuilt_from_two_ruins(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    for key in "abc":
        put(catalog, key, n=1)
    catalog.close()
    log = log_of(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b"x" + lines[2] + lines[3])
    (tmp_path / INDEX).write_bytes(b"no database" * 100)
    with pytest.raises(Damaged):
        Catalog.rebuild(LocalStore(tmp_path))
    assert log.exists()


def test_checkpoints_bound_the_journal(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    for n in range(200):
        put(catalog, f"{n % 20}", n=n, filling="x" * 5000)
    names = sorted(p.name for p in (tmp_path / "journal").iterdir())
    assert len(names) == 2
    assert sum(p.stat().st_size for p in (tmp_path / "journal").iterdir()) < 400_000
    assert catalog.verify() == []
    catalog.close()
    (tmp_path / INDEX).unlink()
    assert Catalog(LocalStore(tmp_path)).get("thing", "19")["n"] == 199  # type: ignore[index]


def test_a_crash_between_checkpoint_and_index_is_mended(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    catalog.close()
    for n in range(60):
        shutil.copy(tmp_path / INDEX, tmp_path / "old")
        catalog = Catalog(LocalStore(tmp_path))
        put(catalog, f"{n}", n=n, filling="x" * 5000)
        catalog.close()
        if list((tmp_path / "journal").glob("*.ckpt.gz")):
            break
    shutil.move(tmp_path / "old", tmp_path / INDEX)
    catalog = Catalog(LocalStore(tmp_path))
    assert len(catalog.keys("thing")) == n + 1
    put(catalog, "more", n=0)
    assert catalog.verify() == []


def test_a_checkpoint_that_is_gone_or_damaged_is_noticed(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    for n in range(100):
        put(catalog, f"{n}", n=n, filling=str(random.Random(n).random()) * 300)
    catalog.close()
    (checkpoint,) = (tmp_path / "journal").glob("*.ckpt.gz")
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    with pytest.raises(Damaged, match="is gone"):
        Catalog(LocalStore(tmp_path))
    checkpoint.write_bytes(content[:-50] + b"\0" + content[-49:])
    catalog = Catalog(LocalStore(tmp_path))
    assert catalog.verify()
    catalog.close()
    catalog = Catalog.rebuild(LocalStore(tmp_path))
    assert len(catalog.keys("thing")) == 100
    assert catalog.verify() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_can_be_read(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    catalog.close()
    tmp_path.chmod(0o500)
    try:
        catalog = Catalog(LocalStore(tmp_path))
        assert catalog.get("thing", "a") == {"n": 1}
        with pytest.raises(Refused, match="cannot be written"), catalog.transaction():
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_catalog_lives_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = make(tmp_path)
    put(catalog, "a", n=1)
    catalog.close()
    (tmp_path / INDEX).unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    catalog = Catalog(LocalStore(tmp_path))
    assert catalog.get("thing", "a") == {"n": 1}
    assert not (tmp_path / INDEX).exists()
    with pytest.raises(Refused), catalog.transaction():
        pass


class FullDisk(Disk):
    full = False

    def write(self, fd: int, offset: int, buffers: object) -> int:
        if self.full:
            os.pwrite(fd, b"half a li", offset)
            raise OSError(28, "No space left on device")
        return super().write(fd, offset, buffers)  # type: ignore[arg-type]


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    disk = FullDisk()
    catalog = Catalog(LocalStore(tmp_path, disk))
    put(catalog, "a", n=1)
    disk.full = True
    with pytest.raises(OSError, match="No space"):
        put(catalog, "b", n=1)
    disk.full = False
    assert catalog.keys("thing") == ["a"]
    put(catalog, "c", n=1)
    assert catalog.keys("thing") == ["a", "c"]
    assert catalog.verify() == []


def test_the_reserve_lets_an_urgent_transaction_through_once(tmp_path: Path) -> None:
    class Full(Disk):
        """Full for as long as the reserve is there."""

        full = False

        def write(self, fd: int, offset: int, buffers: object) -> int:
            if self.full and (tmp_path / "reserve").exists():
                raise OSError(28, "No space left on device")
            return super().write(fd, offset, buffers)  # type: ignore[arg-type]

    disk = Full()
    catalog = Catalog(LocalStore(tmp_path, disk))
    put(catalog, "a", n=1)
    assert (tmp_path / "reserve").stat().st_size == 128 << 10
    disk.full = True
    with pytest.raises(OSError, match="No space"):
        put(catalog, "b", n=1)
    with catalog.transaction(urgent=True) as t:
        t.delete("thing", "a")
    assert catalog.keys("thing") == []
    disk.full = False
    put(catalog, "c", n=1)
    assert (tmp_path / "reserve").exists()
    assert catalog.verify() == []


def _pairs_forever(path: str, counter: object) -> None:
    """Two documents that must always agree, in one transaction each time."""
    catalog = Catalog(LocalStore(Path(path)), wait=10)
    start = (catalog.get("thing", "left") or {"n": 0})["n"]
    for n in range(start + 1, 10**9):
        with catalog.transaction() as t:
            t.put("thing", "left", {"n": n, "filling": "x" * random.choice([10, 3000])})
            t.put("thing", "right", {"n": n})
        counter.value = n  # type: ignore[attr-defined]


def test_kill_at_random_moments_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    make(tmp_path).close()
    context = multiprocessing.get_context("fork")
    for _ in range(25):
        counter = context.Value("Q", 0)
        process = context.Process(target=_pairs_forever, args=(str(tmp_path), counter))
        process.start()
        time.sleep(random.uniform(0.01, 0.12))
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        catalog = Catalog(LocalStore(tmp_path))
        left, right = catalog.get("thing", "left"), catalog.get("thing", "right")
        assert (left or {}).get("n") == (right or {}).get("n")
        assert (left or {"n": 0})["n"] >= counter.value
        assert catalog.verify() == []
        catalog.close()


def test_a_text_that_packs_too_well_to_be_told_from_a_bomb_can_be_read(tmp_path: Path) -> None:
    journal, place = Journal(LocalStore(tmp_path)), JournalPlace(0, 0, 5, "f" * 16)
    text = b"x" * (1 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zkeep.pool.store.journal._SMALL", 1 << 10)
        journal.checkpoint(place, [("thing", "a", f'{{"x":"{text.decode()}"}}')])
        found, rows = journal.load(5)
        assert found == JournalPlace(5, 0, 5, "f" * 16)
        assert [len(row[2]) for row in rows] == [len(text) + 8]


def test_an_index_that_became_small_is_small_on_disk(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    with catalog.transaction() as t:
        for number in range(1000):
            t.put("thing", f"{number:04}", {"text": os.urandom(1000).hex()})
    before = (tmp_path / INDEX).stat().st_size
    with catalog.transaction() as t:
        for number in range(990):
            t.delete("thing", f"{number:04}")
    reader = Catalog(LocalStore(tmp_path))
    with catalog.transaction(), suppress(RuntimeError):
        catalog.shrink()  # not now
    catalog.shrink()
    assert (tmp_path / INDEX).stat().st_size < before / 10
    assert [len(found.scan("thing")) for found in (catalog, reader)] == [10, 10]
    put(catalog, "more", n=1)
    assert reader.get("thing", "more") == {"n": 1}
    assert catalog.verify() == []


def test_long_documents_take_less_in_the_index(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    long = {"header": "A" * 3000, "name": "ü\ud800" * 500}
    with catalog.transaction() as t:
        for number in range(100):
            t.put("thing", f"{number:04}", long)
    catalog.close()
    assert (tmp_path / INDEX).stat().st_size < 100_000
    db = sqlite3.connect(tmp_path / INDEX)
    value = db.execute("SELECT value FROM doc WHERE key = '0007'").fetchone()[0]
    for damaged in (value[:9] + b"!" + value[10:], value[:-1], b"", b"{}", 7):
        db.execute("UPDATE doc SET value = ? WHERE key = '0007'", (damaged,))
        db.commit()
        catalog = Catalog(LocalStore(tmp_path))
        assert catalog.get("thing", "0006") == long
        with pytest.raises(Damaged, match="thing 0007 is not what was stored"):
            catalog.get("thing", "0007")
        catalog.close()
    db.close()


def test_opening_imports_nothing_heavy() -> None:
    heavy = "('numpy', 'rich', 'cryptography')"
    script = f"import sys, zkeep.pool.datasets.model; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
