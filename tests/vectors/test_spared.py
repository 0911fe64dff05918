"""What cannot be read is named and left out, and everything else is there."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import keykit
from zkeep.cli.main import run
from zkeep.format.znode import Znode
from zkeep.restore.files.attributes import TargetFile, dress
from zkeep.restore.files.report import RestoreReport

STORY = Path(__file__).parent.parent / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")
SNAPSHOT = "v/jambon/blanc@2019"
Output = pytest.CaptureFixture[str]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    with (STORY / "full-Rw.zfs").open("rb") as source:
        subprocess.run([sys.executable, "-m", "zkeep", "receive", "v/jambon"], stdin=source, check=True)
    return tmp_path / "pool"


def place_of(path: str, capfd: Output) -> tuple[str, int]:
    """The segment and the byte where the first block of a file lies: damage tells of it."""
    from zkeep.cli.common.open_snapshot import keys_from
    from zkeep.cli.common.pools import opened as open_pool
    from zkeep.names import SnapshotName
    from zkeep.snapshot.open import OpenSnapshot
    from zkeep.tree.filesystem import Filesystem

    name = SnapshotName.parse(SNAPSHOT)
    with open_pool(name) as pool, OpenSnapshot(pool, pool.snapshot(name), keys_from((KEY,))) as opened:
        filesystem, number = Filesystem(opened), 0
        number = filesystem.root
        for part in path.encode().split(b"/"):
            found = filesystem.find(number, part)
            assert found is not None
            number = found.number
        leaf = next(iter(opened.blocks.leaves(opened.object(number), 0, 1)))[0]
        segment, _, place = opened.state.records.where(leaf).partition(", byte ")
        return segment, int(place)


def extracted(target: Path, status: int) -> set[str]:
    assert run(["extract", "-C", str(target), "-L", KEY, SNAPSHOT]) == status
    return {str(path.relative_to(target)) for path in target.rglob("*")}


def test_a_damaged_file_does_not_keep_the_others_back(pool: Path, capfd: Output, tmp_path: Path) -> None:
    every = extracted(tmp_path / "whole", 0)
    path = "jambons/2019/scan.raw"
    segment, at = place_of(path, capfd)
    content = bytearray((pool / segment).read_bytes())
    content[at + 400] ^= 1
    (pool / segment).write_bytes(content)
    capfd.readouterr()
    assert every - extracted(tmp_path / "rest", 3) == {path}
    owners = "zkeep: could not be made here: 7 owners"  # as only root can set them
    lines = [line for line in capfd.readouterr().err.splitlines() if line != owners]
    assert lines[0].startswith(f"zkeep: {path}: object ")
    assert lines[0].endswith("the record is damaged")
    assert lines[1:] == ["zkeep: one file could not be extracted"]


def bad_sector(pool: Path, at: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes os.pread or os.preadv fail where a byte of the pool's segment lies, as a dying disk does."""

    def spoiled(read: Callable[..., Any]) -> Callable[..., Any]:
        def reads(fd: int, what: Any, offset: int) -> Any:
            size = what if isinstance(what, int) else sum(len(view) for view in what)
            name = os.readlink(f"/proc/self/fd/{fd}")
            if name.endswith(".seg") and Path(name).is_relative_to(pool) and offset <= at < offset + size:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(fd, what, offset)

        return reads

    return spoiled


def test_a_bad_sector_is_damage_of_what_lies_there(
    pool: Path, capfd: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = extracted(tmp_path / "whole", 0)
    path = "jambons/2019/scan.raw"
    segment, at = place_of(path, capfd)
    spoiled = bad_sector(pool / segment, at + 4096)
    monkeypatch.setattr(os, "pread", spoiled(os.pread))
    monkeypatch.setattr(os, "preadv", spoiled(os.preadv))
    capfd.readouterr()
    missing = every - extracted(tmp_path / "rest", 3)
    assert path in missing
    assert all(name.startswith("jambons/2019/") for name in missing)
    assert "the disk cannot read it: Input/output error" in capfd.readouterr().err
    assert run(["verify", "-L", KEY, SNAPSHOT]) == 3
    assert run(["pool", "scrub", "v"]) == 3
    assert f"hurts {SNAPSHOT}" in capfd.readouterr().err


def test_who_cannot_give_files_away_makes_none_that_act_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "fchown", refused)
    report = RestoreReport()
    node = Znode(*[0] * len(Znode._fields))._replace(mode=stat.S_IFREG | 0o6755)  # type: ignore[arg-type]
    with (tmp_path / "file").open("wb") as file:
        dress(TargetFile(b"file", file.fileno()), node, [], report)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o755
    assert str(report) == "1 owners"
