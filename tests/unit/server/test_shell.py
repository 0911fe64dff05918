"""Command lines are split into words, and nothing else."""

from __future__ import annotations

import shlex
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.server.shell import CannotParse, Choice, Command, Pipeline, Redirect, Script, ScriptStep, parse


def words(line: str) -> list[str]:
    """The words of a line with one command."""
    (step,) = parse(line).steps
    assert isinstance(step.what, Pipeline)
    (command,) = step.what.commands
    return list(command.words)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("zfs list", ["zfs", "list"]),
        ("  zfs   get -H name 'vault/a b'@x ", ["zfs", "get", "-H", "name", "vault/a b@x"]),
        ("""zfs list 'it'"'"'s'""", ["zfs", "list", "it's"]),
        ('zfs list "a\\"b" c\\ d', ["zfs", "list", 'a"b', "c d"]),
        ("PATH=$PATH:/usr/sbin:/sbin zfs recv -x", ["zfs", "recv", "-x"]),
        ("""printf 'default-%s\n' "$SHELL\"""", ["printf", "default-%s\n", "/bin/sh"]),
        ("zfs destroy a@%b,c", ["zfs", "destroy", "a@%b,c"]),
        ("echo ''", ["echo", ""]),
        ("zfs list a#b", ["zfs", "list", "a#b"]),
    ],
)
def test_words(line: str, found: list[str]) -> None:
    assert words(line) == found


@pytest.mark.parametrize(
    "line",
    [
        "zfs list $HOME",
        "zfs list `id`",
        "zfs list $(id)",
        'zfs list "$(id)"',
        'zfs list "$SHELLS"',
        'zfs list "`id`"',
        "zfs list *",
        "zfs list a?",
        "zfs list [a]",
        "zfs list {a,b}",
        "zfs list ~root",
        "zfs list # x",
        "zfs list & id",
        "zfs list &",
        "zfs list\nid",
        "zfs list\rid",
        "zfs list \0",
        "zfs list '\0'",
        "zfs list 'a",
        'zfs list "a',
        "zfs list a\\",
        "(zfs list)",
        "{ zfs list; }",
        "! zfs list",
        "zfs list > /tmp/x",
        "zfs list >> /dev/null",
        "zfs list 2>/dev/nullx",
        "zfs list < /etc/passwd",
        "zfs list <<< x",
        "zfs list 3>&1",
        "PATH=$(id) zfs list",
        "PATH=$HOME zfs list",
        "| zfs list",
        "zfs list |",
        "zfs list | | x",
        "zfs list ;; id",
        "; zfs list",
        "zfs list &&",
        "if true; then zfs list",
        "then zfs list",
        "if true; fi",
        "zfs list; fi",
        "2>&1",
        "if true; then " * 6 + "echo" + "; fi" * 6,
        "x" * (10 << 20),
        "a " * 30_000,
    ],
    ids=lambda line: line[:24].encode("unicode_escape").decode(),
)
def test_what_a_shell_would_do_more_with_is_refused(line: str) -> None:
    with pytest.raises(CannotParse) as error:
        parse(line)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_an_empty_line_has_no_steps() -> None:
    assert parse(" ") == Script()


def test_steps_and_pipelines() -> None:
    found = parse("zfs destroy a@1; zfs destroy a@2 && exit || mbuffer -q 2>/dev/null | zfs receive a 2>&1;")
    assert [step.after for step in found.steps] == [";", ";", "&&", "||"]
    assert found.steps[-1].what == Pipeline(
        (
            Command(("mbuffer", "-q"), (Redirect.DROP_ERRORS,)),
            Command(("zfs", "receive", "a"), (Redirect.ERRORS_TO_OUTPUT,)),
        )
    )


@pytest.mark.parametrize(
    ("text", "redirect"),
    [
        ("2>/dev/null", Redirect.DROP_ERRORS),
        ("2> /dev/null", Redirect.DROP_ERRORS),
        (">/dev/null", Redirect.DROP_OUTPUT),
        ("> /dev/null", Redirect.DROP_OUTPUT),
        ("1>/dev/null", Redirect.DROP_OUTPUT),
        ("2>&1", Redirect.ERRORS_TO_OUTPUT),
        (">&2", Redirect.OUTPUT_TO_ERRORS),
        ("</dev/null", Redirect.NO_INPUT),
    ],
)
def test_redirects(text: str, redirect: Redirect) -> None:
    assert parse(f"zfs list {text}; exit").steps[0] == ScriptStep(
        ";", Pipeline((Command(("zfs", "list"), (redirect,)),))
    )


def test_quoted_words_are_no_words_of_the_shell() -> None:
    assert words("'if' true 'fi'") == ["if", "true", "fi"]
    assert words("zfs '2>&1' ';' '|' '$(id)' '*'") == ["zfs", "2>&1", ";", "|", "$(id)", "*"]


def test_a_choice() -> None:
    (step,) = parse("if command -v mbuffer > /dev/null; then printf 'mbuffer\n'; else exit; fi").steps
    assert isinstance(step.what, Choice)
    assert len(step.what.then.steps) == len(step.what.otherwise.steps) == 1


@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=20), min_size=1, max_size=6))
def test_what_is_quoted_comes_back(given: list[str]) -> None:
    given = ["zfs", *given]
    assert words(shlex.join(given)) == given


@given(st.text(st.sampled_from(" ;|&<>'\"\\$`(){}[]*?!#~\n\t\0azfs2=/@%-é\ud800"), max_size=60))
def test_whatever_comes_is_parsed_or_refused(line: str) -> None:
    with suppress(CannotParse):
        assert isinstance(parse(line), Script)
