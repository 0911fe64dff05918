"""The blocks of a folder's object: its entries, and of a large one only those that changed."""

from __future__ import annotations

from zkeep.format.zap_writer import BLOCK, FatZap
from zkeep.snapshot.attributes import fat_blocks, new_directory
from zkeep.snapshot.changes import Block
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.verified import VerifiedObject
from zkeep.tree.filesystem import Filesystem


def directory_blocks(
    entries: dict[bytes, int], held: VerifiedObject | None, base: OpenSnapshot | None, flags: int
) -> tuple[int, int, list[Block]]:
    """Block size, last block, and the blocks that changed. `held`: the folder in `base`; None: it is a new one.

    `flags`: the normflags of its ZAP.
    """
    if held is None or base is None:
        return new_directory(entries, flags)
    old = dict(Filesystem(base).zap(held.dnode.number).numbers())
    if entries == old:
        return held.dnode.blksz, held.dnode.maxblkid, []
    # A fat ZAP is changed in place, so that only the leaves with changed names are stored again.
    if held.dnode.blksz != BLOCK or held.dnode.maxblkid == 0:
        return new_directory(entries, flags)
    return fat_blocks(_updated(base, held.dnode.number, old, entries))


def _updated(base: OpenSnapshot, number: int, old: dict[bytes, int], entries: dict[bytes, int]) -> FatZap:
    """The fat ZAP of the base with what changed in it. `old`: its entries there."""
    zap = FatZap.load(lambda block: base.read_block(number, block), BLOCK)
    for name in old.keys() - entries.keys():
        zap.remove(name)
    for name, value in entries.items():
        if old.get(name) != value:
            zap.put(name, value)
    return zap
