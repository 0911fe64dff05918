"""Writing system attributes: the twin of format/sa.py.

A dataset registers each attribute once, and each layout (list of attributes) under a number. The numbers of layouts
must follow one another from 2 on, because a kernel gives the next one the number "count of known layouts". So every
dataset gets all layouts that any file can need when it is made, and that object never changes.

A bonus buffer or spill block:

    +---------------+------------------+---------------------+-------------------------------+
    | magic, u32    | layout number +  | sizes of attributes | attributes in layout order,   |
    |               | header size, u16 | that vary, u16 each | each rounded up to 8 bytes    |
    +---------------+------------------+---------------------+-------------------------------+

Source: OpenZFS include/sys/sa_impl.h sa_hdr_phys_t; module/zfs/sa.c sa_find_sizes(), sa_build_layouts(),
sa_attr_register_sync(); include/sys/zfs_sa.h for the offsets that user accounting reads.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cache

from zkeep.format.sa import MAGIC
from zkeep.format.zap_writer import FatZap, micro_block

(
    ATIME, MTIME, CTIME, CRTIME, GEN, MODE, SIZE, PARENT, LINKS, XATTR, RDEV, FLAGS, UID, GID, PAD, ZNODE_ACL,
    DACL_COUNT, SYMLINK, SCANSTAMP, DACL_ACES, DXATTR, PROJID,
) = range(22)  # fmt: skip
"Numbers of attributes, as every dataset made here registers them."

_REGISTERED = (
    ("ZPL_ATIME", 16, 0), ("ZPL_MTIME", 16, 0), ("ZPL_CTIME", 16, 0), ("ZPL_CRTIME", 16, 0), ("ZPL_GEN", 8, 0),
    ("ZPL_MODE", 8, 0), ("ZPL_SIZE", 8, 0), ("ZPL_PARENT", 8, 0), ("ZPL_LINKS", 8, 0), ("ZPL_XATTR", 8, 0),
    ("ZPL_RDEV", 8, 0), ("ZPL_FLAGS", 8, 0), ("ZPL_UID", 8, 0), ("ZPL_GID", 8, 0), ("ZPL_PAD", 32, 0),
    ("ZPL_ZNODE_ACL", 88, 3), ("ZPL_DACL_COUNT", 8, 0), ("ZPL_SYMLINK", 0, 3), ("ZPL_SCANSTAMP", 32, 3),
    ("ZPL_DACL_ACES", 0, 4), ("ZPL_DXATTR", 0, 3), ("ZPL_PROJID", 8, 0),
)  # fmt: skip
"Name, bytes (0: varies), how a kernel of the other byte order swaps it."

_HEAD = (MODE, SIZE, GEN, UID, GID, PARENT, FLAGS, ATIME, MTIME, CTIME, CRTIME, LINKS)
"The attributes that every file begins with; user accounting reads some of them at fixed offsets."
_ORDER = (*_HEAD, PROJID, RDEV, DACL_COUNT, XATTR, DACL_ACES, SYMLINK, DXATTR)
"The order of attributes in every layout."
_OPTIONAL = (SYMLINK, DXATTR)
BONUS = 320
"Room in the bonus buffer of a dnode of one slot with one block pointer."
BONUS_WITH_SPILL = 192
MAX_ATTRIBUTE = 65_535
FIRST_LAYOUT = 2
SIZE_AT, PARENT_AT, LINKS_AT = 8, 40, 120
"Where two numbers lie behind the header."


def _kinds() -> list[tuple[int, ...]]:
    """Attributes of each kind of file, all in one buffer: (regular or folder, special, device) x what it may have."""
    found: list[tuple[int, ...]] = []
    for more in ((PROJID,), (), (RDEV,)):
        for extra in ((), (XATTR,), (DXATTR,), (XATTR, DXATTR)):
            found.append(_in_order((*_HEAD, *more, DACL_COUNT, DACL_ACES, *extra)))
            if not more:
                found.append(_in_order((*_HEAD, DACL_COUNT, DACL_ACES, SYMLINK, *extra)))
    return found


@cache
def _in_order(attributes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(attribute for attribute in _ORDER if attribute in attributes)


def _layouts() -> dict[tuple[int, ...], int]:
    """Every layout by its attributes: whole ones, and both parts of those that may be split at a spill block."""
    found: dict[tuple[int, ...], int] = {}
    fixed = len(_HEAD)
    for whole in _kinds():
        for cut in range(fixed, len(whole) + 1):
            for part in (whole[:cut], whole[cut:]):
                if part:
                    found.setdefault(part, FIRST_LAYOUT + len(found))
    return found


LAYOUTS = _layouts()


def registry_block(salt: int) -> bytes:
    """The only block of the SA registry: name -> number | byteswap << 16 | bytes << 24."""
    values = {name.encode(): number | swap << 16 | size << 24 for number, (name, size, swap) in enumerate(_REGISTERED)}
    return micro_block(values, salt)


def layout_blocks(salt: int) -> dict[int, bytes]:
    """The blocks of the SA layouts, a fat ZAP with values of 16-bit integers."""
    zap = FatZap(salt, width=2)
    for attributes, number in LAYOUTS.items():
        zap.put(str(number).encode(), struct.pack(f">{len(attributes)}H", *attributes))
    return {number: block for number, block in zap.changed_blocks().items() if block is not None}


def encode(values: Mapping[int, bytes]) -> tuple[bytes, bytes | None]:
    """The bonus buffer, and the content of the spill block where one is needed (a multiple of 512 bytes).

    `values`: attribute -> its bytes, little-endian.

    Raises:
        ValueError: an attribute is longer than 65,535 bytes, or all of them do not fit in 128 KiB.
    """
    attributes = _in_order(tuple(values))
    if any(len(value) > MAX_ATTRIBUTE for value in values.values()):
        raise ValueError("an attribute is too long")
    whole = _buffer(attributes, values)
    if len(whole) <= BONUS:
        return whole, None
    # The bonus keeps what lies before the first attribute that would reach past 192 bytes; the rest spills.
    sizes = [len(values[attribute]) + 7 & ~7 for attribute in attributes]
    counts = range(len(attributes), 0, -1)
    cut = next(n for n in counts if _header_size(attributes[:n]) + sum(sizes[:n]) <= BONUS_WITH_SPILL)
    # With a spill block the dnode has a pointer less of room: 320 - 128 = 192 bytes of bonus.
    bonus = _buffer(attributes[:cut], values).ljust(BONUS_WITH_SPILL, b"\0")
    spill = _buffer(attributes[cut:], values)
    if len(spill) > 128 << 10:
        raise ValueError("the attributes do not fit in a spill block")
    return bonus, spill.ljust(-(-len(spill) // 512) * 512, b"\0")


_PLAIN = struct.Struct("<IHH7QqQqQqQqQ3Q")
PLAIN_LAYOUT = LAYOUTS[_in_order((*_HEAD, PROJID, DACL_COUNT, DACL_ACES))] | 1 << 10
"Of a file or folder with nothing else: one attribute varies, so the header has 8 bytes."


def encode_plain(head: Sequence[int], aces: bytes) -> bytes:
    """The bonus buffer of a regular file or folder without extended attributes, as encode() makes it.

    `head`: mode, size, generation, uid, gid, parent, flags, the seconds and nanoseconds of atime, mtime, ctime and
    crtime, links.
    """
    return _PLAIN.pack(MAGIC, PLAIN_LAYOUT, len(aces), *head, 0, len(aces) // 8) + aces


def with_numbers(bonus: bytes, *, links: int, parent: int, size: int | None = None) -> bytes:
    """A bonus buffer made by encode() with another count of links, another parent, and another size if it is given.

    They lie where every layout has them.
    """
    (info,) = struct.unpack_from("<H", bonus, 4)
    made, head = bytearray(bonus), (info >> 10) * 8
    struct.pack_into("<Q", made, head + PARENT_AT, parent)
    struct.pack_into("<Q", made, head + LINKS_AT, links)
    if size is not None:
        struct.pack_into("<Q", made, head + SIZE_AT, size)
    return bytes(made)


@cache
def _varying(attributes: tuple[int, ...]) -> list[int]:
    return [attribute for attribute in attributes if not _REGISTERED[attribute][1]]


@cache
def _header_size(attributes: tuple[int, ...]) -> int:
    return 6 + 2 * max(1, len(_varying(attributes))) + 7 & ~7


def _buffer(attributes: tuple[int, ...], values: Mapping[int, bytes]) -> bytes:
    size = _header_size(attributes)
    lengths = [len(values[attribute]) for attribute in _varying(attributes)]
    # Ten bits for the layout, six for the header's size in units of 8.
    info = LAYOUTS[attributes] | size // 8 << 10
    head = struct.pack(f"<IH{len(lengths)}H", MAGIC, info, *lengths).ljust(size, b"\0")
    parts = [values[attribute] for attribute in attributes]
    if lengths:
        parts = [part.ljust(len(part) + 7 & ~7, b"\0") for part in parts]
    return head + b"".join(parts)
