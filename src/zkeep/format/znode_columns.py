"""The attributes of many regular files at once: encode_file() of znode_writer.py in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zkeep.format import sa_writer as sa
from zkeep.format.sa import MAGIC
from zkeep.format.znode import ACL_TRIVIAL, HAS_PROJID
from zkeep.format.znode_writer import ARCHIVE, MODIFIED, NO_EXECS_DENIED, trivial_acl

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray

_SECOND = 1_000_000_000
_TIMES = "atime", "mtime", "ctime", "crtime"
_NUMBERS = "mode", "size", "generation", "uid", "gid", "parent", "flags"
_HEAD = np.dtype(
    [
        *(("magic", "<u4"), ("layout", "<u2"), ("aces", "<u2")),
        *((name, "<u8") for name in _NUMBERS),
        *((name, [("seconds", "<i8"), ("nanoseconds", "<u8")]) for name in _TIMES),
        *(("links", "<u8"), ("project", "<u8"), ("count", "<u8")),
    ]
)
"What sa_writer.encode_plain() packs before the entries of the ACL."
_ACES = 6 * 8
"Bytes of the longest ACL that says what a mode says."


class FileColumns(NamedTuple):
    """The attributes of regular files, one array each, as FileFields has them."""

    mode: Sequence[int]
    uid: Array
    gid: Array
    size: Array
    links: Array
    atime: Array
    mtime: Array
    ctime: Array
    crtime: Array
    parent: Array
    generation: int
    flags: Array


def encode_files(files: FileColumns) -> tuple[Array, Array]:
    """The bonus buffers, a row of sa_writer.BONUS bytes for each file, filled with zeros; and how long each of them is.

    None of the files has extended attributes.
    """
    modes = np.array(files.mode, np.uint64)
    aces = [trivial_acl(mode) for mode in files.mode]
    sizes = np.fromiter(map(len, aces), np.uint64, len(aces))
    head = np.zeros(len(aces), _HEAD)
    head["magic"], head["layout"], head["aces"], head["count"] = MAGIC, sa.PLAIN_LAYOUT, sizes, sizes // np.uint64(8)
    # The numbers that every file has, in the order of its layout; its project is 0.
    flags = files.flags | np.uint64(ARCHIVE | MODIFIED | ACL_TRIVIAL | HAS_PROJID)
    flags |= np.where(modes & np.uint64(0o111) == 0o111, np.uint64(NO_EXECS_DENIED), np.uint64(0))
    numbers = modes, files.size, files.generation, files.uid, files.gid, files.parent, flags
    for name, column in zip(_NUMBERS, numbers, strict=True):
        head[name] = column
    for name in _TIMES:
        time = head[name]
        time["seconds"], time["nanoseconds"] = np.divmod(getattr(files, name), _SECOND)
    head["links"] = files.links
    # | head, 152 bytes | entries of the ACL, 24 to 48 | zeros |
    made = np.zeros((len(aces), sa.BONUS), np.uint8)
    made[:, : _HEAD.itemsize] = head.view(np.uint8).reshape(len(aces), -1)
    entries = np.frombuffer(b"".join([each.ljust(_ACES, b"\0") for each in aces]), np.uint8)
    made[:, _HEAD.itemsize : _HEAD.itemsize + _ACES] = entries.reshape(len(aces), -1)
    return made, sizes + np.uint64(_HEAD.itemsize)
