"""Turns that a replicated tree takes: clones are promoted and renamed, and a tree goes back behind what was
replicated. Each is followed by zkeep, and from there by another pool of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from lab import RAW, Key, Lab, long

TOP, KEPT, BACK = "tank/h", "v/h", "back/h"


class Tree:
    """An encrypted tree that grows, is replicated into zkeep and from there into the kernel's other pool."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.run = lab, lab.guest.run
        self.key: Key = lab.key(RAW)
        self.last = ""
        self.seed = 500
        self.run(f"zfs create -o encryption=on {self.key.creating} -o recordsize=16K {TOP}; zfs create {TOP}/a")

    def grow(self, *datasets: str) -> None:
        for dataset in datasets:
            self.seed += 1
            self.lab.guest.work(self.seed, 8, f"/{dataset}")

    def replicate(self, name: str, *, since: str = "", to_kernel: bool = True) -> None:
        """All of it as a snapshot, to zkeep and further; `since`: not from the one before but from an older one."""
        lab, since = self.lab, since or self.last
        self.run(f"zfs snapshot -r {TOP}@{name}")
        lab.kernel_sends("in.zfs", f"-Rw {f'-I @{since}' if since else ''} {TOP}@{name}")
        lab.receive("in.zfs", KEPT, *(["-F"] if since else []))
        if to_kernel:
            lab.send("out.zfs", "-R", "-w", *(["-I", f"@{since}"] if since else []), f"{KEPT}@{name}")
            lab.kernel_takes("out.zfs", f"-u {'-F' if since else ''} {BACK}")
        self.last = name

    def origins(self, top: str) -> dict[str, str]:
        """The origins of clones below, by name; without the top."""
        words = f"-H -o name,origin -r {top}"
        zkeep = top == KEPT
        lines = self.lab.zkeep("list", *words.split()) if zkeep else self.run(f"zfs list {words}")
        pairs = (line.split("\t") for line in lines.splitlines())
        return {name.removeprefix(top): origin.removeprefix(top) for name, origin in pairs if origin != "-"}

    def snapshots(self) -> Iterator[str]:
        for name in self.run(f"zfs list -H -o name -t snapshot -r {TOP}").splitlines():
            yield name.removeprefix(TOP)

    def followed(self, *, by_kernel: bool = True) -> int:
        """zkeep and the kernel's other pool have the same snapshots with the same files; how many."""
        lab, names = self.lab, sorted(self.snapshots())
        kept = lab.zkeep("list", "-H", "-o", "name", "-t", "snapshot", "-r", KEPT).splitlines()
        assert sorted(name.removeprefix(KEPT) for name in kept) == names
        lab.opens([KEPT + name for name in names], [TOP + name for name in names], self.key)
        if by_kernel:
            self.taken_back(BACK, names)
        lab.send("fresh.zfs", "-R", "-w", f"{KEPT}@{self.last}")
        lab.kernel_takes("fresh.zfs", "-u back/fresh")
        self.taken_back("back/fresh", names)
        lab.kernel_finds_no_fault()
        return len(names)

    def taken_back(self, top: str, names: list[str]) -> None:
        back = self.run(f"zfs list -H -o name -t snapshot -r {top}").splitlines()
        assert sorted(name.removeprefix(top) for name in back) == names
        assert self.origins(top) == self.origins(TOP)
        self.lab.kernel_opens(top, self.key)
        self.lab.same([top + name for name in names], [TOP + name for name in names])


@pytest.fixture
def tree(lab: Lab) -> Tree:
    return Tree(lab)


@long
def test_a_clone_is_promoted(tree: Tree, report: object) -> None:
    """It was replicated as a clone; afterwards its origin is the clone."""
    tree.grow(TOP, f"{TOP}/a")
    tree.replicate("r0")
    tree.run(f"zfs clone {TOP}/a@r0 {TOP}/b")
    tree.grow(f"{TOP}/a", f"{TOP}/b")
    tree.replicate("r1")
    assert tree.origins(KEPT) == {"/b": "/a@r0"}
    tree.run(f"zfs promote {TOP}/b")
    tree.grow(f"{TOP}/a", f"{TOP}/b")
    tree.replicate("r2")
    assert tree.origins(KEPT) == tree.origins(TOP) == {"/a": "/b@r0"}
    report.add(f"a replicated clone is promoted at the source: {tree.followed()} snapshots equal")  # type: ignore[attr-defined]


def test_a_clone_is_promoted_before_it_was_replicated(tree: Tree, report: object) -> None:
    tree.grow(TOP, f"{TOP}/a")
    tree.replicate("r0")
    tree.run(f"zfs clone {TOP}/a@r0 {TOP}/b; zfs promote {TOP}/b")
    tree.grow(f"{TOP}/a", f"{TOP}/b")
    tree.replicate("r1")
    assert tree.origins(KEPT) == tree.origins(TOP) == {"/a": "/b@r0"}
    report.add(f"a clone is promoted before it was replicated: {tree.followed()} snapshots equal")  # type: ignore[attr-defined]


@long
def test_a_clone_is_promoted_and_its_origin_has_a_child(tree: Tree, report: object) -> None:
    """What is kept as a becomes b, and below a, which is still to come, is a child that is there already.

    `zfs receive -F` itself (2.3.2) leaves the child out, so the kernel gets only all of it at once.
    """
    tree.run(f"zfs create {TOP}/a/child")
    tree.grow(TOP, f"{TOP}/a", f"{TOP}/a/child")
    tree.replicate("r0", to_kernel=False)
    tree.run(f"zfs clone {TOP}/a@r0 {TOP}/b; zfs promote {TOP}/b")
    tree.grow(f"{TOP}/a", f"{TOP}/b", f"{TOP}/a/child")
    tree.replicate("r1", to_kernel=False)
    assert tree.origins(KEPT) == tree.origins(TOP) == {"/a": "/b@r0"}
    report.add(f"the origin of a promoted clone has a child: {tree.followed(by_kernel=False)} snapshots equal")  # type: ignore[attr-defined]


def _promote_twice(tree: Tree) -> None:
    """There and back again, with a snapshot between."""
    for number, name in enumerate(("b", "a")):
        tree.run(f"zfs promote {TOP}/{name}")
        tree.grow(f"{TOP}/a", f"{TOP}/b")
        tree.replicate(f"p{number}")


def _back_behind(tree: Tree) -> None:
    """The source goes back behind what was replicated."""
    tree.replicate("r2")
    for dataset in (f"{TOP}/b", f"{TOP}/a", TOP):
        tree.run(f"zfs rollback -r {dataset}@r1")
    tree.run(f"zfs mount {TOP}/a; zfs mount {TOP}/b; true")
    tree.grow(f"{TOP}/a", f"{TOP}/b")
    tree.replicate("r3", since="r1")


def _a_chain_of_clones(tree: Tree) -> None:
    """A clone of a clone, promoted from its end; in the kernel's other pool by hand, see test_chains.py."""
    tree.run(f"zfs clone {TOP}/b@r1 {TOP}/c")
    tree.grow(f"{TOP}/c")
    tree.replicate("r2")
    for top in (TOP, BACK):
        tree.run(f"zfs promote {top}/c; zfs promote {top}/c")
    tree.grow(f"{TOP}/a", f"{TOP}/c")
    tree.replicate("r3")


def _renamed(tree: Tree) -> None:
    """Promoted and renamed, and the origin destroyed, between two snapshots."""
    tree.run(f"zfs promote {TOP}/b; zfs rename {TOP}/b {TOP}/z; zfs destroy -r {TOP}/a")
    tree.grow(f"{TOP}/z")
    tree.replicate("r2")


TURNS = [_back_behind, _renamed, *(pytest.param(turn, marks=long) for turn in (_promote_twice, _a_chain_of_clones))]


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn.__name__.strip("_"))
def test_a_turn_is_followed(tree: Tree, report: object, turn: Callable[[Tree], None]) -> None:
    tree.grow(TOP, f"{TOP}/a")
    tree.replicate("r0")
    tree.run(f"zfs clone {TOP}/a@r0 {TOP}/b")
    tree.grow(f"{TOP}/a", f"{TOP}/b")
    tree.replicate("r1")
    turn(tree)
    report.add(f"{turn.__name__.strip('_')}: {tree.followed()} snapshots equal")  # type: ignore[attr-defined]
