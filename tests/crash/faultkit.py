"""A disk that fails at a call of our choice: what zkeep.pool asks of the system and of SQLite is counted."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from zkeep.pool.store.index import Index

CALLS = (
    *("open", "pwritev", "ftruncate", "fsync", "link", "rename", "replace", "unlink", "mkdir", "rmdir"),
    *("stat", "fstat", "scandir", "listdir", "pread", "preadv", "statvfs"),
)


class Faults:
    """Counts calls; from the `first` on, `count` of them fail. None fails where `first` is below 0."""

    def __init__(self, first: int = -1, count: int = 1, number: int = errno.EIO) -> None:
        self.calls = 0
        self._failing = range(first, first + count) if first >= 0 else range(0)
        self._number = number
        self._lock = threading.Lock()

    def ask(self) -> None:
        with self._lock:
            at, self.calls = self.calls, self.calls + 1
        if at in self._failing:
            raise OSError(self._number, os.strerror(self._number))

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*arguments: Any, **more: Any) -> Any:
            if sys._getframe(1).f_globals.get("__name__", "").startswith("zkeep.pool"):
                self.ask()
            return call(*arguments, **more)

        return asked


@contextmanager
def failing(faults: Faults) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, faults.wrapped(getattr(os, name)))
        run = Index._run

        def asked(self: Index, query: str, *values: object) -> list[Any]:
            faults.ask()
            return run(self, query, *values)

        patch.setattr(Index, "_run", asked)
        yield
