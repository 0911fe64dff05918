"""A recursive snapshot is of all datasets or of none, and what an interrupted one leaves is in nobody's way."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from capturekit import extracted

from zkeep.capture.snapshot import take_states
from zkeep.cli.common.pools import opened
from zkeep.errors import TryAgain
from zkeep.names import DatasetName
from zkeep.pool.datasets import head
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.catalog import Catalog

KEY = bytes(range(32))
Zkeep = Callable[..., int]


@pytest.fixture
def tree(zkeep: Zkeep, tmp_path: Path) -> Zkeep:
    """v/home@a holds a file; v/home/below@b another one; v/home/empty holds nothing; v/home/disk is a volume."""
    (tmp_path / "src").mkdir()
    assert zkeep("create", "v/home/below") == zkeep("create", "v/home/empty") == 0
    assert zkeep("create", "-V", "1M", "v/home/disk") == 0
    for name, snapshot in (("one", "v/home@a"), ("two", "v/home/below@b")):
        (tmp_path / "src" / name).write_text(name)
        assert zkeep("snapshot", "--from", str(tmp_path / "src"), snapshot) == 0
    return zkeep


def names(like: str = "") -> list[str]:
    with opened("v") as pool:
        found = [str(s.name) for each in pool.all_snapshots().values() for s in each]
    return sorted(name for name in found if name.endswith(like))


def killed_before_commit(zkeep: Zkeep, number: int, *words: str) -> bool:
    """Call zkeep in a process that is killed when it is about to commit for the `number`-th time, from 0.

    Returns whether it was; otherwise the call must succeed.
    """
    child = os.fork()
    if not child:
        commit, count = Catalog._record, itertools.count()

        def record(*given: Any, **named: Any) -> Any:
            if next(count) >= number:
                os.kill(os.getpid(), signal.SIGKILL)
            return commit(*given, **named)

        setattr(Catalog, "_record", record)  # noqa: B010 (of this process only)
        os._exit(zkeep(*words))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_killed_at_any_transaction_it_took_all_or_none(
    tree: Zkeep, tmp_path: Path
) -> None:
    number = 0
    while killed_before_commit(tree, number, "snapshot", "-r", "v/home@all"):
        assert names("@all") == []
        number += 1
    assert number > 3  # each that was killed got further than the one before
    assert len(names("@all")) == 4
    # What was left by those that were killed is what got the name, and there is nothing else.
    for again in ("again", "once-more"):
        assert tree("snapshot", "-r", f"v/home@{again}") == 0
    assert extracted(tree, tmp_path, "v/home/below@once-more") == extracted(tree, tmp_path, "v/home/below@b")
    with opened("v") as pool:
        assert not scrub(pool).errors
        assert not [d for d in pool.tree().by_id.values() if head.unnamed(pool, d) or d.doc.get("live")]


def test_what_an_interrupted_one_left_does_not_keep_a_folder_from_being_stored(
    tree: Zkeep, tmp_path: Path
) -> None:
    interrupt_before_naming(tree)
    (tmp_path / "src" / "three").write_text("three")
    for name in ("v/home", "v/home/below", "v/home/empty"):
        assert tree("snapshot", "--from", str(tmp_path / "src"), f"{name}@next") == 0
        assert "three" in extracted(tree, tmp_path, f"{name}@next")
    with opened("v") as pool:
        assert not scrub(pool).errors


def test_the_last_snapshot_can_go_meanwhile(tree: Zkeep) -> None:
    interrupt_before_naming(tree)
    assert tree("destroy", "v/home/below@b") == 0
    assert tree("snapshot", "-r", "v/home@all") == 0
    assert names("@all") == ["v/home/below@all", "v/home/disk@all", "v/home/empty@all", "v/home@all"]


def test_a_snapshot_that_another_takes_meanwhile_leaves_none(tree: Zkeep) -> None:
    with opened("v") as pool:
        wanted = [DatasetName.parse(name).snapshot("all") for name in ("v/home", "v/home/below")]
        with pytest.raises(TryAgain, match="v/home/below got another one meanwhile"):
            take_states(pool, wanted, lambda wrapped: KEY, lambda: take(tree, "v/home/below@mine"))
    assert names("@all") == []
    assert tree("snapshot", "-r", "v/home@others") == 0


def take(zkeep: Zkeep, name: str) -> None:
    assert zkeep("snapshot", name) == 0


def interrupt_before_naming(zkeep: Zkeep) -> None:
    """Leave in each dataset a state without a name."""
    while True:
        with opened("v") as pool:
            if all(head.unnamed(pool, each) for each in pool.tree().by_id.values() if each.name.parent):
                return
        assert killed_before_commit(zkeep, 2, "snapshot", "-r", "v/home@all")
