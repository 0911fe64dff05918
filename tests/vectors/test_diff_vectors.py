"""What diff tells between any two snapshots, against what the kernel's mount showed of both."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from manifests import Case, cases, received, snapshots

from zkeep.format.znode import Znode
from zkeep.restore import diff as differ
from zkeep.restore.diff import DiffEntry, diff
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import BadTree, Filesystem

Identity = tuple[int, int]
"Object number and generation: numbers are used again."
Names = dict[Identity, set[bytes]]
MISPLACED = b"/m80d48/fbedf3a"
"A file of the first snapshot of gcm128-zstd-16k, whose parent pointer names a folder that was its second link's."


def identity(node: Znode) -> Identity:
    return node.number, node.generation


def names(opened: OpenSnapshot, files: dict[str, dict[str, Any]]) -> Names:
    """All paths of each file, as the manifest has them."""
    filesystem, found = Filesystem(opened), Names()
    for path, entry in files.items():
        if path != ".":
            name = b"/" + path.encode("utf-8", "surrogateescape")
            found.setdefault(identity(filesystem.znode(entry["ino"])), set()).add(name)
    return found


def check(was: Names, now: Names, changes: list[DiffEntry]) -> None:
    kinds = {kind: [c for c in changes if c.kind == kind] for kind in "+-MR"}
    for kind, here, other in (("-", was, now), ("+", now, was)):
        assert sorted(identity(c.node) for c in kinds[kind]) == sorted(here.keys() - other.keys())
        assert all(c.path in here[identity(c.node)] for c in kinds[kind])
    for change in kinds["R"]:
        assert change.path in was[identity(change.node)]
        assert change.renamed in now[identity(change.node)]
    renames = {c.path: c.renamed or b"" for c in kinds["R"]}
    for file in was.keys() & now.keys():
        told = {moved(path, renames) for path in was[file]}
        assert told & now[file] or any(identity(c.node) == file for c in kinds["M"])


def moved(path: bytes, renames: dict[bytes, bytes]) -> bytes:
    """Where a path is afterwards: it, or the nearest folder above it, was renamed."""
    at = path
    while at:
        if at in renames:
            return renames[at] + path[len(at) :]
        at = at.rpartition(b"/")[0]
    return path


def numbered(case: Case) -> bool:
    """Whether the manifest tells which paths are the same file."""
    files = [want["files"] for want in case.snapshots.values() if "files" in want]
    return all("ino" in entry for each in files for entry in each.values())


@pytest.mark.parametrize("case", [case for case in cases() if numbered(case)], ids=str)
def test_what_came_and_went_is_told_by_its_name(case: Case, tmp_path: Path) -> None:
    with received(case, tmp_path) as pool:
        every = [(snapshot, want["files"]) for snapshot, want in snapshots(pool, case) if "files" in want]
        for (one, old), (other, new) in permutations(every, 2):
            if one.dataset == other.dataset:
                with OpenSnapshot(pool, one, case.key) as before, OpenSnapshot(pool, other, case.key) as after:
                    check(names(before, old), names(after, new), list(diff(before, after)))


def chain(tmp_path: Path) -> tuple[Any, Case]:
    case = next(case for case in cases() if case.name == "gcm128-zstd-16k-composed")
    return received(case, tmp_path), case


def test_a_file_that_its_parent_pointer_does_not_lead_to_is_told_of(tmp_path: Path) -> None:
    pool, case = chain(tmp_path)
    (one, _), (other, _) = snapshots(pool, case)[:2]
    with pool, OpenSnapshot(pool, one, case.key) as before, OpenSnapshot(pool, other, case.key) as after:
        (removed,) = [change for change in diff(before, after) if change.node.number == 10]
        assert (removed.kind, removed.path) == ("-", MISPLACED)
        with pytest.raises(BadTree):
            Filesystem(before).path_of(10)


def test_what_has_no_name_at_all_ends_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, case = chain(tmp_path)
    (one, _), (other, _) = snapshots(pool, case)[:2]
    monkeypatch.setattr(differ._Side, "_inside", lambda *_: iter(()))
    told: list[bytes] = []
    with pool, OpenSnapshot(pool, one, case.key) as before, OpenSnapshot(pool, other, case.key) as after:
        changes = diff(before, after)
        with pytest.raises(BadTree, match=r"@s0: cannot tell the path of what changed as object 10$"):
            told.extend(change.path for change in changes)
    assert b"/m80d48" in told
