"""Snapshots mounted in another process, for tests that look at them through the system."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zkeep.crypto.unwrap import GetKey
from zkeep.errors import Refused
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.restore.mount.fuse import ReadOnlyOperations, _driver, serve
from zkeep.restore.mount.layout import LazySnapshot, MountLayout
from zkeep.snapshot.open import OpenSnapshot


def why_not() -> str:
    """What is missing for FUSE here; nothing if it is all there."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    try:
        _driver()
    except Refused as error:
        return str(error)
    return ""


needs_fuse = pytest.mark.skipif(bool(why_not()), reason=why_not() or "FUSE is here")


def lazy(path: Path, snapshot: Snapshot, key: GetKey) -> LazySnapshot:
    """`path`: of the pool, which the process that mounts opens again."""

    def look() -> OpenSnapshot:
        pool = Pool.open(path)
        return OpenSnapshot(pool, pool.snapshot(snapshot.name), key)

    return LazySnapshot(snapshot.doc["name"], int(snapshot.doc["creation"]), look)


@contextmanager
def mounted(folder: Path, top: LazySnapshot, others: list[LazySnapshot] | None = None) -> Iterator[Path]:
    """Yields the file with the log."""
    folder.mkdir()
    log = folder.parent / f"{folder.name}.log"
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        _serve(folder, log, top, others, writes)
    os.close(writes)
    told = os.read(reads, 1)
    os.close(reads)
    try:
        assert told, log.read_text()
        yield log
        if os.path.ismount(folder):
            subprocess.run(["umount", folder], check=True)
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def _serve(folder: Path, log: Path, top: LazySnapshot, others: list[LazySnapshot] | None, ready: int) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with MountLayout(top, others) as files:
            log_to = lambda text: os.write(2, text.encode() + b"\n")  # noqa: E731
            serve(ReadOnlyOperations(files, 1 << 20, log_to, lambda: os.write(ready, b"r")), str(folder), "tests", {})
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
    finally:
        sys.stderr.flush()
        os._exit(0)
