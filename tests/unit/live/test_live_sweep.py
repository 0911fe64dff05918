"""A thousand system calls, as root and as an ordinary user, do on a mount what they do in a folder of this system.

What is tried by default is a sample; ZKEEP_SWEEP=1 tries all. The operations and errors are those of pjdfstest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import sweepkit
from livekit import live, mounted

from mountkit import needs_fuse
from zkeep.live import protocol as p
from zkeep.live.files import LiveFiles
from zkeep.live.fuse import Operations
from zkeep.live.protocol import Op, Request

Zkeep = Callable[..., int]
NTH = 1 if os.environ.get("ZKEEP_SWEEP") else 97
FOUND = ("chown file 6777 of 65534 to -1:-1", "write 6666 of 1000", "ftruncate 2767 of 65534", "allocate 6666 of 1000")
"What once differed."
DIFFERENT = {f"chown file {mode} of 1000 to -1:-1" for mode in (6777, 6666)}
"Refused elsewhere if one who does not own it takes privileges away; here nothing happens."
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@needs_fuse
@needs_root
@pytest.mark.parametrize("user", [sweepkit.ROOT, sweepkit.NOBODY])
def test_calls_do_what_they_do_elsewhere(zkeep: Zkeep, tmp_path: Path, user: int) -> None:
    every = sweepkit.cases()
    assert len({name for name, _, _ in every}) == len(every) > 1000
    chosen = [case for number, case in enumerate(every) if number % NTH == user % NTH or case[0] in FOUND]
    with mounted(tmp_path, "-o", "allow_other") as (top, _):
        for above in (tmp_path, *tmp_path.parents[:3], top):
            if above.stat().st_uid == os.getuid():
                above.chmod(above.stat().st_mode | 0o055)
        mine, theirs = (sweepkit.play(folder / "sweep", user, chosen) for folder in (top, tmp_path))
    different = {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
    assert not {name: both for name, both in different.items() if name not in (DIFFERENT if user else ())}


# The same where nobody can become another user


@pytest.mark.parametrize(
    ("mode", "gid", "uid", "expected"),
    [
        (0o6777, 100, 1000, 0o777),  # set-user-ID, and set-group-ID with x, always go
        (0o6766, 100, 1000, 0o2766),  # in the file's group: without x, it stays
        (0o6766, 7, 1000, 0o766),
        (0o6766, 7, 0, 0o2766),
        (0o2766, 100, 1000, 0o2766),
        (0o644, 7, 1000, 0o644),
    ],
)
def test_what_a_file_loses_by_who_changes_it(
    zkeep: Zkeep, tmp_path: Path, mode: int, gid: int, uid: int, expected: int
) -> None:
    with live(tmp_path) as files:
        inode = files.make(b"file", stat.S_IFREG | mode, (1000, 100))
        operations = Operations(LiveFiles(files.dataset), print, lambda: None, acls=False)
        before = inode.fields.ctime
        body = p.SETATTR_IN.pack(*(0,) * 16)  # chown(2) of -1 and -1
        assert operations.answer(Request(Op.SETATTR, 1, inode.number, uid, gid, memoryview(body)))
        assert inode.fields.mode & 0o7777 == expected
        assert inode.fields.ctime > before


def test_who_may_not_take_privileges_away_changes_nothing(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        operations = Operations(LiveFiles(files.dataset), print, lambda: None, acls=False)
        body = memoryview(p.SETATTR_IN.pack(*(0,) * 16))
        for mode in (0o4755, 0o2755, 0o755):
            inode = files.make(b"%o" % mode, stat.S_IFREG | mode, (1000, 100))
            assert operations.answer(Request(Op.SETATTR, 1, inode.number, 2000, 2000, body))
            assert inode.fields.mode & 0o7777 == mode
