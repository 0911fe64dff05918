"""Runs verbs of zkeep or zfs, on this machine or over OpenSSH, as lists of words: no shell is used here.

What comes back is hostile until it is checked: it is bounded in size and time, each row must be a name below the
dataset that was asked for and numbers in their ranges, and messages lose what could steer a terminal.
"""

from __future__ import annotations

import io
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import IO

from zkeep.backup.patience import Patience
from zkeep.backup.places import Host, Place
from zkeep.backup.plan import Have, Point
from zkeep.errors import Refused, TryAgain
from zkeep.format.records import HEADER
from zkeep.names import MAX_UINT64, BookmarkName, DatasetName, SnapshotName, printable, shown, whole_number
from zkeep.pool.transfer.token import Token

MOST_ANSWER = 64 << 20
"Bytes of an answer: some 500,000 snapshots."
MOST_LINES = 500_000
"Lines of an answer: as objects they take ten times the memory of their bytes."
MOST_LINE = 128 << 10
"Bytes of one: a resume token has 64 KiB at most."
MOST_MESSAGE = 64 << 10
"Bytes of its messages, of which the last are kept."
ANSWER_SECONDS = 900.0
"How long a question may take."
STALL_SECONDS = 3600.0
"How long a program may take to end when it has given or taken all of a stream."
CHUNK = 1 << 18
_ANSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.?|[\x80-\x9f]")
_REASON = re.compile(r" Partially received snapshot is saved\..*\(([^()]*)\)$")
_TOKEN = re.compile(r"\b1-[0-9a-f]+-[0-9a-f]+-[0-9a-f]{20,}")
_GONE = re.compile(r"dataset does not exist|no such pool|parent does not exist")
_TYPES = ("filesystem", "volume", "snapshot", "bookmark")
_COLUMNS = ("name", "guid", "createtxg", "type", "receive_resume_token")
_ADMIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
SSH_STATUS, NOT_FOUND = 255, 127
_KILLED = range(129, 193)
"How a shell over there ends whose program was ended by a signal: 128 and its number."
_NO_PROGRAM = {
    "zkeep": "'{host}' finds no zkeep for commands that come over ssh: README, 'Set up', has the line for that",
    "zfs": "'{host}' finds no zfs on the path of commands that come over ssh",
}


def clean(text: str, limit: int = 400) -> str:
    """What a peer said, on one line, without what could steer a terminal."""
    line = printable(" ".join(_ANSI.sub("", text).split()))
    if (found := _REASON.search(line)) is not None:
        # Of a receive that broke off; the rest tells how to resume it by hand.
        line = _reason(line[: found.start()], found[1])
    line = _TOKEN.sub("TOKEN", line)
    return line if len(line) <= limit else f"{line[: limit // 2]}...{line[-limit // 2 :]}"


def _reason(said: str, why: str) -> str:
    """Why a receive broke off, of what is said first and at the end: each thing once."""
    return why if why.startswith("cannot ") else said if why in said else f"{said} ({why})"


@dataclass(frozen=True)
class Done:
    """How a program ended, and the last that it said."""

    status: int
    said: str


@dataclass
class Running:
    """A program under way. Its messages are collected by a thread, so that it never waits for somebody to read them."""

    process: subprocess.Popen[bytes]
    _said: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        with suppress(OSError, ValueError):
            while chunk := os.read(self.process.stderr.fileno(), 1 << 14):
                self._said += chunk
                del self._said[:-MOST_MESSAGE]

    def end(self, seconds: float) -> Done:
        """Wait for its end; one that does not come is brought about."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return Done(SSH_STATUS, f"it did not end within {seconds:.0f} seconds")
        self._listener.join(5)
        return Done(status, clean(bytes(self._said).decode("utf-8", "replace")))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._listener.join(5)


@dataclass(frozen=True)
class Peer:
    """The program at the other end: here, or on a host. `ssh`: more words for ssh, before the host."""

    program: str = "zkeep"
    host: Host | None = None
    ssh: tuple[str, ...] = ()

    @classmethod
    def of(cls, place: Place, ssh: Sequence[str] = ()) -> Peer:
        return cls(place.program, place.host, tuple(ssh))

    def __str__(self) -> str:
        return f"{self.program} on {self.host}" if self.host else self.program

    def words(self, *words: str) -> list[str]:
        """The list of words that is run. Only the host's login shell, or zkeep server, ever parses a line."""
        if self.host is None:
            own = [sys.executable, "-P", "-m", "zkeep"] if self.program == "zkeep" else [_found(self.program)]
            return [*own, *words]
        line = shlex.join([self.program, *words])
        to = f"{self.host.user}@{self.host.name}" if self.host.user else self.host.name
        port = ["-p", str(self.host.port)] if self.host.port else []
        quiet = [] if sys.stdin is not None and sys.stdin.isatty() else ["-o", "BatchMode=yes"]
        alive = ["-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=6", "-o", "ConnectTimeout=60"]
        return ["ssh", "-T", *self.ssh, *quiet, *alive, *port, "--", to, line]

    @contextmanager
    def running(self, *words: str, stdin: int, stdout: int) -> Iterator[Running]:
        """Run a verb inside; whatever happens, it does not outlive this."""
        called = self.words(*words)
        try:
            process = subprocess.Popen(called, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)  # noqa: S603
        except FileNotFoundError:
            raise Refused(f"cannot run {called[0]}: there is no such program here") from None
        run = Running(process)
        try:
            yield run
        finally:
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            if process.poll() is None:
                run.kill()

    def ask(self, *words: str) -> tuple[Done, bytes]:
        """Run a verb that answers; also one that says no.

        Raises:
            TryAgain: it could not be reached, or takes too long; Refused: it is not there, or says too much.
        """
        with self.running(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as run:
            assert run.process.stdout is not None
            answer = _read(run.process.stdout, self, time.monotonic() + ANSWER_SECONDS)
            done = run.end(ANSWER_SECONDS)
        self.check_reached(done)
        return done, answer

    def check_reached(self, done: Done) -> None:
        """Raises TryAgain, Refused: it is not the verb that said no, but ssh, or a shell that does not find it."""
        if self.host is None:
            return
        if done.status == SSH_STATUS:
            way = "; --sshkey FILE names another key" if "Permission denied (" in done.said else ""
            raise TryAgain(f"cannot reach {self.host}: {done.said or 'the connection broke'}{way}")
        if done.status < 0:
            raise TryAgain(f"the connection to {self.host} broke: ssh was ended by signal {-done.status}")
        if done.status == NOT_FOUND:
            raise Refused(_NO_PROGRAM[self.program].format(host=self.host))

    def do(self, *words: str, cannot: str) -> None:
        """Run a verb that must succeed. `cannot`: what an error begins with."""
        done, _ = self.ask(*words)
        self.check(done, cannot)

    def check(self, done: Done, cannot: str) -> None:
        """Raises TryAgain, Refused: it failed."""
        if done.status == 0:
            return
        self.check_reached(done)
        why = done.said or f"it ended with status {done.status}"
        text = f"{cannot}: {self} says: {why}"
        # Who was killed refused nothing: its machine was out of memory, or went down.
        killed = done.status < 0 or (self.host is not None and done.status in _KILLED)
        raise TryAgain(text) if killed or done.status in (5, SSH_STATUS) else Refused(text)

    def have(self, dataset: DatasetName) -> Have:
        """Ask for what the peer has of a dataset, in one call.

        Raises:
            TryAgain, Refused: it does not say, or nothing that can be believed.
        """
        done, answer = self.ask(
            *("list", "-H", "-p", "-d", "1", "-t", ",".join(_TYPES), "-o", ",".join(_COLUMNS), "-s", "createtxg"),
            dataset.text,
        )
        if done.status and _GONE.search(done.said):
            return Have()
        self.check(done, f"cannot list {dataset}")
        return parse_listing(answer, dataset, str(self))


def _found(program: str) -> str:
    """Its file; cron has no folder of the administrator's programs on its path."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_ADMIN])
    return shutil.which(program, path=path) or program


def _read(pipe: IO[bytes], peer: Peer, until: float) -> bytes:
    found, lines = bytearray(), 0
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise TryAgain(f"{peer} did not answer within {ANSWER_SECONDS:.0f} seconds")
        chunk = os.read(pipe.fileno(), CHUNK)
        if not chunk:
            return bytes(found)
        found += chunk
        lines += chunk.count(b"\n")
        if len(found) > MOST_ANSWER:
            raise Refused(f"{peer} gave an answer of more than {MOST_ANSWER >> 20} MiB to a question")
        if lines > MOST_LINES:
            raise Refused(f"{peer} gave an answer of more than {MOST_LINES} lines to a question")


def rows(answer: bytes, columns: int) -> Iterator[list[str]]:
    """The cells of each line of an answer, of which there should be `columns`; more are one cell more.

    One line after the other: a bad one is found before the next is looked at.

    Raises:
        ValueError: one is no text, or too long.
    """
    for line in io.BytesIO(answer):
        if len(line) > MOST_LINE:
            raise ValueError(f"a line of {len(line)} bytes")
        yield line.removesuffix(b"\n").decode("utf-8").split("\t", columns)


def parse_listing(answer: bytes, dataset: DatasetName, who: str) -> Have:
    """Check the rows of a listing.

    Raises:
        Refused: they are not what was asked for.
    """
    try:
        exists, token, points = False, None, []
        for cells in rows(answer, len(_COLUMNS)):
            if len(cells) != len(_COLUMNS):
                raise ValueError("\t".join(cells))
            name, guid, createtxg, kind, resume = cells
            if kind not in _TYPES:
                raise ValueError(kind)
            if kind in ("filesystem", "volume"):
                if DatasetName.parse(name) == dataset:
                    exists, token = True, Token.decode(resume) if resume not in ("-", "") else None
            else:
                points.append(_point(name, guid, createtxg, dataset))
    except (ValueError, Refused) as error:
        raise Refused(f"{who} lists what is no part of {dataset}: {clean(shown(str(error)))}") from None
    # The rows fit one another: the plan goes by guids, and a dataset has what is listed as its own.
    guids = [point.guid for point in points if point.is_snapshot]
    if len(set(guids)) != len(guids):
        raise Refused(f"{who} lists two snapshots of {dataset} with the same guid")
    if points and not exists:
        raise Refused(f"{who} lists snapshots of {dataset}, and not the dataset itself")
    return Have(exists, tuple(sorted(points, key=lambda point: point.createtxg)), token)


def _point(name: str, guid: str, createtxg: str, dataset: DatasetName) -> Point:
    parsed = SnapshotName.parse(name) if "@" in name else BookmarkName.parse(name)
    if parsed.dataset != dataset:
        raise ValueError(name)
    tail = name[len(dataset.text) :]
    return Point(tail, whole_number(guid, MAX_UINT64, 1), whole_number(createtxg, MAX_UINT64))


def pipe(
    sender: Running,
    receiver: Running,
    progress: Callable[[int], None] = lambda size: None,
    check: Callable[[bytes], None] = lambda head: None,
) -> bool:
    """Carry a stream from one program to the other, to its end; whether the receiver took all of it.

    `check`: called with the header of the first record before anything is passed on; it may raise.

    Raises:
        TryAgain: nothing, or next to nothing, moved for too long.
    """
    assert sender.process.stdout is not None
    assert receiver.process.stdin is not None
    source, sink = sender.process.stdout.fileno(), receiver.process.stdin.fileno()
    os.set_blocking(sink, False)  # a receiver that takes nothing must not stop the clock
    giving, taking = Patience("cannot send"), Patience("cannot receive")
    try:
        # The first header is looked at while nothing was passed on yet.
        chunk = _first_header(source, giving)
        check(chunk)
        while chunk:
            _write(sink, chunk, taking)
            progress(len(chunk))
            chunk = _read_some(source, CHUNK, giving)
        return True
    except BrokenPipeError:
        return False
    finally:
        with suppress(OSError):
            receiver.process.stdin.close()  # the end of the stream, or of a part of it


def _first_header(source: int, giving: Patience) -> bytes:
    """The header of a stream's first record; less of it if the sender ends."""
    head = b""
    while len(head) < HEADER:
        chunk = _read_some(source, HEADER - len(head), giving)
        if not chunk:
            break
        head += chunk
    return head


def _read_some(source: int, most: int, giving: Patience) -> bytes:
    giving.wait([source], [])
    chunk = os.read(source, most)
    giving.moved(len(chunk))
    return chunk


def _write(sink: int, chunk: bytes, taking: Patience) -> None:
    left = memoryview(chunk)
    while left:
        taking.wait([], [sink])
        with suppress(BlockingIOError):
            count = os.write(sink, left)
            taking.moved(count)
            left = left[count:]
