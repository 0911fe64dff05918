"""casesensitivity, normalization and utf8only: chosen when a filesystem is created, inherited, shown, never changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from commandkit import Command, create_encrypted, own_state
from zkeep.cli.main import run

NAMES = "utf8only,normalization,casesensitivity"


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A pool `v` with an encrypted dataset v/home, whose key is loaded."""
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/home")
    yield tmp_path
    run(["unload-key", "-a"])


def create(name: str, *options: str) -> int:
    return run(["create", *(word for option in options for word in ("-o", option)), name])


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert run(["get", "-H", "-o", "value,source", NAMES, name]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {source for _, source in lines} == {"-"}
    return [value for value, _ in lines]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ((), ["off", "none", "sensitive"]),
        (("utf8only=on",), ["on", "none", "sensitive"]),
        (("normalization=formKC",), ["on", "formKC", "sensitive"]),
        (("normalization=formC", "utf8only=on"), ["on", "formC", "sensitive"]),
        (("normalization=none", "utf8only=off"), ["off", "none", "sensitive"]),
        (("casesensitivity=mixed", "normalization=formKD"), ["on", "formKD", "mixed"]),
    ],
)
def test_they_are_chosen_and_shown(
    pool: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], want: list[str]
) -> None:
    assert create("v/home/x", *options) == 0
    assert shown("v/home/x", capsys) == want


def test_children_inherit_what_they_are_not_given(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert create("v/home/a", "casesensitivity=insensitive", "normalization=formD") == 0
    assert create("v/home/a/b") == 0
    assert run(["create", "-p", "v/home/a/c/d"]) == 0
    assert create("v/home/a/e", "casesensitivity=sensitive") == 0
    assert create("v/home/a/f", "normalization=none") == 0
    assert create("v/home/a/g", "utf8only=off") == 0
    for name in ("b", "c", "c/d"):
        assert shown(f"v/home/a/{name}", capsys) == ["on", "formD", "insensitive"]
    assert shown("v/home/a/e", capsys) == ["on", "formD", "sensitive"]
    assert shown("v/home/a/f", capsys) == ["on", "none", "insensitive"]
    assert shown("v/home/a/g", capsys) == ["off", "none", "insensitive"]
    # A clone has those of its origin, wherever it lies.
    assert run(["snapshot", "v/home/a/b@one"]) == 0
    assert run(["clone", "v/home/a/b@one", "v/home/clone"]) == 0
    assert shown("v/home/clone", capsys) == shown("v/home/a/b@one", capsys) == ["on", "formD", "insensitive"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-o", "casesensitivity=upper", "v/home/x"], "must be one of sensitive insensitive mixed"),
        (["-o", "normalization=NFC", "v/home/x"], "must be one of none formC formD formKC formKD"),
        (["-o", "utf8only=yes", "v/home/x"], "must be one of off on"),
        (["-o", "normalization=formC", "-o", "utf8only=off", "v/home/x"], "must be set 'on' if normalization chosen"),
        (["-V", "1M", "-o", "casesensitivity=mixed", "v/home/x"], "does not apply to datasets of this type"),
        (["-o", "casesensitivity=mixed", "v/x"], "add -o encryption=on"),
        (["-o", "casesensitivity=upper", "v/x"], "must be one of sensitive"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    pool: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    assert run(["create", *words]) == 2
    told = capsys.readouterr()
    assert why in told.err
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert run(["list", words[-1]]) == 1  # nothing was made


@pytest.mark.parametrize("verb", [["set", "casesensitivity=mixed", "v/home"], ["inherit", "normalization", "v/home"]])
def test_they_are_never_changed(pool: Path, capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    assert run(verb) != 0
    assert "cannot" in capsys.readouterr().err
    assert shown("v/home", capsys) == ["off", "none", "sensitive"]


def test_a_dry_run_tells_what_was_asked_for(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["create", "-n", "-P", "-o", "casesensitivity=mixed", "v/home/x"]) == 0
    assert "property\tcasesensitivity\tmixed" in capsys.readouterr().out


def test_no_property_of_a_stream_tells_them(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They come with the files, in the master node, as with zfs. What was received shows none."""
    assert create("v/home/x", "casesensitivity=insensitive") == 0
    assert run(["snapshot", "v/home/x@one"]) == 0
    command = Command()
    stream = command("send -w -p v/home/x@one")
    command("receive v/back", stream)
    assert shown("v/back", capsys) == ["-", "-", "-"]
    assert run(["get", "-H", "-s", "received", "all", "v/back"]) == 0
    assert not set(NAMES.split(",")) & set(capsys.readouterr().out.split())
    assert create("v/home/y", "casesensitivity=mixed") == 0
    command("receive -F v/home/y", stream)
    assert shown("v/home/y", capsys) == ["-", "-", "-"]
    # Its files are found as its master node says.
    assert run(["ls", "-L", f"file://{pool / 'key'}", "v/back@one"]) == 0
