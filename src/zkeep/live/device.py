"""A connection to the kernel's FUSE: mount a folder, read requests, write answers.

It speaks to /dev/fuse itself. libfuse would know files by paths only, which takes time and needs tricks for files that
are open and have no name, and which of its versions a system has decides what works.
"""

from __future__ import annotations

import array
import errno
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from zkeep.errors import Refused
from zkeep.live.mount_flags import device_of
from zkeep.live.protocol import HEADER_IN, HEADER_OUT, MAX_WRITE, Op, Request, parse

READ_AHEAD = 4 << 20
"Bytes that the kernel reads ahead, where it lets us say so: a few requests wait while one is answered."
ROOM = HEADER_IN.size + MAX_WRITE + (64 << 10)
"Bytes of the longest request."
GONE = (errno.ENODEV, errno.ENOTCONN)
"What reading fails with once it is unmounted."
AGAIN = (errno.EINTR, errno.ENOENT, errno.EAGAIN)
"What it fails with when a request was taken back."
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Answer = Callable[[Request], tuple[int, bytes | bytearray | memoryview] | None]
"Errno (0: none) and body of an answer; None where the kernel waits for none."


class _Ended(BaseException):
    """A signal came while nothing was being done."""


def _tool() -> str:
    tool = next((tool for tool in ("fusermount3", "fusermount") if shutil.which(tool)), None)
    if tool is None:
        raise Refused("mounting needs fusermount3, which is not installed (Debian: apt install fuse3)")
    return tool


def mount(folder: str, options: list[str]) -> int:
    """Mount on a folder; a file descriptor for its requests.

    Raises:
        Refused: it cannot be mounted.
    """
    # The tool may do what an ordinary user may not. It opens /dev/fuse, mounts, and hands the file over.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        command = [_tool(), "-o", ",".join(options), "--", folder]
        done = subprocess.run(  # noqa: S603
            command, env=environment, pass_fds=[theirs.fileno()], check=False, stderr=subprocess.PIPE
        )
        if done.returncode:
            reason = " ".join(done.stderr.decode(errors="replace").split())
            raise Refused(reason.split(": ", 1)[-1] or "FUSE would not")
        return _received(ours)


def _received(ours: socket.socket) -> int:
    """The file descriptor that comes over a socket."""
    _, messages, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(array.array("i", [0]).itemsize), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: fds.itemsize])
    if not fds:
        raise Refused("FUSE would not: it gave no connection")
    return fds[0]


def unmount(folder: str) -> None:
    """Take a mount away, from those who use it as well; they get ENOTCONN."""
    subprocess.run([_tool(), "-u", "-q", "-z", "--", folder], check=False, capture_output=True)  # noqa: S603


def widen_read_ahead(folder: str) -> None:
    """Let the kernel read ahead as much as some requests may bring, where it lets us: only root may, as a rule.

    Otherwise it asks for 128 KiB at a time, eight times as often, and waits for most of them.
    """
    device = device_of(folder)
    if device is None:
        return
    with suppress(OSError):
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(READ_AHEAD >> 10))


class Device:
    """Answers the requests of one mount, one after the other."""

    def __init__(self, fd: int, folder: str) -> None:
        self._fd = fd
        self._folder = folder
        self._is_waiting = False
        self._ended = False

    def serve(self, answer: Answer) -> None:
        """Until it is unmounted, or a signal ends it: then it is unmounted here."""
        try:
            with self._signals():
                self._serve(answer)
        except _Ended:
            pass
        except BaseException:
            self._ended = True  # nobody will answer: who asks gets an error, and waits no longer
            raise
        finally:
            os.close(self._fd)
            if self._ended:
                unmount(self._folder)

    def _serve(self, answer: Answer) -> None:
        buffer = bytearray(ROOM)
        message, into, begin = memoryview(buffer), [buffer], int(Op.INIT)
        while not self._ended:
            size = self._read(into)
            if size == 0:
                return
            request = parse(message[:size])
            found = answer(request)
            if found is not None:
                self._write(request.unique, *found)
            if request.op == begin:
                widen_read_ahead(self._folder)

    def _read(self, into: list[bytearray]) -> int:
        """The length of the next request; 0: there will be none any more."""
        self._is_waiting = True
        try:
            # A signal that came just before only said so.
            if self._ended:
                raise _Ended
            while True:
                try:
                    return os.readv(self._fd, into)
                except OSError as error:
                    if error.errno in GONE:
                        return 0
                    if error.errno not in AGAIN:
                        raise
        finally:
            self._is_waiting = False

    def _write(self, unique: int, number: int, body: bytes | bytearray | memoryview) -> None:
        head = HEADER_OUT.pack(HEADER_OUT.size + len(body), -number, unique)
        # ENOENT: who asked was interrupted, and waits no longer.
        try:
            os.writev(self._fd, [head, body] if body else [head])
        except OSError as error:
            if error.errno not in (*GONE, errno.ENOENT):
                # The kernel does not like the answer. One request fails then, and not the mount.
                with suppress(OSError):
                    os.write(self._fd, HEADER_OUT.pack(HEADER_OUT.size, -errno.EIO, unique))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """A signal ends the loop: at once where it waits, else after the request that is being answered."""

        def end(number: int, frame: FrameType | None) -> None:
            self._ended = True
            if self._is_waiting:
                raise _Ended

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, end) for number in SIGNALS}
        try:
            yield
        finally:
            for number in before:
                with suppress(ValueError):
                    signal.signal(number, signal.SIG_IGN)  # nothing must end the last commit
