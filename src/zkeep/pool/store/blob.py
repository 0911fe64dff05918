"""A file of the local disk, open for reading."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from zkeep.errors import Damaged

if TYPE_CHECKING:
    from zkeep.pool.store.port import Places

_IOV = 1024


def _read_error(name: str, error: OSError) -> Exception:
    """Turn EIO into Damaged: what the disk cannot read any more is damage like any other."""
    if error.errno != errno.EIO:
        return error
    return Damaged(f"{name}: the disk cannot read it: {error.strerror}")


def _read_exactly(fd: int, name: str, offset: int, buffers: Sequence[bytearray | memoryview]) -> None:
    views = [memoryview(b).cast("B") for b in buffers]
    position = offset
    while views := [v for v in views if len(v)]:
        try:
            # One call may fill only a part, and takes at most 1024 buffers: go on where it stopped.
            got = os.preadv(fd, views[:_IOV], position)
        except OSError as error:
            raise _read_error(name, error) from None
        if not got:
            raise Damaged(f"{name} ends at byte {position}, {sum(map(len, views))} more are needed")
        position += got
        while views and got >= len(views[0]):
            got -= len(views.pop(0))
        if got:
            views[0] = views[0][got:]


class OpenFile:
    """A descriptor that is closed once: the base of LocalBlob and LocalDraft."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def readinto(self, offset: int, *buffers: bytearray | memoryview) -> None:
        _read_exactly(self._fd, self.name, offset, buffers)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalBlob(OpenFile):
    def __del__(self) -> None:
        self.close()

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        try:
            content = os.pread(self._fd, length, offset)
        except OSError as error:
            raise _read_error(self.name, error) from None
        # Nearly always one call is enough.
        if len(content) == length:
            return content
        buffer = bytearray(length)
        self.readinto(offset, buffer)
        return bytes(buffer)

    def readinto_each(self, places: Places, sizes: Places, out: memoryview, to: Places) -> None:
        from zkeep.format import kernel  # with numpy, which not every command needs

        try:
            short = kernel.gather(self._fd, places, sizes, out, to)
        except OSError as error:
            raise _read_error(self.name, error) from None
        if short >= 0:
            end = int(places[short] + sizes[short])
            raise Damaged(f"{self.name} ends before byte {end}, which is needed")
