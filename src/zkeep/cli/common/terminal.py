"""Standard output and error: what is printed there steers no terminal, whatever its encoding, and ends no work.

All text goes through Output, so that no verb has to think of it. Names that hostile streams, pools and peers chose are
in messages, tables and listings; control characters in them are escaped here at the latest. Where text is what was
asked for (`list`), a failure to write it is an error; where it only reports work that is done (`destroy -v`, all of
standard error), it is not.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import MappingProxyType
from typing import Any, ClassVar, TextIO, cast

from zkeep.cli.common import as_zfs
from zkeep.errors import Refused, TryAgain
from zkeep.names import printable

CLEAR = "\x1b[K"
"Erases the rest of a line."


class Closed:
    """Stands for a standard stream that was closed: a verb that needs it is refused."""

    def __init__(self, name: str) -> None:
        self._name = name

    def flush(self) -> None:
        """There is nothing."""

    def __getattr__(self, name: str) -> Any:
        raise Refused(f"standard {self._name} is closed")


class ClosedInput(Closed):
    """A standard input without content."""

    def isatty(self) -> bool:
        return True


def fill_closed_streams() -> None:
    """A file that is opened later must not get the number of a standard stream."""
    for name, closed in (("stdin", ClosedInput("input")), ("stdout", Closed("output")), ("stderr", None)):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, closed or os.fdopen(null, "w", closefd=False))


class Output:
    """Stands for sys.stdout or sys.stderr. `matters`: whether a failure to write is one of the verb."""

    limit: ClassVar[Callable[[], AbstractContextManager[None]]] = nullcontext
    "Around each write; it may raise TryAgain for one that waits too long: then nothing more is written."

    def __init__(self, stream: TextIO, *, matters: bool) -> None:
        self.rich_proxied_file = stream  # what rich writes to: it styles text, and escapes what others chose
        self.lost: OSError | None = None
        "Why something could not be written that does not matter."
        self._matters = matters

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    @property
    def encoding(self) -> str:
        """Never ASCII: click goes around such a stream. Nothing that a terminal lacks is written to it."""
        found = str(self.rich_proxied_file.encoding)
        return "latin-1" if found.lower().replace("-", "") in ("ascii", "usascii", "ansi_x3.41968", "646") else found

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError("text is written here")
        self.draw(printable(text, keep="\n\t"))
        return len(text)

    def draw(self, text: str) -> None:
        """Write text as it is: with the control characters that zkeep itself wants."""
        try:
            with Output.limit():
                self.rich_proxied_file.write(text)
        except (OSError, Refused) as error:
            self._fail(error)
        except TryAgain:
            discard(self.rich_proxied_file)
            raise

    @property
    def buffer(self) -> Any:
        """For what is written as bytes: names of files, contents."""
        return _Bytes(self.rich_proxied_file.buffer)

    def flush(self) -> None:
        try:
            with Output.limit():
                self.rich_proxied_file.flush()
        except (OSError, Refused) as error:
            self._fail(error)
        except TryAgain:
            discard(self.rich_proxied_file)
            raise

    def _fail(self, error: OSError | Refused) -> None:
        if self._matters:
            raise named(error) from None
        self.lost = self.lost or (error if isinstance(error, OSError) else OSError(str(error)))
        discard(self.rich_proxied_file)


class _Bytes:
    """The bytes below standard output: an error names it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, content: Any) -> int:
        try:
            return int(self._stream.write(content))
        except OSError as error:
            raise named(error) from None


def named(error: OSError | Refused) -> OSError | Refused:
    """An error of the system at standard output, with that in its message."""
    if isinstance(error, Refused | BrokenPipeError):
        return error
    return OSError(error.errno, error.strerror, "standard output")


_WAYS = {
    errno.EIO: "; the disk fails: the system's log (dmesg) says more",
    errno.EROFS: "; the disk is read-only: after an error of it, the system's log (dmesg) says why",
}
"What to look at where a disk does not write or read."


def explained(error: OSError) -> str:
    """What an error of the system says, with the file or pool that it names; of a full folder of temporary files, more.

    Everything that is temporary lies in folders called zkeep-... of TMPDIR.
    """
    what = f"{error.strerror or error}{_WAYS.get(error.errno or 0, '')}"
    if not isinstance(error.filename, str):
        return what
    import tempfile  # with what else it needs, a tenth of a short command's time

    from zkeep.pool.store.disk import FULL

    way, temporary = "", os.path.join(tempfile.gettempdir(), "zkeep-")
    if error.errno in FULL and error.filename.startswith(temporary):
        way = "; TMPDIR=FOLDER before the command takes a folder with more room"
    return f"{error.filename}: {what}{way}"


def discard(stream: TextIO) -> None:
    """Let what cannot be written, and all that follows, go nowhere: Python would try again at its end, and fail."""
    with suppress(OSError, ValueError, Refused):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    with suppress(OSError, ValueError, Refused):
        stream.flush()


@contextmanager
def guarded(*, matters: bool) -> Iterator[None]:
    """Print through Output inside; `matters`: whether standard output is what was asked for."""
    before = sys.stdout, sys.stderr
    # A closed standard output is an error only if the answer was to go there.
    wanted = matters or not isinstance(sys.stdout, Closed)
    out = Output(_tolerant(sys.stdout if wanted else os.fdopen(1, "w", closefd=False)), matters=matters)
    err = Output(_tolerant(sys.stderr), matters=False)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        # Put back what was there: tests, and verbs within verbs, go on with it.
        sys.stdout, sys.stderr = before
        settle(out, err)
        # What was done is done; but say that its report did not arrive. A reader that went away wants no more.
        if out.lost and not isinstance(out.lost, BrokenPipeError):
            why = out.lost.strerror or out.lost
            with suppress(OSError):
                print(f"zkeep: what was to be said on standard output is lost: {why}", file=sys.stderr, flush=True)


def _tolerant(stream: TextIO) -> TextIO:
    """Escape what the encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def draw(text: str, *, to: TextIO) -> None:
    """Over the line that a terminal shows."""
    write = getattr(to, "draw", to.write)
    write(f"\r{printable(text)}{CLEAR}")
    to.flush()


def encoded(text: str) -> bytes:
    """Encode text as standard output would, for what is written there as bytes."""
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace")


def settle(*streams: Output | TextIO) -> None:
    """Discard what cannot be flushed now, so that it does not fail when Python ends (exit status 120)."""
    for stream in streams or (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, Refused):
            discard(stream.rich_proxied_file if isinstance(stream, Output) else stream)


# Messages


def program() -> str:
    """The name of the command: zkeep; or zfs or zpool, through a link of that name."""
    name = os.path.basename(sys.argv[0])
    return name if name in ("zfs", "zpool") else "zkeep"


class Mask:
    """What must not be in a message, each with what stands for it: paths, for a client of a server."""

    words: Mapping[str, str] = MappingProxyType({})


def say(text: str) -> None:
    """Print one line on standard error."""
    line = " ".join(text.split())
    for secret, instead in Mask.words.items():
        line = line.replace(secret, instead)
    print(f"zkeep: {line}" if program() == "zkeep" else as_zfs.words(line, program()), file=sys.stderr)
