"""Blocks of dnodes, opened: their objects' records and the MACs of all their blocks held against one seal.

Most objects are small (restore.small) and are made when they are asked for, of columns that the seal has vouched for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from zkeep.crypto.block import BlockKeys, Forged
from zkeep.crypto.dnodeblock import Seal, Stretch, has_sealed_bonus, open_dnodes, stretch_of
from zkeep.crypto.mactree import HOLE, MacTree, OutOfTree, Shape
from zkeep.format.dnode import SLOTS, BadDnode, Dnode
from zkeep.format.records import ByteOrder, Object, RecordType
from zkeep.snapshot import recheck
from zkeep.snapshot.chunks import Chunk, State
from zkeep.snapshot.errors import Forgery
from zkeep.snapshot.small_objects import Columns
from zkeep.snapshot.verified import LEAF, NO_LEAVES, Verified
from zkeep.tree.objects import Bonus

Array = npt.NDArray[Any]


class Block(Mapping[int, Verified]):
    """The objects of an authentic block, by number."""

    def __init__(self, columns: Columns, order: ByteOrder, opened: bytes) -> None:
        """`opened`: the bonus buffers of all objects that `columns` tells of, as far as they were sealed."""
        self._columns, self._order, self._opened = columns, order, opened
        self._at = {fields[0]: at for at, fields in enumerate(columns.fields)}
        self._made: dict[int, Verified] = {}

    def __getitem__(self, number: int) -> Verified:
        found = self._made.get(number)
        if found is None:
            at = self._at[number]
            found = self._made[number] = self._columns.made(at, self._order, self._bonus(at).content)
        return found

    def __contains__(self, number: object) -> bool:
        return number in self._at

    def __iter__(self) -> Iterator[int]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)

    def put(self, held: Verified) -> None:
        """One that is not small, authenticated with the others."""
        number = held.dnode.number
        sealed = has_sealed_bonus(held.dnode)
        bonus = self._bonus(self._at[number]).content if sealed else held.dnode.bonus[: held.dnode.bonuslen]
        self._made[number] = held.opened(bonus)

    def bonus(self, number: int) -> Bonus:
        """Raises KeyError: there is no such object."""
        made = self._made.get(number)
        if made is not None:
            return Bonus(made.dnode.bonustype, made.dnode.has_spill, made.dnode.bonus)
        return self._bonus(self._at[number])

    def only_leaves(self, kind: int, numbers: Iterable[int]) -> Array:
        """Of those of these objects that are of a type and have one block only, that block."""
        columns = self._columns
        places = [self._at[number] for number in numbers if number in self._at]
        ranks = [columns.leaf_of[at] for at in places if columns.fields[at][1] == kind]
        leaves: Array = columns.leaves[[rank for rank in ranks if rank >= 0]]
        return leaves

    def _bonus(self, at: int) -> Bonus:
        fields, start = self._columns.fields[at], self._columns.places[at]
        return Bonus(fields[2], False, self._opened[start : start + fields[4]])


class DnodeBlocks:
    """Of one snapshot, `name`. Where nothing is sealed, each record is held against the sum with which it was stored.

    Raises (all methods):
        Forgery: something is not authentic.
        Damaged: the pool's own data is not what was stored.
    """

    def __init__(self, name: str, state: State, *, raw: bool) -> None:
        self._name = name
        self._state = state
        self._raw = raw

    def open(self, index: int) -> Mapping[int, Verified]:
        """A block of a stream that is not raw."""
        return {held.dnode.number: held for held in self._gathered(index, "little")}

    def unseal(self, index: int, keys: BlockKeys, seal: Seal, order: ByteOrder) -> Mapping[int, Verified]:
        """A block as it was in this byte order on the sender's disk."""
        try:
            chunks = list(self._chunks(index))
            if len(chunks) == 1:
                return self._unseal(index, keys, seal, chunks[0], order)
            return self._unseal_gathered(index, keys, seal, order)
        except (Forged, Forgery) as error:
            recheck.dnodes(self._state, index)
            if isinstance(error, Forgery):
                raise
            raise Forgery(self._name, "the MAC over its block of dnodes does not verify", index * SLOTS) from None

    def _chunks(self, index: int) -> Iterator[Chunk]:
        return self._state.over((index * SLOTS, 0), (index * SLOTS + SLOTS, 0))

    def _unseal(self, index: int, keys: BlockKeys, seal: Seal, chunk: Chunk, order: ByteOrder) -> Block:
        """One whose objects lie in one chunk, as nearly all do."""
        first, end = _rows_of(chunk.table.objects, index * SLOTS, SLOTS)
        stretches: list[Stretch] = []
        closely = []
        for start, stop, small in chunk.small.runs(first, end):
            if small:
                stretches.append(chunk.small.stretch(start, stop, order))
            else:
                closely.append(self._grown(self._dnode(chunk, start, order), [chunk]))
                stretches.append(_stretch(closely[-1]))
        block = Block(chunk.small.cut(first, end), order, open_dnodes(keys, seal, index * SLOTS, stretches))
        for held in closely:
            block.put(held)
        return block

    def _unseal_gathered(self, index: int, keys: BlockKeys, seal: Seal, order: ByteOrder) -> dict[int, Verified]:
        every = self._gathered(index, order)
        opened = open_dnodes(keys, seal, index * SLOTS, map(_stretch, every))
        found = {}
        for held in every:
            dnode = held.dnode
            bonus, sealed = dnode.bonus, has_sealed_bonus(dnode)
            if sealed:
                bonus, opened = opened[: dnode.bonus_room], opened[dnode.bonus_room :]
            found[dnode.number] = held.opened(bonus[: dnode.bonuslen])
        return found

    def _gathered(self, index: int, order: ByteOrder) -> list[Verified]:
        """The objects of a block as their records tell, with the trees that their blocks make."""
        chunks = list(self._chunks(index))
        dnodes: dict[int, Dnode] = {}
        for chunk in chunks:
            for at in range(*_rows_of(chunk.table.objects, index * SLOTS, SLOTS)):
                dnode = self._dnode(chunk, at, order)
                dnodes.setdefault(dnode.number, dnode)
        return [self._grown(dnodes[number], chunks) for number in sorted(dnodes)]

    def _dnode(self, chunk: Chunk, at: int, order: ByteOrder) -> Dnode:
        row, (heads, bodies) = chunk.table.objects[at], chunk.objects
        sender = self._state.records.byteorder(row)
        try:
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

    def _grown(self, dnode: Dnode, chunks: Iterable[Chunk]) -> Verified:
        spills = [c.spills[slice(*_rows_of(c.table.spills, dnode.number))] for c in chunks]
        spill = next((s[-1:].copy() for s in spills if len(s)), np.empty(0, LEAF))
        if not self._raw:
            return Verified(dnode, None, b"", spill)
        if dnode.has_spill != bool(len(spill)):
            spill = np.zeros(int(dnode.has_spill), LEAF)
        spill["pointer"]["prop"] &= ~np.uint64(0xFF << 48)
        spill["pointer"]["prop"] |= np.uint64(dnode.bonustype << 48)
        try:
            parts = (chunk.leaves[slice(*_rows_of(chunk.table.blocks, dnode.number))] for chunk in chunks)
            if dnode.nlevels == 1:
                flat = np.concatenate([part for part in parts if len(part)] or [NO_LEAVES])
                return Verified(dnode, None, self._flat_roots(dnode, flat), spill, flat)
            tree = MacTree(Shape.of(dnode))
            for part in parts:
                self.plant(tree, dnode, part)
            return Verified(dnode, tree, tree.finish(), spill)
        except OutOfTree:
            raise Forgery(self._name, "it has blocks beyond its end", dnode.number) from None

    def _flat_roots(self, dnode: Dnode, leaves: Array) -> bytes:
        """The pointers of a dnode that point to its blocks."""
        if len(leaves) == 0:
            return bytes(HOLE * dnode.nblkptr)
        alone = len(leaves) == 1 and dnode.nblkptr == 1 and not leaves["offset"][0]
        if alone and leaves["kind"][0] == RecordType.WRITE:
            return bytes(leaves["pointer"].tobytes())
        tree = MacTree(Shape.of(dnode))
        self.plant(tree, dnode, leaves)
        return tree.finish()

    def plant(self, tree: MacTree, dnode: Dnode, leaves: Array) -> None:
        """Add blocks of an object to a tree over them."""
        if (leaves["kind"] != RecordType.WRITE).any() or (leaves["offset"] % np.uint64(dnode.blksz)).any():
            raise Forgery(self._name, "it has a block that cannot be in an encrypted dataset", dnode.number)
        tree.add(leaves["offset"] // np.uint64(dnode.blksz), leaves["pointer"])


def _stretch(held: Verified) -> Stretch:
    return stretch_of(held.dnode, held.roots, held.spill["pointer"].tobytes())


def _rows_of(rows: Array, number: int, count: int = 1) -> tuple[int, int]:
    """Those of `count` objects: the first, and the one behind the last."""
    first, end = np.searchsorted(rows["object"], np.array([number, number + count], np.uint64))
    return int(first), int(end)
