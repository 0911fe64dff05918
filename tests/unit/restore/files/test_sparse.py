"""Archives: holes as GNU tar writes them, and all that can be read of a tree of which some cannot."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tar import Tree, extracted, members, names

from zkeep.errors import Damaged
from zkeep.format.znode import Znode
from zkeep.restore.files import sparse
from zkeep.restore.files.report import RestoreReport
from zkeep.restore.files.sparse import Gathered
from zkeep.restore.files.tar import write_tar
from zkeep.tree.filesystem import BadTree, Extent, Name

PIECE = 4096
LAYOUTS = {
    "all": (40 * PIECE, []),
    "front": (40 * PIECE, [39]),
    "back": (40 * PIECE, [0]),
    "middle": (40 * PIECE, [0, 39]),
    "many": (600 * PIECE, list(range(0, 600, 2))),
    "odd": (39 * PIECE + 77, [3, 4, 9]),
}
"Size, and which pieces of 4 KiB are no holes."


class Holey(Tree):
    """Files with holes, some of which cannot be read."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts: dict[int, tuple[int, list[int]]] = {}
        self.broken: set[int] = set()

    def holey(self, path: bytes, layout: str) -> int:
        number = self.file(path)
        self.layouts[number] = LAYOUTS[layout]
        self.nodes[number] = self.nodes[number]._replace(size=LAYOUTS[layout][0])
        return number

    def extents(self, node: Znode) -> Iterator[Extent]:
        _, pieces = self.layouts.get(node.number, (0, []))
        for piece in pieces:
            yield Extent(piece * PIECE, piece_of(piece))
        if node.number not in self.layouts:
            yield from super().extents(node)
        if node.number in self.broken:
            raise Damaged("the record is damaged")

    def names(self, folder: int) -> Iterator[Name]:  # type: ignore[override]
        if folder in self.broken:
            raise BadTree("no entries")
        return super().names(folder)


def piece_of(number: int) -> bytes:
    return number.to_bytes(2, "big") + b"x" * (PIECE - 2)


def content_of(layout: str) -> bytes:
    size, pieces = LAYOUTS[layout]
    content = bytearray(size)
    for piece in pieces:
        content[piece * PIECE : (piece + 1) * PIECE] = piece_of(piece)
    return bytes(content)


def archive_of(tree: Holey) -> tuple[bytes, RestoreReport]:
    sink = io.BytesIO()
    report = write_tar(tree, [b""], sink)
    return sink.getvalue(), report


@pytest.fixture(params=[sparse.KEPT, 1], ids=["held", "read twice"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "KEPT", request.param)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("command", [["tar", "-xpf", "-"], ["bsdtar", "-xpf", "-"]], ids=["tar", "bsdtar"])
def test_holes_are_restored_as_holes(command: list[str], tmp_path: Path) -> None:
    tree = Holey()
    tree.folder(b"folder")
    paths = {layout: b"folder/" + layout.encode() + end for layout in LAYOUTS for end in (b"", b"\xff" + b"n" * 200)}
    paths |= {layout: b"folder/" + layout.encode() for layout in LAYOUTS}
    for layout, path in paths.items():
        tree.holey(path, layout)
    archive, report = archive_of(tree)
    assert not report.failed
    assert len(archive) < sum(len(LAYOUTS[layout][1]) + 2 for layout in LAYOUTS) * PIECE
    out = extracted(command, archive, tmp_path / "out")
    for layout, path in paths.items():
        assert (out / os.fsdecode(path)).read_bytes() == content_of(layout), layout
    assert len(os.listdir(out / "folder")) == len(paths)


def test_python_reads_it_too() -> None:
    tree = Holey()
    path = b"\xc3\xa9" * 100 + b"\xff"
    tree.holey(path, "odd")
    with tarfile.open(fileobj=io.BytesIO(archive_of(tree)[0])) as opened:
        member = opened.getmembers()[1]
        assert member.issparse()
        assert os.fsencode(member.name) == b"./" + path
        found = opened.extractfile(member)
        assert found is not None
        assert found.read() == content_of("odd")


def test_a_file_without_holes_that_are_worth_it_is_written_as_it_is() -> None:
    tree = Holey()
    tree.file(b"a", b"x" * 5000)
    assert not members(archive_of(tree)[0])[1].issparse()


def test_a_huge_hole_takes_no_room() -> None:
    tree = Holey()
    number = tree.holey(b"huge", "back")
    tree.nodes[number] = tree.nodes[number]._replace(size=1 << 60)
    archive, _ = archive_of(tree)
    assert len(archive) < 6 * PIECE
    assert members(archive)[1].size == 1 << 60


def test_neighbours_are_one_span() -> None:
    pieces = [Extent(0, b"a" * 10), Extent(10, b"b" * 10), Extent(100, b"c")]
    found = Gathered.of(lambda: iter(pieces), 101)
    assert found.spans == [(0, 20), (100, 1)]
    assert found.sparse_map().rstrip(b"\0") == b"2\n0\n20\n100\n1\n"
    assert list(found.extents()) == pieces


# What cannot be read


@pytest.mark.usefixtures("held")
def test_a_file_that_cannot_be_read_is_left_out_and_the_rest_is_there() -> None:
    """Not even its beginning is in the archive, however large it is."""
    tree = Holey()
    tree.folder(b"d")
    bad = [tree.holey(b"d/bad", "many"), tree.file(b"d/two", b"x" * 1000)]
    tree.link(b"d/two-again", bad[1])
    tree.broken = {*bad}
    tree.holey(b"d/good", "back")
    tree.file(b"zz", b"last")
    archive, report = archive_of(tree)
    assert names(archive) == [".", "./d", "./d/good", "./zz"]
    assert [path for path, _ in report.failed] == [b"d/bad", b"d/two", b"d/two-again"]


def test_a_folder_that_cannot_be_read_costs_what_is_in_it() -> None:
    tree = Holey()
    tree.broken = {tree.folder(b"d")}
    tree.file(b"d/inside", b"x")
    tree.file(b"zz", b"last")
    archive, report = archive_of(tree)
    assert names(archive) == [".", "./d", "./zz"]
    assert [path for path, _ in report.failed] == [b"d"]


@pytest.mark.parametrize("rdev", [(1 << 64) - 1, 1 << 52, 3_000_000 << 20])
def test_a_device_that_no_header_has_room_for_is_counted(rdev: int) -> None:
    tree = Holey()
    for name, number in ((b"c", rdev), (b"null", 1 << 20 | 3)):
        device = tree.file(name)
        tree.nodes[device] = tree.nodes[device]._replace(mode=stat.S_IFCHR | 0o666, rdev=number)
    archive, report = archive_of(tree)
    assert names(archive) == [".", "./null"]
    assert report.counts == {"devices": 1}


def test_a_sink_that_takes_no_more_is_the_end() -> None:
    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise BrokenPipeError

    tree = Holey()
    tree.file(b"a", b"x")
    with pytest.raises(BrokenPipeError):
        write_tar(tree, [b""], Full())
