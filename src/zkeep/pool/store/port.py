"""The store: the one small port through which everything durable of a pool is written.

What holds for every implementation (tests/conformance runs one suite over all of them):

    put      create-only and all or nothing: after a crash the name is absent or has the whole content
    draft    grows under a private name, outlives the process, and appears under its final name whole,
             durable and create-only, or not at all
    append   returns when the bytes are durable; a crash can leave a torn tail, never damage before it
    delete   durable when it returns; deleting what is absent is not an error
    lock     advisory, per name, gone with the process that held it, however that died

Names are relative, `/`-separated, of letters, digits, `.`, `_` and `-`; any other raises BadName. Beside the errors
that a method names, every method may raise Damaged (the name is not a regular file of the store's own, or the disk
cannot read it) and OSError (the disk is full, read-only or failing).

Where nothing can be written, every method that reads still works, shared locks included.

put, draft and delete map to a bucket's create-only objects, append to numbered ones: nothing here updates
in place what was published.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zkeep.errors import Damaged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Places = NDArray[np.int64]

Buffer = bytes | bytearray | memoryview


class BadStoreName(Damaged, ValueError):
    """A name that a store does not have: a document that holds it is not what was stored."""


class Blob(AbstractContextManager["Blob"], Protocol):
    """A published file, open for reading; many threads may read it at once. Dropping the last reference closes it."""

    @property
    def size(self) -> int:
        """Bytes of the file; it never changes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; Damaged if the file ends before."""
        ...

    def readinto(self, offset: int, *buffers: bytearray | memoryview) -> None:
        """Fill all buffers, one after the other, from `offset` on; Damaged if the file ends before."""
        ...

    def readinto_each(self, places: Places, sizes: Places, out: memoryview, to: Places) -> None:
        """Read many short stretches of the file, each to its place in `out`; Damaged if one lies beyond the end."""
        ...

    def fileno(self) -> int:
        """A descriptor for os.sendfile and its like; OSError where the store has none."""
        ...

    def close(self) -> None:
        """Close the file. Idempotent."""
        ...


class Draft(AbstractContextManager["Draft"], Protocol):
    """A file that is being written, invisible to readers until it is published.

    The caller holds a lock that keeps other writers from the same draft. Leaving the `with` block closes the draft and
    keeps what was written: `Store.draft` goes on with it.
    """

    @property
    def size(self) -> int:
        """Bytes written so far, those still in memory included."""
        ...

    def write(self, *buffers: Buffer, soon: bool = False) -> None:
        """Append all buffers, in order. Durable only after sync() or publish(); a crash may keep any part of it.

        If it raises, or is interrupted, any part may have been appended, and the draft is never published.

        `soon`: the bytes will be read soon, so keep them in the page cache; others need not be kept there.
        """
        ...

    def readinto(self, offset: int, *buffers: bytearray | memoryview) -> None:
        """Fill all buffers with what was written from `offset` on; Damaged if the draft ends before."""
        ...

    def truncate(self, size: int) -> None:
        """Drop what was written from byte `size` on. Durable only after sync() or publish()."""
        ...

    def sync(self) -> None:
        """Make durable what was written so far, and that there is such a draft. Idempotent."""
        ...

    def publish(self, name: str) -> None:
        """Make the content durable, then let it appear as `name`, durably; it is closed then.

        Atomic: readers see the whole file or none. FileExistsError if there is such a name, and nothing is changed.
        OSError if a write() to it failed, also if a later one did not.
        """
        ...

    def discard(self) -> None:
        """Remove the draft; it is closed then."""
        ...

    def close(self) -> None:
        """Write what is still in memory and close the draft; its content stays. Idempotent."""
        ...


class Store(Protocol):
    """The port itself; the module's docstring has the names, and the errors that every method may raise."""

    @property
    def root(self) -> Path:
        """A folder of this machine: it is named in messages, and files that must be local lie in it (the index)."""
        ...

    def put(self, name: str, content: Buffer) -> None:
        """Publish `content` as `name`; durable when it returns.

        Atomic: after a crash the name is absent or has the whole content. Create-only, so not idempotent:
        FileExistsError if there is such a name, and its content stays.
        """
        ...

    def put_all(self, files: Sequence[tuple[str, Sequence[Buffer]]]) -> None:
        """Publish several, each of buffers in a row; all are durable when it returns, for little more than one costs.

        Each as put() does it. If it raises OSError, none of them is there; after a crash, any may be.
        """
        ...

    def get(self, name: str) -> bytes:
        """All that was published as `name`; FileNotFoundError if there is none."""
        ...

    def open(self, name: str) -> Blob:
        """Open what was published as `name`; FileNotFoundError if there is none.

        An open blob can be read to its end even if its name is deleted meanwhile.
        """
        ...

    def size(self, name: str) -> int:
        """Bytes of what was published or appended as `name`; FileNotFoundError if there is none."""
        ...

    def exists(self, name: str) -> bool:
        """Whether `name` was published, or anything else lies in its place; never FileNotFoundError."""
        ...

    def is_own(self, name: str) -> bool:
        """Whether `name` is absent, or a regular file that has no other name (hard link): safe to change in place."""
        ...

    def delete(self, name: str) -> None:
        """Remove `name`, durably. Idempotent: one that is absent is no error. Blobs that are open stay readable."""
        ...

    def names(self, folder: str) -> list[str]:
        """All published names below `folder`, sorted; empty if there is no such folder.

        What other processes publish or delete meanwhile may be in the list or not.
        """
        ...

    def draft(self, name: str) -> Draft:
        """Begin the draft `name`, or go on with the one that a process left behind.

        `name` has no `/`. The caller holds a lock that keeps others from the same draft.
        """
        ...

    def drafts(self) -> list[str]:
        """The names of all drafts that were neither published nor discarded, those of dead processes included."""
        ...

    def append(self, name: str, content: Buffer) -> int:
        """Append durably, making the file if need be; returns its size after. Needs a lock by the caller.

        Appending nothing makes durable what was appended before. Not idempotent. If it raises OSError, nothing was
        appended, or (after a crash) a torn tail; what lay before is never touched. TryAgain: the disk failed so that
        it is not known whether the content was appended.
        """
        ...

    def is_writable(self) -> bool:
        """Whether this user may change the store's files; the disk may still be full."""
        ...

    def is_exposed(self) -> bool:
        """Whether another user could exchange what is opened by its path rather than through the store."""
        ...

    def used(self) -> int:
        """Bytes of all files, drafts and leftovers included."""
        ...

    def sweep(self) -> None:
        """Remove what interrupted put()s left behind; does nothing while one is under way. Idempotent."""
        ...

    def lock(
        self, name: str, *, wait: float = 0.0, shared: bool = False, busy: str = "", passing: bool = False
    ) -> AbstractContextManager[None]:
        """Hold the advisory lock `name`; TryAgain with the text `busy` if it is not free within `wait` seconds.

        Locks hold between processes and between threads; a process that dies, however it does, releases its own. Any
        number may hold a `shared` lock at once. `passing`: the name is used only once, so its file is removed
        when the lock is released.
        """
        ...


def segment_name(segment_id: str) -> str:
    """Where the segment `<txg in hex>-<number in hex>` lies in the store."""
    try:
        return f"segments/{int(segment_id.split('-', maxsplit=1)[0], 16) % 256:02x}/{segment_id}.seg"
    except (ValueError, AttributeError):
        raise BadStoreName(f"not the name of a segment: {str(segment_id)[:80]!r}") from None
