"""A folder that was stored comes back as it was, at every snapshot, and only what changed is stored again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from capturekit import change_tree, extracted, listing, make_tree, sent

from zkeep.format.events import Batch
from zkeep.format.reader import read_events
from zkeep.format.records import RecordType

Zkeep = Callable[..., int]


def records(tmp_path: Path, zkeep: Zkeep, *words: str) -> list[tuple[RecordType, int, int]]:
    """Type, object and offset of the records of a stream."""
    found = []
    with sent(zkeep, tmp_path / "stream", *words).open("rb") as source:
        for event in read_events(source):
            if isinstance(event, Batch):
                for rtype in (RecordType.WRITE, RecordType.OBJECT):
                    _, headers = event.select(rtype)
                    offsets = headers["offset"] if rtype == RecordType.WRITE else headers["blksz"]
                    found += [(rtype, int(o), int(at)) for o, at in zip(headers["object"], offsets, strict=True)]
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_each_snapshot_of_a_history_comes_back(zkeep: Zkeep, tmp_path: Path, seed: int) -> None:
    source = tmp_path / "source"
    make_tree(source, seed)
    wanted = {}
    for turn in range(4):
        if turn:
            change_tree(source, seed * 100 + turn)
        assert zkeep("snapshot", "--from", str(source), f"v/home@{turn}") == 0
        wanted[turn] = listing(source)
    for turn, want in wanted.items():
        assert zkeep("verify", f"v/home@{turn}") == 0
        assert extracted(zkeep, tmp_path, f"v/home@{turn}") == want
    assert zkeep("destroy", "v/home@1") == 0
    assert zkeep("verify", "v/home@2") == 0


def test_a_lost_cache_costs_nothing_but_time(zkeep: Zkeep, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_tree(source)
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    for cache in (tmp_path / "state" / "capture").iterdir():
        cache.unlink()
    change_tree(source, 5)
    assert zkeep("snapshot", "--from", str(source), "v/home@2") == 0
    assert extracted(zkeep, tmp_path, "v/home@2") == listing(source)


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"zkeep-capture-3\n{}\n"])
def test_a_damaged_cache_is_made_again(zkeep: Zkeep, tmp_path: Path, damage: bytes) -> None:
    source = tmp_path / "source"
    make_tree(source)
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    (cache,) = (tmp_path / "state" / "capture").iterdir()
    cache.write_bytes(damage)
    (source / "text").write_bytes(b"another text")
    assert zkeep("snapshot", "--from", str(source), "v/home@2") == 0
    assert extracted(zkeep, tmp_path, "v/home@2") == listing(source)


def test_an_unchanged_folder_stores_nothing(zkeep: Zkeep, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_tree(source)
    for name in ("1", "2"):
        assert zkeep("snapshot", "--from", str(source), f"v/home@{name}") == 0
    os.utime(source / "file-1")  # so that the third is no race with the first
    for name in ("3", "4"):
        assert zkeep("snapshot", "--from", str(source), f"v/home@{name}") == 0
    assert not [r for r in records(tmp_path, zkeep, "-i", "@3", "v/home@4") if r[0] == RecordType.WRITE]


def test_a_changed_byte_costs_one_block(zkeep: Zkeep, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(1 << 20))
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    with (source / "large").open("r+b") as sink:
        sink.seek(300_000)
        sink.write(b"!")
    assert zkeep("snapshot", "--from", str(source), "v/home@2") == 0
    found = records(tmp_path, zkeep, "-i", "@1", "v/home@2")
    assert [at for kind, _, at in found if kind == RecordType.WRITE] == [262144]


def test_a_renamed_file_keeps_its_object(zkeep: Zkeep, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "folder").mkdir()
    (source / "old").write_bytes(os.urandom(300_000))
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    (source / "old").rename(source / "folder" / "new")
    assert zkeep("snapshot", "--from", str(source), "v/home@2") == 0
    writes = [r for r in records(tmp_path, zkeep, "-i", "@1", "v/home@2") if r[0] == RecordType.WRITE]
    assert len(writes) == 2, "the blocks of two folders, and none of the file"
    assert extracted(zkeep, tmp_path, "v/home@2") == listing(source)


def test_a_file_that_cannot_be_read_stays_as_it_was(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    source = tmp_path / "source"
    source.mkdir()
    (source / "private").write_bytes(b"once readable")
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    (source / "private").chmod(0)
    (source / "new").write_bytes(b"never readable")
    (source / "new").chmod(0)
    assert zkeep("snapshot", "--from", str(source), "v/home@2") == 3
    assert "'private': Permission denied" in capsys.readouterr().err
    found = extracted(zkeep, tmp_path, "v/home@2")
    assert set(found) == {".", "private"}


def test_refusals_say_the_way_out(zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    assert zkeep("snapshot", "--from", str(tmp_path / "nowhere"), "v/home@1") == 1
    assert "No such file or directory" in capsys.readouterr().err
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 1
    assert "already exists" in capsys.readouterr().err
    assert zkeep("create", "v/plain") == 0
    assert zkeep("snapshot", "--from", str(source), "v/plain@1") == 1
    assert zkeep("unload-key", "v/home") == 0
    capsys.readouterr()
    options = "encryption=on", "keyformat=raw", f"keylocation=file://{tmp_path / 'key'}"
    assert zkeep("create", *(word for option in options for word in ("-o", option)), "v/new") == 0
    assert zkeep("unload-key", "v/new") == 0
    capsys.readouterr()
    for words, name in ((("--from", str(source)), "v/home"), ((), "v/new")):
        assert zkeep("snapshot", *words, f"{name}@2") == 1
        said = capsys.readouterr().err
        assert said.startswith(f"zkeep: cannot create snapshot of {name}: it is encrypted and no key is here")
        assert "load it with zkeep load-key" in said
        assert said.count("\n") == 1
    assert zkeep("list", "-H", "-t", "snapshot", "-o", "name") == 0
    assert capsys.readouterr().out == "v/home@1\n"
