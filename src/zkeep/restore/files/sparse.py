"""Reads a file before any of it is written to an archive, which says first how long it is and where its holes are.

A small file is kept in memory. A large one is read twice, the first time to see that all of it can be read.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from zkeep.tree.filesystem import Extent

KEPT = 16 << 20
"A file of up to this many bytes is kept in memory; a larger one is read again."
WORTH_IT = 4096
"A file with this many bytes of holes is worth a sparse entry."

Read = Callable[[], Iterator[Extent]]


@dataclass
class Gathered:
    """A file's content, all of which can be read."""

    size: int
    spans: list[tuple[int, int]]
    "Offset and size of each stretch of data, ascending."
    _kept: list[Extent] | None
    _read: Read

    @classmethod
    def of(cls, read: Read, size: int) -> Gathered:
        """Read the content once; raises what `read()` raises. A second read() should then succeed."""
        kept: list[Extent] | None = []
        spans: list[tuple[int, int]] = []
        total = 0
        # The archive's header needs the map of the holes before the content, so all is read once for the map; a file
        # that is small is kept, so that it need not be read again.
        for extent in read():
            total += len(extent.content)
            _append(spans, extent.offset, len(extent.content))
            if kept is not None:
                kept.append(extent)
            if total > KEPT:
                kept = None
        return cls(size, spans, kept, read)

    def extents(self) -> Iterator[Extent]:
        return self._read() if self._kept is None else iter(self._kept)

    @property
    def stored(self) -> int:
        """Bytes of data, without holes."""
        return sum(size for _, size in self.spans)

    @property
    def is_sparse(self) -> bool:
        return self.size - self.stored >= WORTH_IT

    def sparse_map(self) -> bytes:
        """The map of GNU's sparse format 1.0, which precedes the content. Source: GNU tar manual, Sparse Formats."""
        spans = self.spans
        if not spans or sum(spans[-1]) < self.size:
            spans = [*spans, (self.size, 0)]
        numbers = [len(spans), *(number for span in spans for number in span)]
        text = b"".join(b"%d\n" % number for number in numbers)
        return text + bytes(-len(text) % tarfile.BLOCKSIZE)


def _append(spans: list[tuple[int, int]], offset: int, size: int) -> None:
    if spans and sum(spans[-1]) == offset:
        spans[-1] = spans[-1][0], spans[-1][1] + size
    elif size:
        spans.append((offset, size))
