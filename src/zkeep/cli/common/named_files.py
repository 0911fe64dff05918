"""Files that the caller names, beside streams and keys: small ones are read, others are replaced whole.

A name may lead to anything: a device that never ends, a folder, /dev/null. Devices are neither read nor replaced.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from zkeep.errors import Refused
from zkeep.names import shown

MOST_LINKS = 40
MOST = 1 << 20
"Bytes of patterns, or of public keys, that a file may have."


def read_small(name: str) -> bytes:
    """The content of a file or a pipe, or of standard input for `-`.

    Raises:
        Refused: it cannot be read, is neither, or has more than MOST bytes.
    """
    try:
        if name == "-":
            content = sys.stdin.buffer.read(MOST + 1)
        else:
            # Asked before it is opened, as opening a device may have side effects; and again, as names can change.
            _check(os.stat(name).st_mode)
            with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY), "rb") as source:
                _check(os.fstat(source.fileno()).st_mode)
                content = source.read(MOST + 1)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {shown(name)}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST:
        raise Refused(f"cannot read {shown(name)}: it has more than {MOST} bytes")
    return content


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
