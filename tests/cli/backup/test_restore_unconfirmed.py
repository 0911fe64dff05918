"""A restore after a backup that arrived, and whose last answer did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from backupkit import Laptop
from zkeep.pool.datasets import sent
from zkeep.pool.datasets.model import Pool


def test_what_arrived_unheard_is_no_older_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    laptop = Laptop(tmp_path, monkeypatch, capfd, "receive,list,send")
    assert laptop.backup().status == 0
    (laptop.source / "new").write_bytes(b"new")
    assert laptop.backup().status == 0
    with Pool.open(laptop.home / "local") as pool, pool.transaction() as t:
        notes = sorted(t.scan(sent.SENT, ""), key=lambda each: int(each[1]["at"]))
        t.delete(sent.SENT, notes[-1][0])
    out = tmp_path / "out"
    words = ("restore", "-L", laptop.key.as_uri(), "ssh://box/vault/me")
    done = laptop.run(*words, "-C", str(out))
    assert done.status == 0, done.err
    assert (out / "new").read_bytes() == b"new"
    # An older state that is passed off as the newest is seen as before.
    newest = laptop.serve("list", "-H", "-o", "name", "-t", "snapshot", "vault/me").out.split()[-1]
    assert laptop.backup().status == 0
    (laptop.source / "new").write_bytes(b"newer")
    assert laptop.backup().status == 0
    last = laptop.serve("list", "-H", "-o", "name", "-t", "snapshot", "vault/me").out.split()[-1]
    assert last != newest
    assert laptop.serve("destroy", last).status == 0
    done = laptop.run(*words, "-C", str(tmp_path / "other"))
    assert (done.status, "is not there any more" in done.err) == (4, True), done.err
