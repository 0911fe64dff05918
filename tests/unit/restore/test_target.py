"""Extraction never leaves its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.errors import Refused
from zkeep.restore.files.target import Folder
from zkeep.tree.filesystem import Extent


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/etc", b"a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: bytes, tmp_path: Path) -> None:
    with Folder.top(str(tmp_path)) as top, pytest.raises(Refused):
        top.make_file(name, [], 0)
    with Folder.top(str(tmp_path)) as top, pytest.raises(Refused):
        top.enter(name)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "folder").symlink_to(outside)
    (inside / "file").symlink_to(outside / "file")
    with Folder.top(str(inside)) as top:
        with pytest.raises(Refused):
            top.enter(b"folder")
        with pytest.raises(FileExistsError):
            top.make_file(b"file", [], 0)
        top.clear(b"file", force=True)
        os.close(top.make_file(b"file", [Extent(4096, b"x")], 9000))
    assert not list(outside.iterdir())
    assert (inside / "file").read_bytes() == bytes(4096) + b"x" + bytes(4903)


def test_what_is_there_stays_without_force(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with Folder.top(str(tmp_path)) as top, pytest.raises(Refused, match="--force"):
        top.clear(b"a", force=False)
    assert (tmp_path / "a").read_text() == "mine"


def test_what_an_interrupted_call_began_is_begun_again(tmp_path: Path) -> None:
    def torn() -> Iterator[Extent]:
        yield Extent(0, b"half")
        os.link(tmp_path / "a", tmp_path / "kept")
        raise KeyboardInterrupt

    with Folder.top(str(tmp_path)) as top:
        with pytest.raises(KeyboardInterrupt):
            top.make_file(b"a", torn(), 9000)
        assert not (tmp_path / "a").exists()
        os.rename(tmp_path / "kept", tmp_path / "a")
        top.clear(b"a", force=False)
        assert not (tmp_path / "a").exists()
