"""Make raw streams that a key opens: filesystems sealed as the kernel seals them, of any size.

    python bench/sealing.py FILE KEY --folders 1 --files 128 --size 16777216              2 GiB in records of 128 KiB
    python bench/sealing.py FILE KEY --folders 1 --files 100000 --size 4096 --shuffle
    python bench/sealing.py FILE KEY --folders 1000 --files 1000 --size 4096 --one 1048576    and `one`, of 1 MiB
    python bench/sealing.py FILE KEY --one 1048576 --sparse 107374182400 --every 8            and `sparse`, of 100 GiB

KEY is written, too: 32 raw bytes. `--compress lz4` fills files with what compresses to about half, `zstd` with words.
"""

from __future__ import annotations

import argparse
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from zkeep.crypto.unwrap import SUITES, KeyFormat, MasterKeys, wrap
from zkeep.format.compress_writer import compressor
from zkeep.format.objtypes import ObjectType, ObjsetType
from zkeep.format.records import Begin, Feature
from zkeep.format.sa import LEGACY, MAGIC
from zkeep.format.zap_writer import FatZap, micro_block
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.admit import ReceiveTarget
from zkeep.pool.transfer.send import SendRequest, send
from zkeep.snapshot.changes import Block, ObjectChange
from zkeep.snapshot.commit import Group, write_group
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.writer import SnapshotWriter

SUITE, GUID, TOGUID = 8, 0x5EA1, 0x5EED_5EA1
NOW = 1_700_000_000
APART = 7
"Seconds between the times of one file and of the next."
ROOT, SA_MASTER, REGISTRY, LAYOUTS, QUEUE, FIRST = 34, 2, 3, 4, 5, 64
ATTRIBUTES = (5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8)
"Mode, size, generation, owner, group, parent, flags, four times, links."
LAYOUT = 2
ZAP_SALT = 1
OFF = 2


@dataclass(frozen=True)
class Thing:
    """An object to be stored."""

    number: int
    type: int
    blksz: int
    last: int
    "Its last block's number."
    blocks: Iterable[Block]
    "Contents as they are stored, but for encryption."
    bonus: bytes = b""
    slots: int = 1

    def change(self) -> ObjectChange:
        bonustype = ObjectType.SA if self.bonus else 0
        where = self.number, self.type, self.blksz, self.last
        return ObjectChange(*where, self.blocks, self.bonus, bonustype, slots=self.slots)


def seal(path: Path, key: bytes, things: Iterable[Thing], suite: int = SUITE) -> None:
    """Write the stream of a filesystem of these objects, which come in ascending order of their numbers."""
    keys = MasterKeys(suite, GUID, 1, os.urandom(SUITES[suite].key_bytes), os.urandom(64))
    name = DatasetName.parse("bench/sealed")
    group = Group(
        begin=Begin(creation_time=NOW, type=ObjsetType.FILESYSTEM, toguid=TOGUID),
        features=Feature.ZSTD | Feature.LARGE_BLOCKS | Feature.LARGE_DNODE,
        target=ReceiveTarget(name, "s0", name),
        wrapped=wrap(keys, key, KeyFormat.RAW),
        compress=compressor("off"),
        keys=keys,
    )

    def fill(writer: SnapshotWriter, base: OpenSnapshot | None) -> bool:
        for thing in things:
            writer.write(thing.change())
        return False

    with TemporaryDirectory(dir=path.parent) as folder, Pool.create(Path(folder, "pool"), "bench", {}) as pool:
        write_group(pool, group, None, fill)
        with path.open("wb") as sink:
            send(pool, SendRequest(snapshot="bench/sealed@s0", raw=True), sink)


# What a filesystem is made of


def attributes(mode: int, size: int, parent: int, links: int = 1, age: int = 0) -> bytes:
    """`age`: seconds after NOW."""
    head = struct.pack("<IHH", MAGIC, 1 << 10 | LAYOUT, 0)
    times = struct.pack("<2Q", NOW + age, 123_456_789) * 4
    return head + struct.pack("<7Q", mode, size, 7, 0, 0, parent, 0) + times + struct.pack("<Q", links)


def micro(entries: dict[bytes, int], size: int = 1024) -> bytes:
    return micro_block(entries, ZAP_SALT).ljust(size, b"\0")


def fat(entries: list[tuple[bytes, int, bytes]]) -> list[bytes]:
    """Blocks of a ZAP with (name, width, big-endian value)."""
    made = FatZap(ZAP_SALT, width=entries[0][1] if entries else 8)
    for name, _, value in entries:
        made.put(name, value)
    blocks = made.changed_blocks()
    return [blocks[number] or bytes(len(blocks[0] or b"")) for number in range(made.maxblkid + 1)]


def _plain(number: int, kind: int, content: bytes) -> Thing:
    return Thing(number, kind, len(content), 0, [Block(0, content, OFF)])


def basics() -> Iterator[Thing]:
    """Master node, system attributes, delete queue."""
    names = {"ROOT": ROOT, "VERSION": 5, "SA_ATTRS": SA_MASTER, "DELETE_QUEUE": QUEUE}
    yield _plain(1, ObjectType.MASTER_NODE, micro({name.encode(): value for name, value in names.items()}))
    masters = {b"REGISTRY": REGISTRY, b"LAYOUTS": LAYOUTS}
    yield _plain(SA_MASTER, ObjectType.SA_MASTER, micro(masters))
    registry = {LEGACY[n][0].encode(): LEGACY[n][1] << 24 | n for n in ATTRIBUTES}
    yield _plain(REGISTRY, ObjectType.SA_REGISTRY, micro(registry))
    layout = fat([(str(LAYOUT).encode(), 2, struct.pack(f">{len(ATTRIBUTES)}H", *ATTRIBUTES))])
    yield _folded(LAYOUTS, ObjectType.SA_LAYOUTS, layout)
    yield _plain(QUEUE, ObjectType.DELETE_QUEUE, micro({}))


def _folded(number: int, kind: int, blocks: list[bytes], bonus: bytes = b"") -> Thing:
    every = [Block(i, block, OFF) for i, block in enumerate(blocks)]
    return Thing(number, kind, len(blocks[0]), len(blocks) - 1, every, bonus)


def folder(number: int, parent: int, entries: list[tuple[bytes, int, int]]) -> Thing:
    """`entries`: name, object, 4 for a folder or 8 for a file."""
    values = [(name, 8, (kind << 60 | inner).to_bytes(8, "big")) for name, inner, kind in entries]
    links = 2 + sum(kind == 4 for _, _, kind in entries)
    bonus = attributes(0o040755, len(entries) + 2, parent, links)
    return _folded(number, ObjectType.DIRECTORY, fat(values), bonus)


Fill = Callable[[int, int], tuple[bytes, int]]
"(number of a block, size) -> content as stored, compression."


def filler(compression: str) -> Fill:
    noise = np.random.default_rng(1).bytes(1 << 20)

    noisy = b"".join(noise[i : i + 64] + noise[:64] for i in range(0, len(noise), 64))

    def fill(number: int, size: int) -> tuple[bytes, int]:
        block = number.to_bytes(8, "little") + noise[: size - 8]
        if compression == "off":
            return block, OFF
        if compression == "tiny":
            return _packed(block[:100].ljust(size, b"\0"), "lz4")
        return _packed(number.to_bytes(8, "little") + noisy[: size - 8], compression)

    return fill


def text() -> Fill:
    """What compresses as prose does; no part of it comes again within a window of zstd."""
    rng = np.random.default_rng(1)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgk", np.uint8)
    vocabulary = [bytes(rng.choice(letters, length)) for length in rng.integers(2, 11, 20_000)]
    prose = b" ".join(vocabulary[rank] for rank in np.minimum(rng.zipf(1.2, 6_000_000), 20_000) - 1)

    def fill(number: int, size: int) -> tuple[bytes, int]:
        start = number * 1_234_567 % (len(prose) - size)
        return _packed(number.to_bytes(8, "little") + prose[start : start + size - 8], "zstd")

    return fill


COMPRESS = {name: compressor(name) for name in ("lz4", "zstd")}


def _packed(block: bytes, compression: str) -> tuple[bytes, int]:
    content, code = COMPRESS[compression](block)
    return bytes(content), code


def file(number: int, parent: int, size: int, record: int, fill: Fill, every: int = 1) -> Thing:
    """`every`: only each such block is written, the others are holes."""
    blksz = record if size > record else size + 511 & ~511
    count = -(-size // blksz)

    def blocks() -> Iterator[Block]:
        for i in range(0, count, every):
            content, code = fill(number << 24 | i, blksz)
            yield Block(i, content, code)

    bonus = attributes(0o100644, size, parent, age=number * APART)
    return Thing(number, ObjectType.PLAIN_FILE, blksz, count - 1, blocks(), bonus)


def filesystem(given: argparse.Namespace) -> Iterator[Thing]:
    """`files` files of `size` bytes in each of `folders` folders d0, d1, ...; `one` and `sparse` at the top."""
    fill = text() if given.compress == "zstd" else filler(given.compress)
    folders = range(FIRST + 2, FIRST + 2 + given.folders)
    names = [(b"d%d" % i, number, 4) for i, number in enumerate(folders)]
    names += [(b"one", FIRST, 8)] if given.one else []
    names += [(b"sparse", FIRST + 1, 8)] if given.sparse else []
    yield from basics()
    yield folder(ROOT, ROOT, names)
    if given.one:
        yield file(FIRST, ROOT, given.one, given.record, fill)
    if given.sparse:
        yield file(FIRST + 1, ROOT, given.sparse, given.record, filler("tiny"), given.every)
    start = folders.stop
    order = np.random.default_rng(1).permutation(given.files) if given.shuffle else np.arange(given.files)
    for i, number in enumerate(folders):
        first = start + i * given.files
        yield folder(number, ROOT, [(b"file-%06d" % n, first + at, 8) for n, at in enumerate(order.tolist())])
    for i, number in enumerate(folders):
        for n in range(given.files):
            yield file(start + i * given.files + n, number, given.size, given.record, fill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("key", type=Path)
    parser.add_argument("--folders", type=int, default=0)
    parser.add_argument("--files", type=int, default=0, help="in each folder")
    parser.add_argument("--shuffle", action="store_true", help="names in another order than the files lie in")
    parser.add_argument("--size", type=int, default=4096, help="bytes of each file")
    parser.add_argument("--record", type=int, default=131072)
    parser.add_argument("--compress", choices=("off", "lz4", "zstd"), default="off")
    parser.add_argument("--one", type=int, default=0, help="bytes of a file `one`")
    parser.add_argument("--sparse", type=int, default=0, help="bytes of a file `sparse`")
    parser.add_argument("--every", type=int, default=1, help="of `sparse`, only each such record is written")
    given = parser.parse_args()
    key = os.urandom(32)
    given.key.write_bytes(key)
    seal(given.file, key, filesystem(given))


if __name__ == "__main__":
    main()
