"""The rules of zfs for the keys of new datasets: what is refused, and that nothing is created then."""

from __future__ import annotations

import getpass
import io
from collections.abc import Callable
from typing import Any

import pytest

Zkeep = Callable[..., int]
ROUNDS = "pbkdf2iters=100000"


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A person at a terminal who types these lines; the questions that were asked."""

    def types(*lines: str) -> list[str]:
        answers, asked = list(lines), []

        def answer(question: str) -> str:
            asked.append(question)
            return answers.pop(0)

        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr(getpass, "getpass", answer)
        return asked

    return types


def create(zkeep: Zkeep, *options: str) -> int:
    return zkeep("create", *(word for option in options for word in ("-o", option)), "v/new")


def test_a_passphrase_is_typed_twice(zkeep: Zkeep, typing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = typing("correct horse", "correct hose")
    assert create(zkeep, "encryption=on", "keyformat=passphrase", ROUNDS) == 1
    assert len(asked) == 2
    assert "not the same" in capsys.readouterr().err
    assert zkeep("get", "type", "v/new") == 1
    typing("correct horse", "correct horse")
    assert create(zkeep, "encryption=on", "keyformat=passphrase", ROUNDS) == 0
    capsys.readouterr()
    assert zkeep("get", "-Hp", "-o", "value", "keyformat,pbkdf2iters,keylocation,keystatus", "v/new") == 0
    assert capsys.readouterr().out.split() == ["passphrase", "100000", "prompt", "available"]


@pytest.mark.parametrize(("length", "status"), [(7, 1), (8, 0), (512, 0), (513, 1)])
def test_a_passphrase_has_8_to_512_bytes(zkeep: Zkeep, typing: Any, length: int, status: int) -> None:
    typing("p" * length, "p" * length)
    assert create(zkeep, "encryption=on", "keyformat=passphrase", ROUNDS) == status
    assert zkeep("get", "type", "v/new") == status


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("keyformat=raw",), 1),
        (("encryption=off", "keyformat=raw"), 1),
        (("encryption=on",), 1),
        (("encryption=rot13", "keyformat=raw"), 1),
        (("encryption=on", "keyformat=octal"), 2),
        (("encryption=on", "keyformat=raw"), 1),
        (("encryption=on", "keyformat=raw", ROUNDS), 2),
        (("encryption=on", "keyformat=passphrase", "pbkdf2iters=99999"), 2),
        (("encryption=on", "keyformat=raw", "keylocation=file:///nowhere/key"), 1),
    ],
)
def test_what_zfs_refuses_is_refused(zkeep: Zkeep, typing: Any, options: tuple[str, ...], status: int) -> None:
    typing()
    assert create(zkeep, *options) == status
    assert zkeep("get", "type", "v/new") == 1


def test_below_an_encrypted_parent_encryption_stays_on(zkeep: Zkeep, capsys: pytest.CaptureFixture[str]) -> None:
    assert zkeep("create", "-o", "encryption=off", "v/home/new") == 1
    assert "must be encrypted" in capsys.readouterr().err
