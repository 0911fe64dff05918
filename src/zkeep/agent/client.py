"""The client of the agent. If no agent runs, no key is loaded; loading one starts it.

The socket lies in the runtime folder of the user: XDG_RUNTIME_DIR/zkeep, root's /run/zkeep, or a folder of the user's
own below the one for temporary files; ZKEEP_AGENT names another.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from zkeep.agent.listener import accepts
from zkeep.agent.memory import KEY, keep_secret, wipe
from zkeep.errors import Refused, TryAgain

STARTING = 10.0
"Seconds that an agent may take to start."
ANSWERING = 10.0
"Seconds that it may take to answer; it has nothing else to do."
LONGEST = 100
"Bytes of a socket's path; systems differ, 103 is the least."
MAX_ANSWER = 1 << 18
"Bytes of the largest answer: all keys, or numbers of datasets, that an agent can hold."
Request = dict[str, Any]


def path() -> Path:
    """The path of the agent's socket; a short one below /tmp if the system cannot take one that long."""
    given = os.environ.get("ZKEEP_AGENT")
    wanted = Path(given) if given else own_folder() / "agent"
    text = os.fsencode(wanted)
    if len(text) <= LONGEST:
        return wanted
    return Path(f"/tmp/zkeep-{os.geteuid()}") / f"agent-{blake2b(text, digest_size=8).hexdigest()}"  # noqa: S108


def own_folder() -> Path:
    """The user's runtime folder, for sockets and logs; it may not exist yet."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "zkeep"
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run/zkeep")
    import tempfile

    return Path(tempfile.gettempdir()) / f"zkeep-{os.geteuid()}"


def load(pool: int, root: int, key: bytes | bytearray, seconds: float | None = None) -> None:
    """Give a wrapping key to the agent; start an agent if there is none."""
    request: Request = {"do": "load", "pool": pool, "root": root}
    if seconds is not None:
        request["seconds"] = seconds
    end = time.monotonic() + STARTING
    while _ask(request, key) is None:
        if time.monotonic() > end:
            raise TryAgain("cannot reach the agent that should hold the key")
        _start(end)


def unload(pool: int, root: int) -> bool:
    """Unload a key; returns whether it was loaded."""
    answer = _ask({"do": "unload", "pool": pool, "root": root})
    return bool(answer and answer.get("found"))


def unload_one(pool: int, root: int) -> list[tuple[int, int]]:
    """Unload a key; returns the other roots, each with its pool's guid, for which the same key stays loaded."""
    answer = _ask({"do": "unload", "pool": pool, "root": root})
    return [(of, other) for of, other in answer.get("also", ())] if answer else []


def hand_over(pool: int, root: int, to: int) -> bool:
    """Let the key of a root be another one's; returns whether it was loaded."""
    answer = _ask({"do": "move", "pool": pool, "root": root, "to": to})
    return bool(answer and answer.get("found"))


def unload_gone(pool: int, datasets: Container[int] | None = None) -> None:
    """Unload the keys of datasets that were destroyed, or of all of a pool that is no longer known here.

    A key outlives neither in ZFS (OpenZFS module/zfs/dsl_crypt.c, spa_keystore_unload_wkey(), spa_keystore_fini()).
    """
    for root in roots(pool):
        if datasets is None or root in datasets:
            unload(pool, root)


def roots(pool: int) -> set[int]:
    """The roots of encryption, by dataset number, whose keys are loaded."""
    answer = _ask({"do": "roots", "pool": pool})
    return set(answer.get("roots", ())) if answer else set()


def keys() -> list[bytearray]:
    """All wrapping keys that are loaded; wipe() those that are not needed."""
    with _Answer() as answer:
        found = _ask({"do": "keys"}, answer=answer)
        count = found.get("keys", 0) if found else 0
        return [bytearray(answer.behind[at * KEY : (at + 1) * KEY]) for at in range(count)]


@contextmanager
def borrowed() -> Iterator[list[bytearray]]:
    """All wrapping keys that are loaded, overwritten in the end."""
    keep_secret(locked=False)
    found = keys()
    try:
        yield found
    finally:
        for key in found:
            wipe(key)


class _Answer:
    """A buffer for an answer: a line, and keys behind it. It never moves, and is overwritten in the end."""

    def __init__(self) -> None:
        self._buffer = bytearray(MAX_ANSWER)
        self._view = memoryview(self._buffer)
        self._filled = 0

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Overwrite what came."""
        wipe(self._view[: self._filled])
        self._filled = 0

    def receive(self, listener: socket.socket) -> bool:
        """Receive more; returns whether something came."""
        count = listener.recv_into(self._view[self._filled :])
        self._filled += count
        return bool(count)

    def complete(self) -> Request | None:
        """The JSON object, once it and all keys are complete; raises ValueError if it is not one."""
        # {"keys": 2}\n | 32 bytes | 32 bytes
        end = self._buffer.find(b"\n", 0, self._filled)
        if end < 0:
            return None
        found = json.loads(bytes(self._view[:end]))
        if not isinstance(found, dict):
            raise ValueError("no object")
        self.behind = self._view[end + 1 : self._filled]
        return found if len(self.behind) >= KEY * int(found.get("keys", 0)) else None


def _ask(request: Request, key: bytes | bytearray = b"", answer: _Answer | None = None) -> Request | None:
    """The answer; None where no agent is there to give one.

    An agent that hangs up without an answer is asked again: one that ends does so.

    Raises:
        TryAgain: an agent is there, and does not answer.
    """
    where = path()
    if not where.is_socket() or not is_ours(where.parent):
        return None
    # The key goes behind the line as it is, never into JSON, which would be copied.
    line = json.dumps(request).encode() + b"\n"
    end = time.monotonic() + ANSWERING
    while (left := end - time.monotonic()) > 0:
        found = None
        try:
            found = _talk(where, (line, key), left, answer or _Answer())
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except (BlockingIOError, ConnectionError, ValueError):
            pass
        except OSError:
            break
        if found is not None:
            if "error" in found:
                raise Refused(f"the agent refuses: {found['error']}")
            return found
        time.sleep(0.02)
    raise TryAgain("the agent that holds the keys does not answer")


def _talk(where: Path, pieces: Sequence[bytes | bytearray], seconds: float, answer: _Answer) -> Request | None:
    """Receive the answer; raises TimeoutError after so many seconds in all, even if bytes keep dripping in."""
    end = time.monotonic() + seconds
    found = None
    answer.clear()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(seconds)
        listener.connect(str(where))
        for piece in pieces:
            if piece:
                listener.sendall(piece)
        # The deadline is for all of it: an agent that sends a byte a second is no answer.
        while found is None:
            listener.settimeout(max(end - time.monotonic(), 0.001))
            if not answer.receive(listener):
                return None
            found = answer.complete()
    return found


def is_ours(folder: Path) -> bool:
    """Whether only this user can put a socket there."""
    status = os.lstat(folder)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _start(end: float) -> None:
    """Until somebody listens, the new agent or another; or until `end`, on the monotonic clock."""
    import subprocess

    where = path()
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_ours(where.parent):
        raise Refused(f"cannot keep a key in memory: {where.parent} belongs to somebody else or is open to others")
    if os.path.lexists(where) and not where.is_socket():
        raise Refused(f"cannot keep a key in memory: {where} is no socket")
    # Nothing secret is in its arguments or environment; the key follows through the socket.
    agent = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
        [sys.executable, "-m", "zkeep.agent.server", str(where)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    while agent.poll() is None and not accepts(str(where)) and time.monotonic() < end:
        time.sleep(0.01)
