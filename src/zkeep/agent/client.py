"""Asking the agent. Where none runs, no key is loaded; loading one starts it.

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
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from zkeep.errors import Refused, TryAgain

STARTING = 10.0
"Seconds that an agent may take to come up."
ANSWERING = 10.0
LONGEST = 100
"Bytes of a socket's path; systems differ, 103 is the least."
Request = dict[str, Any]


def path() -> Path:
    """Where the agent's socket is; elsewhere, by a short name, where the system takes no path as long as that."""
    wanted = _wanted()
    text = os.fsencode(wanted)
    if len(text) <= LONGEST:
        return wanted
    return Path(f"/tmp/zkeep-{os.geteuid()}") / f"agent-{blake2b(text, digest_size=8).hexdigest()}"  # noqa: S108


def _wanted() -> Path:
    given = os.environ.get("ZKEEP_AGENT")
    return Path(given) if given else own_folder() / "agent"


def own_folder() -> Path:
    """Where sockets and logs of what runs lie; it may not be there yet."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "zkeep"
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run/zkeep")
    import tempfile

    return Path(tempfile.gettempdir()) / f"zkeep-{os.geteuid()}"


def load(pool: int, root: int, key: bytes, seconds: float | None = None) -> None:
    """Hand a wrapping key to the agent, which is started if there is none."""
    request: Request = {"do": "load", "pool": pool, "root": root, "key": key.hex()}
    if seconds is not None:
        request["seconds"] = seconds
    if _ask(request) is None:
        _start()
        if _ask(request) is None:
            raise TryAgain("cannot reach the agent that should hold the key")


def unload(pool: int, root: int) -> bool:
    """Whether it was loaded."""
    answer = _ask({"do": "unload", "pool": pool, "root": root})
    return bool(answer and answer.get("found"))


def roots(pool: int) -> set[int]:
    """The roots of encryption, by dataset number, whose keys are loaded."""
    answer = _ask({"do": "roots", "pool": pool})
    return set(answer.get("roots", ())) if answer else set()


def keys() -> Iterable[bytes]:
    """All wrapping keys that are loaded."""
    answer = _ask({"do": "keys"})
    return [bytes.fromhex(key) for key in answer.get("keys", ())] if answer else []


def _ask(request: Request) -> Request | None:
    """The answer; None where nobody is there to give one."""
    where = path()
    if not where.is_socket() or not is_ours(where.parent):
        return None
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(ANSWERING)
        try:
            door.connect(str(where))
            door.sendall(json.dumps(request).encode() + b"\n")
            found = json.loads(door.makefile("rb").readline() or b"null")
        except (OSError, ValueError):
            return None
    return found if isinstance(found, dict) else None


def is_ours(folder: Path) -> bool:
    """Whether nobody else can put a socket there."""
    status = os.lstat(folder)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _start() -> None:
    import subprocess

    where = path()
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_ours(where.parent):
        raise Refused(f"cannot keep a key in memory: {where.parent} belongs to somebody else or is open to others")
    where.unlink(missing_ok=True)
    subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
        [sys.executable, "-m", "zkeep.agent.server", str(where)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    end = time.monotonic() + STARTING
    while not where.is_socket() and time.monotonic() < end:
        time.sleep(0.01)
