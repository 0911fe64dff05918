from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commandkit import create_encrypted, own_state
from zkeep.cli.main import run

Zkeep = Callable[..., int]


@pytest.fixture
def zkeep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zkeep]:
    """A pool `v` with an encrypted dataset v/home, whose key is loaded, and the command."""
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/home", "recordsize=16k")

    def call(*words: str) -> int:
        return run(list(words))

    yield call
    call("unload-key", "-a")
