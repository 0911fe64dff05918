"""zkeep ls and cat: what they take, print and write."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import keykit
from zkeep.cli import files
from zkeep.cli.main import run
from zkeep.errors import Damaged
from zkeep.tree.filesystem import Extent

DATA = Path(__file__).parent.parent / "data" / "opened"
KEY = keykit.location(DATA / "story/jambon-zfs-key")
BLANC = [str(DATA / "story" / "full-Rw.zfs"), "blanc@to-remote-server", "-L", KEY]
CHAIN = DATA / "chains" / "ccm192-lzjb-8k.full-s0.zfs"
SPARSE = "m8f299/fc7694d"
MEBI = 1 << 20


def told(capfdbinary: pytest.CaptureFixture[bytes], *words: str) -> list[str]:
    assert run([*words[:1], *BLANC, *words[1:]]) == 0
    return capfdbinary.readouterr().out.decode().splitlines()


# ls


def test_one_glob_that_meets_several_folders_prints_their_names(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    each = [f"jambons/{year}/{name}" for year in (2018, 2019, 2020) for name in ("ledger.csv", "scan.raw")]
    assert told(capfdbinary, "ls", "jambons/20*") == each
    assert told(capfdbinary, "ls", "jambons/2018", "jambons/2019", "jambons/2020") == each
    assert told(capfdbinary, "ls", "jambons/201[8]") == ["ledger.csv", "scan.raw"]


def test_parents_are_gone_through_alike(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    straight, around = "jambons/notes.txt", "jambons/2018/../../../jambons/notes.txt"
    assert told(capfdbinary, "cat", around) == told(capfdbinary, "cat", straight)
    assert told(capfdbinary, "ls", around) == [around]
    assert told(capfdbinary, "ls", "jambons/2018/..") == told(capfdbinary, "ls", "jambons")
    for verb in ("ls", "cat"):
        assert run([verb, *BLANC, "missing/../jambons/notes.txt"]) == 1
        assert b"no such file" in capfdbinary.readouterr().err


@pytest.mark.parametrize("verb", ["ls", "cat"])
def test_a_path_that_cannot_be_read_keeps_no_other_back(verb: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    there = "jambons/notes.txt"
    whole = told(capfdbinary, verb, there)
    assert run([verb, *BLANC, "missing", there, "gone*", there]) == 1
    out, err = capfdbinary.readouterr()
    assert out.decode().splitlines() == whole * 2
    assert [line.split(b": ", 2)[1] for line in err.splitlines()] == [b"gone*", b"missing"]


def test_cat_goes_on_behind_what_is_no_file_and_what_is_damaged(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = told(capfdbinary, "cat", "jambons/notes.txt")
    assert run(["cat", *BLANC, "jambons", "jambons/notes.txt"]) == 1
    out, err = capfdbinary.readouterr()
    assert (out.decode().splitlines(), err) == (whole, b"zkeep: jambons: not a plain file\n")
    pour, calls = files._pour, []

    def sometimes(extents: Iterator[Extent], size: int) -> None:
        calls.append(size)
        if len(calls) == 1:
            raise Damaged("a block is gone")
        pour(extents, size)

    monkeypatch.setattr(files, "_pour", sometimes)
    assert run(["cat", *BLANC, "jambons/2018/ledger.csv", "jambons/notes.txt"]) == 3
    out, err = capfdbinary.readouterr()
    assert (out.decode().splitlines(), err) == (whole, b"zkeep: jambons/2018/ledger.csv: a block is gone\n")


# Volumes


def as_volume(monkeypatch: pytest.MonkeyPatch, extents: Sequence[Extent] = (), size: int = 0) -> None:
    @contextmanager
    def opened(arguments: Sequence[str], keys: Sequence[str]) -> Iterator[tuple[object, list[str]]]:
        yield SimpleNamespace(is_volume=True, name="v/disk@s"), list(arguments[1:])

    monkeypatch.setattr(files, "opened_snapshot", opened)
    volume = SimpleNamespace(extents=lambda: iter(extents), size=size)
    monkeypatch.setattr("zkeep.tree.volume.Volume", lambda opened: volume)


@pytest.mark.parametrize("verb", ["ls", "cat"])
def test_a_volume_has_no_paths(
    verb: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_volume(monkeypatch)
    assert run([verb, "v/disk@s", "path"]) == 2
    answer = capfdbinary.readouterr()
    assert (answer.out, answer.err.count(b"\n")) == (b"", 1)
    assert run([verb, "v/disk@s"]) == 0


# cat into a file that holds something


def old_image(path: Path, size: int) -> Path:
    """Bytes of no zeros, but for a hole in the middle."""
    with path.open("wb") as image:
        image.write(b"\xff" * (size // 3))
        image.seek(size // 3, os.SEEK_CUR)
        image.write(b"\xff" * (size - image.tell()))
    return path


def poured_over(image: Path, at: int, *words: str) -> int:
    with image.open("r+b") as target:
        target.seek(at)
        command = [sys.executable, "-m", "zkeep", "cat", *words]
        return subprocess.run(command, stdout=target, check=False, timeout=60).returncode


def chain_key(folder: Path) -> str:
    manifest = json.loads(lzma.decompress((CHAIN.parent / "ccm192-lzjb-8k.manifest.json.xz").read_bytes()))
    (folder / "key").write_bytes(bytes.fromhex(manifest["key"]["hex"]))
    return f"file://{folder}/key"


@pytest.mark.parametrize(("at", "size"), [(0, 20 * MEBI), (5, 20 * MEBI), (4096, 3 * MEBI), (0, 0)])
def test_holes_of_a_file_are_zeros_whatever_was_there(at: int, size: int, tmp_path: Path) -> None:
    words = [str(CHAIN), SPARSE, "-L", chain_key(tmp_path)]
    whole = subprocess.run([sys.executable, "-m", "zkeep", "cat", *words], capture_output=True, check=True).stdout
    assert whole.count(0) > 16 * MEBI
    image = old_image(tmp_path / "old.img", size)
    old = image.read_bytes()
    assert poured_over(image, at, *words) == 0
    assert image.read_bytes() == old[:at].ljust(at, b"\0") + whole + old[at + len(whole) :]


def test_so_are_those_of_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_volume(monkeypatch, [Extent(8192, b"a" * 512), Extent(2 * MEBI, b"b" * 512)], 4 * MEBI)
    image = old_image(tmp_path / "old.img", 5 * MEBI)
    old = image.read_bytes()
    with image.open("r+b") as target, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", target)
        assert run(["cat", "v/disk@s"]) == 0
    found = bytes(8192) + b"a" * 512 + bytes(2 * MEBI - 8704) + b"b" * 512 + bytes(2 * MEBI - 512)
    assert image.read_bytes() == found + old[4 * MEBI :]


def test_a_new_file_is_sparse(tmp_path: Path) -> None:
    image = old_image(tmp_path / "new.img", 0)
    assert poured_over(image, 0, str(CHAIN), SPARSE, "-L", chain_key(tmp_path)) == 0
    assert image.stat().st_size > 16 * MEBI > image.stat().st_blocks * 512


# Closed ends


@pytest.mark.parametrize("words", [["ls", *BLANC], ["cat", *BLANC, "jambons/notes.txt"]], ids=["ls", "cat"])
def test_who_closes_standard_output_is_told_in_one_line(words: list[str]) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "zkeep", *words]
    answer = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (answer.returncode, answer.stderr) == (1, b"zkeep: standard output is closed\n")
