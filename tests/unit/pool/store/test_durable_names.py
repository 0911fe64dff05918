"""After a power loss what was acknowledged has its name: the folder of each file and of each new folder is synced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recorder import Recorder
from zkeep.cli.backup import due
from zkeep.cli.backup.keys import NewKey
from zkeep.cli.backup.wanted import locked
from zkeep.cli.keys.sheet import write_new
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.store.disk import make_folder, replace_durably, sync_folder
from zkeep.pool.store.files import LocalStore


class Names:
    """Names that were made and are not durable yet, and files that got a name before their content was durable."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.unsure: dict[tuple[int, int], set[str]] = {}
        self.torn: list[str] = []
        self._synced: set[tuple[int, int]] = set()
        real = {name: getattr(os, name) for name in ("mkdir", "link", "rename", "replace", "fsync")}

        def fsync(fd: int) -> None:
            real["fsync"](fd)
            found = os.fstat(fd)
            self._synced.add((found.st_dev, found.st_ino))
            if stat.S_ISDIR(found.st_mode):
                self.unsure.pop((found.st_dev, found.st_ino), None)

        def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            real["mkdir"](path, mode, dir_fd=dir_fd)
            self._made(path, dir_fd)

        def naming(call: Callable[..., None]) -> Callable[..., None]:
            def named(old: Any, new: Any, **how: Any) -> None:
                found = os.stat(old, dir_fd=how.get("src_dir_fd"), follow_symlinks=False)
                if (found.st_dev, found.st_ino) not in self._synced:
                    self.torn.append(os.fspath(new))
                call(old, new, **how)
                self._made(new, how.get("dst_dir_fd"))

            return named

        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "mkdir", mkdir)
        for name in ("link", "rename", "replace"):
            patch.setattr(os, name, naming(real[name]))

    def _made(self, path: Any, folder_fd: int | None) -> None:
        name = os.fspath(path)
        found = os.fstat(folder_fd) if folder_fd is not None else os.stat(os.path.dirname(name) or ".")
        self.unsure.setdefault((found.st_dev, found.st_ino), set()).add(name)

    def are_durable(self) -> bool:
        assert not self.unsure
        assert not self.torn
        return True


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "some" / "home"
    monkeypatch.setenv("ZKEEP_HOME", str(found))
    return found


JOB: Any = SimpleNamespace(source="x")


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("due", "wanted"):
        monkeypatch.setattr(f"zkeep.cli.backup.{module}.digest", lambda job: "0123456789abcdef")


def test_the_model_sees_what_is_not_synced(names: Names, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert names.unsure
    sync_folder(tmp_path)
    (tmp_path / "b").write_text("x")
    (tmp_path / "b").replace(tmp_path / "c")
    assert names.unsure
    assert names.torn == [str(tmp_path / "c")]


def test_a_new_folder_is_durable_with_all_those_above_it(names: Names, tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c", 0o700)
    make_folder(tmp_path / "a" / "b" / "c")
    assert names.are_durable()
    assert stat.S_IMODE(os.stat(tmp_path / "a" / "b" / "c").st_mode) == 0o700


def test_a_file_is_replaced_when_its_content_is_durable(names: Names, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("x")
    replace_durably(tmp_path / "new", tmp_path / "old")
    assert names.are_durable()


def test_a_new_pool_is_durable_in_folders_that_were_not_there(names: Names, tmp_path: Path) -> None:
    Pool.create(tmp_path / "a" / "b" / "pool", "v").close()
    names.unsure.pop(_identity(tmp_path / "a" / "b" / "pool" / "lock"), None)  # empty files, made again at any time
    assert names.are_durable()


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def test_the_list_of_pools_and_the_number_are_durable(names: Names, home: Path, tmp_path: Path) -> None:
    Registry(home).add("v", tmp_path)
    Registry(home).number()
    assert names.are_durable()


def test_the_home_of_a_backup_is_durable(names: Names, home: Path) -> None:
    with locked(JOB):
        assert names.are_durable()


def test_when_a_backup_began_is_durable(names: Names, home: Path) -> None:
    due.note(JOB, datetime.now(UTC))
    assert due._noted(JOB) is not None
    assert names.are_durable()


@pytest.mark.parametrize("is_there", [False, True])
def test_a_key_file_is_durable_also_if_a_call_that_was_killed_made_it(
    names: Names, tmp_path: Path, is_there: bool
) -> None:
    path = tmp_path / "keys" / "v.key"
    if is_there:
        path.parent.mkdir()
        sync_folder(tmp_path)
        write_new(path, b"k" * 32)
        names.unsure[_identity(path.parent)] = {"v.key"}
    unused: Any = None
    NewKey(path, b"k" * 32, is_there, unused, 1).write()
    assert path.read_bytes() == b"k" * 32
    assert names.are_durable()


def test_a_journal_that_a_killed_process_made_is_durable_when_the_next_one_appends(tmp_path: Path) -> None:
    LocalStore(tmp_path).append("journal/1.log", b"one\n")
    disk = Recorder(tmp_path)
    store = LocalStore(tmp_path, disk)
    store.append("journal/1.log", b"two\n")
    assert ("sync_folder", "journal") in disk.events
    del disk.events[:]
    store.append("journal/1.log", b"three\n")  # once is enough
    assert ("sync_folder", "journal") not in disk.events
