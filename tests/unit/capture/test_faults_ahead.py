"""What goes wrong with a file is reported and stored the same, whether it was to be read ahead or not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filefaultkit import AT_OPEN, AT_READ, CONTENT, NAMES, SIZE, XATTRS, faults

from mountkit import needs_fuse
from zkeep.capture import ahead
from zkeep.capture.ahead import ReadAhead, SmallFile
from zkeep.capture.scan import READ_FOLDER, Folders, Node, Scan, Scanner
from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

Zkeep = Callable[..., int]
KEY = bytes(range(32))
LEFT_OUT = {*AT_OPEN, *AT_READ, "short", "shorter", "late", "changes", "grows"}
LEFT_OUT |= {"value is gone", "no names", "many names"}
"What read ahead leaves to the code that reads file by file."



@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Path]:
    with faults(tmp_path / "faulty"):
        yield tmp_path / "faulty"


def create(zkeep: Zkeep, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    options = ["-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{tmp_path}/key"]
    assert zkeep("pool", "create", "b", str(tmp_path / "b")) == 0
    for name in ("ahead", "alone"):
        assert zkeep("create", *options, f"b/{name}") == 0


def files_of(pool_path: Path, name: str) -> dict[str, Any]:
    """Everything that a snapshot has of each file, but for when it was stored."""
    found = {}
    with Pool.open(pool_path, "b") as pool:
        snapshot = pool.snapshot(SnapshotName.parse(name))
        with OpenSnapshot(pool, snapshot, lambda wrapped: KEY) as base:
            tree = Filesystem(base)
            for entry in tree.names(tree.root):
                node = tree.znode(entry.number)
                content = b"".join(bytes(extent.content) for extent in tree.extents(node))
                times = node.mtime, node.ctime, node.atime, node.crtime
                numbers = node.mode, node.size, node.links, node.uid, node.gid, node.flags, *times
                found[os.fsdecode(entry.name)] = numbers, content, dict(tree.xattrs(node))
    return found


@needs_fuse
@pytest.mark.skipif(ahead._read_files is None, reason="it is not compiled here")
def test_what_is_not_simply_read_is_left_out(faulty: Path) -> None:
    fd = os.open(faulty, READ_FOLDER)
    top = Node(b"", None, 4, 34, True)
    nodes = [Node(os.fsencode(name), top, 0o10, 0, True) for name in NAMES]
    reader = ReadAhead(Folders(fd), nodes, 1 << 20)
    found: dict[str, SmallFile] = {
        os.fsdecode(node.name): small for node in nodes if (small := reader.take(node)) is not None
    }
    reader.close()
    os.close(fd)
    found.pop("value grows", None)  # by chance it has the same length twice
    assert set(found) == set(NAMES) - LEFT_OUT - {"value grows"}
    for name, small in found.items():
        size = {"empty": 0, "one byte": 1}.get(name, SIZE)
        assert small.content == CONTENT[:size].ljust(-(-size // 512) * 512, b"\0")
        wanted = {} if name == "none supported" else XATTRS.get(name, {})
        assert small.xattrs == {os.fsencode(key): value for key, value in wanted.items()}


@needs_fuse
def test_it_makes_no_difference(
    zkeep: Zkeep, tmp_path: Path, faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create(zkeep, tmp_path)
    stored: list[Any] = []
    told = []
    for name in ("ahead", "alone"):
        capsys.readouterr()
        assert zkeep("snapshot", "--from", str(faulty), f"b/{name}@1") == 3
        told.append(capsys.readouterr().err.replace(f"b/{name}@1", "b/x@1"))
        stored.append(files_of(tmp_path / "b", f"b/{name}@1"))
        monkeypatch.setattr(ahead, "_read_files", None)
    for each in stored:
        for name in ("value grows", "changes", "grows"):  # no two readings are the same
            del each[name]
    assert stored[0] == stored[1]
    assert told[0] == told[1]
    missing = {*AT_OPEN, "bad sector", "stale", "late"}
    assert set(stored[0]) == set(NAMES) - missing - {"value grows", "changes", "grows"}
    # One that is gone is no problem; all others are named.
    for name in {*missing, "changes", "grows", "value cannot be read", "no names"} - {"gone"}:
        assert f"{name}'" in told[0]
    assert "'gone'" not in told[0]


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


MEANWHILE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "link": _replaced(lambda path: path.symlink_to("/etc/passwd")),
    "link to another": _replaced(lambda path: path.symlink_to("other")),
    "fifo": _replaced(os.mkfifo),
    "folder": _replaced(Path.mkdir),
    "other": _replaced(lambda path: path.write_bytes(b"another file")),
    "empty": lambda path: os.truncate(path, 0),
    "smaller": lambda path: os.truncate(path, 5),
    "sparse": lambda path: os.truncate(path, 100_000),
    "a record": lambda path: os.truncate(path, 131_072),
    "more than a record": lambda path: os.truncate(path, 131_073),
    "more than is read ahead": lambda path: os.truncate(path, (1 << 20) + 1),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "mode": lambda path: path.chmod(0o2711),
    "one of two names": Path.unlink,
}
PROBLEMS = {"link", "link to another", "fifo", "folder"}


def test_what_changes_between_the_scan_and_the_reading(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    genuine = Scanner.scan
    create(zkeep, tmp_path)
    stored, told = [], []
    for name in ("ahead", "alone"):
        source = tmp_path / name
        source.mkdir()
        for each in MEANWHILE:
            (source / each).write_bytes(b"what it was at first")
        os.link(source / "one of two names", source / "the other name")

        def scan(self: Scanner, started: int, source: Path = source) -> Scan:
            found = genuine(self, started)
            for each, change in MEANWHILE.items():
                change(source / each)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Scanner, "scan", scan)
            if name == "alone":
                patch.setattr(ahead, "_read_files", None)
            capsys.readouterr()
            assert zkeep("snapshot", "--from", str(source), f"b/{name}@1") == 3
        told.append(sorted(capsys.readouterr().err.replace(f"b/{name}@1", "b/x@1").splitlines()))
        found = files_of(tmp_path / "b", f"b/{name}@1")
        stored.append({each: (numbers[:6], content) for each, (numbers, content, _) in found.items()})
        for each in set(found) - {"one of two names"}:
            content = (source / each).read_bytes()
            assert found[each][1].rstrip(b"\0") == content.rstrip(b"\0")
            assert found[each][0][1] == len(content)
    assert stored[0] == stored[1]
    assert told[0] == told[1]
    assert set(MEANWHILE) - set(stored[0]) == {"gone", *PROBLEMS}
    for each in PROBLEMS:
        assert any(f"'{each}'" in line for line in told[0])
