"""The option -r on a tree of datasets: the same snapshot of all of them; and what is said without it."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

import keykit
from mountkit import lazy, needs_fuse
from zkeep.cli.common.open_snapshot import keys_from
from zkeep.cli.common.pools import opened as open_pool
from zkeep.cli.main import run
from zkeep.names import SnapshotName
from zkeep.pool.maintenance.verified import last
from zkeep.restore.mount.layout import LazySnapshot, MountLayout, MountPlace
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
LOCATION = keykit.location(STORY / "jambon-zfs-key")
KEY = ("-L", LOCATION)
TOP = "v/jambon@to-remote-server"
CHILDREN = ("bayonne", "blanc", "parme", "pays")
Output = pytest.CaptureFixture[str]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A replicated tree, and below one of its datasets another that has no snapshot of that name."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    with (STORY / "full-Rw.zfs").open("rb") as source:
        subprocess.run([sys.executable, "-m", "zkeep", "receive", "v/jambon"], stdin=source, check=True)
    assert run(["create", "v/jambon/blanc/new"]) == 0
    return tmp_path / "pool"


def damage(pool: Path, snapshot: str, path: str) -> None:
    """Change a byte of the first block of a file of one dataset."""
    name = SnapshotName.parse(snapshot)
    with open_pool(name) as found, OpenSnapshot(found, found.snapshot(name), keys_from((LOCATION,))) as opened:
        number = Filesystem(opened).lookup(path.encode()).number
        leaf = next(iter(opened.blocks.leaves(opened.object(number), 0, 1)))[0]
        segment, _, place = opened.state.records.where(leaf).partition(", byte ")
    file = pool / segment
    content = bytearray(file.read_bytes())
    content[int(place) + 400] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)


def verified(capfd: Output, *arguments: str, status: int = 0) -> tuple[list[str], str]:
    capfd.readouterr()
    assert run(["verify", "-v", *KEY, *arguments]) == status
    out, err = capfd.readouterr()
    return [line.partition(":")[0] for line in out.splitlines()], err


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_verify_of_a_snapshot_takes_the_tree_with_r(pool: Path, capfd: Output) -> None:
    whole = [TOP, *(f"v/jambon/{child}@to-remote-server" for child in CHILDREN)]
    found, err = verified(capfd, "-r", TOP)
    assert found == whole
    assert err == f"zkeep: {TOP}: not included, as there is no @to-remote-server: v/jambon/blanc/new\n"
    found, err = verified(capfd, TOP)
    assert found == [TOP]
    assert "not included: v/jambon/bayonne, v/jambon/blanc, v/jambon/parme, v/jambon/pays; verify -r" in err


def test_verify_of_a_dataset_says_what_lies_below(pool: Path, capfd: Output) -> None:
    found, err = verified(capfd, "v/jambon")
    assert found == [TOP]
    assert "v/jambon: not included: v/jambon/bayonne" in err
    assert "and 1 more; verify -r takes what lies below, too" in err
    assert len(verified(capfd, "-r", "v/jambon")[0]) == 12


@pytest.mark.parametrize("what", [TOP, "v/jambon", "v"])
def test_damage_in_a_dataset_below_is_the_exit_status(what: str, pool: Path, capfd: Output) -> None:
    damage(pool, "v/jambon/blanc@to-remote-server", "jambons/notes.txt")
    if what != "v":
        verified(capfd, what)
    found, err = verified(capfd, "-r", what, status=3)
    assert "v/jambon/blanc@to-remote-server: jambons/notes.txt: object" in err
    assert "v/jambon/pays@to-remote-server" in found


def test_damage_in_one_argument_does_not_keep_the_next_back(pool: Path, capfd: Output) -> None:
    damage(pool, "v/jambon/blanc@to-remote-server", "jambons/notes.txt")
    first, second = "v/jambon/blanc@to-remote-server", "v/jambon/pays@to-remote-server"
    assert verified(capfd, first, second, status=3)[0] == [second]


def test_extract_puts_each_dataset_in_its_place(pool: Path, capfd: Output, tmp_path: Path) -> None:
    assert run(["extract", "-r", *KEY, "-C", str(tmp_path / "all"), TOP]) == 0
    for child in CHILDREN:
        alone = tmp_path / child
        assert run(["extract", *KEY, "-C", str(alone), f"v/jambon/{child}@to-remote-server"]) == 0
        assert files(alone) == files(tmp_path / "all" / child)
        ours, theirs = (tmp_path / "all" / child).stat(), alone.stat()
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns)
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(CHILDREN)
    capfd.readouterr()
    assert run(["extract", "-r", *KEY, "-C", str(tmp_path / "all"), TOP]) == 0  # again
    assert run(["extract", *KEY, "-C", str(tmp_path / "top"), TOP]) == 0
    assert "not included: v/jambon/bayonne" in capfd.readouterr().err


def test_what_stands_in_the_way_of_one_dataset_keeps_no_other_back(pool: Path, capfd: Output, tmp_path: Path) -> None:
    """No link is followed, as any snapshot of the tree could have made it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "blanc").symlink_to(tmp_path / "elsewhere")
    assert run(["extract", "-r", *KEY, "-C", str(tmp_path / "all"), TOP]) == 1
    assert "cannot extract into blanc: something else is there" in capfd.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "all" / "pays" / "recipe.txt").is_file()


def test_damage_of_one_dataset_keeps_no_other_back(pool: Path, capfd: Output, tmp_path: Path) -> None:
    damage(pool, "v/jambon/blanc@to-remote-server", "jambons/notes.txt")
    assert run(["extract", "-r", *KEY, "-C", str(tmp_path / "all"), TOP]) == 3
    assert "zkeep: blanc/jambons/notes.txt: object" in capfd.readouterr().err
    assert (tmp_path / "all" / "pays" / "recipe.txt").is_file()
    assert not (tmp_path / "all" / "blanc" / "jambons" / "notes.txt").exists()


@pytest.mark.parametrize("more", [["--stdout"], ["blanc"]])
def test_r_takes_whole_datasets(more: list[str], pool: Path) -> None:
    assert run(["extract", "-r", *KEY, TOP, *more]) == 2


# Mounts


def at(pool: Path, snapshot: str) -> LazySnapshot:
    with open_pool(name := SnapshotName.parse(snapshot)) as found:
        return lazy(pool, found.snapshot(name), keys_from((LOCATION,)))


def names(shown: MountLayout, path: bytes) -> set[bytes]:
    every = {name.name for name in shown.names(path)}
    paged, first = [], 0
    while page := shown.page(path, first):
        paged += [name.name for name, _ in page]
        first += len(page)
    assert sorted(paged) == sorted(every)
    return every


@pytest.mark.parametrize("page", [1, 2, 256])
def test_a_mounted_tree_shows_each_dataset_in_its_place(page: int, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parent has such a folder, a file, or nothing; and below a folder that is only a name."""
    monkeypatch.setattr("zkeep.restore.mount.layout.PAGE", page)
    bayonne, pays, blanc = (at(pool, f"v/jambon/{c}@to-remote-server") for c in ("bayonne", "pays", "blanc"))
    below = [MountPlace(b"photos", pays, [pays]), MountPlace(b"recipe.txt", pays), MountPlace(b"x/y/z", pays)]
    below.append(MountPlace(b"photos/in", blanc))
    with MountLayout(bayonne, [bayonne], below) as shown:
        own = names(shown, b".zfs/snapshot/to-remote-server")
        assert names(shown, b"") == own | {b"x"}
        theirs = names(shown, b"x/y/z")
        assert names(shown, b"photos") == theirs | {b"in"}
        assert names(shown, b"recipe.txt") == theirs
        assert (names(shown, b"x"), names(shown, b"x/y")) == ({b"y"}, {b"z"})
        assert names(shown, b"photos/in") == {b"jambons"}
        assert names(shown, b"photos/.zfs/snapshot") == {b"to-remote-server"}
        assert names(shown, b"photos/.zfs/snapshot/to-remote-server") == theirs
        kinds = {name.name: name.kind for name in shown.names(b"")}
        assert kinds[b"photos"] == kinds[b"recipe.txt"] == kinds[b"x"] == stat.S_IFDIR >> 12
        paths = (b"", b"photos", b"recipe.txt", b"x", b"x/y", b"x/y/z", b"photos/in", b"photos/.zfs")
        numbers = [shown.node(path)[0].number for path in paths]
        assert len(set(numbers)) == len(numbers)
        assert all(shown.node(path)[0].is_folder for path in paths)
        text = shown.node(b"x/y/z/recipe.txt")[0]
        assert shown.read(b"photos/recipe.txt", 0, text.size) == shown.read(b"x/y/z/recipe.txt", 0, text.size)
        for path in (b"x/nothing", b"photos/.zfs/other", b".zfs/snapshot/other", b"recipe.txt/.zfs"):
            with pytest.raises(Exception, match="no such file or directory"):
                shown.node(path)


@needs_fuse
def test_mount_r_shows_what_extract_r_makes(pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    command = [sys.executable, "-m", "zkeep"]
    done = subprocess.run([*command, "mount", "-r", *KEY, TOP, folder], capture_output=True, text=True, check=True)
    try:
        assert "not included, as there is no @to-remote-server: v/jambon/blanc/new" in done.stderr
        assert run(["extract", "-r", *KEY, "-C", str(tmp_path / "all"), TOP]) == 0
        assert files(folder) == files(tmp_path / "all")
        assert (folder / "pays/recipe.txt").read_bytes() == (tmp_path / "all/pays/recipe.txt").read_bytes()
    finally:
        subprocess.run([*command, "unmount", folder], check=True)


def test_verify_notes_in_the_pool_what_it_found(pool: Path, capfd: Output) -> None:
    verified(capfd, TOP)
    with open_pool("v") as found:
        top = found.snapshot(SnapshotName.parse(TOP))
        at, bad = last(found, top.dataset)
    assert at is not None
    assert not bad
