"""Extraction never leaves its folder, and what is half done is never seen under a file's name."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zkeep.errors import Damaged, Refused
from zkeep.restore.files.staging import PREFIX, Staging, Stagings
from zkeep.restore.files.target import TargetFolder, TargetPlace, change_mode
from zkeep.restore.files.volume import extract_volume
from zkeep.restore.files.writing import write_file
from zkeep.tree.filesystem import Extent
from zkeep.tree.volume import Volume


def put(top: TargetFolder, name: bytes, *, replace: bool = False, content: bytes = b"new") -> None:
    staging = Staging.within(top.fd)
    try:
        made = staging.new_name()
        os.close(write_file(staging.fd, made, [Extent(0, content)], len(content)))
        top.put(staging, made, name, replace=replace)
    finally:
        staging.close()


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/etc", b"a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: bytes, tmp_path: Path) -> None:
    with TargetFolder.top(str(tmp_path)) as top, pytest.raises(Refused):
        put(top, name)
    with TargetFolder.top(str(tmp_path)) as top, pytest.raises(Refused):
        top.enter(name)
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (inside / "folder").symlink_to(outside)
    (inside / "file").symlink_to(outside / "file")
    with TargetFolder.top(str(inside)) as top:
        with pytest.raises(Refused):
            top.enter(b"folder")
        with pytest.raises(FileExistsError):
            put(top, b"file")
        put(top, b"file", replace=True)
    assert not list(outside.iterdir())
    assert (inside / "file").read_bytes() == b"new"
    assert not (inside / "file").is_symlink()


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "full").touch()
    with TargetFolder.top(str(tmp_path)) as top:
        with pytest.raises(FileExistsError):
            put(top, b"a")
        assert (tmp_path / "a").read_text() == "mine"
        put(top, b"b", replace=True)
        with pytest.raises(Refused, match="cannot be removed"):
            put(top, b"c", replace=True)
    assert (tmp_path / "b").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_without_links_a_file_is_renamed_and_still_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "exFAT has none")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a").write_text("mine")
    with TargetFolder.top(str(tmp_path)) as top:
        put(top, b"b")
        with pytest.raises(FileExistsError):
            put(top, b"a")
    assert (tmp_path / "a").read_text() == "mine"
    assert (tmp_path / "b").read_text() == "new"


def test_a_folder_that_was_put_in_the_place_of_another_is_not_entered(tmp_path: Path) -> None:
    """Where others can write they can rename what is there, and what they put there may be anything."""
    tmp_path.chmod(0o777)
    with TargetFolder.top(str(tmp_path)) as top:
        with top.enter(b"d") as made, made.enter(b"inner") as inner:
            places = made.place, inner.place
        (tmp_path / "d").rename(tmp_path / "away")
        (tmp_path / "d" / "inner").mkdir(parents=True)
        for place in places:
            with pytest.raises(Refused, match="replaced by another one"):
                top.inner(place)
        (tmp_path / "d" / "inner").rmdir()
        (tmp_path / "d").rmdir()
        (tmp_path / "away").rename(tmp_path / "d")
        with top.inner(places[1]) as again:
            assert again.path == b"d/inner"


def test_a_mode_is_not_changed_through_a_link(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    (tmp_path / "pipe").symlink_to(secret)
    with TargetFolder.top(str(tmp_path)) as top, pytest.raises(OSError, match="symbolic links"):
        change_mode(b"pipe", top.fd, 0o777)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


# The staging folder


def test_what_a_killed_call_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with TargetFolder.top(str(tmp_path)) as top:
        live = Staging.within(top.fd)
        os.close(write_file(live.fd, live.new_name(), [], 0))
        dead = Staging.within(top.fd)
        os.close(write_file(dead.fd, dead.new_name(), [], 0))
        kept = {name: tmp_path / name for name in (".zkeep-extract-mine", ".zkeep-extract-" + "0" * 16)}
        for path in kept.values():
            path.mkdir()
            (path / "mine").write_text("mine")
        os.close(dead._inner[1])
        os.close(dead._fd)  # as a process does that ends: the lock goes
        Staging.within(top.fd).close()
        left = {name for name in os.listdir(tmp_path) if os.fsencode(name).startswith(PREFIX)}
        assert left == {os.fsdecode(live._name), *kept}
        assert all((path / "mine").read_text() == "mine" for path in kept.values())
        assert len(os.listdir(live.fd)) == 1
        live.close()


def test_a_staging_folder_can_be_written_to_by_nobody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    before = os.umask(0)
    try:
        with TargetFolder.top(str(tmp_path)) as top:
            staging = Staging.within(top.fd)
            assert stat.S_IMODE(os.fstat(staging.fd).st_mode) == 0o700
            assert stat.S_IMODE(os.fstat(staging._fd).st_mode) == 0o700
            staging.close()
    finally:
        os.umask(before)
    assert not list(tmp_path.iterdir())


def test_a_staging_folder_lies_where_it_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the top, or, where only a folder further down can be written to, in that one."""
    (tmp_path / "mine").mkdir()
    within = Staging.within

    def not_at_the_top(parent: int) -> Staging:
        if os.path.samestat(os.fstat(parent), tmp_path.stat()):
            raise PermissionError(errno.EACCES, "root's")
        return within(parent)

    monkeypatch.setattr(Staging, "within", not_at_the_top)
    with TargetFolder.top(str(tmp_path)) as top, top.inner(TargetPlace(b"mine")) as folder:
        stagings = Stagings(top.fd)
        with pytest.raises(PermissionError):
            stagings.of(top.fd, b"", top.device)
        stagings.of(folder.fd, folder.path, folder.device)
        assert len(os.listdir(tmp_path / "mine")) == 1
        stagings.close()
    assert not os.listdir(tmp_path / "mine")


def test_what_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    def torn():  # type: ignore[no-untyped-def]
        yield Extent(0, b"half")
        raise KeyboardInterrupt

    with TargetFolder.top(str(tmp_path)) as top:
        staging = Staging.within(top.fd)
        with pytest.raises(KeyboardInterrupt):
            write_file(staging.fd, b"0", torn(), 9000)
        staging.close()
    assert not os.listdir(tmp_path)


def test_the_next_folder_is_reached_from_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep they lie: else a chain of them cost as many openings as its depth, squared."""
    depth, opened = 500, 0
    paths = [b"/".join([b"d"] * at) for at in range(1, depth + 1)]
    os.makedirs(tmp_path / "d" / os.fsdecode(paths[-2]))
    real = os.open

    def counted(*args: Any, **kwargs: Any) -> int:
        nonlocal opened
        opened += 1
        return real(*args, **kwargs)

    with TargetFolder.top(str(tmp_path)) as top:
        monkeypatch.setattr(os, "open", counted)
        for path in [*paths, *reversed(paths)]:
            with top.inner(TargetPlace(path)) as found:
                assert os.fstat(found.fd).st_ino == os.stat(tmp_path / os.fsdecode(path)).st_ino
    assert opened < 12 * depth


# A volume's disk image


class Disk(Volume):
    size = 5000  # type: ignore[assignment]

    def __init__(self, content: bytes) -> None:
        self.content = content

    def extents(self) -> Iterator[Extent]:
        yield Extent(100, self.content)
        if self.content == b"torn":
            raise Damaged("the record is damaged")


def test_a_disk_image_that_is_there_and_whole_stays(tmp_path: Path) -> None:
    image = Path(extract_volume(Disk(b"disk"), str(tmp_path), "d.img"))
    assert image.read_bytes() == bytes(100) + b"disk" + bytes(4896)
    assert stat.S_IMODE(image.stat().st_mode) == 0o600
    before = image.stat().st_ino
    extract_volume(Disk(b"disk"), str(tmp_path), "d.img")
    with pytest.raises(Refused, match="--force overwrites"):
        extract_volume(Disk(b"other"), str(tmp_path), "d.img")
    with pytest.raises(Damaged):
        extract_volume(Disk(b"torn"), str(tmp_path), "d.img", force=True)
    assert image.stat().st_ino == before
    extract_volume(Disk(b"other"), str(tmp_path), "d.img", force=True)
    assert image.read_bytes()[100:105] == b"other"
    assert os.listdir(tmp_path) == ["d.img"]


def test_p4_a_staging_folder_of_somebody_else_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can write to the target puts a folder of his in the place of ours, each time, as soon as it is made."""
    mkdir = os.mkdir

    def replaced(name: bytes, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        os.rename(name, b"ours-" + name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        mkdir(name, 0o777, dir_fd=dir_fd)
        os.chmod(name, 0o777, dir_fd=dir_fd)

    with TargetFolder.top(str(tmp_path)) as top:
        monkeypatch.setattr(os, "mkdir", replaced)
        with pytest.raises(OSError, match="is taken away as soon as it is made"):
            Staging.within(top.fd)
    assert not list(tmp_path.glob(f"{os.fsdecode(PREFIX)}*"))


def test_where_nothing_has_an_owner_a_folder_that_all_can_write_to_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkeep.restore.files.staging._is_private", lambda fd: False)
    with TargetFolder.top(str(tmp_path)) as top:
        put(top, b"file")
    assert os.listdir(tmp_path) == ["file"]
