"""The socket of a mounted dataset: another process asks it to commit, and to hold still while it takes a snapshot.

Who connects gets one line: `ok` once all that was done is committed, and nothing changes until the connection is
closed; or why that failed. The request is one byte. The socket lies in a folder that nobody else may enter.

For a rollback nothing is committed. When it is done, who asked sends the byte again, and gets a second line: `ok` once
the mount shows the state to which the dataset was rolled back.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from zkeep.errors import TryAgain
from zkeep.live.dataset import LiveDataset
from zkeep.live.kernel_cache import KernelCache
from zkeep.names import shown
from zkeep.pool.datasets import head
from zkeep.pool.datasets.destroy import lock_name

STILL = 20.0
"Seconds that a mount holds still for one that asked for it."
ANSWERING = 60.0
"Seconds that a commit may take."
MAX_ANSWER = 4096
COMMIT, SNAPSHOT, ROLLBACK, END, LOOK = b"c", b"s", b"r", b"e", b"p"
"""Requests: commit what waits; have a head in any case, which a snapshot will name; drop what waits, and go back; end;
commit, and look at the properties, which were set."""
_CANNOT = {ROLLBACK: "its mount cannot go back", LOOK: "its mount says"}
OK = b"ok\n"


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
            os.unlink(short)
        # Before it has a name: what has that name afterwards may be a link by then.
        os.fchmod(server.fileno(), 0o600)
        server.bind(short)
        server.listen()
        try:
            yield server
        finally:
            with suppress(FileNotFoundError):
                os.unlink(short)
            # To close it does not wake the thread that waits for a connection: it would take one of the next socket
            # that gets the same descriptor.
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


class Mount(Protocol):
    """What answers to FUSE, as far as a rollback changes it."""

    @property
    def cache(self) -> KernelCache: ...

    def still(self) -> AbstractContextManager[None]:
        """While what it returns is held, nothing changes; then it looks at the properties."""
        ...

    def tell_kernel(self) -> None:
        """Let the kernel know what the properties say now."""
        ...


def answer_requests(server: socket.socket, dataset: LiveDataset, mount: Mount) -> None:
    """Answer them in a thread, until the process ends."""
    threading.Thread(target=_answer, args=(server, dataset, mount), daemon=True).start()


def _answer(server: socket.socket, dataset: LiveDataset, mount: Mount) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client, suppress(OSError):
            client.settimeout(STILL)
            request = client.recv(1)
            try:
                if request == END:
                    client.sendall(OK)
                    os.kill(os.getpid(), signal.SIGTERM)  # the loop that answers the kernel ends, and unmounts
                elif request == ROLLBACK:
                    _let_roll_back(client, dataset, mount)
                elif request == LOOK:
                    _let_look(dataset, mount)
                    client.sendall(OK)
                else:
                    _hold_still(client, dataset, mount, wants_head=request == SNAPSHOT)
            except Exception as error:  # whatever it is, who asked is told
                client.sendall(f"{error}\n".encode(errors="replace")[:MAX_ANSWER])


def _hold_still(client: socket.socket, dataset: LiveDataset, mount: Mount, *, wants_head: bool) -> None:
    with mount.still():
        clean = wants_head and head.unnamed(dataset.pool, dataset.dataset) is None
        dataset.commit(even_if_clean=clean)
        client.sendall(OK)
        client.recv(1)  # returns when the other side is done


def _let_look(dataset: LiveDataset, mount: Mount) -> None:
    try:
        with mount.still():
            dataset.commit()
    finally:
        mount.tell_kernel()


def _let_roll_back(client: socket.socket, dataset: LiveDataset, mount: Mount) -> None:
    # 1. Nothing changes from here on. What the kernel knows can be told only before.
    with mount.still():
        known = mount.cache.known()
        client.sendall(OK)
        is_done = False
        with suppress(OSError):  # it took too long
            is_done = client.recv(1) == ROLLBACK
        # 2. Who asked may be in the middle of it, and must not be overtaken: it holds the dataset's lock until it is
        #    done. Or it was killed before it could say so: then another state is there now. If it was rolled back to
        #    the state that the mount has, only what waits is dropped.
        if not is_done:
            _wait_for_lock(dataset)
        state = head.current_state(dataset.pool, dataset.dataset)
        if state is None or not (is_done or state.guid != dataset.state.guid):
            return
        mount.cache.return_to(state, known)
    # 3. The kernel asks again for what it needs.
    mount.cache.drop(known)
    client.sendall(OK)


def _wait_for_lock(dataset: LiveDataset) -> None:
    """Wait until nobody holds the lock under which a dataset is rolled back, or as long as a commit may take."""
    with suppress(TryAgain), dataset.pool.store.lock(lock_name(dataset.dataset), shared=True, wait=ANSWERING):
        return


def _asked(client: socket.socket, path: Path, request: bytes, what: str) -> None:
    """Ask a mount, and return when it holds still.

    Raises:
        TryAgain: it does not answer, or cannot commit.
    """
    client.settimeout(ANSWERING)
    try:
        with _short(path) as short:
            client.connect(short)
    except OSError as error:
        raise TryAgain(f"{what}: its mount does not answer: {error.strerror or error}") from None
    _send(client, request, what)


def _send(client: socket.socket, request: bytes, what: str) -> None:
    try:
        client.sendall(request)
        answer = client.recv(MAX_ANSWER).decode(errors="replace").strip()
    except OSError as error:
        raise TryAgain(f"{what}: its mount does not answer: {error.strerror or error}") from None
    if answer != "ok":
        raise TryAgain(f"{what}: {_CANNOT.get(request, 'its mount cannot commit')}: {shown(answer)}")


def _check_still(clients: Iterable[socket.socket], what: str) -> None:
    """Raise TryAgain if a mount goes on already."""
    for client in clients:
        client.setblocking(False)
        try:
            client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:  # there is nothing to read as long as it holds still
            client.settimeout(ANSWERING)
            continue
        except OSError:
            pass
        raise TryAgain(f"{what}: it took too long, and a mount went on")


@contextmanager
def held_still(paths: Iterable[Path], what: str, request: bytes = SNAPSHOT) -> Iterator[Callable[[], None]]:
    """While this is held, the mounts with these sockets have committed everything, and change nothing.

    They wait for STILL seconds. Yields what raises TryAgain if one has gone on.

    Raises:
        TryAgain: one does not answer, or cannot commit.
    """
    clients: list[socket.socket] = []
    with ExitStack() as stack:
        # 1. Each mount commits and answers "ok", then waits as long as its connection is open.
        for path in paths:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            _asked(client, path, request, what)
            clients.append(client)
        # 2. None may have gone on while the others were asked.
        check = partial(_check_still, clients, what)
        check()
        yield check


@contextmanager
def rolling_back(path: Path, what: str) -> Iterator[Callable[[], None]]:
    """While this is held, a mount changes nothing; in the end it shows the state to which its dataset was rolled back.

    If what is inside fails, it goes on as before. It waits for STILL seconds, and until the dataset's lock is free.
    Yields what raises TryAgain if it has gone on.

    Raises:
        TryAgain: it does not answer.
    """
    with socket.socket(socket.AF_UNIX) as client:
        _asked(client, path, ROLLBACK, what)
        yield partial(_check_still, [client], what)
        _send(client, ROLLBACK, f"{what}: it is rolled back; unmount and mount it")


def let_look(path: Path, what: str) -> None:
    """Let a mount commit, and then look at the properties, which were set.

    Raises:
        TryAgain: it does not answer, or something of it holds only when it is mounted again.
    """
    with socket.socket(socket.AF_UNIX) as client:
        _asked(client, path, LOOK, what)


def end(path: Path, what: str) -> None:
    """Let a mount end, also while it is in use.

    Raises:
        TryAgain: it does not answer.
    """
    with socket.socket(socket.AF_UNIX) as client:
        _asked(client, path, END, what)
