"""Datasets in which names of different bytes are one: live, against a plain model, and through FUSE."""

from __future__ import annotations

import errno
import os
import random
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, ByPath, live, mounted, operations

from mountkit import needs_fuse
from zkeep.format.folding import MAX_VARIANTS
from zkeep.live.kernel_cache import FOREVER
from zkeep.live.protocol import ENTRY_OUT

Zkeep = Callable[..., int]
STEMS = ["plain", "\u00e9cole", "\u03c3\u03c2", "\u0451\u0436", "stra\u00dfe", "\u1ebft", "\u01c6", "k\u0131s"]
CASES = [str, str.upper, str.swapcase, str.title]
FORMS = [None, "NFC", "NFD"]


def new_dataset(zkeep: Zkeep, *options: str) -> str:
    words = [word for option in options for word in ("-o", option)]
    assert zkeep("create", *words, "v/home/named") == 0
    return "v/home/named"


def make(files: ByPath, path: bytes, mode: int = stat.S_IFREG | 0o644) -> None:
    files.make(path, mode, OWNER)


def names_of(files: ByPath, path: bytes = b"") -> list[bytes]:
    return sorted(files.dataset.folders.entries(files.lookup(path)))


def refused(call: Callable[..., object], *arguments: object) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        call(*arguments)
    return caught.value.errno


class Model:
    """A folder whose names are keys of what equal ones have in common."""

    def __init__(self, fold: Callable[[str], str]) -> None:
        self.fold = fold
        self.entries: dict[str, tuple[str, int]] = {}

    def create(self, name: str, what: int) -> int | None:
        if self.fold(name) in self.entries:
            return errno.EEXIST
        self.entries[self.fold(name)] = name, what
        return None

    def unlink(self, name: str) -> int | None:
        return None if self.entries.pop(self.fold(name), None) else errno.ENOENT

    def rename(self, old: str, new: str) -> int | None:
        found = self.entries.get(self.fold(old))
        if found is None:
            return errno.ENOENT
        if self.fold(old) == self.fold(new):
            # Another case is another name; another normal form is not.
            forms = [unicodedata.normalize("NFD", name) for name in (found[0], new)]
            self.entries[self.fold(old)] = (new if forms[0] != forms[1] else found[0]), found[1]
            return None
        del self.entries[self.fold(old)]
        self.entries[self.fold(new)] = new, found[1]
        return None


def _simple_upper(text: str) -> str:
    return "".join(each.upper() if len(each.upper()) == 1 else each for each in text)


FOLDS: dict[tuple[str, ...], Callable[[str], str]] = {
    ("casesensitivity=insensitive", "normalization=formD"): lambda s: unicodedata.normalize("NFD", _simple_upper(s)),
    ("casesensitivity=insensitive", "normalization=formC"): lambda s: unicodedata.normalize("NFD", _simple_upper(s)),
    ("normalization=formC",): lambda s: unicodedata.normalize("NFD", s),
    ("casesensitivity=mixed", "normalization=formD"): lambda s: unicodedata.normalize("NFD", s),
    ("casesensitivity=insensitive",): _simple_upper,
}


@pytest.mark.parametrize("options", FOLDS)
def test_random_work_as_a_model_has_it(zkeep: Zkeep, tmp_path: Path, options: tuple[str, ...]) -> None:
    name = new_dataset(zkeep, *options)
    if options == ("casesensitivity=insensitive",):
        # Without normalization, letters taken apart are other names, and stay so under rename.
        choices = [case(stem) for stem in STEMS for case in CASES]
    else:
        choices = [
            unicodedata.normalize(form, case(stem)) if form else case(stem)  # type: ignore[arg-type]
            for stem in STEMS for case in CASES for form in FORMS
        ]  # fmt: skip
    chance, model, made = random.Random(str(options)), Model(FOLDS[options]), 0
    for _ in range(2):
        with live(tmp_path, name) as files:
            for turn in range(150):
                one, other = chance.choices(choices, k=2)
                what = chance.randrange(3)
                first, second = one.encode(), other.encode()
                if what == 0:
                    want, made = model.create(one, made + 1), made + 1
                    done = _errno(make, files, first)
                    if want is None:
                        files.write(files.lookup(first), b"%d" % made, 0)
                elif what == 1:
                    want, done = model.unlink(one), _errno(files.unlink, first)
                else:
                    want, done = model.rename(one, other), _errno(files.rename, first, second)
                assert done == want, (turn, what, one, other)
                _compare(files, model, choices)
                if turn % 40 == 0:
                    files.dataset.commit()
                    files.dataset.inodes.clear()
    with live(tmp_path, name) as files:
        _compare(files, model, choices)


def _errno(call: Callable[..., object], *arguments: object) -> int | None:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


def _compare(files: ByPath, model: Model, choices: list[str]) -> None:
    assert names_of(files) == sorted(name.encode() for name, _ in model.entries.values())
    for choice in choices[:: max(1, len(choices) // 12)]:
        want, found = model.entries.get(model.fold(choice)), files.look(files.dataset.root, choice.encode())
        assert (found is None) == (want is None), choice
        if found is not None and want is not None:
            assert files.read(found, 0, 10) == b"%d" % want[1]


def test_what_is_there_by_another_name_is_not_made_again(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path, new_dataset(zkeep, "casesensitivity=insensitive")) as files:
        make(files, b"File")
        make(files, b"Folder", stat.S_IFDIR | 0o755)
        for name in (b"FILE", b"file", b"folder"):
            for mode in (stat.S_IFREG, stat.S_IFDIR):
                assert refused(make, files, name, mode | 0o644) == errno.EEXIST
        assert refused(files.link, b"file", b"FOLDER") == errno.EEXIST
        assert refused(files.unlink, b"fOLDER") == errno.EISDIR
        make(files, b"FOLDER/x")
        assert refused(files.rmdir, b"folder") == errno.ENOTEMPTY
        files.rename(b"file", b"folder/X")  # over the one that is there: the new name stays
        assert names_of(files) == [b"Folder"]
        assert names_of(files, b"FoldeR") == [b"X"]
        files.link(b"folder/x", b"Two")
        assert files.lookup(b"tWO").fields.links == 2
        files.unlink(b"FOLDER/x")
        files.rmdir(b"folder")
        assert names_of(files) == [b"Two"]


def test_only_the_case_of_a_name_can_be_changed(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path, new_dataset(zkeep, "casesensitivity=insensitive", "normalization=formC")) as files:
        make(files, "\u00e9cole".encode())
        make(files, b"folder", stat.S_IFDIR | 0o755)
        make(files, b"folder/x")
        files.rename("\u00e9cole".encode(), "\u00c9cole".encode())
        files.rename(b"folder", b"FOLDER")
        files.rename("\u00c9cole".encode(), "E\u0301cole".encode())  # one name already
        assert names_of(files) == [b"FOLDER", "\u00c9cole".encode()]
        assert names_of(files, b"Folder") == [b"x"]
        root = files.dataset.root
        assert (root.fields.size, root.fields.links) == (4, 3)


@pytest.mark.parametrize("options", [("utf8only=on",), ("normalization=formD",)])
def test_names_that_are_no_text_are_refused(zkeep: Zkeep, tmp_path: Path, options: tuple[str, ...]) -> None:
    with live(tmp_path, new_dataset(zkeep, *options)) as files:
        make(files, b"a")
        for call in (files.lookup, files.unlink, files.rmdir, lambda name: make(files, name)):
            assert refused(call, b"\xff") == errno.EILSEQ
        assert refused(files.rename, b"a", b"\xc3") == errno.EILSEQ
        assert refused(files.link, b"a", b"\xed\xa0\x80") == errno.EILSEQ
        assert names_of(files) == [b"a"]


def test_names_that_a_kernel_might_not_find_are_refused(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path, new_dataset(zkeep, "casesensitivity=insensitive", "normalization=formD")) as files:
        make(files, "\u1fb3".encode())
        assert refused(make, files, "\u03b1\u0345".encode()) == errno.EOPNOTSUPP
        assert refused(files.lookup, "\u03b1\u0345".encode()) == errno.ENOENT
        assert refused(make, files, "\u026b".encode() * 127) == errno.EOPNOTSUPP


def test_names_that_differ_in_case_only_are_several_where_it_is_mixed(zkeep: Zkeep, tmp_path: Path) -> None:
    """They share a hash, so there must not be more of them than one leaf holds."""
    name = new_dataset(zkeep, "casesensitivity=mixed")
    variants = ["".join(letters).encode() for letters in _cases("abcdef")]
    with live(tmp_path, name) as files:
        for each in variants[:MAX_VARIANTS]:
            make(files, each)
        assert refused(make, files, variants[MAX_VARIANTS]) == errno.ENOSPC
        files.unlink(variants[0])
        files.rename(variants[1], variants[MAX_VARIANTS])
        make(files, variants[1])
        assert refused(make, files, variants[0]) == errno.ENOSPC
        for number in range(2100):  # more than a small ZAP holds
            make(files, b"%d" % number)
    with live(tmp_path, name) as files:
        assert len(names_of(files)) == MAX_VARIANTS + 2100
        assert refused(make, files, variants[0]) == errno.ENOSPC
        assert refused(files.lookup, variants[0]) == errno.ENOENT


def _cases(letters: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for letter in letters:
        found = [[*before, each] for before in found for each in (letter, letter.upper())]
    return found


def test_large_folders_are_changed_leaf_by_leaf(zkeep: Zkeep, tmp_path: Path) -> None:
    name = new_dataset(zkeep, "casesensitivity=insensitive")
    names = ["\u00e4rger %d" % number for number in range(2500)]  # noqa: UP031
    with live(tmp_path, name) as files:
        for each in names:
            make(files, each.encode())
    with live(tmp_path, name) as files:
        for each in names[::100]:
            files.unlink(each.upper().encode())
        files.rename(names[1].encode(), b"other")
        files.rename(b"OTHER", b"Other")
    with live(tmp_path, name) as files:
        assert len(names_of(files)) == 2500 - 25
        assert files.find(files.dataset.root, b"oTHER") is files.lookup(b"Other")
        assert refused(files.lookup, names[100].encode()) == errno.ENOENT
        assert files.lookup("\u00c4RGER 2".encode())


@needs_fuse
def test_the_kernel_keeps_no_name_that_another_one_makes_stale(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("create", "-o", "casesensitivity=insensitive", "-o", "utf8only=on", "v/home/named") == 0
    with mounted(tmp_path, name="v/home/named") as (top, _):
        assert not (top / "a").exists()  # the kernel might keep that
        (top / "A").write_bytes(b"1")
        assert (top / "a").read_bytes() == b"1"
        (top / "a").unlink()
        for name in ("A", "a"):
            assert not (top / name).exists()
        (top / "a").write_bytes(b"2")
        assert os.listdir(top) == ["a"]
        assert (top / "A").read_bytes() == b"2"
        os.rename(top / "A", top / "b")
        assert not (top / "a").exists()
        assert os.listdir(top) == ["b"]
        (top / "Folder").mkdir()
        (top / "FOLDER" / "x").write_bytes(b"")
        with pytest.raises(FileExistsError):
            (top / "folder").mkdir()
        with pytest.raises(FileExistsError):
            os.close(os.open(top / "B", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.rename(top / "b", top / "B")  # both are one file, and then rename(2) does nothing; so it is on ZFS
        assert sorted(os.listdir(top)) == ["Folder", "b"]
        (top / ".ZFS").mkdir()
        assert zkeep("snapshot", "v/home/named@one") == 0
        assert os.listdir(top / ".zfs" / "snapshot") == ["one"]
        assert (top / ".zfs" / "snapshot" / "one" / "fOLDER" / "X").exists()
        with pytest.raises(OSError, match="Invalid or incomplete"):
            os.stat(os.fsencode(top) + b"/\xff")


def test_the_kernel_may_keep_names_where_each_is_one(zkeep: Zkeep, tmp_path: Path) -> None:
    for name, kept in (("v/home", FOREVER), (new_dataset(zkeep, "casesensitivity=insensitive"), 0)):
        with live(tmp_path, name) as files:
            make(files, b"file")
            answered = operations(files)._entry(files.lookup(b"file"))
            assert ENTRY_OUT.unpack_from(answered)[2] == kept
