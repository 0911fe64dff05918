"""Histories of a folder, and what must hold of every snapshot of one."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from capturekit import change_tree, listing

from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool
from zkeep.snapshot.new_filesystem import FIRST_FREE, ROOT
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

KEY = bytes(range(32))


def rearrange(top: Path, aside: Path, chance: random.Random) -> None:
    """What happens to names rather than to contents: folders move, and leave and enter the tree with their links."""
    for _ in range(8):
        folders = sorted(p for p in top.rglob("*") if p.is_dir() and not p.is_symlink())
        files = sorted(p for p in top.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size < 1 << 29)
        if folders and files:
            chance.choice(MOVES)(chance, chance.choice(files), chance.choice(folders), aside)


def _move_folder(chance: random.Random, file: Path, folder: Path, aside: Path) -> None:
    if folder not in file.parents:
        folder.rename(file.parent / f"{chance.getrandbits(40):x}")


def _link(chance: random.Random, file: Path, folder: Path, aside: Path) -> None:
    os.link(file, folder / f"{chance.getrandbits(40):x}")


def _leave(chance: random.Random, file: Path, folder: Path, aside: Path) -> None:
    folder.rename(aside / f"{chance.getrandbits(40):x}")


def _enter(chance: random.Random, file: Path, folder: Path, aside: Path) -> None:
    for path in sorted(aside.iterdir())[:1]:
        path.rename(folder / path.name)


def _make_folder(chance: random.Random, file: Path, folder: Path, aside: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "below").write_bytes(b"it was a file")


def _make_file(chance: random.Random, file: Path, folder: Path, aside: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(chance.randbytes(20_000))


def _empty(chance: random.Random, file: Path, folder: Path, aside: Path) -> None:
    os.truncate(file, 0)


def _refill(chance: random.Random, file: Path, folder: Path, aside: Path) -> None:
    with file.open("r+b") as sink:
        sink.truncate(0)
        sink.seek(chance.choice([0, 200_000, 5 << 20]))
        sink.write(chance.randbytes(chance.choice([10, 140_000])))


def _new_pair(chance: random.Random, file: Path, folder: Path, aside: Path) -> None:
    fresh = folder / f"{chance.getrandbits(40):x}"
    fresh.mkdir()
    os.link(_new_file(fresh / "one", chance), folder / f"{fresh.name}-two")


MOVES = _move_folder, _link, _leave, _enter, _make_folder, _make_file, _empty, _refill, _new_pair


def _new_file(path: Path, chance: random.Random) -> Path:
    path.write_bytes(chance.randbytes(chance.randrange(300_000)))
    return path


def change(top: Path, aside: Path, seed: int) -> None:
    chance = random.Random(seed)
    change_tree(top, seed)
    rearrange(top, aside, chance)


def check_objects(pool: Path, name: str, known_as: str = "v") -> None:
    """Every object has as many names as it says, a folder as many entries; nothing is there that has no name."""
    with Pool.open(pool, known_as) as opened:
        snapshot = opened.snapshot(SnapshotName.parse(name))
        with OpenSnapshot(opened, snapshot, lambda wrapped: KEY) as base:
            tree, names, parents = Filesystem(base), Counter[int](), dict[int, set[int]]()
            waiting, met = [ROOT], {ROOT}
            while waiting:
                number = waiting.pop()
                node = tree.znode(number)
                if node.xattr_folder:
                    met |= {node.xattr_folder, *(entry.number for entry in tree.names(node.xattr_folder))}
                if not node.is_folder:
                    continue
                entries = list(tree.names(number))
                below = [entry.number for entry in entries if tree.znode(entry.number).is_folder]
                assert (node.size, node.links) == (len(entries) + 2, len(below) + 2), number
                for entry in entries:
                    names[entry.number] += 1
                    parents.setdefault(entry.number, set()).add(number)
                waiting += [entry.number for entry in entries if entry.number not in met]
                met |= {entry.number for entry in entries}
            for number, count in names.items():
                node = tree.znode(number)
                assert node.is_folder or node.links == count, number
                assert node.parent in parents[number], number
            there = {number for block in base.numbers() for number in base.dnodes(block)}
            assert there - set(range(FIRST_FREE)) == met - {ROOT}


def stored_listing(top: Path) -> dict[str, tuple[Any, ...]]:
    """The listing of a folder as a snapshot of it shows it: names outside of it do not count."""
    paths = [path for path in top.rglob("*") if not path.is_dir() or path.is_symlink()]
    names = Counter(path.lstat().st_ino for path in paths)
    found = listing(top)
    for path in paths:
        mode, (size, _), *rest = found[str(path.relative_to(top))]
        found[str(path.relative_to(top))] = (mode, (size, names[path.lstat().st_ino]), *rest)
    return found
