"""Files of every kind and with every attribute, sealed as the kernel seals them; and what ordinary users can do."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sealedkit import FIRST, ROOT, Entries, sealing

from zkeep.format.nvlist import NvList, NvType, Pair, encode
from zkeep.format.objtypes import ObjectType
from zkeep.format.sa import LEGACY, MAGIC

Block, OFF, Thing, fat, micro = sealing.Block, sealing.OFF, sealing.Thing, sealing.fat, sealing.micro

FOLDER, FILE, LINK, CHAR, PIPE, SOCKET = 4, 8, 10, 2, 1, 12
NAMES = [name for name, _ in LEGACY] + ["-", "ZPL_SYMLINK", "-", "-", "ZPL_DXATTR", "ZPL_PROJID"]
SIZES = [size for _, size in LEGACY] + [8, 0, 32, 0, 0, 8]
PLAIN, DEVICE, SYMLINK, PACKED, BESIDE = 2, 3, 4, 5, 6
EXTRA = {PLAIN: (), DEVICE: (10,), SYMLINK: (17,), PACKED: (20,), BESIDE: (9,)}
"Layouts, and which attribute each has behind those that all have."
TIME = 1_700_000_000_123_456_789
NOBODY = 65534


def tree(root: Entries, *rest: Thing, mode: int = 0o755) -> Iterator[Thing]:
    """A filesystem whose files may be of any of these layouts."""
    basics = list(sealing.basics())
    registry = {NAMES[i].encode(): SIZES[i] << 24 | i for i in range(len(NAMES)) if NAMES[i] != "-"}
    basics[2] = sealing._plain(sealing.REGISTRY, ObjectType.SA_REGISTRY, micro(registry, 4096))
    layouts = [(number, sealing.ATTRIBUTES + extra) for number, extra in EXTRA.items()]
    packed = [(b"%d" % number, 2, struct.pack(f">{len(parts)}H", *parts)) for number, parts in layouts]
    basics[3] = sealing._folded(sealing.LAYOUTS, ObjectType.SA_LAYOUTS, fat(packed))
    yield from basics
    yield folder(ROOT, ROOT, root, mode=mode, uid=os.geteuid(), gid=os.getegid())
    yield from sorted(rest, key=lambda thing: thing.number)


@dataclass
class Attributes:
    """What a file has beside its content; of the last four at most one."""

    uid: int = -1
    gid: int = -1
    "-1: the caller's."
    links: int = 1
    mtime: int = TIME
    flags: int = 0
    rdev: int | None = None
    target: bytes | None = None
    xattrs: dict[bytes, bytes] | None = None
    xattr_folder: int | None = None

    def bonus(self, mode: int, size: int, parent: int) -> bytes:
        layout, lengths, tail = PLAIN, b"", b""
        if self.rdev is not None:
            layout, tail = DEVICE, struct.pack("<Q", self.rdev)
        elif self.target is not None:
            layout, lengths, tail = SYMLINK, struct.pack("<H", len(self.target)), self.target
        elif self.xattrs is not None:
            tail = _packed(self.xattrs)
            layout, lengths = PACKED, struct.pack("<H", len(tail))
        elif self.xattr_folder is not None:
            layout, tail = BESIDE, struct.pack("<Q", self.xattr_folder)
        uid = os.geteuid() if self.uid < 0 else self.uid
        gid = os.getegid() if self.gid < 0 else self.gid
        time = struct.pack("<2q", *divmod(self.mtime, 10**9))
        head = struct.pack("<IH", MAGIC, 1 << 10 | layout) + (lengths or bytes(2))
        return (
            head
            + struct.pack("<7Q", mode, size, 7, uid, gid, parent, self.flags)
            + time * 4
            + struct.pack("<Q", self.links)
            + tail
        )


def _packed(xattrs: dict[bytes, bytes]) -> bytes:
    pairs = [Pair(name.decode("utf-8", "surrogateescape"), NvType.BYTE_ARRAY, value) for name, value in xattrs.items()]
    nvlist = NvList()
    nvlist.pairs = pairs
    return encode(nvlist)


def node(
    number: int,
    mode: int = stat.S_IFREG | 0o644,
    content: bytes = b"",
    size: int | None = None,
    parent: int = ROOT,
    **attributes: object,
) -> Thing:
    """A file whose content, if there is any, is its first block; behind that it may be a hole."""
    size = len(content) if size is None else size
    blksz = 131072 if size > 131072 else max(512, size + 511 & ~511)
    blocks = [Block(0, content.ljust(blksz, b"\0"), OFF)] if content else []
    bonus = Attributes(**attributes).bonus(mode, size, parent)  # type: ignore[arg-type]
    slots = 1 if len(bonus) <= 300 else 12
    return Thing(number, ObjectType.PLAIN_FILE, blksz, max(0, -(-size // blksz) - 1), blocks, bonus, slots)


def folder(number: int, parent: int, entries: Entries, mode: int = 0o755, **attributes: object) -> Thing:
    values = [(name, 8, (kind << 60 | inner).to_bytes(8, "big")) for name, inner, kind in entries]
    given = Attributes(**attributes)  # type: ignore[arg-type]
    given.links = 2 + sum(kind == FOLDER for _, _, kind in entries)
    bonus = given.bonus(stat.S_IFDIR | mode, len(entries) + 2, parent)
    return sealing._folded(number, ObjectType.DIRECTORY, fat(values), bonus)


def as_user(work: Callable[[Path], None]) -> None:
    """Do it in another process, as an ordinary user, in a folder of that user's own."""
    home = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
    child = os.fork()
    if not child:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work(home)
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        for path, folders, _ in os.walk(home):
            for name in folders:
                os.chmod(Path(path) / name, 0o700)
        shutil.rmtree(home)


__all__ = ["FIRST", "ROOT"]
