"""What the last whole snapshot has of a file.

An interrupted capture, and one of much data, leaves steps: snapshots with a part of what will be the next one. A file
may lie there half new, half old. If its rest cannot be read, it is put back as the last whole snapshot has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from zkeep.errors import Refused
from zkeep.format.znode import Znode
from zkeep.format.znode_writer import FileFields
from zkeep.pool.datasets.contents import STEP
from zkeep.snapshot.attributes import stored_fields
from zkeep.snapshot.changes import Block
from zkeep.snapshot.open import NoObject, OpenSnapshot
from zkeep.tree.filesystem import Filesystem

OpenWhole = Callable[[], OpenSnapshot | None]
"Opens the last snapshot that is no step; None: there is none."


class Earlier:
    """A file as it was in the last whole snapshot."""

    def __init__(self, tree: Filesystem, node: Znode) -> None:
        self._tree = tree
        self.node = node

    def fields(self, links: int, parent: int) -> FileFields:
        """Its attributes, but for the names that it has now, and extended ones in a folder."""
        return replace(stored_fields(self.node), links=links, parent=parent, xattr_folder=0)

    def xattrs(self) -> dict[bytes, bytes]:
        return self._tree.xattrs(self.node)

    def blocks(self, blksz: int) -> Iterator[Block]:
        """Its content without the holes, in blocks of this size, which may be another than it had."""
        done = -1
        for extent in self._tree.extents(self.node):
            last = (extent.offset + len(extent.content) - 1) // blksz
            for number in range(max(extent.offset // blksz, done + 1), last + 1):
                content = self._tree.read(self.node, number * blksz, blksz)
                yield Block(number, content.ljust(blksz, b"\0"))
                done = number


def find_earlier(base: OpenSnapshot, number: int, open_whole: OpenWhole) -> Earlier | None:
    """A file of `base` as the last whole snapshot has it.

    None: `base` is that snapshot, or the file is newer.

    Raises:
        Refused: it was there, but its content is stored elsewhere.
    """
    if not base.snapshot.doc.get(STEP):
        return None
    whole = open_whole()
    if whole is None:
        return None
    tree = Filesystem(whole)
    try:
        node = tree.znode(number)
    except NoObject:
        return None
    # Numbers are used again; the generation tells one file from another.
    if not node.is_file or node.generation != Filesystem(base).znode(number).generation:
        return None
    if whole.lacks_contents():
        raise Refused("what the last snapshot has of it is not stored here: of this one it has the part that was read")
    return Earlier(tree, node)
