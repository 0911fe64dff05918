"""The entries of a mounted dataset's folders, by the names that they have and by those that are equal to them.

In a dataset with casesensitivity or normalization set, a name may be typed otherwise than it is stored. Such a folder
is read as a whole, once: then its names are known by what equal ones have in common.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from functools import cached_property

from zkeep.format.folding import MAX_VARIANTS, MIXED, NOT_UTF8, Fold, Naming
from zkeep.format.zap_writer import BLOCK
from zkeep.live.errors import fail
from zkeep.live.inode import Inode
from zkeep.tree.filesystem import OBJECT_BITS, Filesystem, Name, elsewhere

MAX_LISTED = 1 << 16
"Entries of a folder that are read together when one is looked up."


class Folders:
    """Finds and changes entries. `tree`: the last commit; `inode` reads one by its number; `touch`: it changed."""

    def __init__(
        self, tree: Callable[[], Filesystem], inode: Callable[[int], Inode], touch: Callable[[Inode], None]
    ) -> None:
        self._tree = tree
        self._inode = inode
        self._touch = touch

    @cached_property
    def naming(self) -> Naming:
        """Which names there can be; chosen once, with the dataset."""
        return self._tree().naming

    @cached_property
    def equal(self) -> Fold | None:
        """What equal names have in common; None: only names of the same bytes are equal."""
        return self.naming.equal

    def check_name(self, name: bytes, *, new: bool = False) -> None:
        """Raise OSError where no entry can have this name: EILSEQ; EOPNOTSUPP for a new one, others are not there."""
        reason = None if name.isascii() else self.naming.refusal(name)
        if reason is not None and (new or reason == NOT_UTF8):
            fail(errno.EILSEQ if reason == NOT_UTF8 else errno.EOPNOTSUPP)

    def stored(self, folder: Inode, name: bytes) -> bytes:
        """The name of the entry that a name leads to; the same one where there is none."""
        fold = self.equal
        if fold is None or self.naming.refusal(name) is not None:
            return name
        if folder.equal is None:
            folder.equal = {fold(each): each for each in self.entries(folder)}
        return folder.equal.get(fold(name), name)

    def find(self, folder: Inode, name: bytes) -> Inode | None:
        """The inode that a name in a folder leads to.

        Raises:
            BadTree: it is a folder that lies in another one: a walk down might never end.
        """
        name = self.stored(folder, name)
        value = folder.entries.get(name)
        if value is None and not folder.complete and name not in folder.entries:
            if folder.fields.size <= MAX_LISTED:
                self._complete(folder)
                value = folder.entries.get(name)
            elif (entry := self._tree().find(folder.number, name)) is not None:
                value = folder.entries[name] = entry.number | entry.kind << 60
        if value is None:
            return None
        found = self._inode(value & OBJECT_BITS)
        if found.is_folder and (found.fields.parent != folder.number or found.number == self._tree().root):
            raise elsewhere(folder.number, Name(name, found.number, value >> 60))
        return found

    def entries(self, folder: Inode) -> dict[bytes, int]:
        """All entries of a folder: number and kind, by name."""
        self._complete(folder)
        return {name: value for name, value in folder.entries.items() if value is not None}

    def _complete(self, folder: Inode) -> None:
        """Read all entries of a folder."""
        if not folder.complete:
            known = {entry.name: entry.number | entry.kind << 60 for entry in self._tree().names(folder.number)}
            folder.entries = {**known, **folder.entries}
            folder.complete = True

    def set(self, folder: Inode, name: bytes, inode: Inode | None) -> None:
        """Let a name lead to an inode, or to none any more. Sizes and links are the caller's business."""
        if folder.stored and folder.width != BLOCK:
            self._complete(folder)  # a small one is written as a whole
        self._note(folder, name, there=inode is not None)
        folder.entries[name] = inode.value if inode is not None else None
        folder.renamed.add(name)
        self._touch(folder)

    def check_variants(self, folder: Inode, name: bytes) -> None:
        """Raise OSError, ENOSPC, where a folder has as many names of this hash as a kernel can be sure to store."""
        naming = self.naming
        if naming.casesensitivity != MIXED or naming.hashed is None:
            return
        if folder.variants is None:
            folder.variants = Counter(map(naming.hashed, self.entries(folder)))
        if folder.variants[naming.hashed(name)] >= MAX_VARIANTS:
            fail(errno.ENOSPC)

    def _note(self, folder: Inode, name: bytes, *, there: bool) -> None:
        """Keep what is known of equal names as the entries are. Call it before they change."""
        naming = self.naming
        if folder.equal is not None and naming.equal is not None:
            folder.equal.pop(naming.equal(name), None)
            if there:
                folder.equal[naming.equal(name)] = name
        if folder.variants is not None and naming.hashed is not None:
            folder.variants[naming.hashed(name)] += there - (folder.entries.get(name) is not None)
