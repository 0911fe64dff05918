"""The code and its documents speak plain English: a newcomer has an algorithm to learn, and no dialect before it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted(
    path for room in ("src", "tests", "bench") for path in (ROOT / room).rglob("*.py") if path != Path(__file__)
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
DIALECT = {
    "told of": "reported to",
    "held against": "checked against",
    "anew": "again",
    "whoever": "callers, or a subject of its own",
    "come to": "reach",
    "heard": "a word of the trade: received, reported",
}
"Words of a dialect that this code once had, and what to write instead."
WORDS = re.compile("|".join(rf"\b{word}\b".replace(" ", r"\s+") for word in DIALECT), re.IGNORECASE)
NAMES = re.compile(
    r"(?:\b(?:def|class|for|as) |^\s*)(_told|_hand|_taken|_heard|heard|nobody|whoever)\b(?=\(|\s*[:=](?:\s|$))",
    re.MULTILINE,
)
"Names that say nothing to a Python programmer."
HEADLESS = re.compile(r'^\s*"""(?:(?:Of|Those|What of|Whose)\b|As (?!usual))[^\n]*', re.MULTILINE)
"A docstring begins with a verb, or with a noun that names its subject."


def spoken(text: str) -> list[str]:
    return [" ".join(match.split()) for match in WORDS.findall(text)]


@pytest.mark.parametrize("text", ["It is told  of that.", "whoever comes", "sealed Anew", "it has come\nto this"])
def test_the_dialect_is_recognized(text: str) -> None:
    assert spoken(text)


@pytest.mark.parametrize("text", ["Of those that lead here.", "As sshd does it.", "Those of the pool.", "What of it?"])
def test_a_docstring_without_a_subject_is_recognized(text: str) -> None:
    assert HEADLESS.search(f'def f():\n    """{text}"""\n')


@pytest.mark.parametrize("text", ["def _heard(self)", "    nobody = 1\n", "with open(name) as whoever:"])
def test_a_name_of_the_dialect_is_recognized(text: str) -> None:
    assert NAMES.search(text)


def test_pages_speak_no_dialect() -> None:
    assert not {str(path.relative_to(ROOT)): found for path in PAGES if (found := spoken(path.read_text()))}


def test_code_speaks_no_dialect() -> None:
    found = {str(path.relative_to(ROOT)): spoken(path.read_text()) for path in CODE}
    assert not {path: words for path, words in found.items() if words}


def test_docstrings_have_a_subject() -> None:
    found = {str(path.relative_to(ROOT)): HEADLESS.findall(path.read_text()) for path in CODE}
    assert not {path: lines for path, lines in found.items() if lines}


def test_names_are_of_the_trade() -> None:
    found = {str(path.relative_to(ROOT)): NAMES.findall(path.read_text()) for path in CODE}
    assert not {path: names for path, names in found.items() if names}
