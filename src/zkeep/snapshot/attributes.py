"""Write the attributes of files: bonus, spill block, and extended attributes that need objects of their own.

Source: OpenZFS module/os/linux/zfs/zpl_xattr.c (what lies where).
"""

from __future__ import annotations

import stat

from zkeep.format.objtypes import ObjectType
from zkeep.format.zap_writer import BLOCK, FatZap, fits_micro, micro_block
from zkeep.format.znode import IS_XATTR, LINUX_FLAGS, Znode
from zkeep.format.znode_writer import MAX_XATTR_VALUE, MAX_XATTRS, FileFields, encode_file, pack_xattrs
from zkeep.snapshot.changes import Block, ObjectChange
from zkeep.snapshot.new_filesystem import new_salt


def block_size(size: int, recordsize: int) -> int:
    """The size of a file's blocks: one that holds all of it, or the dataset's recordsize."""
    if size > recordsize:
        return recordsize
    return max(512, -(-size // 512) * 512)


KEPT_FLAGS = IS_XATTR | sum(LINUX_FLAGS.values())
"Flags of a file that stay when its attributes are written again; the others follow from them."


def stored_fields(node: Znode) -> FileFields:
    """The fields of a file as a snapshot has them, but for extended attributes among the system attributes."""
    return FileFields(
        *(node.mode, node.uid, node.gid, node.size, node.links),
        *(node.atime, node.mtime, node.ctime, node.crtime, node.parent, node.generation),
        rdev=node.rdev,
        target=node.target,
        xattr_folder=node.xattr_folder,
        flags=node.flags & KEPT_FLAGS,
    )


class Attributes:
    """Encodes the attributes of files. `extras` gets (file, object) of each object that holds extended attributes.

    `flags`: the normflags of the filesystem's folders.
    """

    def __init__(self, recordsize: int, generation: int, extras: list[tuple[int, int]], flags: int = 0) -> None:
        self._flags = flags
        self._recordsize = recordsize
        self._generation = generation
        self._extras = extras
        self.next_number = 0
        "The number of the next object of that kind: behind all others."
        self.pending: list[ObjectChange] = []
        "Objects that are only met while others are written, in ascending order."

    def encode(self, number: int, fields: FileFields, xattrs: dict[bytes, bytes]) -> tuple[bytes, bytes | None]:
        """Bonus and spill block, with the extended attributes that fit there; large ones become files of their own."""
        if not xattrs:
            fields.xattrs = xattrs
            return encode_file(fields)
        large = {name: value for name, value in xattrs.items() if len(value) > MAX_XATTR_VALUE}
        # They are stored in the bonus or the spill block as long as there is room; the largest ones move out first.
        small = {name: value for name, value in xattrs.items() if name not in large}
        # In a packed list each takes the same room whichever others there are.
        empty = len(pack_xattrs({}))
        sizes = {name: len(pack_xattrs({name: value})) - empty for name, value in small.items()}
        room = MAX_XATTRS - empty - sum(sizes.values())
        for name in sorted(small, key=lambda each: len(small[each]), reverse=True):
            if room >= 0:
                break
            large[name] = small.pop(name)
            room += sizes[name]
        fields.xattrs = small
        if large:
            fields.xattr_folder = self._xattr_folder(number, fields, large)
        return encode_file(fields)

    def _xattr_folder(self, owner: int, fields: FileFields, xattrs: dict[bytes, bytes]) -> int:
        """Extended attributes as files of a folder that belongs to their file; the folder's number."""
        # A directory that no name leads to: ZPL_XATTR of its file has its number. One file in it for each attribute.
        folder = self._take_number(owner)
        entries = {}
        files = []
        for name, value in sorted(xattrs.items()):
            number = self._take_number(owner)
            entries[name] = number | (stat.S_IFREG >> 12) << 60
            held = self._xattr_fields(fields, stat.S_IFREG | 0o644, len(value), folder)
            blksz = block_size(len(value), self._recordsize)
            parts = [value[at : at + blksz].ljust(blksz, b"\0") for at in range(0, len(value), blksz)]
            blocks = [Block(at, part) for at, part in enumerate(parts)]
            files.append(
                ObjectChange(number, ObjectType.PLAIN_FILE, blksz, len(parts) - 1, blocks, encode_file(held)[0])
            )
        top = self._xattr_fields(fields, stat.S_IFDIR | 0o1777, len(entries) + 2, owner)
        blksz, last, blocks_of_folder = new_directory(entries, self._flags)
        bonus = encode_file(top)[0]
        self.pending += [ObjectChange(folder, ObjectType.DIRECTORY, blksz, last, blocks_of_folder, bonus), *files]
        return folder

    def _xattr_fields(self, owner: FileFields, mode: int, size: int, parent: int) -> FileFields:
        """The attributes of such a folder, or of a file in it: owner and times are those of the file."""
        times = owner.atime, owner.mtime, owner.ctime, owner.crtime
        links = 2 if stat.S_ISDIR(mode) else 1
        made = FileFields(mode, owner.uid, owner.gid, size, links, *times, parent, self._generation)
        made.flags = IS_XATTR
        return made

    def _take_number(self, owner: int) -> int:
        number = self.next_number
        self.next_number += 1
        self._extras.append((owner, number))
        return number


def new_directory(entries: dict[bytes, int], flags: int = 0) -> tuple[int, int, list[Block]]:
    """Block size, last block and blocks of a directory, of normflags `flags`: a micro ZAP while it can be one."""
    if fits_micro(entries, len(entries)):
        block = micro_block(entries, new_salt(), flags)
        return len(block), 0, [Block(0, block)]
    # Long names, or many: a hash table of leaves.
    zap = FatZap(new_salt(), flags=flags)
    for name, value in entries.items():
        zap.put(name, value)
    return fat_blocks(zap)


def fat_blocks(zap: FatZap) -> tuple[int, int, list[Block]]:
    return BLOCK, zap.maxblkid, [Block(number, content) for number, content in zap.changed_blocks().items()]
