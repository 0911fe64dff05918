"""What is called around a send of ZFS, and what is never called. No ZFS is needed: calls are noted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from zkeep.backup.local import Job, zfs_key
from zkeep.backup.peer import Done, Peer
from zkeep.backup.places import Host, Place
from zkeep.backup.plan import Have, Point, Step
from zkeep.backup.run import Side
from zkeep.backup.zfs import ZfsSource, below
from zkeep.errors import Damaged, Refused
from zkeep.names import DatasetName
from zkeep.pool.datasets.registry import NUMBER, Registry

KEY = "0a1b2c3d"
OLD, NEW = (f"@backup-{KEY}-2026-11-2{day}T02:30:00Z" for day in (7, 8))
HOME = "tank/home"


@dataclass(frozen=True)
class Noting(Peer):
    """Runs nothing."""

    program: str = "zfs"
    calls: list[str] = field(default_factory=list, compare=False)

    def ask(self, *words: str) -> tuple[Done, bytes]:
        self.calls.append(" ".join(words))
        return Done(0, ""), b""


def source() -> tuple[ZfsSource, list[str]]:
    peer = Noting()
    return ZfsSource(Side(peer, DatasetName(HOME)), KEY), peer.calls


def test_before_a_send_the_snapshot_is_held_and_has_a_temporary_bookmark() -> None:
    zfs, calls = source()
    zfs.before(Step(Point(NEW, 2, 2), Point(OLD, 1, 1)))
    sending = f"{HOME}#backup-{KEY}-sending"
    assert calls == [f"hold zkeep-{KEY} {HOME}{NEW}", f"destroy {sending}", f"bookmark {HOME}{NEW} {sending}"]


def test_what_somebody_else_made_is_not_held() -> None:
    zfs, calls = source()
    zfs.before(Step(Point("@mine", 2, 2)))
    assert not [call for call in calls if call.startswith("hold")]


def test_after_it_the_last_bookmark_stays_and_only_what_this_backup_made_goes() -> None:
    zfs, calls = source()
    others = [
        "@mine",
        "#mine",
        "@backup-2026",
        f"@backup-{KEY}",
        f"@backup-{KEY}-x",
        f"@xbackup-{KEY}-2026-11-27T02:30:00Z",
    ]
    others += [
        "@backup-99999999-2026-11-27T02:30:00Z",
        f"#backup-{KEY}-sending",
        f"@backup-{KEY}-2026-11-27T02:30:00Z-keep",
    ]
    old = Point(OLD, 1, 1)
    mark = Point(f"#backup-{KEY}-{7:016x}", 7, 1)
    points = (*(Point(name, 50 + at, 1) for at, name in enumerate(others)), old, mark, Point(NEW, 2, 2))
    zfs.after(Have(True, points), Step(Point(NEW, 2, 2), old))
    assert calls == [
        f"bookmark {HOME}{NEW} {HOME}#backup-{KEY}-{2:016x}",
        f"destroy {HOME}#backup-{KEY}-sending",
        f"destroy {HOME}#backup-{KEY}-{1:016x}",
        f"release zkeep-{KEY} {HOME}{OLD}",
        f"destroy {HOME}{OLD}",
        f"destroy {HOME}{mark.name}",
    ]


def test_what_is_newer_than_what_was_sent_stays() -> None:
    zfs, calls = source()
    zfs.after(Have(True, (Point(OLD, 1, 1), Point(NEW, 2, 2))), Step(Point(OLD, 1, 1)))
    assert not [call for call in calls if NEW in call or call.startswith("release")]


def test_another_machine_with_the_same_names_has_names_of_its_own(tmp_path: Path) -> None:
    job = Job(Place(DatasetName(HOME), "zfs", Host("nas")), Place(DatasetName("vault/nas")))
    assert Registry(tmp_path / "a").number(keep=False) != Registry(tmp_path / "a").number(keep=False)
    assert not (tmp_path / "a").exists()
    keys = [zfs_key(job, Registry(tmp_path / home).number()) for home in ("a", "b", "a")]
    assert keys[0] == keys[2] != keys[1]
    name = Point(f"@backup-{keys[0]}-2026-11-27T02:30:00Z", 1, 1)
    other = ZfsSource(Side(Noting(), DatasetName(HOME)), keys[1])
    assert other.outdated(Have(True, (name,)), Point(NEW, 2, 2)) == []
    assert other.tag != f"zkeep-{keys[0]}"


@pytest.mark.parametrize("content", ["", "{", "7", '"x"', '"' + "0" * 31 + '"'])
def test_a_number_of_a_home_that_is_damaged_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / NUMBER).write_text(content)
    with pytest.raises(Damaged):
        Registry(tmp_path).number()


def test_a_tree_is_taken_at_one_moment() -> None:
    zfs, calls = source()
    zfs.snapshot("2026-11-28T02:30:00Z", recursive=True)
    assert calls == [f"snapshot -r {HOME}{NEW}"]


def test_datasets_below_are_below() -> None:
    assert below([HOME, f"{HOME}/b/c", f"{HOME}/b"], DatasetName(HOME)) == ["", "b", "b/c"]
    for name in ("tank", "tank/homes", "tank/other", f"{HOME}/../x", f"{HOME}@a", ""):
        with pytest.raises(Refused):
            below([name], DatasetName(HOME))
