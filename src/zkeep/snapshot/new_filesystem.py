"""The objects that every filesystem has: master node, system attributes, delete queue and root folder.

Source: OpenZFS module/os/linux/zfs/zfs_znode_os.c zfs_create_fs().
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from zkeep.format import sa_writer
from zkeep.format.folding import NAMES, PLAIN, Naming
from zkeep.format.objtypes import ObjectType
from zkeep.format.zap_writer import micro_block
from zkeep.format.znode_writer import FileFields, encode_file
from zkeep.snapshot.changes import Block, ObjectChange

MASTER, ATTRIBUTES, QUEUE, ROOT, REGISTRY, LAYOUTS = range(1, 7)
"Object numbers. Only the first is fixed; a kernel finds the others through the master node."
FIRST_FREE = 7
ZPL_VERSION = 5


def new_salt() -> int:
    """A ZAP's hash salt: odd, so never 0."""
    return int.from_bytes(os.urandom(8), "little") | 1


def fixed_objects(naming: Naming = PLAIN) -> Iterator[ObjectChange]:
    """These objects but for the root folder, which the caller writes at number ROOT, between QUEUE and REGISTRY."""
    # 1 master node: where the others are      2 system attributes: where registry and layouts are
    # 3 delete queue, empty                    4 the root folder, written by the caller
    # 5 registry of attributes                 6 layouts of attributes
    master = {"ROOT": ROOT, "DELETE_QUEUE": QUEUE, "VERSION": ZPL_VERSION, "SA_ATTRS": ATTRIBUTES}
    master |= {name: getattr(naming, name) for name in NAMES}
    yield _micro(MASTER, ObjectType.MASTER_NODE, master)
    yield _micro(ATTRIBUTES, ObjectType.SA_MASTER, {"REGISTRY": REGISTRY, "LAYOUTS": LAYOUTS})
    yield _micro(QUEUE, ObjectType.DELETE_QUEUE, {})
    yield _one_block(REGISTRY, ObjectType.SA_REGISTRY, sa_writer.registry_block(new_salt()))
    blocks = sa_writer.layout_blocks(new_salt())
    parts = [Block(number, content) for number, content in blocks.items()]
    size = len(blocks[0])
    yield ObjectChange(LAYOUTS, ObjectType.SA_LAYOUTS, size, max(blocks), parts, bonustype=0)


def empty_root(uid: int = 0, gid: int = 0, naming: Naming = PLAIN) -> ObjectChange:
    """A root folder without entries."""
    now = time.time_ns()
    bonus, spill = encode_file(FileFields(0o40755, uid, gid, 2, 2, now, now, now, now, ROOT, 1))
    content = micro_block({}, new_salt(), naming.flags)
    return ObjectChange(ROOT, ObjectType.DIRECTORY, len(content), 0, [Block(0, content)], bonus, spill=spill)


def _micro(number: int, kind: int, entries: dict[str, int]) -> ObjectChange:
    return _one_block(number, kind, micro_block({k.encode(): v for k, v in entries.items()}, new_salt()))


def _one_block(number: int, kind: int, content: bytes) -> ObjectChange:
    return ObjectChange(number, kind, len(content), 0, [Block(0, content)], bonustype=0)
