"""An object that is written, while it waits for the others of its block of dnodes."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import partial

from zkeep.crypto.mactree import MacTree
from zkeep.errors import Refused
from zkeep.format.dnode import Dnode
from zkeep.snapshot.changes import Buffer
from zkeep.snapshot.verified import NO_LEAVES, VerifiedObject, unplaced_spill


@dataclass(slots=True)
class Waiting:
    """Keeps an object whose block of dnodes is not complete yet. `pieces` hold its records, in order."""

    dnode: Dnode
    roots: bytes
    spill: bytes
    "The spill pointer as its MAC covers it; empty if there is none."
    pieces: list[Buffer | tuple[int, int]] = field(default_factory=list)
    "Bytes, or [start, end) in the spool."
    lengths: array[int] = field(default_factory=partial(array, "L"))
    "Of each record, packed: an object in small blocks has many."
    types: bytearray = field(default_factory=bytearray)
    tree: MacTree | None = None
    "The MACs of its indirect blocks, if it has any."

    def slots(self) -> range:
        return slots_of(self.dnode)


def unchanged(held: VerifiedObject) -> Waiting:
    """An object of the base that is written again as it is.

    Raises:
        Refused: it cannot be.
    """
    dnode = held.dnode
    if dnode.byteorder != "little":
        raise Refused(f"object {dnode.number} was written on a big-endian host: it cannot be changed here")
    room = dnode.bonus_room if dnode.bonuslen else 0
    bonus = dnode.bonus.ljust(room, b"\0") if dnode.bonuslen else b""
    spill = held.spill["pointer"].tobytes() if len(held.spill) else b""
    return Waiting(Dnode(*dnode[:-1], bonus), held.roots, spill, tree=held.tree)


def verified(each: Waiting) -> VerifiedObject:
    """An object as one who reads it will find it."""
    dnode = each.dnode
    if len(dnode.bonus) > dnode.bonuslen:
        dnode = Dnode(*dnode[:-1], dnode.bonus[: dnode.bonuslen])
    flat = NO_LEAVES if each.tree is None else None
    return VerifiedObject(dnode, each.tree, each.roots, unplaced_spill(each.spill), flat, unplaced=True)


def slots_of(dnode: Dnode) -> range:
    """The slots that a dnode takes, numbered as objects are."""
    return range(dnode.number, dnode.number + dnode.slots)
