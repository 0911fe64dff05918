"""Every snapshot that a key opens shows what the kernel's mount of it showed, in every field."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest
from manifests import Case, Files, cases, differences, received, snapshots, told

from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem
from zkeep.tree.volume import Volume

CASES = cases()
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "chr",
    stat.S_IFBLK: "blk",
}


def seen(filesystem: Filesystem) -> Files:
    """All paths of a filesystem, as a manifest tells them."""
    paths = [(b".", filesystem.root), *((path, name.number) for path, name in filesystem.walk(filesystem.root))]
    return {path.decode("utf-8", "surrogateescape"): _entry(filesystem, number) for path, number in paths}


def _entry(filesystem: Filesystem, number: int) -> dict[str, Any]:
    node = filesystem.znode(number)
    kind = KINDS[stat.S_IFMT(node.mode)]
    entry: dict[str, Any] = {
        "type": kind,
        "mode": f"{stat.S_IMODE(node.mode):o}",
        "uid": node.uid,
        "gid": node.gid,
        "mtime_ns": node.mtime,
        "nlink": node.links,
    }
    if kind == "file":
        digest, at = hashlib.sha256(), 0
        for extent in filesystem.extents(node):
            _zeros(digest, extent.offset - at)
            digest.update(extent.content)
            at = extent.offset + len(extent.content)
        _zeros(digest, node.size - at)
        entry |= {"size": node.size, "sha256": digest.hexdigest()}
    if kind == "symlink":
        entry["target"] = (node.target or b"").decode("utf-8", "surrogateescape")
    if kind in ("chr", "blk"):
        entry["rdev"] = "{}:{}".format(*node.device)
    xattrs = filesystem.xattrs(node)
    if xattrs:
        entry["xattrs"] = {name.decode("utf-8", "surrogateescape"): value.hex() for name, value in xattrs.items()}
    return entry


def _zeros(digest: Any, count: int) -> None:
    while count > 0:
        digest.update(bytes(min(count, 1 << 20)))
        count -= 1 << 20


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_key_opens_is_what_the_kernel_showed(case: Case, tmp_path: Path) -> None:
    with received(case, tmp_path) as pool:
        expected = snapshots(pool, case)
        assert expected
        for snapshot, want in expected:
            check(pool, case, snapshot, want)


def check(pool: Pool, case: Case, snapshot: Snapshot, want: dict[str, Any]) -> None:
    with OpenSnapshot(pool, snapshot, case.key) as opened:
        if opened.is_volume:
            assert shown_volume(Volume(opened)) == (int(want["volsize"]), want["sha256"])
        else:
            assert differences(seen(Filesystem(opened)), told(want["files"])) == []


@pytest.mark.parametrize("case", [case for case in CASES if len(case.streams) > 1], ids=str)
def test_what_a_key_opens_is_the_same_after_others_were_destroyed_and_space_came_back(
    case: Case, tmp_path: Path
) -> None:
    """Every second snapshot goes, the oldest among them; what is left is put together from merged runs."""
    with received(case, tmp_path) as pool:
        expected = snapshots(pool, case)
        by_dataset = {s.dataset.id: [t for t, _ in expected if t.dataset.id == s.dataset.id] for s, _ in expected}
        seconds = [snapshot for found in by_dataset.values() for snapshot in found[:-1][::2]]
        doomed = [snapshot for snapshot in seconds if not pool.tree().clones(snapshot.dataset, snapshot.txg)]
        for snapshot in doomed:
            plan = destroy.plan_snapshots(
                View(pool), snapshot.dataset.name, snapshot.name.name, destroy.DestroyOptions()
            )
            destroy.execute(pool, plan)
        compact(pool)
        gone = {snapshot.guid for snapshot in doomed}
        for snapshot, want in [(s, want) for s, want in expected if s.guid not in gone]:
            check(pool, case, snapshot, want)


def shown_volume(volume: Volume) -> tuple[int, str]:
    """Its size, and the SHA-256 of its disk."""
    digest, at = hashlib.sha256(), 0
    for extent in volume.extents():
        _zeros(digest, extent.offset - at)
        digest.update(extent.content)
        at = extent.offset + len(extent.content)
    _zeros(digest, volume.size - at)
    return volume.size, digest.hexdigest()
