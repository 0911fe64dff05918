"""The store: the one small port through which everything durable of a pool is written.

What holds for every implementation (tests/conformance runs one suite over all of them):

    put      create-only and all or nothing: after a crash the name is absent or has the whole content
    draft    grows under a private name, outlives the process, and appears under its final name whole,
             durable and create-only, or not at all
    append   returns when the bytes are durable; a crash can leave a torn tail, never damage before it
    delete   durable when it returns; deleting what is absent is not an error
    lock     advisory, per name, gone with the process that held it, however that died

Names are relative, `/`-separated, of letters, digits, `.`, `_` and `-`; no other is ever used (BadName). Errors
are FileExistsError and FileNotFoundError where a name is or is not there, TryAgain where a lock is busy, Damaged
where a file is shorter than asked for, is not a regular file of the store's own, or the disk cannot read it, and
OSError for the disk's other troubles (full, read-only).

Where nothing can be written, whatever reads works, shared locks included.

put, draft and delete map to a bucket's create-only objects, append to numbered ones: nothing here updates
in place what was published.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from zkeep.errors import Damaged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Places = NDArray[np.int64]

Buffer = bytes | bytearray | memoryview


class BadName(Damaged, ValueError):
    """A name that a store does not have: a document that holds it is not what was stored."""


class Blob(AbstractContextManager["Blob"], Protocol):
    """A published file, open for reading, by many threads if need be. It is closed, too, when nobody holds it."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; Damaged if the file ends before."""
        ...

    def readinto(self, offset: int, *buffers: bytearray | memoryview) -> None:
        """Fill all buffers, one after the other, from `offset` on; Damaged if the file ends before."""
        ...

    def readinto_each(self, places: Places, sizes: Places, out: memoryview, to: Places) -> None:
        """Many short stretches of the file, each to its place in `out`; Damaged if the file ends before one does."""
        ...

    def fileno(self) -> int:
        """A descriptor for os.sendfile and its like; OSError where the store has none."""
        ...

    def close(self) -> None: ...


class Draft(AbstractContextManager["Draft"], Protocol):
    """A file in the making, private to the holder of the lock that its maker took.

    Leaving the `with` block closes it and keeps what was written, for `Store.draft` to go on with.
    """

    @property
    def size(self) -> int: ...

    def write(self, *buffers: Buffer, soon: bool = False) -> None:
        """Append them all, in order. Durable only after sync() or publish().

        `soon`: they will be read soon; of others no copy needs to be kept in memory.
        """
        ...

    def readinto(self, offset: int, *buffers: bytearray | memoryview) -> None: ...

    def truncate(self, size: int) -> None: ...

    def sync(self) -> None: ...

    def publish(self, name: str) -> None:
        """Make it durable, then let it appear as `name`, durably. FileExistsError if that is there."""
        ...

    def discard(self) -> None:
        """Remove it. It is closed after."""
        ...

    def close(self) -> None: ...


class Store(Protocol):
    """See the module's docstring for what every implementation keeps."""

    def put(self, name: str, content: Buffer) -> None: ...

    def get(self, name: str) -> bytes: ...

    def open(self, name: str) -> Blob: ...

    def size(self, name: str) -> int: ...

    def exists(self, name: str) -> bool: ...

    def delete(self, name: str) -> None: ...

    def names(self, folder: str) -> list[str]:
        """All published names below `folder`, sorted; empty if there is no such folder."""
        ...

    def draft(self, name: str) -> Draft:
        """Begin the draft `name`, or go on with the one that a process left behind."""
        ...

    def drafts(self) -> list[str]: ...

    def append(self, name: str, content: Buffer) -> int:
        """Append durably, making the file if need be; returns its size after. Needs a lock by the caller.

        If it raises, nothing was appended, or (after the disk's own failure) a torn tail.
        """
        ...

    def is_writable(self) -> bool:
        """Whether this user can change what lies here; the disk may still be full."""
        ...

    def used(self) -> int:
        """Bytes that all files take, drafts and leftovers included."""
        ...

    def lock(
        self, name: str, *, wait: float = 0.0, shared: bool = False, busy: str = "", passing: bool = False
    ) -> AbstractContextManager[None]:
        """Hold the lock `name`; TryAgain with the text `busy` if `wait` seconds do not bring it.

        `passing`: the name is of use this once, and nothing of it shall remain.
        """
        ...


def segment_name(segment_id: str) -> str:
    """Where the segment `<txg in hex>-<number in hex>` lies in the store."""
    try:
        return f"segments/{int(segment_id.split('-', maxsplit=1)[0], 16) % 256:02x}/{segment_id}.seg"
    except (ValueError, AttributeError):
        raise BadName(f"not the name of a segment: {str(segment_id)[:80]!r}") from None
