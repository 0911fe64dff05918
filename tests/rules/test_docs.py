"""What the documents say is there: commands, verbs, files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click
import pytest

from zkeep.cli.main import VERBS, cli
from zkeep.cli.pool.pool import pool_verb
from zkeep.errors import ZkeepError

ROOT = Path(__file__).parents[2]
README_PAGE = ROOT / "README.md"
README = README_PAGE.read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
SETUP = re.compile(r"^python3 -m venv .*$", re.MULTILINE)


def test_two_commands_set_up_a_fresh_machine() -> None:
    demo, tests = SETUP.findall(README)
    assert demo.endswith(".venv/bin/zkeep demo")
    assert tests.endswith(".venv/bin/pytest -n auto")


def test_the_readmes_test_command_is_what_ci_runs() -> None:
    _, tests = SETUP.findall(README)
    assert tests in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("page", ["README.md", "docs/COMPATIBILITY.md"])
def test_every_verb_is_documented(page: str) -> None:
    text = (ROOT / page).read_text()
    verbs = [*(VERBS.keys() - {"pool"}), *(f"pool {name}" for name in pool_verb.commands)]
    assert not [verb for verb in verbs if f"`{verb}`" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    """`src/..`, `tests/..`, `docs/..` and `bench/..` in code marks."""
    named = re.findall(r"`((?:src|tests|docs|bench)/[\w./-]+)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_documents_that_the_code_cites_exist() -> None:
    cited = {name for path in (ROOT / "src").rglob("*.py") for name in re.findall(r"docs/[\w/]+\.md", path.read_text())}
    assert not [name for name in cited if not (ROOT / name).exists()]


ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
SOURCE = ROOT / "src" / "zkeep"


def test_where_is_names_files_and_functions_that_exist() -> None:
    """A newcomer looks there first: `room/file.py`, and after it what is in that file."""
    table = ARCHITECTURE.split("## Where is ...?")[1].split("\n## ")[0]
    missing = [name for name in re.findall(r"`([a-z_/]+\.py)`", table) if not (SOURCE / name).exists()]
    for name, inside in re.findall(r"`([a-z_/]+\.py)` \(([^)]*)\)", table):
        text = (SOURCE / name).read_text()
        words = re.findall(r"`(\w+)`", inside)
        missing += [f"{name}: {word}" for word in words if not re.search(rf"\b(?:def|class) {word}\b", text)]
    assert not missing


def test_every_file_of_a_room_is_in_the_tables_of_rooms() -> None:
    text = ARCHITECTURE.split("## Rooms")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+\.py)`", text))
    rooms = ("backup", "capture", "pool", "reencrypt", "restore", "server", "snapshot", "cli/common", "cli/keys")
    files = {path.name for room in rooms for path in (SOURCE / room).rglob("*.py")} - {"__init__.py"}
    assert not files - named


@pytest.mark.parametrize("number", range(1, 9))
def test_each_promise_of_the_readme_has_tests_of_its_number(number: int) -> None:
    assert re.search(rf"^- \*\*P{number} ", README, re.MULTILINE)
    if number < 8:  # P8 is for the real kernel to say: tests/interop/test_source.py
        assert [path for path in (ROOT / "tests").rglob("test_*.py") if f"def test_p{number}_" in path.read_text()]


# What a newcomer types: every line of `zkeep` in the documents and in the help is one that the verb's parser takes.

PROMPT = re.compile(r"^(?:[\w.-]+[$#] )?(.*)$")
BREAKS = set("|&;<>()")


def blocks(page: Path) -> Iterator[str]:
    """Lines of code: fenced, or indented by four columns."""
    fenced = False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def words_of(line: str) -> list[str]:
    """The words of a line, as a shell splits it; what follows a # that stands by itself is a remark."""
    lexer = shlex.shlex(re.sub(r"(^|\s)# .*", "", line), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split, lexer.commenters = True, ""
    return list(lexer)


def calls(line: str) -> Iterator[list[str]]:
    """What zkeep is called with in a line of a shell, also over ssh."""
    words = words_of(PROMPT.sub(r"\1", line))
    while words:
        end = next((at for at, word in enumerate(words) if set(word) <= BREAKS), len(words))
        command, words = words[:end], words[end + 1 :]
        if command[:1] == ["ssh"]:
            command = command[command.index("zkeep") :] if "zkeep" in command else []
        if command[:1] == ["zkeep"]:
            yield command[1:]


def takes(words: list[str]) -> str:
    """Why zkeep would not understand these words; empty where it would."""
    command: click.Command = cli
    ctx = click.Context(cli, info_name="zkeep")
    words = list(words)
    try:
        while isinstance(command, click.Group):
            name, found, words = command.resolve_command(ctx, words)
            assert found is not None
            command = found
            if not isinstance(command, click.Group):
                command.make_context(name, words, parent=ctx)
            else:
                ctx = click.Context(command, ctx, name)
    except (click.ClickException, ZkeepError) as error:
        # What is a folder here is asked of the machine: only the words are looked at.
        return "" if "does not exist" in str(error) else str(error)
    except click.exceptions.Exit:
        return ""
    return ""


@pytest.mark.parametrize("page", [README_PAGE, *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name)
def test_every_line_of_zkeep_in_the_documents_is_understood(page: Path) -> None:
    lines = [line for line in blocks(page) if re.search(r"\bzkeep\b", line)]
    wrong = {line: why for line in lines for words in calls(line) if (why := takes(words))}
    assert not wrong


PLAIN = ("pool export", "pool list", "pool status", "pool upgrade")
"Verbs that are called with a pool's name, and need no example."


def verbs() -> list[tuple[str, click.Command]]:
    """All of them, those of groups as `pool scrub`."""
    ctx = click.Context(cli)
    top = {name: cli.get_command(ctx, name) for name in VERBS}
    groups = [(name, verb) for name, verb in top.items() if isinstance(verb, click.Group)]
    below = [(f"{name} {inner}", verb.get_command(ctx, inner)) for name, verb in groups for inner in verb.commands]
    return [(name, verb) for name, verb in [*top.items(), *below] if verb is not None]


@pytest.mark.parametrize(("name", "verb"), verbs(), ids=lambda it: it if isinstance(it, str) else "")
def test_the_help_of_every_verb_has_examples_that_are_understood(name: str, verb: click.Command) -> None:
    examples = [line.strip() for line in cleandoc(verb.help or "").splitlines() if line.startswith("    ")]
    mine = [words for line in examples for words in calls(line.replace("~", "/home/me"))]
    asked = name.replace("recv", "receive").replace("snap", "snapshot") if name in ("recv", "snap") else name
    asked = "unmount" if asked == "umount" else asked
    assert name in PLAIN or any(" ".join(words).startswith(asked) for words in mine)
    assert not {" ".join(words): why for words in mine if (why := takes(words))}
