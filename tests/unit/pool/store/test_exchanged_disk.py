"""A disk is unmounted, or exchanged for another one, while a process has its pool open: it writes to neither."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from receivekit import kept, stream, take
from zkeep.format.events import Event, SubEnd
from zkeep.format.reader import read_events
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import IDENTITY, Pool
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.files import LocalStore
from zkeep.pool.transfer.receive import ReceiveOptions, receive_events

Content = dict[str, bytes]


def content(folder: Path) -> Content:
    """All files but those of SQLite, which begin again whenever they are opened."""
    files = (path for path in folder.rglob("*") if path.is_file() and "sqlite" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def other_pool(place: Path) -> None:
    with Pool.create(place, "other") as pool:
        take(pool, stream("full-s0"), "other/a")


INSTEAD: dict[str, Callable[[Path, Path], object]] = {
    "nothing": lambda place, own: None,
    "an empty folder": lambda place, own: place.mkdir(),
    "a file": lambda place, own: place.write_bytes(b""),
    "another pool": lambda place, own: other_pool(place),
    "a copy of it": lambda place, own: shutil.copytree(own, place),
}


@pytest.fixture(params=INSTEAD)
def instead(request: pytest.FixtureRequest) -> Callable[[Path, Path], object]:
    return INSTEAD[request.param]


@contextmanager
def exchanged(place: Path, instead: Callable[[Path, Path], object]) -> Iterator[Path]:
    """Something else is in place of a pool's folder, and nothing may be written to it; yields where the folder is."""
    away = place.with_name("away")
    place.rename(away)
    instead(place, away)
    is_folder = place.is_dir()
    before = content(place), content(away), sorted(os.listdir(place)) if is_folder else None
    yield away
    assert (content(place), content(away), sorted(os.listdir(place)) if is_folder else None) == before
    if os.path.lexists(place):
        place.rename(place.with_name("instead"))
    away.rename(place)


def test_no_transaction_goes_to_another_folder(tmp_path: Path, instead: Callable[[Path, Path], object]) -> None:
    """The place in the journal that a process knows is one in its own pool: another one's journal would break there."""
    with Pool.create(tmp_path / "pool", "p") as pool:
        with exchanged(tmp_path / "pool", instead):
            with pytest.raises(OSError, match="exchanged") as caught, pool.transaction() as t:
                pool.create_dataset(t, DatasetName("p/new"))
            assert caught.value.errno == errno.ESTALE
        assert pool.find(DatasetName("p/new")) is None
        with pool.transaction() as t:
            pool.create_dataset(t, DatasetName("p/new"))
    for name in {"pool", "instead"} & set(os.listdir(tmp_path)):
        if (tmp_path / name / IDENTITY).exists():
            with Pool.open(tmp_path / name) as pool:
                assert not scrub(pool).errors


def test_a_receive_breaks_off_and_is_kept(tmp_path: Path, instead: Callable[[Path, Path], object]) -> None:
    held = []

    def events() -> Iterator[Event]:
        for event in read_events(io.BytesIO(stream("inc-s0-s1")), 20_000):
            if isinstance(event, SubEnd):
                held.append(exchanged(tmp_path / "pool", instead))
                held[0].__enter__()
            yield event

    with Pool.create(tmp_path / "pool", "p") as pool:
        take(pool, stream("full-s0"))
        with pytest.raises(OSError, match="exchanged"):
            receive_events(pool, events(), "p/a", ReceiveOptions())
        held[0].__exit__(None, None, None)
        take(pool, stream("inc-s0-s1"))
        assert kept(pool) == {"p/a": ["s0", "s1"]}
        compact(pool)
        assert not scrub(pool).errors


def test_files_of_another_folder_are_neither_looked_at_nor_taken_for_deleted(
    tmp_path: Path, instead: Callable[[Path, Path], object]
) -> None:
    (tmp_path / "pool").mkdir()
    store = LocalStore(tmp_path / "pool")
    store.put("segments/1", b"one")

    def lock() -> None:
        with store.lock("readers", shared=True):
            pass

    uses: list[Callable[[], object]] = [
        lambda: store.get("segments/1"),
        lambda: store.size("segments/1"),
        lambda: store.exists("segments/1"),
        lambda: store.names("segments"),
        lambda: store.delete("segments/1"),
        lambda: store.put("segments/2", b"two"),
        lambda: store.append("journal/1", b"line"),
        lambda: store.draft("draft"),
        lambda: store.erase(["segments"]),
        store.sweep,
        lock,
    ]
    with exchanged(tmp_path / "pool", instead):
        for use in uses:
            with pytest.raises(OSError, match="exchanged") as caught:
                use()
            assert not isinstance(caught.value, FileNotFoundError)
    assert store.get("segments/1") == b"one"


def test_a_folder_that_is_not_there_at_first_may_come(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "pool")
    assert store.names("segments") == []
    (tmp_path / "pool").mkdir()
    store.put("segments/1", b"one")
    assert store.names("segments") == ["segments/1"]
