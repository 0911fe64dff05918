"""The cache of runs follows the catalog, also where a document cannot be read for a moment."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from zkeep.pool.store.catalog import Catalog
from zkeep.pool.transfer.receive import ReceiveOptions, receive

sys.path.insert(0, str(Path(__file__).parents[4] / "bench"))
import scaling


def refuse(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("fails", ["get", "changes"])
def test_p3_a_run_that_could_not_be_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        key = pool.dataset(scaling.DatasetName("b/data")).key
        assert pool.runs.count(key) == 1
        with monkeypatch.context() as patch:
            patch.setattr("zkeep.pool.transfer.session.sum_up", lambda pool, dataset: None)
            receive(pool, io.BytesIO(scaling.stream(1)), "b/data", ReceiveOptions())
        with monkeypatch.context() as patch:
            patch.setattr(Catalog, fails, refuse)
            with pytest.raises(OSError, match="Input"):
                pool.runs.count(key)
        assert pool.runs.count(key) == 2
        receive(pool, io.BytesIO(scaling.stream(2)), "b/data", ReceiveOptions())
        assert pool.runs.count(key) == 3
