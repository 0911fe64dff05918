"""What a file holds, gathered before any of it is written: an archive says first how long it is and where holes are.

A small file is gathered as it is; a large one is read twice, the first time to see that all of it can be read.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from zkeep.tree.filesystem import Extent

HELD = 16 << 20
"Bytes of a file that are held; of a larger one they are read again."
WORTH_IT = 4096
"Bytes of holes that are worth an entry of their own kind."

Read = Callable[[], Iterator[Extent]]


@dataclass
class Gathered:
    """A file's content, all of which can be read."""

    size: int
    spans: list[tuple[int, int]]
    "Offset and size of what is no hole, ascending."
    _held: list[Extent] | None
    _read: Read

    @classmethod
    def of(cls, read: Read, size: int) -> Gathered:
        """Whatever `read()` raises is raised here; a second time it should not be."""
        held: list[Extent] | None = []
        spans: list[tuple[int, int]] = []
        total = 0
        for extent in read():
            total += len(extent.content)
            _append(spans, extent.offset, len(extent.content))
            if held is not None:
                held.append(extent)
            if total > HELD:
                held = None
        return cls(size, spans, held, read)

    def extents(self) -> Iterator[Extent]:
        return self._read() if self._held is None else iter(self._held)

    @property
    def stored(self) -> int:
        """Bytes that are no holes."""
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
