"""Every option that takes a number, size or time takes digits as people write them, and as many as make sense."""

from __future__ import annotations

from pathlib import Path

import pytest

import keykit
from zkeep.cli.main import run

ODD = ("9" * 400, "1" * 5000, "-1", "٣", "½", "nan", "1e999", "1_000", " 5", "", "0x10", "1\x1b[31m")
OPTIONS = (
    ("list", "-d", "{}"),
    ("get", "-d", "{}", "all", "v"),
    ("load-key", "--lifetime", "{}", "-L", "{key}", "v"),
    ("load-key", "--lifetime", "{}d", "-L", "{key}", "v"),
    ("create", "-V", "{}", "-o", "encryption=on", "-o", "keyformat=raw", "-o", "keylocation={key}", "v/a"),
    ("create", "-b", "{}", "-V", "1M", "-o", "encryption=on", "-o", "keyformat=raw", "-o", "keylocation={key}", "v/b"),
    ("create", "-o", "pbkdf2iters={}", "-o", "encryption=on", "-o", "keyformat=passphrase", "v/c"),
    ("set", "quota={}", "v"),
    ("set", "refquota={}", "v"),
    ("set", "recordsize={}", "v"),
    ("snapshot", "-n", "--from", ".", "--exclude-larger-than", "{}", "v@x"),
    ("backup", "-n", "--yes", "--exclude-larger-than", "{}", ".", "v/bk"),
    ("schedule", "--daily", "02:30", "--exclude-larger-than", "{}", ".", "v/bk"),
    ("schedule", "--daily", "{}:30", ".", "v/bk"),
    ("set", "retention=hourly={}", "v"),
    ("set", "retention_min={}d", "v"),
    ("set", "max_age={}h", "v"),
    ("set", "reservation={}", "v"),
    ("set", "filesystem_limit={}", "v"),
    ("server", "--connections", "{}", "v"),
    ("server", "--idle", "{}", "--root", "v"),
    ("server", "--rate", "{}", "--root", "v"),
    ("send", "-t", "1-{}-10-aa"),
    ("send", "-nt", "{}"),
)


@pytest.mark.parametrize("words", OPTIONS, ids=lambda words: " ".join(words[:3])[:30])
def test_p4_odd_numbers_are_refused_in_one_line(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    key = keykit.write(tmp_path / "key", bytes(32))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    for odd in ODD:
        if odd == " 5" and words[1].startswith(("retention", "max_age")):
            continue  # a list, in which spaces are allowed
        capfd.readouterr()
        status = run([word.replace("{}", odd).replace("{key}", key) for word in words])
        said = capfd.readouterr().err
        assert status in (1, 2), (odd[:9], said)
        assert "unexpected" not in said
        assert "\x1b" not in said
        assert words[0] != "server" or words[1] in said
        assert said.startswith("zkeep: "), said
        assert said.count("\nzkeep: ") == 0, said  # a path may end with that word, too
    assert run(["list", "-H", "-o", "name"]) == 0
    assert capfd.readouterr().out == "v\n"


@pytest.mark.parametrize("name", ["ZKEEP_STEP", "ZKEEP_WAIT"])
def test_p4_odd_numbers_in_the_environment_are_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    key = keykit.write(tmp_path / "key", bytes(32))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    made = ["create", "-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={key}", "v/docs"]
    assert run(made) == 0
    (tmp_path / "folder").mkdir()
    for odd in ("abc", "-1", "nan", "1e9999", "9" * 400):
        monkeypatch.setenv(name, odd)
        capfd.readouterr()
        assert run(["snapshot", "--from", str(tmp_path / "folder"), "-L", key, "v/docs@a"]) == 2
        assert capfd.readouterr().err.count(name) == 1


NAMES = (
    *(("destroy", "-n", "v/j@{}"), ("destroy", "v/j@a%{}"), ("destroy", "v/j#{}"), ("destroy", "v/{}")),
    *(("hold", "{}", "v/j@a"), ("hold", "t", "v/j@{}"), ("bookmark", "v/j@{}", "#b"), ("rename", "v/j", "v/{}")),
    *(("send", "-w", "v/j@{}"), ("send", "-w", "-i", "@{}", "v/j@a"), ("rollback", "v/j@{}"), ("list", "v/{}")),
)


@pytest.mark.parametrize("words", NAMES, ids=" ".join)
def test_p4_names_that_are_not_utf8_are_refused_in_one_line(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    assert run(["create", "v/j"]) == 0
    capfd.readouterr()
    assert run([word.replace("{}", "x\udc80") for word in words]) in (1, 2)
    said = capfd.readouterr().err
    assert "unexpected" not in said
    assert said.count("\n") == 1
