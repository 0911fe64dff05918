"""A file, folder or the like of a mounted dataset: how it is now, and what of that is not committed yet.

What was not touched since the last commit is read from there (the base). What was, is here:

    fields     mode, owner, size, times, ... ; they are written as a whole
    blocks     of a file: blocks that were written, by number; None where there is a hole from now on
    cut        of a file: blocks of the base from this one on are gone, as it was truncated
    entries    of a folder: its entries as far as they are known; None for one that is gone
"""

from __future__ import annotations

import stat
import time
from collections import Counter
from dataclasses import dataclass, field

from zkeep.format.znode import Znode, unpack_xattrs
from zkeep.format.znode_writer import FileFields
from zkeep.snapshot.attributes import stored_fields
from zkeep.snapshot.encrypted import Early


@dataclass(slots=True, eq=False)
class Inode:
    """`block`: the size of its blocks in memory. In the base, it has `last` + 1 blocks of `width` bytes.

    Both sizes are the same where there are several blocks. A single block is as long as the file needs it, and grows
    with it up to `block`.
    """

    number: int
    fields: FileFields
    block: int
    stored: bool = False
    "The base has it."
    width: int = 0
    last: int = -1
    cut: int = 0
    held: int | None = None
    "How many of the base's blocks are no holes, if they were counted."
    blocks: dict[int, bytearray | None] = field(default_factory=dict)
    early: dict[int, Early] = field(default_factory=dict)
    "Of those, whole ones that are being encrypted already. A block that is changed again leaves it."
    entries: dict[bytes, int | None] = field(default_factory=dict)
    complete: bool = True
    "All of a folder's entries are known."
    equal: dict[bytes, bytes] | None = None
    "Of a folder in which names of different bytes can be one: each name, by what equal ones have in common."
    variants: Counter[bytes] | None = None
    "How many names share a hash, where they may differ in their case."
    renamed: set[bytes] = field(default_factory=set)
    "Names in a folder that were added, removed or lead elsewhere since the last commit."
    large: dict[bytes, bytes] | None = field(default_factory=dict)
    "Extended attributes that are files of their own; None: the base has some, and they were not read yet."
    new_xattrs: bool = False
    dirty: bool = False

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.fields.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.fields.mode)

    @property
    def value(self) -> int:
        """What an entry of a folder that leads to it says: its number, and its kind as in d_type."""
        return self.number | (self.fields.mode >> 12) << 60

    def committed(self, width: int, last: int) -> None:
        """The base has it as it is now, in `last` + 1 blocks of `width` bytes."""
        self.stored, self.dirty, self.new_xattrs = True, False, False
        for name in self.renamed:
            if self.entries.get(name) is None:
                self.entries.pop(name, None)
        self.blocks, self.early, self.renamed = {}, {}, set()
        self.held = None
        self.placed(width, last)

    def placed(self, width: int, last: int) -> None:
        self.width, self.last = width, last
        if last > 0:
            self.block = width
        elif width > self.block:
            self.block = 1 << (width - 1).bit_length()
        self.cut = -(-(last + 1) * width // self.block)


def inode_of(node: Znode, width: int, last: int, recordsize: int) -> Inode:
    """An inode as the base has it."""
    fields = stored_fields(node)
    fields.xattrs = unpack_xattrs(node.packed_xattrs)
    found = Inode(node.number, fields, recordsize, stored=True, complete=not node.is_folder)
    found.large = None if node.xattr_folder else {}
    found.placed(width, last)
    return found


def new_inode(
    number: int, mode: int, owner: tuple[int, int], parent: int, recordsize: int, *, generation: int
) -> Inode:
    """An inode that no commit has. `owner`: user and group."""
    now = time.time_ns()
    size, links = (2, 2) if stat.S_ISDIR(mode) else (0, 1)
    fields = FileFields(mode, *owner, size, links, now, now, now, now, parent, generation)
    return Inode(number, fields, recordsize, dirty=True)
