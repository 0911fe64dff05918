"""Files that the caller names, beside streams and keys: small ones are read, others are replaced whole.

A name may lead to anything: a device that never ends, a folder, /dev/null. Devices are neither read nor replaced.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from zkeep.errors import Refused
from zkeep.names import shown

MOST_LINKS = 40
MOST = 1 << 20
"Bytes of patterns, or of public keys, that a file may have."
WRITER_SECONDS = 10
"How long somebody is waited for who writes to a pipe."


def read_small(name: str) -> bytes:
    """The content of a file or a pipe, or of standard input for `-`.

    Raises:
        Refused: it cannot be read, is neither, or has more than MOST bytes.
    """
    content = read_start(name, MOST + 1)
    if len(content) > MOST:
        raise Refused(f"cannot read {shown(name)}: it has more than {MOST} bytes")
    return content


def read_start(name: str, most: int) -> bytes:
    """At most `most` bytes from the start of a file or a pipe, or of standard input for `-`.

    Raises:
        Refused: it cannot be read, or is neither.
    """
    try:
        return sys.stdin.buffer.read(most) if name == "-" else _read(name, most)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {shown(name)}: {getattr(error, 'strerror', None) or error}") from None


def _read(name: str, most: int) -> bytes:
    # Asked before it is opened, as opening a device may have side effects; and again, as names can change.
    _check(os.stat(name).st_mode)
    # To open a pipe would wait for somebody who writes to it, for ever. One that the shell made (`<(command)`) is
    # open already.
    is_ready = name.startswith(("/dev/", "/proc/"))
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (0 if is_ready else os.O_NONBLOCK)
    with open(os.open(name, flags), "rb", buffering=0) as source:
        mode = os.fstat(source.fileno()).st_mode
        _check(mode)
        content = _first(source.fileno(), most) if stat.S_ISFIFO(mode) and not is_ready else b""
        os.set_blocking(source.fileno(), True)
        while len(content) < most and (more := source.read(most - len(content))):
            content += more
        return content


def _first(pipe: int, most: int) -> bytes:
    """What is in a pipe at first; nothing if somebody has opened it who did not write yet.

    Raises:
        OSError: nobody did for some time.
    """
    end = time.monotonic() + WRITER_SECONDS
    while time.monotonic() < end:
        try:
            if found := os.read(pipe, most):
                return found
        except BlockingIOError:
            return b""
        time.sleep(0.02)
    raise OSError(0, f"it is a pipe to which nobody wrote for {WRITER_SECONDS} seconds")


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise OSError(0, "it is a folder" if stat.S_ISDIR(mode) else "it is no file")


def _led_to(path: Path) -> Path:
    """The file that a name leads to: what a link leads to is replaced, not the link.

    In a folder that others can write to, a link may be theirs, and lead to a file that they must not replace.

    Raises:
        OSError: a link of another user's is there, or too many follow each other.
    """
    for _ in range(MOST_LINKS):
        place = Path(os.path.realpath(path.parent)) / path.name
        if not place.is_symlink():
            return place
        if os.lstat(place).st_uid not in (0, os.geteuid()):
            raise OSError(0, "a link of another user is there")
        path = place.parent / os.readlink(place)
    raise OSError(0, "too many links lead on from it")


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file in place of the one that is there, if any: a reader finds the old one or the new one.

    Raises:
        Refused: something else is there, or it cannot be written.
    """
    made = ""
    try:
        place = _led_to(path)
        if os.path.lexists(place) and not stat.S_ISREG(os.lstat(place).st_mode):
            raise OSError(0, "what is there is no regular file")
        fd, made = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:200]}.")
        with open(fd, "wb") as sink:
            sink.write(content)
            sink.flush()
            os.fchmod(fd, mode)
        os.replace(made, place)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"cannot write {shown(str(path))}: {reason}") from None
    finally:
        with suppress(OSError):
            os.unlink(made)
