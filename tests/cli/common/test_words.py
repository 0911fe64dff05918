"""Help, version, completion, and what is said of verbs that are not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from zkeep import __version__
from zkeep.cli.common import usage
from zkeep.cli.keys.key import key_verb
from zkeep.cli.main import VERBS, cli, run
from zkeep.cli.pool.pool import pool_verb
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry

ZFS = (
    "version create destroy snapshot snap rollback clone promote rename bookmark program list set get inherit upgrade "
    "userspace groupspace projectspace project mount unmount umount share unshare send receive recv allow unallow hold "
    "holds release diff load-key unload-key change-key redact wait zone unzone rewrite jail unjail"
)
ZPOOL = (
    "version create destroy add remove labelclear checkpoint prefetch list iostat status online offline clear attach "
    "detach replace split initialize resilver scrub trim import export upgrade reopen reguid history events get set "
    "sync wait ddtprune"
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert run(list(words)) == status
    out, err = capsys.readouterr()
    return out if status == 0 else err


@pytest.mark.parametrize("verb", ZFS.split())
def test_every_verb_of_zfs_is_here_or_says_why_not(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    if verb in VERBS:
        assert said(capsys, "help", verb).startswith(f"Usage: zkeep {verb}")
        return
    for words in ([verb, "vault/a"], ["help", verb]):
        line = said(capsys, *words, status=1)
        assert line.startswith(f"zkeep: cannot {verb}: ")
        assert line.count("\n") == 1


@pytest.mark.parametrize("verb", sorted({*ZPOOL.split()} - {*pool_verb.commands}))
def test_every_verb_of_zpool_is_here_or_says_why_not(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "pool", verb, "vault", status=1).startswith(f"zkeep: cannot {verb}: ")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sned", "send"),
        ("recieve", "receive"),
        ("lst", "list"),
        ("scrub", "pool scrub"),
        ("status", "pool status"),
        ("pool statsu", "status"),
        ("pool improt", "import"),
    ],
)
def test_a_typo_is_asked_about(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"(did you mean '{meant}'?)" in said(capsys, *typed.split(), status=2)


def test_what_is_like_nothing_gets_no_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean" not in said(capsys, "xyzzy", status=2)


@pytest.mark.parametrize(
    ("words", "has"),
    [
        ("receive", "-A <filesystem|volume>"),
        ("recv -x", "[-x <property>]"),
        ("send", "receive_resume_token"),
        ("send -V", "receive_resume_token"),
        ("destroy", "<filesystem|volume>@<snap>[%<snap>][,...]"),
        ("load-key", "keylocation"),
        ("hold tag", "hold [-r] TAG SNAPSHOT..."),
        ("list -o", "-o P,..."),
        ("pool list -o", "zkeep pool list [-Hpj]"),
    ],
)
def test_a_wrong_call_is_told_how_the_verb_is_called(words: str, has: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, *words.split(), status=2)
    assert has in line.partition("; usage: ")[2]
    assert line.count("\n") == 1


@pytest.mark.parametrize("verb", sorted(usage.USAGE))
def test_written_calls_name_the_letters_that_there_are(verb: str) -> None:
    """Each short option of the command stands in its usage, and each letter of the usage is an option."""
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    declared = {o[1] for p in command.params if isinstance(p, click.Option) for o in p.opts if o[0:2] != "--"}
    text = " ".join(usage.lines(command, verb))
    written = set("".join(re.findall(r"(?<![\w-])-([A-Za-z]+)", text)))
    hidden = {"w", "R", "I"} if verb == "send" else set()
    assert written <= declared
    assert declared - written - hidden <= ({"L"} if verb == "change-key" else set())


def test_help_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    heights = []
    for columns in ("60", "100", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        heights.append(len(said(capsys, "help", "verify").splitlines()))
    assert heights == sorted(set(heights), reverse=True)


def test_help_without_a_verb_is_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "help") == said(capsys, "--help")
    assert "did you mean 'send'" in said(capsys, "help", "sned", status=2)
    assert "has no verbs of its own" in said(capsys, "help", "send", "me", status=2)


def test_a_manual_page_for_every_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "help", "--man-pages", str(tmp_path / "man1"))
    pages = {path.name: path.read_text() for path in (tmp_path / "man1").iterdir()}
    verbs = [f"zkeep-{verb}.1" for verb in VERBS]
    verbs += [f"zkeep-{group.name}-{verb}.1" for group in (pool_verb, key_verb) for verb in group.commands]
    assert sorted(pages) == sorted(["zkeep.1", *verbs])
    assert pages["zkeep-send.1"] == said(capsys, "help", "--man", "send")
    for page in pages.values():
        assert re.findall(r"^\.SH (.*)$", page, re.MULTILINE)[:3] == ["NAME", "SYNOPSIS", "DESCRIPTION"]
        assert not re.search(r"^(?!\.(TH|SH|PP|TP|B|BR|I|br|nf|fi)\b)\.", page, re.MULTILINE)
    if tool := shutil.which("groff") or shutil.which("mandoc"):
        letters = ["-man", "-ww", "-Tutf8"] if "groff" in tool else ["-Tlint"]
        done = subprocess.run(
            [tool, *letters], input=pages["zkeep-extract.1"], capture_output=True, text=True, check=False
        )
        assert not done.stderr, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "version") == said(capsys, "--version") == f"zkeep-{__version__}\n"
    lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in said(capsys, "version", "-v").splitlines()[1:])
    assert lines["kernel"] in ("compiled", "numpy")
    assert lines["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert re.match(r"\d", lines["numpy"])
    assert json.loads(said(capsys, "version", "-j")) == {"zkeep_version": {"zkeep": __version__}}
    assert "zstandard" in json.loads(said(capsys, "version", "-jv"))["zkeep_version"]


@pytest.mark.parametrize("words", [["version"], ["--version"]])
@pytest.mark.parametrize("name", ["zfs", "zpool"])
def test_version_where_it_goes_by_the_name_of_zfs(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs parse it, and want 2.1.0 or newer."""
    monkeypatch.setattr(sys, "argv", [f"/usr/sbin/{name}"])
    module, first = re.findall(r"^(zfs(?:-kmod)?)-(\d+\.\d+\.\d+)", said(capsys, *words), re.MULTILINE)[::-1]
    assert (module[0], first[0]) == ("zfs-kmod", "zfs")
    assert tuple(map(int, first[1].split("."))) >= (2, 1, 0)


def test_a_link_named_zpool_takes_the_verbs_of_pools(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/sbin/zpool"])
    said(capsys, "create", "vault", str(tmp_path / "vault"))
    assert said(capsys, "list", "-H", "-o", "name") == "vault\n"


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = said(capsys, "completion", shell)
    assert f"_ZKEEP_COMPLETE={shell}_complete" in script
    if tool := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        done = subprocess.run([tool, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("zkeep se", {"send", "server", "set"}),
        ("zkeep pool sc", {"scrub"}),
        ("zkeep list va", {"vault", "vault/a", "vault/b"}),
        ("zkeep get used vault/a", {"vault/a"}),
        ("zkeep destroy vault/a@", {"vault/a@mon", "vault/a@tue"}),
        ("zkeep send -w vault/a@m", {"vault/a@mon"}),
        ("zkeep pool scrub v", {"vault"}),
        ("zkeep receive --", {"--append-only", "--help"}),
    ],
)
def test_what_a_shell_is_offered(
    typed: str,
    offered: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Pool.create(tmp_path / "vault", "vault") as pool, pool.transaction() as t:
        for name in ("a", "b"):
            pool.create_dataset(t, pool.full(name))
        for txg, name in enumerate(("mon", "tue"), 100):
            pool.add_snapshot(t, pool.dataset(pool.full("a")), name, txg, txg)
    Registry(tmp_path / "home").add("vault", tmp_path / "vault")
    monkeypatch.setenv("_ZKEEP_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert {line.partition(",")[2] for line in said(capsys).splitlines()} == offered


def test_a_letter_that_is_new_is_named_in_usage_by_itself() -> None:
    option = click.Option(["-Z", "zap"], is_flag=True)
    command = click.Command("rollback", params=[option, click.Option(["-r", "recursive"], is_flag=True)])
    assert usage.lines(command, "rollback") == ["rollback [-rRfZ] <snapshot>"]
