"""unload-key names the other roots by whose key, which is the same, what was unloaded is still open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import keykit
from zkeep.agent import client
from zkeep.cli.main import run

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Output) -> Iterator[None]:
    """v/one, v/two and w/three have one raw key; v/hex has the same as text, v/other another. All are loaded."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    for name in "vw":
        assert run(["pool", "create", name, str(tmp_path / name)]) == 0
    same = keykit.write(tmp_path / "same", bytes(range(32)))
    for name in ("v/one", "v/two", "w/three"):
        make(name, "raw", same)
    make("v/hex", "hex", keykit.write(tmp_path / "hex", bytes(range(32)).hex().encode()))
    make("v/other", "raw", keykit.write(tmp_path / "other", bytes(range(1, 33))))
    capfd.readouterr()
    yield
    run(["unload-key", "-a"])
    assert client.keys() == []


def make(name: str, keyformat: str, location: str) -> None:
    options = ["encryption=on", f"keyformat={keyformat}", f"keylocation={location}"]
    assert run(["create", *(word for option in options for word in ("-o", option)), name]) == 0


def told(capfd: Output, *words: str) -> str:
    assert run(["unload-key", *words]) == 0
    return capfd.readouterr().err


def test_the_roots_with_the_same_key_are_named(capfd: Output) -> None:
    text = told(capfd, "v/one")
    assert text.count("\n") == 1
    assert "v/one has the same key as v/hex, v/two, w/three, for which it stays loaded" in text


def test_the_last_of_them_says_nothing(capfd: Output) -> None:
    assert "v/one has the same key as v/hex, v/two," in told(capfd, "v/one", "w/three")
    assert "v/hex, for which" in told(capfd, "v/two")
    assert told(capfd, "v/hex") == ""


def test_another_key_is_none_of_them(capfd: Output) -> None:
    assert told(capfd, "v/other") == ""


@pytest.mark.parametrize("words", [["-a"], ["-r", "v", "w"]])
def test_what_is_unloaded_with_it_is_not_named(capfd: Output, words: list[str]) -> None:
    assert told(capfd, *words) == ""


def test_what_is_not_in_the_call_is(capfd: Output) -> None:
    text = told(capfd, "-r", "v")
    assert text.count("w/three") == 3
    assert "v/two, " not in text


def test_a_pool_that_is_unknown_is_not_named_but_told_of(capfd: Output) -> None:
    client.load(99, 7, bytes(range(32)))
    try:
        assert "a root of another pool" in told(capfd, "v/one")
    finally:
        client.unload(99, 7)
