"""Folders for what a call needs for the time being. What a killed call left is removed by the next one that makes one.

A lock on the folder tells whether its call still runs; the processes that it forked hold it, too.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PREFIX = "zkeep-work-"
_OURS = re.compile(r"zkeep-work-[a-z0-9_]{8}", re.ASCII)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 5


@contextmanager
def work_folder() -> Iterator[Path]:
    """A private folder where temporary files lie, which is gone afterwards."""
    remove_leftovers(tempfile.gettempdir())
    with ExitStack() as stack:
        yield Path(_made(stack))


def _made(stack: ExitStack) -> str:
    """Make one and lock it.

    Raises:
        OSError: it cannot be made, or is taken away again and again.
    """
    for _ in range(_TRIES):
        name = tempfile.mkdtemp(prefix=PREFIX)
        with ExitStack() as undo, suppress(FileNotFoundError):
            undo.callback(_drop, name)
            fd = os.open(name, _FOLDER)
            undo.callback(os.close, fd)
            # Between making and locking it, another call may have taken it for a leftover: then another is made.
            if _lock(fd) and os.path.samestat(os.stat(name), os.fstat(fd)):
                stack.push(undo.pop_all())
                return name
    raise OSError(f"{tempfile.gettempdir()}: folders in it are taken away as soon as they are made")


def _drop(name: str) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(name)


def remove_leftovers(parent: str) -> None:
    """Remove the folders of our killed calls in a folder; whatever fails is left to the next call.

    Others can write to it. So nothing is removed but what is of this user, and what nobody else can have put there
    under such a name.
    """
    with suppress(OSError):
        at = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _is_safe(os.fstat(at)):
                for name in filter(_OURS.fullmatch, os.listdir(at)):
                    _remove(at, name)
        finally:
            os.close(at)


def _is_safe(folder: os.stat_result) -> bool:
    """Whether nobody but its owner, whom we trust, can rename what is ours there: they could choose what is removed."""
    shared = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not folder.st_mode & stat.S_ISVTX
    return folder.st_uid in (0, os.geteuid()) and not shared


def _remove(at: int, name: str) -> None:
    with suppress(OSError):
        fd = os.open(name, _FOLDER, dir_fd=at)
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                return
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(name, dir_fd=at)
        finally:
            os.close(fd)


def _lock(fd: int) -> bool:
    """Lock it. False: another call is just looking whether it is a leftover. Without locks none can, and none does."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
