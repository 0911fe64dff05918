"""Snapshots of file systems: which programs are run, in which order, whatever fails."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from zkeep.capture import fs_snapshot
from zkeep.capture.fs_snapshot import snapshot_of
from zkeep.errors import Refused

NAME = re.compile(r"zkeep-snapshot-\d+-[0-9a-f]{8}")


class Programs:
    """Records what is run. `answers`: what programs print, by the beginning of the line; None: they fail."""

    def __init__(self, **answers: str | None) -> None:
        self.answers = answers
        self.lines: list[str] = []
        self.made: list[str] = []

    def __call__(self, words: Sequence[str]) -> str:
        self.lines.append(NAME.sub("NAME", " ".join(words)))
        key = "_".join(words[:2]) if words[0] == "zfs" else words[0]
        if key in self.answers and self.answers[key] is None:
            raise Refused(f"{words[0]}: no room")
        if words[0] == "lvcreate" or words[:2] == ["zfs", "snapshot"]:
            self.made += [words[-2] if words[0] == "lvcreate" else words[-1]]
        if words[0] == "lvs" and words[-2] == "lv_name":
            return "root home " + " ".join(self.made)
        if words[:2] == ["zfs", "list"]:
            return "\n".join(["tank/home@monday", *self.made])
        return self.answers.get(key) or ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "docs"
    folder.mkdir(parents=True)
    return folder


def mounts(tmp_path: Path, kind: str, source: str, *more: str, root: str = "/") -> str:
    """A file like mountinfo, with a file system at `home`."""
    lines = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw", f"2 1 8:2 {root} {tmp_path}/home rw shared:1 - {kind} {source} rw"]
    lines += [f"3 2 8:3 / {point} rw - tmpfs tmpfs rw" for point in more]
    (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "mountinfo")


def warnings() -> list[str]:
    return []


def test_a_thin_volume(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run, said = Programs(lvs="  vg,home,thin\n"), warnings()
    table = mounts(tmp_path, "xfs", "/dev/mapper/vg-home", root="/sub")
    with snapshot_of(str(folder), "auto", one_file_system=False, warn=said.append, run=run, mounts=table) as at:
        assert NAME.sub("NAME", at) == f"{tmp_path}/NAME/sub/docs"
        monkeypatch.setattr(os.path, "ismount", lambda path: True)
    monkeypatch.undo()
    assert run.lines == [
        "lvs --noheadings --separator , -o vg_name,lv_name,segtype /dev/mapper/vg-home",
        "lvs --noheadings -o lv_name vg",
        "lvcreate -s -kn -n NAME vg/home",
        f"mount -t xfs -o ro,nodev,nosuid,nouuid /dev/vg/NAME {tmp_path}/NAME",
        f"umount {tmp_path}/NAME",
        "lvs --noheadings -o lv_name vg",
        "lvremove -f vg/NAME",
    ]
    assert said == []
    assert sorted(os.listdir(tmp_path)) == ["home", "mountinfo"]


def test_a_thick_volume_that_cannot_be_mounted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run, said = Programs(lvs="vg,home,linear", mount=None), warnings()
    table = mounts(tmp_path, "ext4", "/dev/mapper/vg-home")
    with snapshot_of(str(folder), "auto", one_file_system=False, warn=said.append, run=run, mounts=table) as at:
        assert at == str(folder)
        assert run.lines[2] == "lvcreate -s -l 20%ORIGIN -n NAME vg/home"
        assert run.lines[-1] == "lvremove -f vg/NAME"
    assert said == ["warning: no snapshot of the file system is taken, files are read as they are: mount: no room"]
    assert sorted(os.listdir(tmp_path)) == ["home", "mountinfo"]


def test_a_dataset_of_zfs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = Programs(), warnings()
    table = mounts(tmp_path, "zfs", "tank/home")
    monkeypatch.setattr(os.path, "exists", lambda path: ".zfs" in str(path))
    with snapshot_of(str(folder), "zfs", one_file_system=False, warn=said.append, run=run, mounts=table) as at:
        assert NAME.sub("NAME", at) == f"{tmp_path}/home/.zfs/snapshot/NAME/docs"
    assert run.lines == [
        "zfs list -H -o name -t snapshot -d 1 tank/home",
        "zfs snapshot tank/home@NAME",
        "zfs list -H -o name -t snapshot -d 1 tank/home",
        "zfs destroy tank/home@NAME",
    ]
    assert said == []


def test_it_is_removed_when_the_reading_fails(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Programs()
    table = mounts(tmp_path, "zfs", "tank/home")
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    before = signal.getsignal(signal.SIGHUP)
    with (
        pytest.raises(KeyboardInterrupt),
        snapshot_of(str(folder), "auto", one_file_system=False, warn=print, run=run, mounts=table),
    ):
        signal.raise_signal(signal.SIGHUP)
    assert run.lines[-1] == "zfs destroy tank/home@NAME"
    assert signal.getsignal(signal.SIGHUP) == before


def test_one_that_cannot_be_removed_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = Programs(zfs_destroy=None), warnings()
    table = mounts(tmp_path, "zfs", "tank/home")
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    with snapshot_of(str(folder), "auto", one_file_system=False, warn=said.append, run=run, mounts=table):
        pass
    assert len(said) == 1
    assert "could not be removed: zfs: no room" in said[0]


def test_what_an_earlier_call_left_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = Programs(), warnings()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    run.made = [f"tank/home@zkeep-snapshot-{child}-00c0ffee", f"tank/home@zkeep-snapshot-{os.getpid()}-00c0ffee"]
    run.made += ["tank/home@zkeep-snapshot-by-hand"]
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    table = mounts(tmp_path, "zfs", "tank/home")
    with snapshot_of(str(folder), "auto", one_file_system=False, warn=said.append, run=run, mounts=table):
        pass
    (line,) = said
    assert line.endswith(f"zfs destroy {run.made[0]}")


@pytest.mark.parametrize("kind", ["auto", "zfs"])
def test_other_file_systems_below_are_not_lost(
    folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    run, said = Programs(), warnings()
    table = mounts(tmp_path, "zfs", "tank/home", f"{folder}/inner", str(tmp_path / "home" / "else"))
    if kind == "zfs":
        with (
            pytest.raises(Refused, match="is another file system: leave it out"),
            snapshot_of(str(folder), kind, one_file_system=False, warn=said.append, run=run, mounts=table),
        ):
            pass
    else:
        with snapshot_of(str(folder), kind, one_file_system=False, warn=said.append, run=run, mounts=table) as at:
            assert (at, len(said)) == (str(folder), 1)
    assert run.made == []
    with snapshot_of(str(folder), kind, one_file_system=True, warn=said.append, run=run, mounts=table) as at:
        assert at != str(folder)


@pytest.mark.parametrize(
    ("kind", "on", "said"),
    [
        ("auto", "ext4", "it is on ext4 (/dev/sda2), and not on btrfs, LVM or ZFS"),
        ("zfs", "btrfs", "it is on btrfs (/dev/sda2), and not on zfs"),
        ("lvm", "ext4", "and not on lvm"),
    ],
)
def test_where_there_can_be_none(folder: Path, tmp_path: Path, kind: str, on: str, said: str) -> None:
    told, table = warnings(), mounts(tmp_path, on, "/dev/sda2")
    run = Programs()
    try:
        with snapshot_of(str(folder), kind, one_file_system=False, warn=told.append, run=run, mounts=table) as at:
            assert at == str(folder)
    except Refused as error:
        told.append(str(error))
        assert kind != "auto"
    assert len(told) == 1
    assert said in told[0]


def test_none_runs_nothing(folder: Path) -> None:
    with snapshot_of(str(folder), "none", one_file_system=False, warn=print, run=Programs(), mounts="/nowhere") as at:
        assert at == str(folder)


def test_a_program_that_is_not_there_or_fails() -> None:
    with pytest.raises(Refused, match="no-such-program: "):
        fs_snapshot.run(["no-such-program", "x"])
    with pytest.raises(Refused, match="sh -c: no"):
        fs_snapshot.run(["sh", "-c", "echo no >&2; exit 3"])
    assert fs_snapshot.run(["echo", "yes"]) == "yes\n"
