"""Extracting a made-up tree into a target that does not take everything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from oddkit import FILE, FIRST, node, tree
from sealedkit import Entries, opened
from sealing import Thing

from zkeep.restore.files.extract import Extraction, ExtractOptions
from zkeep.tree.filesystem import Filesystem

LAST = (b"zz-last", FIRST + 99, FILE)
F = FIRST


@contextmanager
def made(where: Path, entries: Entries, *things: Thing) -> Iterator[Filesystem]:
    """A filesystem with these files and, behind them, a last one."""
    where.mkdir(exist_ok=True)
    with opened(where, tree([*entries, LAST], *things, node(LAST[1], content=b"last"))) as found:
        yield Filesystem(found)


def extracted(filesystem: Filesystem, target: Path, *paths: bytes, force: bool = False) -> Extraction:
    work = Extraction(filesystem, ExtractOptions(force=force))
    if paths:
        work.extract(str(target), paths)
    else:
        work.extract_all(str(target))
    return work


def failed(work: Extraction) -> dict[bytes, str]:
    return {path: str(error) for path, error in work.failed}


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, applies: Callable[..., bool]) -> None:
    """A target whose system calls say so."""
    real = getattr(os, name)

    def asked(*arguments: Any, **named: Any) -> Any:
        if applies(*arguments):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    monkeypatch.setattr(os, name, asked)
