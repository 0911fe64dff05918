"""What works on encrypted datasets whose key is not loaded, and how missing parents below one are made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from commandkit import Command, create_encrypted, own_state
from zkeep.cli.main import run

ROOT, CHILD, VOLUME = "v/e", "v/e/child", "v/e/vol"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of files, in v/e@1; v/e/child and v/e/vol have an @1 without any. The key is loaded."""
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, ROOT)
    files = tmp_path / "files"
    files.mkdir()
    (files / "one").write_bytes(b"1" * 5000)
    assert run(["create", CHILD]) == 0
    assert run(["create", "-V", "1M", VOLUME]) == 0
    assert run(["snapshot", "--from", str(files), f"{ROOT}@1"]) == 0
    assert run(["snapshot", f"{CHILD}@1"]) == run(["snapshot", f"{VOLUME}@1"]) == 0
    yield files
    run(["unload-key", "-a"])


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert run(list(words)) == 0
    return capsys.readouterr().out.splitlines()


def test_a_snapshot_of_what_did_not_change_needs_no_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["unload-key", ROOT]) == 0
    assert run(["snapshot", f"{ROOT}@2"]) == 0
    assert run(["snapshot", "-r", f"{ROOT}@3"]) == 0
    names = lines(capsys, "list", "-Hrt", "snapshot", "-o", "name", ROOT)
    assert {f"{ROOT}@2", f"{ROOT}@3", f"{CHILD}@3", f"{VOLUME}@3"} <= set(names)
    assert run(["load-key", "-L", f"file://{folder.parent / 'key'}", ROOT]) == 0
    assert run(["verify", "-r", f"{ROOT}@3"]) == 0
    assert run(["extract", f"{ROOT}@3", "-C", str(folder.parent / "out")]) == 0
    assert (folder.parent / "out" / "one").read_bytes() == b"1" * 5000
    # The next one goes on from there.
    (folder / "two").write_bytes(b"2")
    assert run(["snapshot", "--from", str(folder), f"{ROOT}@4"]) == 0
    assert run(["verify", f"{ROOT}@4"]) == 0


def test_it_is_sent_and_received_like_any_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["unload-key", ROOT]) == 0
    assert run(["snapshot", "-r", f"{ROOT}@2"]) == 0
    zkeep = Command()
    zkeep("receive v/copy", zkeep(f"send -R -w {ROOT}@2"))
    zkeep("pool scrub -w v")
    guids = [lines(capsys, "get", "-rHp", "-t", "snapshot", "-o", "value", "guid", each) for each in (ROOT, "v/copy")]
    assert guids[0] == guids[1]
    assert run(["verify", "-r", "-L", f"file://{folder.parent / 'key'}", "v/copy@2"]) == 0


def test_a_volume_of_another_size_needs_the_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["unload-key", ROOT]) == 0
    assert run(["set", "volsize=2M", VOLUME]) == 0
    capsys.readouterr()
    assert run(["snapshot", f"{VOLUME}@2"]) == 1
    assert "zkeep load-key" in capsys.readouterr().err
    # With -r it is all or none.
    assert run(["snapshot", "-r", f"{ROOT}@2"]) == 1
    assert f"{ROOT}@2" not in lines(capsys, "list", "-Hrt", "snapshot", "-o", "name", ROOT)
    assert run(["load-key", "-L", f"file://{folder.parent / 'key'}", ROOT]) == 0
    assert run(["snapshot", "-r", f"{ROOT}@2"]) == 0
    assert run(["unload-key", ROOT]) == 0
    assert run(["snapshot", f"{VOLUME}@3"]) == 0


def test_the_first_snapshot_needs_the_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["create", f"{ROOT}/new"]) == run(["unload-key", ROOT]) == 0
    capsys.readouterr()
    assert run(["snapshot", f"{ROOT}/new@1"]) == 1
    assert "zkeep load-key" in capsys.readouterr().err


def test_an_error_names_the_way_out_where_another_key_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder.parent / "other"
    other.write_bytes(bytes(32))
    other.chmod(0o600)
    options = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{other}")
    assert run(["create", *options, f"{ROOT}/own"]) == 0
    assert run(["snapshot", f"{ROOT}/own@1"]) == 0
    assert run(["unload-key", f"{ROOT}/own"]) == 0
    for verb in ("ls", "verify", "cat"):
        capsys.readouterr()
        assert run([verb, f"{ROOT}/own@1", *(["/x"] if verb == "cat" else [])]) == 1
        assert "load it with zkeep load-key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("create", "-p", "v/e/a/b/c"),
        ("create", "-p", "-V", "1M", "v/e/a/b/c"),
        ("clone", "-p", f"{CHILD}@1", "v/e/a/b/c"),
        ("rename", "-p", CHILD, "v/e/a/b/c"),
    ],
    ids=["create", "create -V", "clone", "rename"],
)
def test_missing_parents_below_an_encrypted_dataset_are_encrypted(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run(list(words)) == 0
    found = lines(capsys, "get", "-rHp", "-o", "name,value", "encryptionroot", "v/e/a")
    assert found[:2] == ["v/e/a\tv/e", "v/e/a/b\tv/e"]
    # They are datasets like all others: they get a snapshot, and go into a package.
    assert run(["snapshot", "-r", "v/e/a@s"]) == 0
    names = lines(capsys, "list", "-Hrt", "snapshot", "-o", "name", "v/e/a")
    assert {"v/e/a@s", "v/e/a/b@s", "v/e/a/b/c@s"} <= set(names)


def test_missing_parents_below_a_locked_one_are_not_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["unload-key", ROOT]) == 0
    own = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{folder.parent / 'key'}")
    for words in (("create", "-p", *own, "v/e/a/b"), ("rename", "-p", CHILD, "v/e/a/b")):
        capsys.readouterr()
        assert run(list(words)) == 1
        assert "zkeep load-key v/e" in capsys.readouterr().err
    assert run(["list", "v/e/a"]) == 1


def test_missing_parents_elsewhere_are_places(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["create", "-p", "v/x/y"]) == 0
    assert lines(capsys, "get", "-rHp", "-o", "value", "encryption", "v/x") == ["off", "off"]
