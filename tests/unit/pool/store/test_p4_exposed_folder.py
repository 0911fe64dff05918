"""P4: where another user could exchange a pool's files while they are opened, SQLite is given none of their paths."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from zkeep.pool.store.catalog import INDEX, Catalog
from zkeep.pool.store.disk import is_exposed
from zkeep.pool.store.files import LocalStore

SOMEBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")


def give(path: Path) -> None:
    os.chown(path, SOMEBODY, SOMEBODY)


EXPOSED = [
    pytest.param(give, id="of-another", marks=as_root),
    pytest.param(lambda pool: give(pool.parent), id="in-one-of-another", marks=as_root),
    pytest.param(lambda pool: give(pool.parent.parent), id="far-below-one-of-another", marks=as_root),
    pytest.param(lambda pool: pool.chmod(0o1777), id="open-to-all"),
    pytest.param(lambda pool: pool.parent.chmod(0o777), id="in-one-open-to-all"),
]
PRIVATE = [
    pytest.param(lambda pool: pool.chmod(0o755), id="own"),
    pytest.param(lambda pool: pool.chmod(0o770), id="of-a-group"),
    pytest.param(lambda pool: pool.parent.chmod(0o1777), id="in-one-with-the-sticky-bit"),
]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A folder with a catalog in it."""
    path = tmp_path / "around" / "disk" / "pool"
    path.mkdir(parents=True)
    add(path, "first")
    return path


def add(path: Path, key: str) -> None:
    with closing(Catalog(LocalStore(path))) as catalog, catalog.transaction() as t:
        t.put("thing", key, {})


def opened(folder: Path) -> set[str]:
    """The names of the files in a folder that this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {os.path.basename(path) for path in found if os.path.dirname(path) == str(folder)}


@pytest.mark.parametrize("expose", EXPOSED)
def test_p4_sqlite_opens_nothing_that_others_can_exchange(pool: Path, expose: Callable[[Path], None]) -> None:
    expose(pool)
    assert is_exposed(pool)
    with closing(Catalog(LocalStore(pool))) as catalog:
        with catalog.transaction() as t:
            t.put("thing", "second", {})
        assert catalog.keys("thing") == ["first", "second"]
        assert not {name for name in opened(pool) if name.startswith(INDEX)}
    add(pool, "third")
    with closing(Catalog.rebuild(LocalStore(pool))) as catalog:
        assert catalog.keys("thing") == ["first", "second", "third"]


@pytest.mark.parametrize("expose", PRIVATE)
def test_an_index_that_only_its_owner_reaches_stays_on_the_disk(pool: Path, expose: Callable[[Path], None]) -> None:
    expose(pool)
    assert not is_exposed(pool)
    with closing(Catalog(LocalStore(pool))) as catalog:
        assert catalog.keys("thing") == ["first"]
        assert INDEX in opened(pool)


def test_p4_what_a_link_leads_to_stays_as_it_is(pool: Path) -> None:
    pool.chmod(0o1777)
    victim = pool.parent / "theirs.sqlite"
    with closing(sqlite3.connect(victim)) as theirs:
        theirs.execute("CREATE TABLE t (a)")
    before = victim.read_bytes()
    with closing(Catalog(LocalStore(pool))) as catalog:
        (pool / INDEX).unlink()
        (pool / INDEX).symlink_to(victim)
        catalog.renew()
        assert catalog.keys("thing") == ["first"]
    assert victim.read_bytes() == before
    assert sorted(os.listdir(pool.parent)) == ["pool", "theirs.sqlite"]


def test_what_another_process_commits_is_seen_by_the_next_reading(pool: Path) -> None:
    pool.chmod(0o777)
    with closing(Catalog(LocalStore(pool))) as one:
        version = one.version()
        add(pool, "second")
        with one.reading():
            assert one.keys("thing") == ["first", "second"]
            with one.reading():
                assert one.version() != version
        with one.transaction() as t:
            assert one.version() != version
            t.put("thing", "third", {})
        assert one.keys("thing") == ["first", "second", "third"]
