from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commandkit import create_encrypted, own_state
from zkeep.cli.main import run

Zkeep = Callable[..., int]


@pytest.fixture
def zkeep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zkeep]:
    """A pool `v` with an encrypted dataset v/home, and the command."""
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/home")
    yield lambda *words: run(list(words))
    run(["unload-key", "-a"])
