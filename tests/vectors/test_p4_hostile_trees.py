"""A sender who has the key encrypts a tree of a few KB that asks for too much: each is refused at once."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sealedkit import FILE, FIRST, FOLDER, ROOT, Entries, file, opened, sealing
from sealing import Thing, folder
from test_odd_trees import extract, walked

from zkeep.cli.files import _Lister
from zkeep.errors import Refused
from zkeep.format.objtypes import ObjectType
from zkeep.format.sa import LEGACY, MAGIC
from zkeep.restore.diff import diff
from zkeep.restore.files.extract import Extraction, ExtractOptions
from zkeep.restore.mount.view import FileView
from zkeep.restore.verify import verify
from zkeep.tree import filesystem
from zkeep.tree.filesystem import BadTree, Filesystem, NoSuchFile
from zkeep.tree.glob import matches
from zkeep.tree.xattrs import each_xattr

PLAIN, LINK, WITH_XATTRS = 2, 3, 4
"Layouts: what every file has; a symbolic link's target, and a folder of attributes, with it."
BASE = sealing.ATTRIBUTES
LAYOUTS = {PLAIN: BASE, LINK: (*BASE, 17), WITH_XATTRS: (*BASE, 9)}
XATTR_FOLDER = FIRST + 50


def basics(layouts: dict[str, tuple[int, ...]] | None = None) -> Iterator[Thing]:
    """Master node, attributes and their layouts."""
    every = layouts or {str(number): attributes for number, attributes in LAYOUTS.items()}
    registry = {LEGACY[n][0].encode(): LEGACY[n][1] << 24 | n for n in (*BASE, 9)} | {b"ZPL_SYMLINK": 17}
    for thing in sealing.basics():
        if thing.number == sealing.REGISTRY:
            yield sealing._plain(sealing.REGISTRY, ObjectType.SA_REGISTRY, sealing.micro(registry, 2048))
        elif thing.number == sealing.LAYOUTS:
            rows = [(name.encode(), 2, struct.pack(f">{len(of)}H", *of)) for name, of in every.items()]
            yield sealing._folded(sealing.LAYOUTS, ObjectType.SA_LAYOUTS, sealing.fat(rows))
        else:
            yield thing


def tree(root: Entries, *rest: Thing) -> Iterator[Thing]:
    yield from basics()
    yield folder(ROOT, ROOT, root)
    yield from sorted(rest, key=lambda thing: thing.number)


def bonus(mode: int, size: int, parent: int = ROOT, links: int = 1, layout: int = PLAIN, more: bytes = b"") -> bytes:
    head = struct.pack("<IHH", MAGIC, 1 << 10 | layout, len(more) if layout == LINK else 0)
    rest = struct.pack("<7Q", mode, size, 7, 0, 0, parent, 0) + struct.pack("<2Q", 1_700_000_000, 0) * 4
    return (head + rest + struct.pack("<Q", links) + more).ljust(8)


def empty(number: int, mode: int = 0o100644, size: int = 0, **of: int | bytes) -> Thing:
    return Thing(number, ObjectType.PLAIN_FILE, 512, 0, [], bonus(mode, size, **of))  # type: ignore[arg-type]


def link(number: int, target: bytes) -> Thing:
    return empty(number, 0o120777, len(target), layout=LINK, more=target.ljust(-(-len(target) // 8) * 8, b"\0"))


def with_xattrs(number: int, at: int = XATTR_FOLDER) -> Thing:
    return empty(number, layout=WITH_XATTRS, more=struct.pack("<Q", at))


@contextmanager
def shown(tmp_path: Path, *things: Thing, root: Entries) -> Iterator[Filesystem]:
    with opened(tmp_path, tree(root, *things)) as found:
        assert verify(found).objects == 5 + 1 + len(things)
        yield Filesystem(found)


def mounted(found: Filesystem) -> FileView:
    return FileView(found, lambda number: None)


# Names


@pytest.mark.parametrize("links", [1, 2])
def test_an_object_has_no_more_names_than_links(links: int, tmp_path: Path) -> None:
    """Else a few bytes a name cost all of a file's content, each time."""
    names: Entries = [(b"%d" % i, FIRST, FILE) for i in range(3)]
    with shown(tmp_path, empty(FIRST, links=links), root=names) as found:
        for look in (walked, lambda fs: matches(fs, b"*"), lambda fs: extract(fs, tmp_path / "out")):
            with pytest.raises(BadTree, match="has more names than links"):
                look(found)
        with pytest.raises(BadTree, match="has more names than links"):
            mounted(found).names(b"")


def test_links_are_names_enough(tmp_path: Path) -> None:
    names: Entries = [(b"%d" % i, FIRST, FILE) for i in range(3)]
    with shown(tmp_path, empty(FIRST, links=3), root=names) as found:
        assert walked(found) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("number", [FIRST + 9, 1, sealing.REGISTRY], ids=["nothing", "master node", "registry"])
def test_names_of_what_is_no_file_cost_only_themselves(number: int, tmp_path: Path) -> None:
    names: Entries = [(b"a", number, FILE), (b"b", number, FILE), (b"good", FIRST, FILE)]
    with shown(tmp_path, file(FIRST), root=names) as found:
        assert walked(found) == [b"a", b"b", b"good"]
        assert sorted(name.name for name in mounted(found).names(b"")) == [b"a", b"b", b"good"]
        work = Extraction(found, ExtractOptions())
        work.extract_all(str(tmp_path / "out"))
        assert sorted(path for path, _ in work.failed) == [b"a", b"b"]
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]


@pytest.mark.parametrize("more", [1 << 16, 1 << 40, 0xFFFF << 48])
@pytest.mark.parametrize("mode", [0o100644, 0o120777])
def test_a_mode_has_sixteen_bits(more: int, mode: int, tmp_path: Path) -> None:
    odd = link(FIRST, b"target") if mode == 0o120777 else empty(FIRST)
    odd = replace(odd, bonus=odd.bonus[:8] + struct.pack("<Q", mode | more) + odd.bonus[16:])
    with shown(tmp_path, odd, root=[(b"odd", FIRST, FILE)]) as found:
        assert found.znode(FIRST).mode == mode
        assert walked(found) == [b"odd"]
        extract(found, tmp_path / "out")


class Again(bytes):
    """A name that no dict takes for another one, though its bytes are the same."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def test_a_name_is_in_a_folder_once(tmp_path: Path) -> None:
    names: Entries = [(Again(b"same"), FIRST + i, FILE) for i in range(3)]
    with (
        shown(tmp_path, *(empty(FIRST + i) for i in range(3)), root=names) as found,
        pytest.raises(BadTree, match="two entries have one name"),
    ):
        walked(found)


# Folders


@pytest.mark.parametrize("listed", [True, False], ids=["small", "large"])
@pytest.mark.parametrize(
    ("root", "inner", "paths"),
    [
        ([(b"up", ROOT, FOLDER)], [], [b"up"]),
        ([(b"d", FIRST, FOLDER)], [(b"up", ROOT, FOLDER)], [b"d/up"]),
        ([(b"d", FIRST, FOLDER)], [(b"self", FIRST, FOLDER)], [b"d/self/self"]),
        ([(b"d", FIRST, FOLDER)], [(b"self", FIRST, FILE)], [b"d/self/self"]),
        ([(b"d", FIRST, FOLDER), (b"e", FIRST, FOLDER)], [], [b"d", b"e"]),
        ([(b"d", FIRST, FOLDER), (b"e", FIRST, FILE)], [], [b"d", b"e"]),
    ],
)
def test_a_mounted_folder_lies_in_one_place(
    listed: bool, root: Entries, inner: Entries, paths: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that walks through a mount sees no object numbers, and would go round for ever."""
    if not listed:
        monkeypatch.setattr("zkeep.restore.mount.view.SMALL", 0)
    with shown(tmp_path, folder(FIRST, ROOT, inner), root=root) as found:
        view = mounted(found)
        with pytest.raises(BadTree, match="a folder that lies elsewhere, too"):
            list(map(view.node, paths))


def test_paths_end_where_no_system_could_follow(tmp_path: Path) -> None:
    depth, name = 70, b"d" * 250
    numbers = range(FIRST, FIRST + depth)
    things = [
        folder(n, ROOT if n == FIRST else n - 1, [(name, n + 1, FOLDER)] if n + 1 in numbers else []) for n in numbers
    ]
    with shown(tmp_path, *things, root=[(name, FIRST, FOLDER)]) as found:
        for look in (walked, lambda fs: matches(fs, b"**/f"), lambda fs: fs.path_of(numbers[-1])):
            with pytest.raises(BadTree, match="folders lie deeper than a path of 16384 bytes tells"):
                look(found)


# Extended attributes


def attributes(count: int, size: int, parent: int = XATTR_FOLDER) -> list[Thing]:
    """A file with `count` extended attributes, each of them a hole."""
    names: Entries = [(b"user.%d" % i, XATTR_FOLDER + 1 + i, FILE) for i in range(count)]
    numbers = range(XATTR_FOLDER + 1, XATTR_FOLDER + 1 + count)
    inner = [Thing(n, ObjectType.PLAIN_FILE, 131072, 0, [], bonus(0o100644, size, parent)) for n in numbers]
    return [with_xattrs(FIRST), folder(XATTR_FOLDER, FIRST, names), *inner]


@pytest.mark.parametrize(
    ("things", "what"),
    [
        (attributes(1, 2 << 20), "extended attributes of 2097152 bytes that are not stored"),
        (attributes(30, 64 << 10), "bytes that are not stored"),
        (attributes(1, 17 << 20), "17825792 bytes of extended attributes"),
        (attributes(1, (1 << 64) - 1), "18446744073709551615 bytes of extended attributes"),
        ([with_xattrs(FIRST, ROOT)], "its extended attributes are another's"),
        ([with_xattrs(FIRST, FIRST)], "its extended attributes are another's"),
        ([*attributes(1, 1), with_xattrs(FIRST + 1)], "its extended attributes are another's"),
    ],
    ids=["a hole", "many holes", "large", "as large as can be", "all files", "itself", "another's"],
)
def test_extended_attributes_are_as_large_as_they_are_stored(things: list[Thing], what: str, tmp_path: Path) -> None:
    names = [(b"f%d" % t.number, t.number, FILE) for t in things if t.number < XATTR_FOLDER]
    with shown(tmp_path, *things, root=names) as found:
        nodes = [found.znode(number) for _, number, _ in names]
        with pytest.raises(BadTree, match=what):
            list(map(found.xattrs, nodes))


def test_zeros_that_a_system_can_hold_are_holes(tmp_path: Path) -> None:
    with shown(tmp_path, *attributes(2, 64 << 10), root=[(b"f", FIRST, FILE)]) as found:
        assert found.xattrs(found.lookup(b"f")) == {b"user.%d" % i: bytes(64 << 10) for i in range(2)}


def test_many_names_of_one_value_cost_it_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is reported, and the value is read no more often than the common bound allows."""
    monkeypatch.setattr("zkeep.tree.xattrs.MAX_XATTRS", 4 << 20)
    hole = XATTR_FOLDER + 1
    names: Entries = [(b"user.%d" % i, hole, FILE) for i in range(50)]
    value = Thing(hole, ObjectType.PLAIN_FILE, 131072, 0, [], bonus(0o100644, 2 << 20, XATTR_FOLDER))
    things = [with_xattrs(FIRST), folder(XATTR_FOLDER, FIRST, names), value]
    with shown(tmp_path, *things, root=[(b"f", FIRST, FILE)]) as found:
        read: list[int] = []
        real = Filesystem.extents
        monkeypatch.setattr(Filesystem, "extents", lambda self, node: read.append(node.number) or real(self, node))
        every = dict(each_xattr(found, found.lookup(b"f")))
    assert len(every) == 50
    assert all(isinstance(each, BadTree) for each in every.values())
    assert len(read) == 2


# Sizes, links, layouts


def test_a_file_is_no_larger_than_any_system_tells(tmp_path: Path) -> None:
    things = [empty(FIRST, size=(1 << 64) - 1), file(FIRST + 1)]
    with shown(tmp_path, *things, root=[(b"f", FIRST, FILE), (b"good", FIRST + 1, FILE)]) as found:
        for read in (lambda node: found.read(node, 0, 10), lambda node: list(found.extents(node))):
            with pytest.raises(BadTree, match="a file of 18446744073709551615 bytes"):
                read(found.lookup(b"f"))
        with pytest.raises(BadTree, match="a file of 18446744073709551615 bytes"):
            extract(found, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (b"l/" * 50 + b"x", "too many symbolic links"),
        (b"l", "too many symbolic links"),
        (b"./" * 51, "a symbolic link leads to a path of 102 bytes"),
    ],
)
def test_links_lead_to_an_end(target: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "MAX_TARGET", 101)
    with shown(tmp_path, link(FIRST, target), root=[(b"l", FIRST, FILE)]) as found:
        assert found.lookup(b"l").target == target
        with pytest.raises(NoSuchFile, match=why):
            found.lookup(b"l/x", follow=True)


@pytest.mark.parametrize("name", ["9" * 5000, "99999", "-2", "2x"])
def test_layouts_have_numbers(name: str, tmp_path: Path) -> None:
    """5,000 digits are more than Python makes a number of."""
    layouts = {str(PLAIN): BASE, name: BASE}
    things = [*basics(layouts), folder(ROOT, ROOT, [(b"f", FIRST, FILE)]), file(FIRST)]
    with opened(tmp_path, things) as found:
        assert Filesystem(found).lookup(b"f").size == 100


# Large blocks, compressed


def packed(number: int, blocks: int, size: int) -> Thing:
    content, code = sealing._packed(b"a" * size, "zstd")
    every = [sealing.Block(i, content, code) for i in range(blocks)]
    return Thing(number, ObjectType.PLAIN_FILE, size, blocks - 1, every, bonus(0o100644, blocks * size))


def test_few_large_blocks_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkeep.snapshot.block_reader.INFLATED", 4 << 20)
    with shown(tmp_path, packed(FIRST, 16, 1 << 20), root=[(b"f", FIRST, FILE)]) as found:
        asked: list[int] = []
        blocks = found.objects.blocks  # type: ignore[attr-defined]
        real = blocks.stored_records
        monkeypatch.setattr(blocks, "stored_records", lambda leaves: asked.append(len(leaves)) or real(leaves))
        node = found.lookup(b"f")
        assert sum(len(extent.content) for extent in found.extents(node)) == 16 << 20
    assert max(asked) == 4


def test_zap_blocks_are_held_by_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "BLOCKS", 1 << 20)
    with shown(tmp_path, packed(FIRST, 16, 1 << 20), root=[(b"f", FIRST, FILE)]) as found:
        for block in range(16):
            found._block(FIRST, block)
        assert len(found._blocks._values) == 1


def test_ls_goes_on_behind_what_cannot_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names: Entries = [(b"lost", FIRST + 9, FILE), (b"d", FIRST + 8, FOLDER), (b"f", FIRST, FILE), (b"no", FIRST + 1, 4)]
    things = [file(FIRST), folder(FIRST + 1, FIRST, [(b"in", FIRST, FILE)])]
    with shown(tmp_path, *things, root=names) as found:
        for long, mark in ((False, 0), (True, 2)):
            show = _Lister(found, long=long, recursive=True, itself=False, end=b"\n")
            show.path(b"", many=False)
            with pytest.raises(Refused):
                show.errors.conclude()
            sys.stdout.flush()
            out, err = capfd.readouterr()
            assert [line.split()[-1] for line in out.splitlines()] == ["d", "f", "lost", "no"]
            assert out.count("??????????") == mark
            assert err.count("\n") == 1 + long


# Differences


def test_a_changed_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of its files changed."""
    count = 20
    names: Entries = [(b"f%d" % i, FIRST + i, FILE) for i in range(count)]
    listed: list[int] = []
    real = Filesystem.names
    monkeypatch.setattr(Filesystem, "names", lambda self, at: listed.append(at) or real(self, at))
    with ExitStack() as stack:
        for name in ("old", "new"):
            (tmp_path / name).mkdir()
        old = stack.enter_context(opened(tmp_path / "old", tree([])))
        new = stack.enter_context(opened(tmp_path / "new", tree(names, *(file(FIRST + i) for i in range(count)))))
        assert sum(change.kind == "+" for change in diff(old, new)) == count
    assert len(listed) <= 4


@pytest.mark.parametrize("look", [walked, lambda fs: matches(fs, b"**"), lambda fs: mounted(fs).names(b"")])
def test_a_folder_that_is_none_is_told_of(look: Callable[[Filesystem], object], tmp_path: Path) -> None:
    """Its content is a file's, as the sender likes."""
    bad = replace(folder(ROOT, ROOT, []), blocks=[sealing.Block(0, b"\xff" * 16384, sealing.OFF)])
    with opened(tmp_path, [*basics(), bad]) as found, pytest.raises(Refused, match="does not begin as a ZAP does"):
        look(Filesystem(found))
