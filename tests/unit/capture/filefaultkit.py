"""A folder whose files cannot be read as they should be (faultserver.py). What is wrong with a file is its name."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 3000
CONTENT = bytes(range(1, 251)) * 12
XATTRS = {
    "good": {"user.a": b"1", "user.empty": b"", "user.all": bytes(range(256))},
    "many names": {f"user.{number:0100}": b"%d" % number for number in range(60)},
    "large value": {"user.large": bytes(60_000), "user.small": b"s"},
    "value cannot be read": {"user.a": b"1", "user.bad": b"2", "user.c": b"3"},
    "value is gone": {"user.a": b"1", "user.bad": b"2", "user.c": b"3"},
    "value grows": {"user.bad": b"1"},
    "no names": {"user.a": b"1"},
    "none supported": {"user.a": b"1"},
}
AT_OPEN = {"gone": errno.ENOENT, "denied": errno.EACCES, "busy": errno.ETXTBSY, "link now": errno.ELOOP}
AT_READ = {"bad sector": errno.EIO, "stale": errno.ESTALE, "value cannot be read": 0}
PLAIN = ["empty", "one byte", "short", "shorter", "changes", "grows", "late", "pieces", "plain", "x" * 255]
NAMES = sorted({*XATTRS, *AT_OPEN, *AT_READ, *PLAIN})


@contextmanager
def faults(folder: Path) -> Iterator[None]:
    """The folder, mounted."""
    folder.mkdir()
    with subprocess.Popen([sys.executable, Path(__file__).with_name("faultserver.py"), folder]) as server:
        try:
            until = time.monotonic() + 20
            while not folder.is_mount():
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            yield
        finally:
            server.terminate()  # which unmounts
