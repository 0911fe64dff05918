"""P1: no code path of the server side takes a key; what keeps backups cannot even import what decrypts."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "zkeep"
BLIND = ("backup", "server", "pool", "format", "names", "cache", "clock", "errors", "zstd_levels")
SEEING = {"zkeep.crypto", "zkeep.capture", "zkeep.live", "zkeep.reencrypt", "zkeep.restore", "zkeep.snapshot"}
HOLDING = {"zkeep.agent"}
"Decrypts nothing itself, but has keys."
OTHERS = {"cli", "tree"}
"Rooms that the blind ones do not import either, and in which nothing decrypts: the contracts check those."
NAMED = {*BLIND, *OTHERS, *(name.removeprefix("zkeep.") for name in SEEING | HOLDING)}
CIPHERS = {"cryptography", "Crypto", "Cryptodome", "nacl", "ssl", "_ssl", "pyaes"}


def files_of(room: str) -> list[Path]:
    """The files of a room, which is a folder or a single file."""
    return sorted([*SOURCE.glob(f"{room}/**/*.py"), *SOURCE.glob(f"{room}.py")])


FILES = [path for room in BLIND for path in files_of(room)]


def imported(path: Path) -> Iterator[str]:
    """Every module that a file names, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which this test does not follow"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", sorted(NAMED))
def test_p1_every_room_that_is_named_here_exists(room: str) -> None:
    """Else a room that was renamed would drop out of these tests, and nothing would fail."""
    assert files_of(room)


def test_p1_no_room_is_forgotten() -> None:
    """A new room has to be named here: it may have keys, or it may not."""
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} == NAMED


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_p1_blind_rooms_name_nothing_that_decrypts(path: Path) -> None:
    names = set(imported(path))
    assert not {name for name in names if name.split(".")[0] in CIPHERS}
    assert not {name for name in names if ".".join(name.split(".")[:2]) in SEEING | HOLDING}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_p1_blind_rooms_import_nothing_by_a_made_up_name(path: Path) -> None:
    """Else the test above would see nothing. (sys.modules and __import__ are as bad as import_module.)"""
    text = path.read_text()
    assert not [word for word in ("import_module", "__import__", "exec(", "eval(") if word in text]


def test_p1_blind_the_story_is_played_without_any_cipher() -> None:
    """Receive, list, scrub, prune, compact and send back, in a process that could not load a cipher if it tried."""
    barred = sorted(CIPHERS | SEEING)
    script = f"""
import sys
for name in {barred!r}:
    sys.modules[name] = None
from zkeep.cli.main import main
main(["demo", "--blind"])
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
