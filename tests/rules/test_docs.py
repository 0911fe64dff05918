"""What the documents say is there: commands, verbs, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zkeep.cli.main import VERBS
from zkeep.cli.pool.pool import pool_verb

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
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
