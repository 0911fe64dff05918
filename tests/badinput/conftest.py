"""Pools for bad streams."""

from __future__ import annotations

from pathlib import Path

import pytest
from badkit import Box, stream


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    """An empty pool."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path))
    monkeypatch.setenv("ZKEEP_WAIT", "0.1")
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)
    return Box(tmp_path)


@pytest.fixture
def kept(box: Box) -> Box:
    """A pool with a first snapshot, v/x@s0."""
    box.takes(stream("rs512b", "full-s0"), "v/x@s0")
    return box
