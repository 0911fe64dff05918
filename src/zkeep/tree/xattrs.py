"""Extended attributes one by one: one that cannot be read does not hide the others.

Source: OpenZFS module/os/linux/zfs/zpl_xattr.c.
"""

from __future__ import annotations

from collections.abc import Iterator

from zkeep.errors import ZkeepError
from zkeep.format import sa
from zkeep.format.zap_layout import BadZap
from zkeep.format.znode import Znode, shown_xattr, unpack_xattrs
from zkeep.tree.filesystem import (
    MAX_XATTR,
    MAX_XATTR_HOLES,
    MAX_XATTRS,
    OBJECT_BITS,
    BadTree,
    Filesystem,
)

Value = bytes | ZkeepError


def each_xattr(filesystem: Filesystem, node: Znode) -> Iterator[tuple[bytes, Value]]:
    """Names as Linux shows them, and values. If a value cannot be read, the error takes its place.

    Where not even the names can be read, it is one error under the name `user.*`.
    """
    if not node.packed_xattrs and not node.xattr_folder:
        return
    stored: dict[bytes, bytes] = {}
    try:
        stored = unpack_xattrs(node.packed_xattrs)
    except sa.BadAttributes as error:
        yield b"user.*", BadTree(f"object {node.number}: {error}")
    in_folder = _in_folder(filesystem, node) if node.xattr_folder else iter(())
    # Those among the system attributes come first and hide files of the same name, as on Linux.
    for name, value in stored.items():
        if (linux_name := shown_xattr(name)) is not None:
            yield linux_name, value
    for name, found in in_folder:
        linux_name = shown_xattr(name)
        if linux_name is not None and name not in stored:
            yield linux_name, found


def _in_folder(filesystem: Filesystem, node: Znode) -> Iterator[tuple[bytes, Value]]:
    """The attributes that are files, in the folder that belongs to this file; a name may have a slash in it."""
    try:
        if filesystem.znode(node.xattr_folder).parent != node.number:
            raise BadTree(f"object {node.number}: its extended attributes are another's")
        entries = dict(filesystem.zap(node.xattr_folder).numbers())
    except BadZap as error:
        yield b"user.*", BadTree(f"folder {node.xattr_folder}: {error}")
        return
    except ZkeepError as error:
        yield b"user.*", error
        return
    room, zeros = MAX_XATTRS, MAX_XATTR_HOLES
    for name, number in entries.items():
        value, size, blank = _read(filesystem, number & OBJECT_BITS, room, zeros)
        room, zeros = room - size, zeros - blank
        yield name, value


def _read(filesystem: Filesystem, number: int, room: int, most_zeros: int) -> tuple[Value, int, int]:
    """A value (or the error), its size, and how many of its bytes are holes.

    `room` and `most_zeros` bound what is read for all attributes together, also for values that end in an error: many
    names can lead to one value.
    """
    size = 0
    try:
        node = filesystem.znode(number)
        if node.size > min(MAX_XATTR, room):
            return BadTree(f"object {number}: an extended attribute of {node.size} bytes"), 0, 0
        size = node.size
        extents = list(filesystem.extents(node))
        zeros = size - sum(len(extent.content) for extent in extents)
        if zeros > most_zeros:
            return BadTree(f"object {number}: {zeros} bytes of an extended attribute that are not stored"), size, 0
        value = bytearray(size)
        for extent in extents:
            value[extent.offset : extent.offset + len(extent.content)] = extent.content
        return bytes(value), size, zeros
    except ZkeepError as error:
        return error, size, 0
