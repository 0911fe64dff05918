"""A staging folder that a failing disk keeps is given up: the next one in the same place removes it, in any process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from zkeep.restore.files.staging import FOLDER, Staging


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, FOLDER)
    yield fd
    os.close(fd)


def failing(patch: pytest.MonkeyPatch, *names: str, at: int = 0) -> None:
    """From call `at` on, these calls fail, as those of a full or broken disk."""
    count = iter(range(10**6))

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*arguments: Any, **more: Any) -> Any:
            if next(count) >= at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*arguments, **more)

        return asked

    for name in names:
        patch.setattr(os, name, wrapped(getattr(os, name)))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("calls", [("listdir",), ("unlink",), ("rmdir",), ("stat", "open"), ("listdir", "rmdir")])
def test_what_cannot_be_removed_is_removed_by_the_next(
    target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...]
) -> None:
    before = descriptors()
    staging = Staging.within(target)
    os.close(os.open(staging.new_name(), os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=staging.fd))
    with monkeypatch.context() as patch:
        failing(patch, *calls)
        staging.close()
    assert descriptors() == before
    assert len(list(tmp_path.iterdir())) == 1
    Staging.within(target).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", range(1, 8))
def test_one_that_cannot_be_made_leaves_nothing_open(
    target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    before = descriptors()
    with monkeypatch.context() as patch:
        failing(patch, "open", "fstat", "stat", "listxattr", "removexattr", "dup", at=at)
        with suppress(OSError):
            Staging.within(target).close()
    assert descriptors() == before
    Staging.within(target).close()
    assert list(tmp_path.iterdir()) == []
