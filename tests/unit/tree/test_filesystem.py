"""Paths, links, listings and holes of a filesystem whose objects lie in memory, as our own writers make them."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

import pytest

from zkeep.errors import Refused, ZkeepError
from zkeep.format.dnode import Dnode
from zkeep.format.objtypes import ObjectType
from zkeep.format.zap_writer import micro_block
from zkeep.format.znode_writer import FileFields, encode_file
from zkeep.snapshot.new_filesystem import ROOT, fixed_objects
from zkeep.tree.filesystem import BadTree, Filesystem, NoSuchFile
from zkeep.tree.objects import Bonus, Content, Reading

FOLDER, FILE, LINK = stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK
BLKSZ = 512


class Memory:
    """Objects by number: a bonus buffer, and blocks of 512 bytes or of the size of the only one."""

    def __init__(self) -> None:
        self.bonuses: dict[int, bytes] = {}
        self.blocks: dict[int, dict[int, bytes]] = {}
        for change in fixed_objects():
            self.blocks[change.number] = {block.number: bytes(block.content or b"") for block in change.blocks}

    def put(
        self, number: int, mode: int, parent: int, size: int = 0, links: int = 1, target: bytes | None = None
    ) -> None:
        fields = FileFields(mode | 0o755, 0, 0, size, links, 1, 1, 1, 1, parent, 1, target=target)
        self.bonuses[number] = encode_file(fields)[0]

    def folder(self, number: int, parent: int, **entries: tuple[int, int]) -> None:
        """A folder with entries: name=(object, kind)."""
        self.put(number, FOLDER, parent, len(entries) + 2, 2)
        self.blocks[number] = {0: micro_block({n.encode(): o | k >> 12 << 60 for n, (o, k) in entries.items()}, 1)}

    def dnode(self, number: int) -> Dnode:
        blocks = self.blocks.get(number, {})
        size = len(blocks[0]) if 0 in blocks else BLKSZ
        bonus = self.bonuses.get(number, b"")
        kind = int(ObjectType.SA)
        return Dnode(number, 19, kind, size, len(bonus), 1, 0, 0, False, 17, 1, 1, 0, "little", bonus)

    def bonus(self, number: int) -> Bonus:
        if number not in self.bonuses:
            raise Refused(f"there is no object {number}")
        return Bonus(ObjectType.SA, False, self.bonuses[number])

    def spill_of(self, number: int) -> bytes | None:
        return None

    def read_block(self, number: int, block: int) -> bytes:
        return self.blocks[number].get(block, bytes(BLKSZ))

    def data(self, number: int, start: int, end: int) -> Iterator[tuple[int, Content]]:
        for block, content in sorted(self.blocks.get(number, {}).items()):
            if start < block * BLKSZ + len(content) and block * BLKSZ < end:
                yield block * BLKSZ, content

    def begin_read(self, number: int, start: int, end: int) -> Reading:
        raise NotImplementedError

    def expect(self, numbers: Iterable[int]) -> None:
        pass

    def prefetch(self, numbers: Iterable[int]) -> None:
        pass

    def stop_threads(self) -> None:
        pass


@pytest.fixture
def objects() -> Memory:
    """/a/b/file, /a/up -> .., /a/far -> /a/b, /a/loop -> loop, /sparse."""
    found = Memory()
    found.folder(ROOT, ROOT, a=(10, FOLDER), sparse=(20, FILE))
    found.folder(10, ROOT, b=(11, FOLDER), up=(13, LINK), far=(14, LINK), loop=(15, LINK))
    found.folder(11, 10, file=(12, FILE))
    found.put(12, FILE, 11, 5)
    found.blocks[12] = {0: b"hello".ljust(BLKSZ, b"\0")}
    for number, target in ((13, b".."), (14, b"/a/b"), (15, b"loop")):
        found.put(number, LINK, 10, len(target), target=target)
    found.put(20, FILE, ROOT, 3 * BLKSZ - 12)
    found.blocks[20] = {0: b"x" * BLKSZ, 2: b"y" * BLKSZ}
    return found


@pytest.mark.parametrize(
    ("path", "number"),
    [
        pytest.param(b"", ROOT, id="the root"),
        pytest.param(b"a/b/file", 12, id="a file"),
        pytest.param(b"/a//b/./file", 12, id="slashes and dots"),
        pytest.param(b"a/b/..", 10, id="up"),
        pytest.param(b"../../a", 10, id="never above the root"),
        pytest.param(b"a/far/file", 12, id="a link on the way"),
        pytest.param(b"a/far/../up", 13, id="up from where the link leads"),
        pytest.param(b"a/up/sparse", 20, id="a link to the folder above"),
        pytest.param(b"a/far", 14, id="a link itself"),
    ],
)
def test_paths(objects: Memory, path: bytes, number: int) -> None:
    assert Filesystem(objects).lookup(path).number == number


def test_the_last_link_is_followed_on_request(objects: Memory) -> None:
    assert Filesystem(objects).lookup(b"a/far", follow=True).number == 11


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (b"none", "no such file"),
        (b"a/b/file/x", "no such file"),
        (b"a/loop/x", "too many symbolic links"),
        (b"a/b/FILE", "no such file"),
    ],
)
def test_paths_that_lead_nowhere(objects: Memory, path: bytes, why: str) -> None:
    with pytest.raises(NoSuchFile, match=why):
        Filesystem(objects).lookup(path)


def test_a_walk_has_each_folder_before_its_entries(objects: Memory) -> None:
    tree = Filesystem(objects)
    by_name = [path for path, _ in tree.walk(tree.root)]
    assert by_name == [b"a", b"a/b", b"a/b/file", b"a/far", b"a/loop", b"a/up", b"sparse"]
    as_stored = [name.number for _, name in tree.walk(tree.root, as_stored=True)]
    assert as_stored == [10, 11, 12, 13, 14, 15, 20]
    assert [tree.path_of(number) for number in (12, 15, 20)] == [b"a/b/file", b"a/loop", b"sparse"]


def test_a_folder_that_cannot_be_read_does_not_end_a_walk(objects: Memory) -> None:
    del objects.bonuses[11]
    tree, failed = Filesystem(objects), []

    def note(path: bytes, error: ZkeepError) -> None:
        failed.append((path, str(error)))

    assert [path for path, _ in tree.walk(tree.root, failed=note)][-1] == b"sparse"
    assert failed == [(b"a/b", "there is no object 11")]
    with pytest.raises(Refused, match="no object 11"):
        list(tree.walk(tree.root))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        pytest.param({"a/b": (12, FILE)}, "there is an entry", id="a slash"),
        pytest.param({"..": (12, FILE)}, "there is an entry", id="the folder above"),
        pytest.param({"x": (12, FILE), "y": (12, FILE)}, "more names than links", id="one file too often"),
        pytest.param({"x": (11, FOLDER), "y": (11, FOLDER)}, "lies elsewhere, too", id="a folder twice"),
    ],
)
def test_a_folder_that_makes_no_sense(objects: Memory, entries: dict[str, tuple[int, int]], why: str) -> None:
    objects.folder(10, ROOT, **entries)
    with pytest.raises(BadTree, match=why):
        Filesystem(objects).names(10)


def test_a_folder_in_itself_ends_a_walk(objects: Memory) -> None:
    objects.folder(11, 10, again=(10, FOLDER))
    tree = Filesystem(objects)
    with pytest.raises(BadTree, match="lies elsewhere, too"):
        list(tree.walk(tree.root))


@pytest.mark.parametrize(
    ("start", "size", "expected"),
    [
        pytest.param(0, 4, b"xxxx", id="the beginning"),
        pytest.param(BLKSZ - 1, 3, b"x\0\0", id="into a hole"),
        pytest.param(2 * BLKSZ - 1, 3, b"\0yy", id="out of it"),
        pytest.param(3 * BLKSZ - 13, 100, b"y", id="over the end"),
        pytest.param(3 * BLKSZ, 10, b"", id="behind it"),
    ],
)
def test_reads_of_a_file_with_a_hole(objects: Memory, start: int, size: int, expected: bytes) -> None:
    tree = Filesystem(objects)
    assert tree.read(tree.znode(20), start, size) == expected


def test_extents_end_with_the_file(objects: Memory) -> None:
    tree = Filesystem(objects)
    found = [(extent.offset, len(extent.content)) for extent in tree.extents(tree.znode(20))]
    assert found == [(0, BLKSZ), (2 * BLKSZ, BLKSZ - 12)]


def test_without_a_root_nothing_is_found(objects: Memory) -> None:
    objects.blocks[1] = {0: micro_block({b"VERSION": 5}, 1)}
    with pytest.raises(BadTree, match="has no root"):
        Filesystem(objects).lookup(b"a")
