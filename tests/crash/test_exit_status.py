"""Exit status 1 means that nothing was changed, and 0 that all was, at whichever call the disk fails.

Each verb runs again and again, and each time another call fails: once, or from there on. Whatever happened, the same
call finishes it afterwards. ZKEEP_FAULTS says how many faults are tried (see faultkit).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faultkit import Bench, Verb, called, judge

from zkeep.pool.store.files import LocalStore

VERBS = {
    "set": Verb("set x:y=z vault/jambon"),
    "set many": Verb("set x:y=z vault/jambon vault/jambon/blanc vault"),
    "inherit": Verb("inherit a:b vault/jambon"),
    "hold": Verb("hold -r keep vault/jambon@2019"),
    "release": Verb("release tag vault/jambon/blanc@2018"),
    "bookmark": Verb("bookmark vault/jambon/blanc@2018 #more"),
    "create": Verb("create -p vault/new/er", random=True),
    "rename": Verb("rename vault/jambon vault/other"),
    "rename a snapshot": Verb("rename vault/jambon/blanc@2019 @renamed"),
    "roll back": Verb("rollback -r vault/jambon/blanc@2018"),
    "destroy a tree": Verb("destroy -r vault/spare"),
    "destroy a snapshot": Verb("destroy vault/jambon/blanc@2019"),
    "destroy a bookmark": Verb("destroy vault/jambon/blanc#mark"),
    "pool create": Verb("pool create second {place}/second", way_out="pool import {place}/second second"),
    "pool export": Verb("pool export vault"),
    "pool import": Verb("pool import {place}/vault third"),
    "pool destroy": Verb("pool destroy -f extra"),
    "receive": Verb("receive vault/jambon/blanc", "streams/inc-w.zfs"),
    "receive -s": Verb("receive -s vault/jambon/blanc", "streams/inc-w.zfs", stepwise=True),
    "receive a tree": Verb("receive vault/fresh", "streams/full-Rw.zfs", stepwise=True),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with datasets, snapshots, holds, a bookmark; and the home that knows it."""
    top = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZKEEP_HOME", str(top / "home"))
        for line in (
            f"pool create vault {top / 'vault'}",
            "receive vault/jambon < streams/full-Rw.zfs",
            f"pool create extra {top / 'extra'}",
            "create extra/a",
            "create vault/spare",
            "receive vault/spare/copy < streams/full-Rw.zfs",
            "set a:b=c vault/jambon",
            "bookmark vault/jambon/blanc@2018 #mark",
            "hold tag vault/jambon/blanc@2018",
        ):
            words, _, name = line.partition(" < ")
            assert called(words, name) == 0, line
    return top


@pytest.mark.parametrize("verb", VERBS)
def test_p3_the_exit_status_says_what_is_true(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    bench = Bench(template, tmp_path / "place", VERBS[verb], monkeypatch)
    wrong = judge(bench, VERBS[verb], capfd)
    assert not wrong, "\n".join(wrong)


def test_p3_a_change_that_the_disk_does_not_let_be_taken_back_is_not_called_undone(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line of the journal is written, the sync fails, and so does all that follows: who knows."""
    verb = VERBS["set"]
    bench = Bench(template, tmp_path / "place", verb, monkeypatch)
    before = bench.state()
    tried: Callable[..., int] = LocalStore._append

    def fails(self: object, fd: int, name: str, content: bytes, fresh: bool) -> int:
        monkeypatch.setattr(os, "fsync", _refuse)
        monkeypatch.setattr(os, "ftruncate", _refuse)
        return tried(self, fd, name, content, fresh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zkeep.pool.store.files.LocalStore._append", fails)
        assert called(verb.line) == 5
    assert "whether the change was made is seen" in capfd.readouterr().err
    monkeypatch.undo()
    assert bench.state() != before


def _refuse(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
