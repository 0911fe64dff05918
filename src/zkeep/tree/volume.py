"""A volume: a disk image in one object, and its size in another.

Source: OpenZFS include/sys/zvol.h ZVOL_OBJ, ZVOL_ZAP_OBJ.
"""

from __future__ import annotations

from collections.abc import Iterator

from zkeep.format.zap import Zap
from zkeep.format.zap_layout import BadZap
from zkeep.tree.filesystem import BadTree, Extent
from zkeep.tree.objects import Objects

DATA = 1
PROPERTIES = 2
MAX_SIZE = 1 << 63


class Volume:
    """Read-only view of a snapshot's disk."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @property
    def size(self) -> int:
        """The volume's size in bytes. Raises BadTree if it has none."""
        blksz = self.objects.dnode(PROPERTIES).blksz
        try:
            entry = Zap(lambda block: self.objects.read_block(PROPERTIES, block), blksz).get(b"size")
            size = entry.number if entry else 0
        except BadZap as error:
            raise BadTree(f"the volume's properties: {error}") from None
        if not 0 < size < MAX_SIZE:
            raise BadTree(f"a volume of {size} bytes")
        return size

    def extents(self) -> Iterator[Extent]:
        """The volume's data without holes, cut off at its size."""
        size = self.size
        for offset, content in self.objects.data(DATA, 0, size):
            yield Extent(offset, memoryview(content)[: size - offset])
