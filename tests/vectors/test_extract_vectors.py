"""Extracted by root, a tree equals the manifest in every field."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from manifests import Case, Files, cases, differences, received, snapshots, told
from test_open_vectors import KINDS

from zkeep.format.znode import Znode
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.destroy import plan_snapshots
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.restore.files import extract
from zkeep.restore.files.extract import Extraction, ExtractOptions
from zkeep.restore.files.staging import PREFIX
from zkeep.restore.files.volume import extract_volume
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Extent, Filesystem
from zkeep.tree.volume import Volume

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make owners and devices")


def looked_at(top: Path) -> Files:
    """What lies in a folder, as a manifest tells it."""
    root = os.fsencode(top)
    paths = [root]
    for folder, folders, files in os.walk(root):
        paths += [os.path.join(folder, name) for name in [*folders, *files]]
    return {os.fsdecode(os.path.relpath(path, root)): _entry(path) for path in paths}


def _entry(path: bytes) -> dict[str, Any]:
    status = os.lstat(path)
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    entry: dict[str, Any] = {
        "type": kind,
        "mode": f"{stat.S_IMODE(status.st_mode):o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
        "nlink": status.st_nlink,
    }
    if kind == "file":
        with open(path, "rb") as source:
            entry |= {"size": status.st_size, "sha256": hashlib.file_digest(source, "sha256").hexdigest()}
    if kind == "symlink":
        entry["target"] = os.fsdecode(os.readlink(path))
    if kind in ("chr", "blk"):
        entry["rdev"] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    names = os.listxattr(path, follow_symlinks=False)
    if names:
        entry["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    return entry


@pytest.mark.parametrize("case", cases(), ids=str)
def test_what_is_extracted_is_what_the_kernel_showed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second snapshot in portions so small that other processes do nearly all of it."""
    with received(case, tmp_path) as pool:
        for number, (snapshot, want) in enumerate(snapshots(pool, case)):
            monkeypatch.setattr(extract, "PORTION", 32 if number % 2 else 2)
            _extracted(pool, snapshot, case, tmp_path / str(number), want)


@pytest.mark.parametrize("rest", [0, 1])
@pytest.mark.parametrize("case", [case for case in cases() if case.name.endswith("-composed")], ids=str)
def test_so_is_what_is_left_after_pruning(case: Case, rest: int, tmp_path: Path) -> None:
    """Every second snapshot is destroyed, and what only it held gives its space back."""
    with received(case, tmp_path) as pool:
        every = snapshots(pool, case)
        for snapshot, _ in every[1 - rest :: 2]:
            plan = plan_snapshots(View(pool), snapshot.dataset.name, snapshot.name.name, destroy.DestroyOptions())
            destroy.execute(pool, plan)
        compact(pool)
        assert len(snapshots(pool, case)) == len(every[rest::2])
        for number, (snapshot, want) in enumerate(every[rest::2]):
            _extracted(pool, snapshot, case, tmp_path / str(number), want)


def _extracted(pool: Pool, snapshot: Snapshot, case: Case, target: Path, want: dict[str, Any]) -> None:
    with OpenSnapshot(pool, snapshot, case.key) as opened:
        if opened.is_volume:
            path = Path(extract_volume(Volume(opened), str(target), "image"))
            assert hashlib.sha256(path.read_bytes()).hexdigest() == want["sha256"]
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            return
        work = Extraction(Filesystem(opened), ExtractOptions())
        work.extract_all(str(target))
    long = {path for path in want["files"] if any(len(os.fsencode(part)) > 255 for part in path.split("/"))}
    assert not work.report.counts
    assert not work.report.lost
    assert {os.fsdecode(path) for path, _ in work.report.failed} == {_first_long(path) for path in long}
    kept = {path: entry for path, entry in told(want["files"]).items() if path not in long}
    assert differences(looked_at(target), kept) == []


def _first_long(path: str) -> str:
    """A path up to its first name that is too long: what is below it is not counted."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if len(os.fsencode(part)) > 255)
    return "/".join(parts[: first + 1])


class Dying(Filesystem):
    """Kills the process in the middle of its n-th file of more than one block."""

    left = 0

    def extents(self, node: Znode) -> Iterator[Extent]:
        for number, extent in enumerate(super().extents(node)):
            yield extent
            self.left -= number == 0
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_an_extraction_that_was_killed_goes_on_where_it_was(turn: int, tmp_path: Path) -> None:
    case = next(case for case in cases() if case.name == "gcm128-zstd-16k-composed")
    with received(case, tmp_path) as pool:
        snapshot, want = snapshots(pool, case)[0]
    target = tmp_path / "out"
    child = os.fork()
    if not child:
        with Pool.open(pool.path) as mine, OpenSnapshot(mine, snapshot, case.key) as opened:
            filesystem = Dying(opened)
            filesystem.left = turn
            Extraction(filesystem, ExtractOptions()).extract_all(str(target))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    begun = [path for path in target.rglob("*") if path.is_file() and PREFIX in os.fsencode(path)]
    assert len(begun) == 1
    with Pool.open(pool.path) as mine, OpenSnapshot(mine, snapshot, case.key) as opened:
        work = Extraction(Filesystem(opened), ExtractOptions())
        work.extract_all(str(target))
    assert work.progress.kept >= turn - 1
    assert differences(looked_at(target), told(want["files"])) == []
