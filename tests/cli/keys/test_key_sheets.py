"""zkeep key: recovery sheets printed, checked, and keys brought back from them."""

from __future__ import annotations

import errno
import getpass
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import keykit
from zkeep.cli.backup.keys import NewKey, has_terminal
from zkeep.cli.keys.sheet import ask_back, code_lines, save
from zkeep.cli.main import run
from zkeep.crypto.groups import Secret, lines_of, recognized
from zkeep.errors import Refused, TryAgain

Output = pytest.CaptureFixture[str]
private = pytest.fixture(autouse=True)(keykit.private)
RAW, HEX, PASSPHRASE = bytes(range(32)), bytes(range(100, 132)), b"correct horse battery"
SECRETS = {"raw": Secret(1, RAW), "hex": Secret(2, HEX), "passphrase": Secret(3, PASSPHRASE)}


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Output) -> Iterator[None]:
    """v/raw, v/hex and v/passphrase, with their key files; only v/hex is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    run(["pool", "create", "v", str(tmp_path / "pool")])
    for keyformat, secret in SECRETS.items():
        at = keykit.write(tmp_path / f"{keyformat}.key", secret.material())
        rounds = ["-o", "pbkdf2iters=100000"] if keyformat == "passphrase" else []
        options = ["-o", "encryption=on", "-o", f"keyformat={keyformat}", "-o", f"keylocation={at}", *rounds]
        assert run(["create", *options, f"v/{keyformat}"]) == 0
    run(["unload-key", "-a"])
    capfd.readouterr()
    yield
    run(["unload-key", "-a"])


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let a person at a terminal type these lines; returns what they are asked."""

    def begin(*lines: str) -> list[str]:
        asked: list[str] = []
        left = iter(lines)

        def answer(prompt: str) -> str:
            asked.append(prompt)
            return next(left)

        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr(getpass, "getpass", answer)
        return asked

    return begin


def said(capfd: Output, *words: str, status: int = 0) -> str:
    assert run(list(words)) == status
    out, err = capfd.readouterr()
    return str(out + err)


def location(keyformat: str) -> str:
    return f"file://{Path.cwd() / keyformat}.key"


@pytest.mark.parametrize("keyformat", SECRETS)
def test_a_sheet_brings_the_key_back(capfd: Output, keyformat: str) -> None:
    name = f"v/{keyformat}"
    said(capfd, "key", "sheet", "-L", location(keyformat), "-o", "sheet.txt", name)
    assert recognized(Path("sheet.txt").read_bytes()) == SECRETS[keyformat]
    assert f"the key opens {name}" in said(capfd, "key", "check", "-i", "sheet.txt", name)
    said(capfd, "key", "restore", "-o", "again.key", "sheet.txt")
    assert Path("again.key").read_bytes() == SECRETS[keyformat].material()
    assert stat.S_IMODE(os.stat("again.key").st_mode) == stat.S_IMODE(os.stat("sheet.txt").st_mode) == 0o600
    said(capfd, "load-key", "-L", f"file://{Path.cwd()}/sheet.txt", name)
    assert said(capfd, "get", "-H", "-o", "value", "keystatus", name).strip() == "available"


def test_a_sheet_says_what_it_is_and_what_to_do(capfd: Output) -> None:
    destination = "ssh://backup@server.invalid:2222/vault/alice/home"
    sheet = said(capfd, "key", "sheet", "--yes", "--destination", destination, "v/raw")
    guid = said(capfd, "get", "-Hp", "-o", "value", "guid", "v/raw").strip()
    for words in ("v/raw", f"guid {guid}", destination, "aes-256-gcm, keyformat raw", "zkeep key restore", "key check"):
        assert words in sheet
    assert all(line in sheet for line in lines_of(SECRETS["raw"]))
    said(capfd, "set", f"zkeep:backup-destination={destination}", "v/raw")  # as zkeep backup does
    assert f"zkeep restore {destination} -L" in said(capfd, "key", "sheet", "--yes", "v/raw")
    assert "█▀▀▀▀▀█" in sheet


def test_a_destination_may_have_any_bytes(capfd: Output) -> None:
    """It is a word of the command line: a byte that is no UTF-8 is shown, and nothing steers a terminal or printer."""
    sheet = said(capfd, "key", "sheet", "--yes", "--destination", "ssh://b/v/\x1b[2J\udcff", "v/raw")
    assert "ssh://b/v/\\x1b[2J\\xff" in sheet
    said(capfd, "key", "sheet", "-o", "s.txt", "--pdf", "s.pdf", "--destination", "ssh://b/\x1b\udcff", "v/raw")
    assert "ssh://b/\\x1b\\xff" in Path("s.txt").read_text()


def test_files_of_a_sheet_are_private_and_are_not_overwritten(capfd: Output) -> None:
    said(capfd, "key", "sheet", "--pdf", "s.pdf", "--png", "s.png", "v/raw")
    before = {name: Path(name).read_bytes() for name in ("s.pdf", "s.png")}
    assert before["s.pdf"].startswith(b"%PDF-")
    assert lines_of(SECRETS["raw"])[1].encode() in before["s.pdf"]
    assert before["s.png"].startswith(b"\x89PNG")
    assert all(stat.S_IMODE(os.stat(name).st_mode) == 0o600 for name in before)
    assert "it is there already; -f replaces it" in said(capfd, "key", "sheet", "--pdf", "s.pdf", "v/hex", status=1)
    assert Path("s.pdf").read_bytes() == before["s.pdf"]
    said(capfd, "key", "sheet", "-f", "--pdf", "s.pdf", "v/hex")
    assert lines_of(SECRETS["hex"])[1].encode() in Path("s.pdf").read_bytes()
    os.symlink("raw.key", "link.pdf")
    said(capfd, "key", "sheet", "--pdf", "link.pdf", "v/hex", status=1)
    assert Path("raw.key").read_bytes() == RAW
    assert not [name for name in os.listdir() if name.startswith(".zkeep")]


def test_a_passphrase_is_on_the_sheet_only_if_it_is_given(capfd: Output) -> None:
    assert run(["load-key", "v/passphrase"]) == 0
    sheet = said(capfd, "key", "sheet", "v/passphrase")
    assert "THE KEY is the passphrase" in sheet
    assert not re.search(r"^ *1: ", sheet, re.MULTILINE)
    assert "the key of v/passphrase is its passphrase" in said(capfd, "key", "show", "v/passphrase", status=1)
    said(capfd, "key", "sheet", "--png", "s.png", "v/passphrase", status=1)
    said(capfd, "key", "sheet", "--pdf", "s.pdf", "v/passphrase")
    shown = said(capfd, "key", "show", "--yes", "-L", location("passphrase"), "v/passphrase")
    assert recognized(shown.encode()) == SECRETS["passphrase"]


def test_a_key_is_shown_after_a_word_on_it(capfd: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "or with --yes" in said(capfd, "key", "show", "v/raw", status=1)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt: "n")
    refused = said(capfd, "key", "show", "v/raw", status=5)
    assert lines_of(SECRETS["raw"])[0] not in refused
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt: "y")
    assert lines_of(SECRETS["raw"])[0] in said(capfd, "key", "show", "v/raw")


def test_the_loaded_key_is_taken_and_a_wrong_one_is_not(capfd: Output) -> None:
    assert "Incorrect key" in said(capfd, "key", "show", "--yes", "-L", location("hex"), "v/raw", status=1)
    run(["load-key", "v/raw"])
    Path("raw.key").unlink()
    assert lines_of(SECRETS["raw"])[0] in said(capfd, "key", "show", "--yes", "v/raw")


def test_what_inherits_a_key_has_the_sheet_of_its_root(capfd: Output) -> None:
    run(["load-key", "v/raw"])
    assert run(["create", "v/raw/below"]) == 0
    assert "opens also  v/raw/below" in said(capfd, "key", "sheet", "--yes", "v/raw/below")
    assert "is not encrypted" in said(capfd, "key", "sheet", "v", status=1)


def test_each_line_that_is_typed_is_judged(capfd: Output, types: Callable[..., list[str]]) -> None:
    first, second, third = lines_of(SECRETS["raw"])
    slip = ("Z" if second[6] != "Z" else "Y").join([second[:6], second[7:]])
    asked = types(first.lower(), third, slip, third)
    printed = said(capfd, "key", "check", "v/raw")
    assert [prompt[:12] for prompt in asked] == ["Enter line 1", "Enter line 2", "Enter line 2", "Enter line 3"]
    assert "line 2 is line 3 of a sheet; type it again" in printed
    assert f"line 2, group 2, character 2: it is {second[6]}, not {slip[6]}; read as that" in printed
    assert "line 2 is put right\nline 3 is right\nall lines are right" in printed
    assert "the key opens v/raw" in printed


def test_a_sheet_from_before_change_key_is_void(capfd: Output) -> None:
    said(capfd, "key", "sheet", "-o", "old.txt", "v/raw")
    fresh = keykit.write(Path("new.key").absolute(), bytes(range(50, 82)))
    said(capfd, "change-key", "-l", "-o", f"keylocation={fresh}", "v/raw")
    said(capfd, "unload-key", "-a")
    old = said(capfd, "key", "check", "-i", "old.txt", "v/raw", status=1)
    assert "this is one from before change-key; print a new sheet" in old
    assert "the key opens" not in old
    for verb in ("show", "sheet"):
        words = ["key", verb, "--yes", "-L", location("raw"), "v/raw"]
        assert lines_of(SECRETS["raw"])[0] not in said(capfd, *words, status=1)
    said(capfd, "key", "sheet", "-o", "new.txt", "v/raw")
    assert "the key opens v/raw" in said(capfd, "key", "check", "-i", "new.txt", "v/raw")
    said(capfd, "load-key", "-L", location("raw"), "v/raw")  # it still opens what it did


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_files_are_made_where_there_are_no_links(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def no_link(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    save(Path("made"), b"content", force=False)
    assert (Path("made").read_bytes(), stat.S_IMODE(os.stat("made").st_mode)) == (b"content", 0o600)
    with pytest.raises(Refused, match="it is there already"):
        save(Path("made"), b"other", force=False)
    assert Path("made").read_bytes() == b"content"


@pytest.mark.parametrize("links", [True, False])
def test_a_key_file_is_there_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC if links else errno.EPERM, "no")

    monkeypatch.setattr(os, "fsync" if links else "link", full)
    if not links:
        monkeypatch.setattr(os, "fsync", lambda _: full() if Path("made").exists() else None)
    with pytest.raises(OSError, match="no"):
        NewKey(Path("made"), RAW, False, None, 1).write()  # type: ignore[arg-type]
    assert not Path("made").exists()
    assert not [name for name in os.listdir() if name.startswith(".zkeep")]


def fail_at(monkeypatch: pytest.MonkeyPatch, *, unlink: bool) -> None:
    """Let the folder's fsync fail, and the removal of the file `made` as well."""

    def fails(folder: Path) -> None:
        raise OSError(errno.EIO, "the disk")

    def stays(name: str | Path) -> None:
        if str(name) == "made":
            raise OSError(errno.EROFS, "read-only")
        remove(name)

    remove = os.unlink
    monkeypatch.setattr("zkeep.cli.keys.sheet.sync_folder", fails)
    if unlink:
        monkeypatch.setattr(os, "unlink", stays)


def test_a_new_file_whose_name_may_not_be_on_the_disk_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, unlink=False)
    with pytest.raises(OSError, match="the disk"):
        save(Path("made"), b"content", force=False)
    assert not Path("made").exists()


@pytest.mark.parametrize("force", [True, False])
def test_a_file_that_stays_then_is_told_of(monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    """It replaced another one, or cannot be removed: status 5, for something was changed."""
    if force:
        Path("made").write_bytes(b"before")
    fail_at(monkeypatch, unlink=True)
    with pytest.raises(TryAgain, match="may not be on the disk yet: the disk; write it again with -f"):
        save(Path("made"), b"content", force=force)
    assert Path("made").read_bytes() == b"content"
    assert not [name for name in os.listdir() if name.startswith(".zkeep")]


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_key_is_shown_to_a_terminal_only(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", Terminal(name != stream))
    assert not has_terminal()
    monkeypatch.setattr(f"sys.{stream}", Terminal(True))
    assert has_terminal()


class Terminal(io.StringIO):
    """A stream that is a terminal, or is not."""

    def __init__(self, is_one: bool) -> None:
        super().__init__()
        self._is_one = is_one

    def isatty(self) -> bool:
        return self._is_one


def test_the_commands_of_a_sheet_hold_in_any_folder(capfd: Output) -> None:
    sheet = said(capfd, "key", "sheet", "--yes", "v/raw")
    assert sheet.count('-L "file://$PWD/zkeep.key"') == 2


def test_nothing_typed_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", ended)
    with pytest.raises(Refused, match="was typed"):
        ask_back(SECRETS["raw"])


def test_a_sheet_as_a_picture_is_one_line(capfd: Output) -> None:
    """A person has the PDF, and gives it as it is."""
    said(capfd, "key", "sheet", "--yes", "-L", "file:///" + os.path.abspath("raw.key"), "--pdf", "s.pdf", "v/raw")
    Path("s.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(9_000_000))
    for name in ("s.pdf", "s.jpg"):
        for words in (("key", "check", "-i", name, "v/raw"), ("key", "restore", "-o", "k", name)):
            text = said(capfd, *words, status=1)
            assert (text.count("\n"), "type the lines that are on it" in text) == (1, True), text


def test_another_file_is_told_in_a_few_lines(capfd: Output) -> None:
    Path("other").write_text("not a line of a sheet.\n" * 40)
    text = said(capfd, "key", "restore", "-o", "k", "other", status=1)
    assert text.count("\n") == 6
    assert text.splitlines()[-1] == "zkeep: the lines are not all right; look at the sheet again"


def test_a_file_is_judged_whole(capfd: Output) -> None:
    first, second, third = lines_of(SECRETS["raw"])
    Path("sheet").write_text(f"{second}\n{first[:9]}\n{third}\n")
    printed = said(capfd, "key", "check", "-i", "sheet", status=1)
    assert "line 1 is line 2 of a sheet" in printed
    assert "line 2 is wrong: 8 characters were read" in printed
    assert "line 3 is right" in printed
    Path("sheet").write_text(f"{first}\n{second}\n")
    assert "line 3 is missing" in said(capfd, "key", "check", "-i", "sheet", status=1)
    Path("sheet").write_text("\n".join(lines_of(SECRETS["hex"])))
    assert "the sheet is of another key" in said(capfd, "key", "check", "-i", "sheet", "v/raw", status=1)
    said(capfd, "key", "check", "-i", "none", status=1)
    for key in (bytes(range(32)), b"0f" * 32 + b"\n"):
        Path("sheet").write_bytes(key)
        assert "is a key itself, not the lines" in said(capfd, "key", "check", "-i", "sheet", status=1)


@pytest.mark.parametrize("keyformat", ["raw", "hex"])
def test_the_lines_are_typed_where_a_key_is_asked_for(
    capfd: Output, types: Callable[..., list[str]], keyformat: str
) -> None:
    types(*lines_of(SECRETS[keyformat]))
    said(capfd, "load-key", "-L", "prompt", f"v/{keyformat}")
    assert said(capfd, "get", "-H", "-o", "value", "keystatus", f"v/{keyformat}").strip() == "available"


def test_a_line_that_stays_wrong_ends_it(capfd: Output, types: Callable[..., list[str]]) -> None:
    types("no", "no", "no")
    assert "line 1 is wrong" in said(capfd, "load-key", "-L", "prompt", "v/raw", status=1)


def test_a_sheet_comes_through_a_pipe(capfd: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "\n".join(lines_of(SECRETS["raw"])).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    said(capfd, "load-key", "-L", "prompt", "v/raw")
    assert said(capfd, "get", "-H", "-o", "value", "keystatus", "v/raw").strip() == "available"


def test_a_group_is_typed_back(types: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.split(" ") for line in lines_of(SECRETS["raw"])]
    asked = types("")

    def right(prompt: str) -> str:
        group, line = map(int, re.findall(r"\d+", prompt))
        return lines[line - 1][group - 1].lower()

    monkeypatch.setattr(getpass, "getpass", right)
    ask_back(SECRETS["raw"])
    monkeypatch.setattr(getpass, "getpass", lambda prompt: "0000")
    with pytest.raises(Refused, match="not what the sheet says"):
        ask_back(SECRETS["raw"])
    assert asked == []


def test_codes_without_block_characters_and_for_dark_screens() -> None:
    plain = code_lines(SECRETS["raw"], encoding="ascii")
    assert set("".join(plain)) == {"#", " "}
    assert len(plain) * 2 == len(plain[0])
    assert code_lines(SECRETS["raw"], dark=False)[0].startswith("█")
