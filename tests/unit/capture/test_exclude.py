"""What is left out of a snapshot of a folder is left out, nothing else, and `-n -v` says it before."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from capturekit import extracted

from zkeep.capture.exclude import ExcludeOptions, Exclusions, mounts_of_zkeep, parse_patterns
from zkeep.capture.previous import Previous
from zkeep.capture.scan import READ_FOLDER, Node, Scanner, Seen

Zkeep = Callable[..., int]
CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# a cache\n"


def fill(top: Path, *paths: str) -> None:
    for path in paths:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(os.fsencode(path))


def stored(top: Path, options: ExcludeOptions) -> set[str]:
    """The paths of what would be stored."""
    fd = os.open(top, READ_FOLDER)
    try:
        scanner = Scanner(fd, Previous(), Exclusions(options).choose)
        nodes = scanner.scan(0).written
        scanner.folders.close()
    finally:
        os.close(fd)
    return {os.fsdecode(node.path) for node in nodes if node.parent is not None}


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (("*.o",), {"a.o", "d/b.o", "d/e/c.o"}),
        (("/*.o",), {"a.o"}),
        (("d/",), {"d", "d/b.o", "d/x", "d/e", "d/e/c.o"}),
        (("e",), {"d/e", "d/e/c.o"}),
        (("d/*.o",), {"d/b.o"}),
        (("d/**/*.o",), {"d/b.o", "d/e/c.o"}),
        (("*.o", "!c.o"), {"a.o", "d/b.o"}),
        (("d", "!d/x"), {"d", "d/b.o", "d/x", "d/e", "d/e/c.o"}),
        (("*", "!*/", "!*.o"), {"x", "d/x", " y", "z\udcff"}),
        (("# a comment", "", "\\ y"), {" y"}),
        (("z*",), {"z\udcff"}),
        (("x/",), set()),
    ],
)
def test_patterns_are_those_of_gitignore(tmp_path: Path, patterns: tuple[str, ...], gone: set[str]) -> None:
    files = ("a.o", "x", " y", "z\udcff", "d/b.o", "d/x", "d/e/c.o")
    fill(tmp_path, *files)
    every = {*files, "d", "d/e"}
    assert stored(tmp_path, ExcludeOptions()) == every
    assert stored(tmp_path, ExcludeOptions(patterns)) == every - gone


HOSTILE = [
    *("*a" * 60 + "b", "*" * 200 + "b", "[a-z]*" * 40 + "b", "?*" * 60 + "b"),
    *("/**/" + "a*/**/" * 20 + "q", "a*/" * 80 + "b"),
]


@pytest.mark.parametrize("pattern", HOSTILE, ids=lambda pattern: pattern[:12])
def test_p4_no_pattern_takes_longer_than_names_are_long(tmp_path: Path, pattern: str) -> None:
    """Who may write into a folder must not be able to hold up its backup."""
    deep = "/".join(["a" * 20] * 60)
    fill(tmp_path, "a" * 250, f"{deep}/{'a' * 250}")
    (tmp_path / ".zkeepignore").write_text(pattern)
    began = time.process_time()
    assert len(stored(tmp_path, ExcludeOptions())) == 63
    assert len(stored(tmp_path, ExcludeOptions((pattern,)))) == 63
    assert time.process_time() - began < 1


def test_patterns_match_as_pathspec_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the time that it takes differs."""
    rng = random.Random(7)
    for _ in range(400):
        text = "".join(rng.choices(["a", "b", "*", "?", "/", "**", "/**/", "**/", "[ab]"], k=rng.randint(1, 7)))
        paths = ["/".join("".join(rng.choices("ab", k=2)) for _ in range(rng.randint(1, 4))) for _ in range(5)]
        mine = [[rule.matches(path, True) for path in paths] for rule in parse_patterns([text])]
        with monkeypatch.context() as patched:
            patched.setattr("zkeep.capture.exclude.linear", lambda regex: regex)
            assert mine == [[rule.matches(path, True) for path in paths] for rule in parse_patterns([text])], text


def test_names_with_line_breaks_are_matched(tmp_path: Path) -> None:
    fill(tmp_path, "x\n", "b\nc/x", "b\nc/y")
    assert stored(tmp_path, ExcludeOptions(("x",))) == {"x\n", "b\nc", "b\nc/y"}


def test_an_ignore_file_counts_below_its_folder_and_the_nearest_counts_first(tmp_path: Path) -> None:
    fill(tmp_path, "a.o", "d/a.o", "d/e/a.o", "d/e/b.tmp", "b.tmp")
    (tmp_path / ".zkeepignore").write_bytes(b"*.o\n")
    (tmp_path / "d" / ".zkeepignore").write_bytes(b"!*.o\n*.tmp\n")
    kept = {"d", "d/e", ".zkeepignore", "d/.zkeepignore", "b.tmp"}
    assert stored(tmp_path, ExcludeOptions()) == kept | {"d/a.o", "d/e/a.o"}
    assert stored(tmp_path, ExcludeOptions(("*.o",))) == kept, "the command line counts before them"


def test_an_ignore_file_that_cannot_be_followed_is_reported(zkeep: Zkeep, tmp_path: Path) -> None:
    source = tmp_path / "source"
    fill(source, "a")
    os.mkfifo(source / ".zkeepignore")
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 3
    (source / ".zkeepignore").unlink()
    (source / ".zkeepignore").write_bytes(b"!\n")
    assert zkeep("snapshot", "--from", str(source), "v/home@2") == 3
    assert set(extracted(zkeep, tmp_path, "v/home@2")) == {".", "a", ".zkeepignore"}


def test_caches_tagged_folders_and_large_files(tmp_path: Path) -> None:
    fill(tmp_path, "c/CACHEDIR.TAG", "c/x", "t/CACHEDIR.TAG", "t/x", "n/.nobackup", "n/sub/x", "large")
    (tmp_path / "c" / "CACHEDIR.TAG").write_bytes(CACHE_TAG)
    (tmp_path / "large").write_bytes(bytes(1001))
    every = stored(tmp_path, ExcludeOptions())
    assert every - stored(tmp_path, ExcludeOptions(caches=True)) == {"c/x"}, "t has no right signature"
    assert every - stored(tmp_path, ExcludeOptions(if_present=(b".nobackup",))) == {"n/sub", "n/sub/x"}
    assert every - stored(tmp_path, ExcludeOptions(larger_than=1000)) == {"large"}
    assert every == stored(tmp_path, ExcludeOptions(larger_than=1001))


def test_other_file_systems_and_mounted_snapshots_are_left_out(tmp_path: Path) -> None:
    """A folder on which something is mounted stays, empty; it is told by its device."""
    (tmp_path / "x").write_bytes(b"")
    status = (tmp_path / "x").stat()
    elsewhere = os.stat_result((*status[:2], status.st_dev + 1, *status[3:10]))
    fd = os.open(tmp_path, READ_FOLDER)
    try:
        one = Exclusions(ExcludeOptions(one_file_system=True))
        assert one.choose(b"", fd, [Seen(b"x", 8, elsewhere), Seen(b"d", 4, elsewhere)]) == [Seen(b"d", 4, elsewhere)]
        one._device += 1
        assert one.choose(b"d", fd, [Seen(b"x", 8, status)]) == []
        own = Exclusions(ExcludeOptions(own_devices=frozenset([status.st_dev])))
        assert own.choose(b"d", fd, [Seen(b"x", 8, status)]) == []
    finally:
        os.close(fd)


def test_mounts_of_zkeep_are_found_among_all_mounts(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "90 22 0:47 / /mnt/snap ro,nosuid - fuse.zkeep v/home@1 ro,user_id=0\n"
        "91 22 0:48 / /mnt/other rw - fuse.sshfs host:/ rw\n"
    )
    assert mounts_of_zkeep(str(tmp_path / "mountinfo")) == {os.makedev(0, 47)}
    assert mounts_of_zkeep(str(tmp_path / "nowhere")) == set()


def test_the_pool_itself_is_never_stored(zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert zkeep("snapshot", "--from", str(tmp_path), "-n", "-v", "v/home@1") == 0
    out = capsys.readouterr().out
    assert "x\tpool\tit is the pool's own folder\n" in out
    assert "pool/" not in out
    for place in (tmp_path / "pool", tmp_path / "pool" / "tmp"):
        assert zkeep("snapshot", "--from", str(place), "v/home@1") == 1
        assert "of the pool itself" in capsys.readouterr().err


def test_a_dry_run_lists_what_would_be_stored_and_stores_nothing(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    fill(source, "same", "changed", "old", "gone", "d/gone below", "x.o")
    assert zkeep("snapshot", "--from", str(source), "-v", "v/home@1") == 0
    assert "+\td/gone below\n" in capsys.readouterr().out
    monkeypatch.setattr("zkeep.capture.previous.CLOCK_TICK", 0)  # so that no test has to wait for it
    os.utime(source / "same")
    assert zkeep("snapshot", "--from", str(source), "v/home@2") == 0
    fill(source, "fresh")  # before others go: it must not get the inode of one of them
    (source / "changed").write_bytes(b"longer than before")
    (source / "old").rename(source / "new name")
    (source / "gone").unlink()
    (source / "d" / "gone below").unlink()
    (source / "d").rmdir()
    capsys.readouterr()
    words = ("snapshot", "--from", str(source), "--exclude", "*.o", "-v")
    assert zkeep(*words, "-n", "v/home@3") == 0
    would = capsys.readouterr().out.splitlines()
    lines = {"+\tfresh", "M\tchanged", "R\told\tnew name", "-\tgone", "-\td", "-\td/gone below", "-\tx.o"}
    lines |= {"x\tx.o\tit matches *.o of --exclude", "M\t."}
    assert lines <= set(would)
    assert not [line for line in would if "same" in line]
    assert would[-1].startswith("would take v/home@3: ")
    assert zkeep("list", "-H", "-t", "snapshot", "-o", "name") == 0
    assert "@3" not in capsys.readouterr().out
    assert zkeep(*words, "v/home@3") == 0
    did = capsys.readouterr().out.splitlines()
    assert did[:-1] == would[:-1]
    assert set(extracted(zkeep, tmp_path, "v/home@3")) == {".", "same", "changed", "new name", "fresh"}


def test_json_lines(zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    fill(source, "a\udcff", "b.o")
    assert zkeep("snapshot", "--from", str(source), "-j", "--exclude", "*.o", "v/home@1") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"what": "+", "type": "file", "path": "a\udcff"} in lines
    assert {"what": "left out", "path": "b.o", "why": "it matches *.o of --exclude"} in lines
    assert lines[-1]["what"] == "snapshot"
    assert lines[-1]["name"] == "v/home@1"
    assert lines[-1]["guid"].isdecimal()


def test_usage(zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--from", str(tmp_path))
    assert zkeep("snapshot", "-n", "v/home@1") == 2
    assert zkeep("snapshot", *here, "--exclude", "!", "v/home@1") == 2
    assert zkeep("snapshot", *here, "--exclude-if-present", "a/b", "v/home@1") == 2
    assert zkeep("snapshot", *here, "--exclude-larger-than", "much", "v/home@1") in (1, 2)
    assert zkeep("snapshot", *here, "--exclude-from", str(tmp_path / "nowhere"), "v/home@1") == 1
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "patterns").write_bytes(b"*.o\n# no\n")
    assert zkeep("snapshot", *here, "--exclude-from", str(tmp_path / "patterns"), "-n", "v/home@1") == 0


def test_a_node_knows_its_path() -> None:
    top = Node(b"", None, 4, 1, False)
    assert Node(b"c", Node(b"d", top, 4, 2, False), 8, 3, False).path == b"d/c"
