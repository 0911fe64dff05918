"""What the kernel keeps of a mounted dataset, and how it is told to drop that: a rollback changes everything at once.

Nobody else changes a dataset while it is mounted, so the kernel may keep names, attributes and contents for as long as
it likes. After a rollback it gets messages that answer no request, each a header and a body:

    header      length (u32), which message (i32), 0 (u64): the number of the request that it would answer
    INODE       node (u64), offset and length (i64): drop the attributes, and pages from the offset on; length 0: all;
                offset -1: no pages
    ENTRY       node of the folder (u64), length of the name (u32), flags (u32), the name, a zero byte: drop the entry

Source: Linux include/uapi/linux/fuse.h, fs/fuse/dev.c fuse_notify().
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from struct import Struct

from zkeep.live.dataset import LiveDataset
from zkeep.live.protocol import HEADER_OUT, ROOT
from zkeep.pool.datasets.model import Snapshot
from zkeep.tree.filesystem import OBJECT_BITS

FOREVER = 86_400
"Seconds for which the kernel may keep what we know that it keeps."
MAX_ABSENT = 100_000
"Names that are not there and that the kernel may keep as such."
INVAL_INODE, INVAL_ENTRY = 2, 3
INODE_OUT = Struct("=Qqq")
ENTRY_OUT = Struct("=QII")


@dataclass(frozen=True)
class Known:
    """What the kernel may have kept: generations of files by number, and names in folders, there or not."""

    generations: dict[int, int]
    names: list[tuple[int, bytes]]


class KernelCache:
    """Knows what the kernel may keep. A caller holds the dataset's lock, but for drop()."""

    def __init__(self, dataset: LiveDataset) -> None:
        self._dataset = dataset
        self._absent: set[tuple[int, bytes]] = set()
        self.device: int | None = None
        "The file descriptor of /dev/fuse, while it is mounted."
        self.is_dropping = False
        "A rollback is under way: what the kernel writes back of its own accord is of before it, and is dropped."

    @cached_property
    def kept(self) -> int:
        """Seconds for which the kernel may keep to what a name leads.

        None where names of different bytes can be one: what is done by one of them the kernel does not know of the
        others that it keeps.
        """
        return FOREVER if self._dataset.folders.equal is None else 0

    def absent(self, node: int, name: bytes) -> int:
        """Seconds for which the kernel may keep that there is no such name in a folder."""
        if len(self._absent) >= MAX_ABSENT or not self.kept:
            return 0
        self._absent.add((node, name))
        return FOREVER

    def present(self, node: int, name: bytes) -> None:
        """There may be such a name from now on."""
        self._absent.discard((node, name))

    def known(self) -> Known:
        """What it may have kept so far. Ask before a rollback: afterwards nobody can tell what was there."""
        dataset = self._dataset
        root = dataset.root
        inodes = [root, *(dataset.inode(number) for number in dataset.uses if number not in dataset.gone)]
        names = list(self._absent)
        # An entry that the kernel keeps leads from a file that it knows to another one.
        for folder in inodes:
            if not folder.is_folder:
                continue
            node = ROOT if folder is root else folder.number
            entries = dataset.folders.entries(folder).items()
            names += [(node, name) for name, value in entries if value & OBJECT_BITS in dataset.uses]
        return Known({inode.number: inode.fields.generation for inode in inodes}, names)

    def return_to(self, state: Snapshot, known: Known) -> None:
        """Go on from a state to which the dataset was rolled back."""
        self.is_dropping = True
        self._absent.clear()
        self._dataset.return_to(state, known.generations)

    def drop_attributes(self) -> None:
        """Let the kernel drop the attributes and ACLs of all files that it knows; nothing may be locked."""
        with self._dataset.lock:
            root = self._dataset.tree.root
            nodes = [ROOT, *(number for number in self._dataset.uses if number != root)]
        with suppress(OSError):  # it is unmounted
            if self.device is not None:
                fd = os.dup(self.device)
                for node in nodes:
                    _tell(fd, INVAL_INODE, INODE_OUT.pack(node, -1, 0))
                os.close(fd)

    def drop(self, known: Known) -> None:
        """Let the kernel drop all that it knew.

        It waits for locks that are held while a request is answered: so nothing is locked here, and another thread
        goes on answering.
        """
        try:
            fd = os.dup(self.device) if self.device is not None else None
        except OSError:
            fd = None  # it is unmounted
        if fd is not None:
            root = self._dataset.tree.root
            for node, name in known.names:
                _tell(fd, INVAL_ENTRY, ENTRY_OUT.pack(node, len(name), 0) + name + b"\0")
            for number in known.generations:
                _tell(fd, INVAL_INODE, INODE_OUT.pack(ROOT if number == root else number, 0, 0))
            os.close(fd)
        self.is_dropping = False


def _tell(fd: int, kind: int, body: bytes) -> None:
    with suppress(OSError):  # ENOENT: it does not keep it any more
        os.write(fd, HEADER_OUT.pack(HEADER_OUT.size + len(body), kind, 0) + body)
