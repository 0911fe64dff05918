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
