from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zkeep.cli.main import run

Zkeep = Callable[..., int]


@pytest.fixture
def zkeep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zkeep]:
    """A pool `v` with an encrypted dataset v/home, whose key is loaded, and the command."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "key").write_bytes(bytes(range(32)))

    def call(*words: str) -> int:
        return run(list(words))

    assert call("pool", "create", "v", str(tmp_path / "pool")) == 0
    options = ("encryption=on", "keyformat=raw", f"keylocation=file://{tmp_path / 'key'}", "recordsize=16k")
    assert call("create", *(word for option in options for word in ("-o", option)), "v/home") == 0
    yield call
    call("unload-key", "-a")
