"""Blocks of dnodes: their OBJECT records, and the MACs of all blocks of these objects, checked against one MAC.

A block of dnodes is 32 slots of 512 bytes. A raw stream does not carry it as it was on disk, so it is put together
from what the stream has:

    OBJECT record        one per dnode: its shape and its bonus buffer, encrypted as part of the block
    WRITE, SPILL headers the MACs of the object's blocks; the MAC tree over them makes the dnode's own pointers
    OBJECT_RANGE header  salt, IV and MAC of the block of dnodes (its `Seal`)

Most objects are small (zkeep.snapshot.small_objects). They are checked as columns of a chunk, without a Python object
for each; one is made when it is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np

from zkeep.crypto.block import BlockKeys, Forged
from zkeep.crypto.dnodeblock import Seal, Stretch, decrypt_dnodes, has_encrypted_bonus, stretch_of
from zkeep.crypto.mactree import HOLE, MacTree, OutOfTree, TreeShape
from zkeep.format.dnode import SLOTS, BadDnode, Dnode
from zkeep.format.records import ByteOrder, Object, RecordType
from zkeep.pool.timeline.spans import Array
from zkeep.snapshot import recheck
from zkeep.snapshot.chunks import Chunk, State
from zkeep.snapshot.errors import Forgery
from zkeep.snapshot.small_objects import Columns
from zkeep.snapshot.verified import LEAF, NO_LEAVES, VerifiedObject, with_type
from zkeep.tree.objects import Bonus


class DnodeBlock(Mapping[int, VerifiedObject]):
    """The objects of an authentic block of dnodes, by number."""

    def __init__(self, columns: Columns, order: ByteOrder, bonuses: bytes) -> None:
        """`bonuses`: the decrypted bonus buffers of all objects in `columns` whose bonus was encrypted."""
        self._columns, self._order, self._bonuses = columns, order, bonuses
        self._index = {fields[0]: index for index, fields in enumerate(columns.fields)}
        self._made: dict[int, VerifiedObject] = {}

    def __getitem__(self, number: int) -> VerifiedObject:
        made = self._made.get(number)
        if made is None:
            index = self._index[number]
            made = self._made[number] = self._columns.make(index, self._order, self._bonus(index).content)
        return made

    def __contains__(self, number: object) -> bool:
        return number in self._index

    def __iter__(self) -> Iterator[int]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def put(self, obj: VerifiedObject) -> None:
        """Add an object that is not small. It was authenticated with the others; its bonus is still encrypted."""
        dnode = obj.dnode
        encrypted = has_encrypted_bonus(dnode)
        bonus = self._bonus(self._index[dnode.number]).content if encrypted else dnode.bonus[: dnode.bonuslen]
        self._made[dnode.number] = obj.with_bonus(bonus)

    def bonus(self, number: int) -> Bonus:
        """Raises KeyError: there is no such object."""
        made = self._made.get(number)
        if made is not None:
            return Bonus(made.dnode.bonustype, made.dnode.has_spill, made.dnode.bonus)
        return self._bonus(self._index[number])

    def only_leaves(self, kind: int, numbers: Iterable[int]) -> Array:
        """The leaves of the objects among `numbers` that are of this type and have exactly one block."""
        columns = self._columns
        indices = [self._index[number] for number in numbers if number in self._index]
        leaf_indices = [columns.leaf_of[index] for index in indices if columns.fields[index][1] == kind]
        leaves: Array = columns.leaves[[index for index in leaf_indices if index >= 0]]
        return leaves

    def _bonus(self, index: int) -> Bonus:
        fields, start = self._columns.fields[index], self._columns.bonus_starts[index]
        return Bonus(fields[2], False, self._bonuses[start : start + fields[4]])


class DnodeBlocks:
    """Reads the blocks of dnodes of one snapshot, `name`.

    `raw`: the stream is; else there are no MACs, and each record is compared with the checksum it was stored with.

    Raises (all methods):
        Forgery: something is not authentic.
        Damaged: the pool's own data is not what was stored.
    """

    def __init__(self, name: str, state: State, *, raw: bool) -> None:
        self._name = name
        self._state = state
        self._raw = raw

    def read(self, index: int) -> Mapping[int, VerifiedObject]:
        """A block of a stream that is not raw."""
        return {obj.dnode.number: obj for obj in self._objects(index, "little")}

    def decrypt(self, index: int, keys: BlockKeys, seal: Seal, order: ByteOrder) -> Mapping[int, VerifiedObject]:
        """A block of a raw stream, which had this byte order on the sender's disk."""
        try:
            chunks = list(islice(self._chunks(index), 2))
            if len(chunks) == 1:
                return self._decrypt(index, keys, seal, chunks[0], order)
            return self._decrypt_across_chunks(index, keys, seal, order)
        except (Forged, Forgery) as error:
            # Is it the disk's fault? Then the error is Damaged, and nobody is accused of forgery.
            recheck.dnodes(self._state, index)
            if isinstance(error, Forgery):
                raise
            raise Forgery(self._name, "the MAC over its block of dnodes does not verify", index * SLOTS) from None

    def _chunks(self, index: int) -> Iterator[Chunk]:
        return self._state.over((index * SLOTS, 0), (index * SLOTS + SLOTS, 0))

    def _decrypt(self, index: int, keys: BlockKeys, seal: Seal, chunk: Chunk, order: ByteOrder) -> DnodeBlock:
        """A block whose objects lie in one chunk, as nearly all do."""
        first, end = _rows_of(chunk.table.objects, index * SLOTS, SLOTS)
        stretches: list[Stretch] = []
        others = []
        # Small objects in consecutive slots go into the MAC as one stretch; each other object is a stretch by itself.
        for start, stop, small in chunk.small.runs(first, end):
            if small:
                stretches.append(chunk.small.stretch(start, stop, order))
            else:
                others.append(self._with_blocks(self._dnode(chunk, start, order), [chunk]))
                stretches.append(_stretch(others[-1]))
        # One MAC covers all of them. Nothing below is reached unless it verifies.
        block = DnodeBlock(chunk.small.cut(first, end), order, decrypt_dnodes(keys, seal, index * SLOTS, stretches))
        for obj in others:
            block.put(obj)
        return block

    def _decrypt_across_chunks(
        self, index: int, keys: BlockKeys, seal: Seal, order: ByteOrder
    ) -> dict[int, VerifiedObject]:
        objects = self._objects(index, order)
        # The decrypted bonus buffers come back to back, as they went in: cut them apart again.
        bonuses = decrypt_dnodes(keys, seal, index * SLOTS, map(_stretch, objects))
        found = {}
        for obj in objects:
            dnode, bonus = obj.dnode, obj.dnode.bonus
            if has_encrypted_bonus(dnode):
                bonus, bonuses = bonuses[: dnode.bonus_room], bonuses[dnode.bonus_room :]
            found[dnode.number] = obj.with_bonus(bonus[: dnode.bonuslen])
        return found

    def _objects(self, index: int, order: ByteOrder) -> list[VerifiedObject]:
        """The objects of a block as their records have them, not yet authenticated, bonus buffers not decrypted.

        Chunks come one by one, and none is kept: a large object has thousands of them.
        """
        objects: list[VerifiedObject] = []
        at, end = index * SLOTS, index * SLOTS + SLOTS
        while at < end:
            # All objects that begin in the next chunk that has any; the last of them may reach over many more.
            for chunk in self._state.over((at, 0), (end, 0)):
                rows = range(*_rows_of(chunk.table.objects, at, end - at))
                if rows:
                    break
            else:
                break
            for row in rows:
                dnode = self._dnode(chunk, row, order)
                reach = self._state.over((dnode.number, 0), (dnode.number + 1, 0))
                objects.append(self._with_blocks(dnode, reach))
            # An object that reaches over several chunks has its row in each: it is done.
            at = objects[-1].dnode.number + 1
        return objects

    def _dnode(self, chunk: Chunk, at: int, order: ByteOrder) -> Dnode:
        row, (heads, bodies) = chunk.table.objects[at], chunk.objects
        sender = self._state.records.byteorder(row)
        try:
            # What the record says must make a possible dnode, and be the one that its row names.
            header = Object.unpack(heads[at].tobytes())
            dnode = Dnode.of(header, bytes(bodies.at(at)), order if self._raw else sender)
            if self._raw:
                dnode.check_shape()
            if header.object != row["object"]:
                raise BadDnode(f"object {row['object']}: its record is that of object {header.object}")
        except (BadDnode, ValueError) as error:
            self._state.records.whole(row.reshape(1))
            raise Forgery(self._name, str(error), int(row["object"])) from None
        if not self._raw:
            self._state.records.whole(row.reshape(1))
            return dnode._replace(bonus=dnode.bonus[: dnode.bonuslen])
        return dnode

    def _with_blocks(self, dnode: Dnode, chunks: Iterable[Chunk]) -> VerifiedObject:
        """A dnode with its spill pointer and with the pointers that the MAC tree over its blocks gives."""
        # The last spill block counts. A raw dnode's flag says whether there is one: where the stream disagrees, a
        # pointer of zeros (or none) stands for it, and the MAC over the block of dnodes fails.
        spills: list[Array] = []
        parts = self._leaves_in(dnode, chunks, spills)
        tree, flat, roots = None, None, b""
        try:
            # Without indirect blocks the dnode points to the blocks themselves: all leaves can be kept.
            if not self._raw:
                deque(parts, maxlen=0)
            elif dnode.nlevels == 1:
                flat = np.concatenate([part for part in parts if len(part)] or [NO_LEAVES])
                roots = self._flat_roots(dnode, flat)
            # Else the tree keeps one MAC for each indirect block of level 1, and the leaves are read again later.
            else:
                tree = MacTree(TreeShape.of(dnode))
                for part in parts:
                    add_leaves(self._name, tree, dnode, part)
                roots = tree.finish()
        except OutOfTree:
            raise Forgery(self._name, "it has blocks beyond its end", dnode.number) from None
        return VerifiedObject(dnode, tree, roots, self._spill(dnode, spills), flat)

    def _leaves_in(self, dnode: Dnode, chunks: Iterable[Chunk], spills: list[Array]) -> Iterator[Array]:
        """The leaves of an object chunk by chunk; of a stream that is not raw none, as nothing covers them."""
        for chunk in chunks:
            spills.append(chunk.spills[slice(*_rows_of(chunk.table.spills, dnode.number))])
            if self._raw:
                yield chunk.leaves[slice(*_rows_of(chunk.table.blocks, dnode.number))]

    def _spill(self, dnode: Dnode, spills: Iterable[Array]) -> Array:
        """The leaf of an object's spill block, an array of one or none."""
        # The last one counts. A raw dnode's flag says whether there is one: where the stream disagrees, a pointer of
        # zeros (or none) stands for it, and the MAC over the block of dnodes fails.
        spill = next((found[-1:].copy() for found in spills if len(found)), np.empty(0, LEAF))
        if not self._raw:
            return spill
        if dnode.has_spill != bool(len(spill)):
            spill = np.zeros(int(dnode.has_spill), LEAF)
        return with_type(spill, dnode.bonustype)

    def _flat_roots(self, dnode: Dnode, leaves: Array) -> bytes:
        """The dnode's own pointers, which point to its blocks: there are no indirect ones."""
        if len(leaves) == 0:
            return bytes(HOLE * dnode.nblkptr)
        # Most files: one block, one pointer. Nothing needs to be built then.
        alone = len(leaves) == 1 and dnode.nblkptr == 1 and not leaves["offset"][0]
        if alone and leaves["kind"][0] == RecordType.WRITE:
            return bytes(leaves["pointer"].tobytes())
        tree = MacTree(TreeShape.of(dnode))
        add_leaves(self._name, tree, dnode, leaves)
        return tree.finish()


def add_leaves(name: str, tree: MacTree, dnode: Dnode, leaves: Array) -> None:
    """Add blocks of an object of snapshot `name` to the MAC tree over them.

    Raises:
        Forgery: a block is of a kind, or at an offset, that no encrypted dataset has.
        OutOfTree: they are out of order.
    """
    if (leaves["kind"] != RecordType.WRITE).any() or (leaves["offset"] % np.uint64(dnode.blksz)).any():
        raise Forgery(name, "it has a block that cannot be in an encrypted dataset", dnode.number)
    tree.add(leaves["offset"] // np.uint64(dnode.blksz), leaves["pointer"])


def _stretch(obj: VerifiedObject) -> Stretch:
    return stretch_of(obj.dnode, obj.roots, obj.spill["pointer"].tobytes())


def _rows_of(rows: Array, number: int, count: int = 1) -> tuple[int, int]:
    """The rows of `count` objects from `number` on: the first row, and the one behind the last."""
    first, end = np.searchsorted(rows["object"], np.array([number, number + count], np.uint64))
    return int(first), int(end)
