"""What is known to be authentic, handed on from one state of a dataset to the next, as a mounted dataset commits.

A commit has just made the blocks that the next one builds on: they need not be read, decrypted and checked again. All
of it is kept under the MACs by which it is known, and nothing under the place of a record:

    portable MAC              salt, IV and MAC of all blocks of dnodes (Seals)
    seal of a dnode block     its objects
    MAC of an indirect block  the pointers in it
    pointer to a block        its content

A state asks for what its own MACs name, from the portable MAC of its BEGIN downward. So whatever another process wrote,
or a rollback brought back, is never mixed up with what was known of another state: it has other MACs, and is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

from zkeep.cache import Cache
from zkeep.crypto.dnodeblock import Metadnode, Seal
from zkeep.crypto.mactree import Numbers, Pointers
from zkeep.crypto.unwrap import MasterKeys
from zkeep.snapshot.metadnode import Seals
from zkeep.snapshot.verified import VerifiedObject

DNODE_BLOCKS = 1024
"Blocks of dnodes: some 30 KiB each."
GROUPS = 256
"Indirect blocks: up to 40 KiB each."
CONTENTS = 16 << 20
"Bytes of blocks."
Objects = Mapping[int, VerifiedObject]


class Known:
    """Used by one thread at a time, but for contents. `keys`: under which all of it was authenticated."""

    def __init__(self, keys: MasterKeys) -> None:
        self.keys = keys
        self._seals: tuple[Metadnode, bytes, Seals] | None = None
        self._blocks: Cache[int, tuple[Seal, Objects]] = Cache(DNODE_BLOCKS)
        self._groups: Cache[tuple[int, int], tuple[bytes, Numbers, Pointers]] = Cache(GROUPS)
        self._contents: Cache[bytes, bytes] = Cache(CONTENTS, len)
        self._lock = Lock()

    def seals(self, shape: Metadnode, mac: bytes) -> Seals | None:
        """The seals of all blocks of dnodes of the state that has this portable MAC."""
        if self._seals is not None and self._seals[:2] == (shape, mac):
            return self._seals[2]
        return None

    def put_seals(self, shape: Metadnode, mac: bytes, seals: Seals) -> None:
        self._seals = shape, mac, seals

    def block(self, index: int, seal: Seal) -> Objects | None:
        """The objects of a block of dnodes. Where their blocks lie may not be known."""
        found = self._blocks.get(index)
        return found[1] if found is not None and found[0] == seal else None

    def put_block(self, index: int, seal: Seal, objects: Objects) -> None:
        self._blocks.put(index, (seal, objects))

    def group(self, number: int, group: int, mac: bytes) -> tuple[Numbers, Pointers] | None:
        """Numbers and pointers of the blocks below an indirect block of level 1 of an object."""
        found = self._groups.get((number, group))
        return found[1:] if found is not None and found[0] == mac else None

    def put_group(self, number: int, group: int, mac: bytes, numbers: Numbers, pointers: Pointers) -> None:
        self._groups.put((number, group), (mac, numbers, pointers))

    def content(self, pointer: bytes) -> bytes | None:
        """The content of the block to which a pointer leads."""
        with self._lock:
            return self._contents.get(pointer)

    def put_content(self, pointer: bytes, content: bytes) -> None:
        with self._lock:
            self._contents.put(pointer, content)
