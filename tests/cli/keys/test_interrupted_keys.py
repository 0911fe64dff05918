"""A signal while a key file is written: what was to be kept secret is in no other file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from zkeep.cli.keys.sheet import save, write_new

KEY = bytes(range(32))


@pytest.mark.parametrize("call", ["unlink", "link", "fsync", "replace"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("force", [False, True])
def test_p1_an_interrupted_key_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, *, after: bool, force: bool
) -> None:
    """The signal comes at the first such call, before or after that is done."""
    path, done, real = tmp_path / "key", [False], getattr(os, call)

    def signalled(*arguments: Any, **more: Any) -> Any:
        if done[0]:
            return real(*arguments, **more)
        done[0] = True
        with suppress(FileNotFoundError):
            if after:
                real(*arguments, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, signalled)
    try:
        save(path, KEY, force=True) if force else write_new(path, KEY)
    except KeyboardInterrupt:
        assert done[0]
    else:
        assert not done[0]
    monkeypatch.undo()
    assert [found for found in tmp_path.iterdir() if found != path] == []
    assert not path.exists() or path.read_bytes() == KEY
