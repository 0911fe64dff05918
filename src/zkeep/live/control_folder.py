"""The folder `.zfs` of a mounted dataset, with its snapshots; what shows snapshots elsewhere answers for it."""

from __future__ import annotations

import errno
from typing import Any, Protocol

from zkeep.live.errors import fail

READS = frozenset({"getattr", "readdir", "readlink", "open", "read", "listxattr", "getxattr"})
SNAPSHOTS_AT = "/.zfs"


class Snapshots(Protocol):
    """Shows the snapshots that there are, as the operations of a read-only mount."""

    def operations(self) -> Any:
        """None: there is no snapshot."""
        ...

    def rest(self) -> None:
        """Give up what is open if it was not used for a while."""
        ...


class ControlFolder:
    """Answers for paths below .zfs. `paths`: of what is open there, by handle."""

    def __init__(self, snapshots: Snapshots | None) -> None:
        self._snapshots = snapshots
        self.paths: dict[int, str] = {}

    def path_of(self, arguments: tuple[Any, ...], handle: int | None) -> str | None:
        """The path that an operation is about, if that lies there. `arguments`: among them paths, one or two."""
        if self._snapshots is None:
            return None
        if handle is not None and handle in self.paths:
            return self.paths[handle]
        inside = (text for text in arguments[:2] if isinstance(text, str))
        return next((text for text in inside if (text + "/").startswith(SNAPSHOTS_AT + "/")), None)

    def answer(self, operation: str, path: str, arguments: tuple[Any, ...], handle: int) -> Any:
        """What an operation gives. `handle`: for what it opens."""
        if operation in ("release", "releasedir"):
            self.paths.pop(int(arguments[-1]), None)
            return 0
        found = self._snapshots.operations() if self._snapshots is not None else None
        if found is None:
            fail(errno.ENOENT)
        if operation == "opendir":
            found.getattr(path)
        elif operation not in READS:
            fail(errno.EROFS)
        else:
            result = getattr(found, operation)(path, *arguments[1:])
            if operation != "open":
                return result
        self.paths[handle] = path
        return handle

    def rest(self) -> None:
        if self._snapshots is not None and not self.paths:
            self._snapshots.rest()
