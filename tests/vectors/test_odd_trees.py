"""Odd and hostile trees, encrypted with a right key: shown as they are or reported; no verb goes round in circles."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sealedkit import FILE, FIRST, FOLDER, ROOT, Entries, file, opened, tree
from sealing import Thing, folder

from zkeep.crypto.unwrap import SUITES
from zkeep.names import printable_path
from zkeep.restore.files.extract import Extraction, ExtractOptions
from zkeep.restore.verify import verify
from zkeep.tree.filesystem import BadTree, Filesystem
from zkeep.tree.glob import matches, typed

NAMES = [b"\xff\xfe", b"a" * 255, b"\xe9" * 255, b"new\nline", b"-rf", b" ", b"\x1b[31m", b"*", b"\\", b"$(x)", b"%s"]
DEPTH = 1200


def walked(filesystem: Filesystem) -> list[bytes]:
    return [path for path, _ in filesystem.walk(filesystem.root)]


def extract(filesystem: Filesystem, target: Path) -> None:
    """All of it; raises the first of what could not be extracted."""
    work = Extraction(filesystem, ExtractOptions())
    work.extract_all(str(target))
    for _, error in work.failed:
        raise error


def test_names_of_any_bytes_are_kept(tmp_path: Path) -> None:
    entries = [(name, FIRST + i, FILE) for i, name in enumerate(NAMES)]
    with opened(tmp_path, tree(entries, *(file(FIRST + i) for i in range(len(NAMES))))) as found:
        filesystem = Filesystem(found)
        assert walked(filesystem) == sorted(NAMES)
        Extraction(filesystem, ExtractOptions()).extract_all(str(tmp_path / "out"))
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted(NAMES)


def test_what_ls_shows_can_be_asked_for(tmp_path: Path) -> None:
    """Also where two names look alike: the one that is so is meant."""
    names = [*NAMES, "é".encode(), "é".encode("latin-1"), b"\\xe9", b"\\\\\xe9", b"\xc2\x85", b"\x85"]
    entries = [(name, FIRST + i, FILE) for i, name in enumerate(names)]
    with opened(tmp_path, tree(entries, *(file(FIRST + i) for i in range(len(names))))) as found:
        filesystem = Filesystem(found)
        for name in names:
            if name != "é".encode("latin-1"):
                assert typed(filesystem, printable_path(name)) == [name]
            assert typed(filesystem, os.fsdecode(name)) == [name]


def test_what_is_missing_is_named_once(tmp_path: Path) -> None:
    """However many processes share the rest."""
    names = [b"n" * 300, *(b"%d" % i for i in range(200))]
    entries = [(name, FIRST + i, FILE) for i, name in enumerate(names)]
    with opened(tmp_path, tree(entries, *(file(FIRST + i) for i in range(len(names))))) as found:
        work = Extraction(Filesystem(found), ExtractOptions())
        work.extract_all(str(tmp_path / "out"))
    assert len(os.listdir(tmp_path / "out")) == work.progress.files == 200
    assert [(path, str(error)) for path, error in work.failed] == [(names[0], "File name too long")]


def deep() -> list[Thing]:
    above = [ROOT, *range(FIRST, FIRST + DEPTH)]
    inner = [folder(n, above[i], [(b"d", n + 1, FOLDER)]) for i, n in enumerate(range(FIRST, FIRST + DEPTH - 1))]
    last = FIRST + DEPTH - 1
    return [*inner, folder(last, last - 1, [(b"f", last + 1, FILE)]), file(last + 1, last)]


def test_folders_lie_as_deep_as_they_like(tmp_path: Path) -> None:
    path = b"d/" * DEPTH + b"f"
    with opened(tmp_path, tree([(b"d", FIRST, FOLDER)], *deep())) as snapshot:
        filesystem = Filesystem(snapshot)
        assert walked(filesystem)[-1] == path
        assert matches(filesystem, b"**/f") == [path]
        assert filesystem.path_of(FIRST + DEPTH) == path
        Extraction(filesystem, ExtractOptions()).extract_all(str(tmp_path / "out"))
        Extraction(filesystem, ExtractOptions()).extract(str(tmp_path / "one"), [path])
    for name in ("out", "one"):
        found = subprocess.run(["find", ".", "-type", "f"], cwd=tmp_path / name, capture_output=True, check=True)
        assert found.stdout == b"./" + path + b"\n"
        subprocess.run(["rm", "-r", tmp_path / name], check=True)  # shutil cannot go as deep


@pytest.mark.parametrize(
    ("root", "inner"),
    [
        ([(b"up", ROOT, FOLDER)], []),
        ([(b"d", FIRST, FOLDER)], [(b"up", ROOT, FOLDER)]),
        ([(b"d", FIRST, FOLDER)], [(b"self", FIRST, FOLDER)]),
        ([(b"d", FIRST, FOLDER), (b"e", FIRST, FOLDER)], []),
    ],
)
def test_folders_that_lie_in_one_another_are_told_of(root: Entries, inner: Entries, tmp_path: Path) -> None:
    with opened(tmp_path, tree(root, folder(FIRST, ROOT, inner))) as found:
        verify(found)
        for look in (walked, lambda fs: matches(fs, b"**/f"), partial(extract, target=tmp_path / "out")):
            with pytest.raises(BadTree, match="a folder that lies elsewhere, too"):
                look(Filesystem(found))


@pytest.mark.parametrize("name", [b"../../evil", b"a/b", b"..", b".", b""])
def test_names_that_lead_elsewhere_are_told_of(name: bytes, tmp_path: Path) -> None:
    things = tree([(b"f", FIRST, FILE), (name, FIRST, FILE)], file(FIRST))
    with opened(tmp_path, things) as found, pytest.raises(BadTree, match="there is an entry"):
        extract(Filesystem(found), tmp_path / "in" / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("suite", sorted(SUITES), ids=lambda suite: SUITES[suite].name)
@pytest.mark.parametrize("record", [512, 131072, 16 << 20])
def test_every_suite_and_record_size_opens(suite: int, record: int, tmp_path: Path) -> None:
    size = 2 * record + 100
    if SUITES[suite].ccm and record == 16 << 20:
        pytest.skip("CCM with a nonce of 12 bytes holds less than 16 MiB")
    with opened(tmp_path, tree([(b"f", FIRST, FILE)], file(FIRST, size=size, record=record)), suite) as found:
        assert verify(found).objects == 5 + 2
        node = Filesystem(found).lookup(b"f")
        got = [(e.offset, bytes(e.content[:8])) for e in Filesystem(found).extents(node)]
    assert got == [(i * record, (FIRST << 24 | i).to_bytes(8, "little")) for i in range(3)]


@pytest.mark.parametrize("every", [True, False], ids=["extracted", "read"])
def test_the_only_block_of_a_sparse_file_lies_where_it_lies(every: bool, tmp_path: Path) -> None:
    far = 16 * 512
    things = [file(FIRST + i, size=far + 512, record=512) for i in range(2)]
    things = [replace(thing, blocks=list(thing.blocks)[-1:]) for thing in things]
    wanted = [bytes(far) + (FIRST + i << 24 | 16).to_bytes(8, "little") + bytes(504) for i in range(2)]
    with opened(tmp_path, tree([(b"f0", FIRST, FILE), (b"f1", FIRST + 1, FILE)], *things)) as found:
        filesystem = Filesystem(found)
        if every:
            Extraction(filesystem, ExtractOptions()).extract_all(str(tmp_path / "out"))
            assert [(tmp_path / "out" / f"f{i}").read_bytes() for i in range(2)] == wanted
        else:
            nodes = [filesystem.lookup(name) for name in (b"f0", b"f1")]
            assert [filesystem.read(node, 0, node.size) for node in nodes] == wanted
