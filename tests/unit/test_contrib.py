"""What contrib/ holds: units that systemd takes, and commands that zkeep has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from zkeep.cli.main import cli

CONTRIB = Path(__file__).parents[2] / "contrib"
UNITS = sorted((CONTRIB / "systemd").iterdir())


def commands() -> list[list[str]]:
    texts = [path.read_text() for path in (*UNITS, CONTRIB / "cron" / "zkeep")]
    found = [line for text in texts for line in text.splitlines() if not line.startswith("#")]
    return [words.split() for line in found for words in re.findall(r"zkeep ((?:pool )?[a-z]+[^&>]*)", line)]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one(words: list[str]) -> None:
    with cli.make_context("zkeep", list(words)) as context:
        name, command, rest = cli.resolve_command(context, list(words))
        assert name
        assert command
        while command.name == "pool":
            name, command, rest = command.resolve_command(context, rest)  # type: ignore[attr-defined]
        command.make_context(name, rest, parent=context)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """An instance stands for each template: that is what is enabled."""
    for unit in UNITS:
        shutil.copy(unit, tmp_path / unit.name.replace("@.", "@vault."))
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run(["systemd-analyze", "verify", *names], check=False, capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "zkeep" in line]
    assert not ours
    assert done.returncode == 0, done.stderr


def test_each_timer_has_its_service() -> None:
    names = {unit.name for unit in UNITS}
    assert {name.replace(".timer", ".service") for name in names if name.endswith(".timer")} <= names
