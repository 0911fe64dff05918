"""What is mounted, and where; and the files that mounts leave."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from zkeep.cli.common.pools import opened as open_pool
from zkeep.cli.common.pools import runtime_folder
from zkeep.cli.common.terminal import say
from zkeep.errors import Refused, ZkeepError
from zkeep.names import BadName, DatasetName, parse_any

MOUNTS = Path("/proc/self/mounts")
KIND = "fuse.zkeep"
Mounted = tuple[str, str]
"The name of what is mounted, and the folder."


def mounted() -> list[Mounted]:
    """Names as they were when they were mounted, and folders, oldest first."""
    try:
        lines = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        raise Refused("cannot tell what is mounted: this system has no /proc/self/mounts") from None
    fields = [line.split(" ") for line in lines]
    return [(_unescaped(words[0]), _unescaped(words[1])) for words in fields if len(words) > 2 and words[2] == KIND]


def _unescaped(text: str) -> str:
    """Blanks, tabs, newlines and backslashes are written there as a backslash and three octal digits."""
    for byte in b" \t\n\\":
        text = text.replace(f"\\{byte:03o}", chr(byte))
    return text


def named_now(mounts: list[Mounted]) -> list[Mounted]:
    """The same with the names that datasets have now: one that is mounted may be renamed."""
    now: dict[str, dict[str, str]] = {}
    for name, _ in mounts:
        pool_name = name.partition("/")[0].partition("@")[0]
        if pool_name not in now:
            now[pool_name] = _folders(name)
    return [(now[name.partition("/")[0].partition("@")[0]].get(folder, name), folder) for name, folder in mounts]


def _folders(name: str) -> dict[str, str]:
    """The datasets of a pool that are mounted read-write, by their folders. `name`: of one of them."""
    from zkeep.pool.datasets.head import is_mounted

    with suppress(BadName, ZkeepError, OSError):
        parsed = parse_any(name)
        with open_pool(parsed if isinstance(parsed, DatasetName) else parsed.dataset) as pool:
            live = [dataset for dataset in pool.tree().by_id.values() if dataset.doc.get("live")]
            return {str(d.doc.get("folder")): d.name.text for d in live if is_mounted(pool, d)}
    return {}


def clear_dead(folder: str) -> None:
    """Unmount what a process that was killed left mounted on a folder: nobody can use it (ENOTCONN).

    What is mounted on folders in there goes with it, as nobody can reach it; it is committed.
    """
    from zkeep.live.device import unmount

    below = [(name, path) for name, path in mounted() if path.startswith(f"{folder}/")]
    if any(path == folder for _, path in mounted()):
        try:
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))  # stat() may still be answered by the kernel alone
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                unmount(folder)
                for name, path in named_now(below):
                    say(f"warning: {name} was unmounted from {path} as well: mount it again")


def log_of(folder: str) -> Path:
    return runtime_folder() / f"mount-{quote(folder, safe='')[-200:]}.log"


def lost_of(folder: str) -> Path:
    """The file that says why the last commit of a mount failed; the next mount leaves it, `unmount` tells it once."""
    log = log_of(folder)
    return log.with_name(f"{log.name.removesuffix('.log')}.lost")
