"""The socket of a mounted dataset: another process asks it to commit, and to hold still while it takes a snapshot.

Who connects gets one line: `ok` once all that was done is committed, and nothing changes until the connection is
closed; or why that failed. The request is one byte. The socket lies in a folder that nobody else may enter.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from zkeep.errors import TryAgain
from zkeep.live.dataset import LiveDataset
from zkeep.names import shown
from zkeep.pool.datasets import head

STILL = 20.0
"Seconds that a mount holds still for one that asked for it."
ANSWERING = 60.0
"Seconds that a commit may take."
MAX_ANSWER = 4096
COMMIT, SNAPSHOT = b"c", b"s"
"Requests: commit what waits; and have a head in any case, which a snapshot will name."


def path_of(folder: Path, pool_guid: int, dataset_guid: int) -> Path:
    return folder / f"live-{pool_guid:x}-{dataset_guid:x}"


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A path that is short enough for a socket, whatever its folder is called.

    Raises:
        PermissionError: others can put a socket into that folder. Which folder it is the pool says, so it may be any.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status, me = os.fstat(folder), os.geteuid()
        if status.st_mode & 0o022 or me not in (status.st_uid, 0):
            raise PermissionError(errno.EACCES, f"{path.parent} belongs to somebody else, or is open to others")
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket of this name; one that a mount left behind when it was killed is replaced.

    The caller has the lock of the mount, so that no other process listens there.
    """
    with socket.socket(socket.AF_UNIX) as server, _short(path) as short:
        with suppress(FileNotFoundError):
            path.unlink()
        server.bind(short)
        path.chmod(0o600)
        server.listen()
        try:
            yield server
        finally:
            with suppress(FileNotFoundError):
                path.unlink()


Still = Callable[[], AbstractContextManager[None]]
"While what it returns is held, nothing changes."


def answer_requests(server: socket.socket, dataset: LiveDataset, still: Still) -> None:
    """Answer them in a thread, until the process ends."""
    threading.Thread(target=_answer, args=(server, dataset, still), daemon=True).start()


def _answer(server: socket.socket, dataset: LiveDataset, still: Still) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client, suppress(OSError):
            client.settimeout(STILL)
            _hold_still(client, dataset, still, wants_head=client.recv(1) == SNAPSHOT)


def _hold_still(client: socket.socket, dataset: LiveDataset, still: Still, *, wants_head: bool) -> None:
    with ExitStack() as stack:
        try:
            stack.enter_context(still())
            pool = dataset.pool
            clean = wants_head and head.unnamed(pool, pool.dataset(dataset.name)) is None
            dataset.commit(even_if_clean=clean)
        except Exception as error:  # whatever it is, who asked is told
            client.sendall(f"{error}\n".encode(errors="replace")[:MAX_ANSWER])
            return
        client.sendall(b"ok\n")
        client.recv(1)  # returns when the other side is done


@contextmanager
def held_still(paths: Iterable[Path], what: str, request: bytes = SNAPSHOT) -> Iterator[None]:
    """While this is held, the mounts with these sockets have committed everything, and change nothing.

    Raises:
        TryAgain: one does not answer, or cannot commit.
    """
    clients = []
    with ExitStack() as stack:
        # 1. Each mount commits and answers "ok", then waits as long as its connection is open.
        for path in paths:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(ANSWERING)
            try:
                with _short(path) as short:
                    client.connect(short)
                client.sendall(request)
                answer = client.recv(MAX_ANSWER).decode(errors="replace").strip()
            except OSError as error:
                raise TryAgain(f"{what}: its mount does not answer: {error.strerror or error}") from None
            if answer != "ok":
                raise TryAgain(f"{what}: its mount cannot commit: {shown(answer)}")
            clients.append(client)
        # 2. None may have gone on while the others were asked.
        for client in clients:
            with suppress(BlockingIOError):  # there is nothing to read as long as it holds still
                client.setblocking(False)
                if not client.recv(1):
                    raise TryAgain(f"{what}: it took too long, and a mount went on")
        yield
