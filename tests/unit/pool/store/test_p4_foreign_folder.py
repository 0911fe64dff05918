"""P4, for a pool's folder from elsewhere: what somebody put into it leads nowhere, hangs nothing, fills nothing."""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from zkeep.errors import Damaged, ZkeepError
from zkeep.names import DatasetName
from zkeep.pool.datasets.lifecycle import importable
from zkeep.pool.datasets.model import NotThere, Pool
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store import journal
from zkeep.pool.store.catalog import INDEX
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.index import Index

TREASURE = {"letter.txt": "precious", "1-0": "precious", "0123456789abcdef": "precious"}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool's folder with a dataset in it, and a folder `victim` beside it with somebody's files."""
    with Pool.create(tmp_path / "pool", "v", {"blind": "off"}) as pool:
        with pool.transaction() as t:
            pool.create_dataset(t, DatasetName.parse("v/a"))
        for name in ("segments/01/1-0.seg", "summaries/000000000002/x", "partial/1-0"):
            (pool.path / name).parent.mkdir(parents=True, exist_ok=True)
            (pool.path / name).write_bytes(b"leftover")
    (tmp_path / "victim").mkdir()
    for name, text in TREASURE.items():
        (tmp_path / "victim" / name).write_text(text)
    return tmp_path / "pool"


def use(path: Path) -> list[str]:
    """All that reads and writes much; returns what was refused. Nothing but our own errors may come out."""
    refused = []
    for work in (scrub, compact, grow):
        try:
            with Pool.open(path) as pool:
                work(pool)
        except ZkeepError as error:
            refused.append(str(error))
    return refused


def grow(pool: Pool) -> None:
    with pool.transaction() as t:
        pool.create_dataset(t, DatasetName.parse("v/b"))


def untouched(victim: Path) -> bool:
    return {p.name: p.read_text() for p in victim.iterdir()} == TREASURE


def replace(path: Path, put: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    put(path)


@pytest.mark.parametrize(
    "name", ["tmp", "partial", "lock", "journal", "segments", "summaries", "segments/01", "summaries/000000000002"]
)
def test_p4_a_folder_that_is_a_link_is_not_entered(pool: Path, name: str) -> None:
    victim = pool.parent / "victim"
    replace(pool / name, lambda path: path.symlink_to(victim))
    use(pool)
    assert untouched(victim)


@pytest.mark.parametrize(
    "name",
    [
        *("POOL", "reserve", "journal/{log}", "lock/catalog", "lock/put", "lock/readers"),
        *(INDEX, f"{INDEX}-wal", f"{INDEX}-shm"),
    ],
)
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "fifo"])
def test_p4_a_file_that_is_a_link_or_a_fifo_is_not_opened(pool: Path, name: str, kind: str) -> None:
    victim = pool.parent / "victim"
    log = next((pool / "journal").glob("*.log")).name
    put = {
        "link": lambda path: path.symlink_to(victim / "letter.txt"),
        "dangling link": lambda path: path.symlink_to(victim / "made"),
        "hard link": lambda path: path.hardlink_to(victim / "letter.txt"),
        "fifo": os.mkfifo,
    }
    replace(pool / name.format(log=log), put[kind])
    use(pool)
    assert untouched(victim)


def test_p4_an_index_that_is_a_link_to_an_index_is_made_anew(pool: Path) -> None:
    other = shutil.copy(pool / INDEX, pool.parent / "other.sqlite")
    before = Path(other).read_bytes()
    replace(pool / INDEX, lambda path: path.symlink_to(other))
    assert use(pool) == []
    assert Path(other).read_bytes() == before
    assert not (pool / INDEX).is_symlink()


def test_p4_a_copy_made_of_hard_links_stays_what_it_was(pool: Path) -> None:
    copy = pool.parent / "copy"
    shutil.copytree(pool, copy, copy_function=os.link)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and "lock" not in p.parts}
    assert use(pool) == []
    assert {p: p.read_bytes() for p in before} == before


def test_p4_looking_for_pools_opens_no_fifo_and_reads_no_device(pool: Path) -> None:
    for number, put in enumerate((os.mkfifo, lambda path: path.symlink_to("/dev/zero"))):
        (pool.parent / f"odd{number}").mkdir()
        put(pool.parent / f"odd{number}" / "POOL")  # type: ignore[operator]
    (pool.parent / "deep").mkdir()
    (pool.parent / "deep" / "POOL").write_text("[" * 100_000)
    assert importable(pool.parent) == {pool.resolve(): "v"}


def edited(pool: Path, *statements: str) -> None:
    db = sqlite3.connect(pool / INDEX, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r)"
SCHEMAS = {
    "a view": (
        "DROP TRIGGER doc_comes",
        "DROP TRIGGER doc_goes",
        "ALTER TABLE doc RENAME TO d0",
        f"CREATE VIEW doc AS {ENDLESS} SELECT kind, key, value, sum FROM d0"
        " UNION ALL SELECT 'x' || n, 'k', 'v', 1 FROM r",
    ),
    "a trigger": ("CREATE TRIGGER t AFTER INSERT ON applied BEGIN DELETE FROM doc; END",),
    "a generated column": (
        "ALTER TABLE applied ADD COLUMN more TEXT GENERATED ALWAYS AS (hex(zeroblob(100000000))) VIRTUAL",
    ),
    "an index": ("CREATE INDEX i ON doc (length(value))",),
    "a table": ("CREATE TABLE more (x)",),
    "no schema that can be read": (
        "PRAGMA writable_schema = ON",
        "INSERT INTO sqlite_master VALUES ('table', char(27) || 'X', 'X', 0, 'create table ' || char(27))",
    ),
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_p4_an_index_with_another_schema_is_made_anew_from_the_journal(pool: Path, kind: str) -> None:
    edited(pool, *SCHEMAS[kind])
    assert use(pool) == []
    with Pool.open(pool) as opened:
        assert sorted(d.name.text for d in opened.tree().by_id.values()) == ["v", "v/a", "v/b"]
    db = sqlite3.connect(pool / INDEX)
    assert len(db.execute("SELECT name FROM sqlite_master").fetchall()) == 5
    db.close()


def test_p4_a_rollback_journal_is_not_played_back(pool: Path) -> None:
    """It may name another file, which SQLite would delete."""
    (pool / f"{INDEX}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(5000))
    assert use(pool) == []
    assert not (pool / f"{INDEX}-journal").exists()


def test_p4_a_document_that_unpacks_to_more_than_a_document_is_refused(pool: Path) -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(300)] + [packer.flush()])
    db = sqlite3.connect(pool / INDEX, isolation_level=None)
    db.execute("UPDATE doc SET value = ? WHERE kind = 'dataset'", (bomb,))
    db.close()
    with Pool.open(pool) as opened, pytest.raises(Damaged, match="is not what was stored"):
        opened.dataset(DatasetName.parse("v/a"))


def test_p4_pages_that_lead_in_circles_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(str(tmp_path / INDEX), 1.0)
    monkeypatch.setattr(index, "_allowed", 0)
    with pytest.raises(Damaged, match="interrupted"):
        index._run(f"{ENDLESS} SELECT count(*) FROM r")
    index.close()


def lose_index(pool: Path) -> Path:
    """What is asked next comes from the journal. Returns the log."""
    for path in pool.glob(f"{INDEX}*"):
        path.unlink()
    return next((pool / "journal").glob("*.log"))


def opened(pool: Path) -> str:
    with pytest.raises(Damaged) as caught:
        Pool.open(pool).close()
    return str(caught.value)


def test_p4_a_checkpoint_that_unpacks_without_end_is_refused(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_index(pool)
    monkeypatch.setattr(journal, "_SMALL", 1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = [packer.compress(b'{"digest":"0","n":1}\n["thing","')]
    bomb += [packer.compress(b"x" * (1 << 20)) for _ in range(30)] + [packer.flush()]
    (pool / "journal" / f"{99999:020}.ckpt.gz").write_bytes(b"".join(bomb))
    assert "unpacks to more" in opened(pool)


def test_p4_a_checkpoint_that_says_the_same_again_and_again_is_refused(pool: Path) -> None:
    lose_index(pool)
    rows = b"\n".join([b'{"digest":"0","n":1}', *[b'["thing","a",{}]'] * 1000])
    (pool / "journal" / f"{99999:020}.ckpt.gz").write_bytes(gzip.compress(rows))
    assert "not in order" in opened(pool)


def test_p4_a_log_of_nothing_but_zeros_is_refused(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MOST", 1 << 20)
    os.truncate(lose_index(pool), 100 << 30)
    assert "a line has more than" in opened(pool)


def test_p4_a_log_of_nothing_but_ends_of_lines_is_refused(pool: Path) -> None:
    with lose_index(pool).open("ab") as log:
        log.write(b"\n" * (1 << 20))
    assert "are not whole" in opened(pool)


@pytest.mark.parametrize(
    "body",
    ['{"n":1,"ops":[["a","b"]]}', '{"n":1,"ops":[[[1],"b",{}]]}', '{"ops":[]}', "[" * 100_000, "1" * 10_000, "nul"],
)
def test_p4_a_line_that_proves_itself_and_is_nonsense_is_refused(pool: Path, body: str) -> None:
    log = lose_index(pool)
    digest = journal._digest("0" * 16, body.encode())
    log.write_bytes(f"{'0' * 16} {digest} {body}\n".encode())
    assert "is not a transaction" in opened(pool)


@pytest.mark.parametrize("name", ["x.ckpt.gz", "1.ckpt.gz", "-1.ckpt.gz", "00000000000000000009.ckpt.gz.log"])
def test_p4_odd_names_in_the_journal_are_not_its_own(pool: Path, name: str) -> None:
    (pool / "journal" / name).write_bytes(b"")
    assert use(pool) == []


@pytest.mark.parametrize("segment", ["../../../victim/letter", "x-0", "", "1-0/../../x"])
def test_p4_a_run_that_names_no_segment_is_damage(pool: Path, segment: str) -> None:
    run = {"txg": 9, "whole": True, "from_txg": 0, "fromguid": 0, "features": 0, "maxblkid": 0, "segments": [segment]}
    figures = {"bytes": 1, "logical": 1, "records": 1, "file_bytes": 1, "dead": []}
    with Pool.open(pool) as opened, opened.transaction() as t:
        t.put("run", "000000000002/00000000000000000009", {**run, **figures})
    with Pool.open(pool) as opened:
        with suppress(ZkeepError):
            assert scrub(opened).errors
        with suppress(ZkeepError):
            compact(opened)
    assert untouched(pool.parent / "victim")


def test_p4_deep_folders_are_not_followed_down(pool: Path) -> None:
    os.makedirs(pool / "segments" / Path(*["x"] * 300))
    assert LocalStore(pool).names("segments") == ["segments/01/1-0.seg"]
    assert use(pool) == []


def test_p4_a_folder_without_a_pool(tmp_path: Path) -> None:
    with pytest.raises(NotThere):
        Pool.open(tmp_path)
