"""Make raw streams that a key opens: filesystems sealed as the kernel seals them, of any size.

    python bench/sealing.py FILE KEY --folders 1 --files 128 --size 16777216              2 GiB in records of 128 KiB
    python bench/sealing.py FILE KEY --folders 1 --files 100000 --size 4096 --shuffle
    python bench/sealing.py FILE KEY --folders 1000 --files 1000 --size 4096 --one 1048576    and `one`, of 1 MiB
    python bench/sealing.py FILE KEY --one 1048576 --sparse 107374182400 --every 8            and `sparse`, of 100 GiB

KEY is written, too: 32 raw bytes. `--compress lz4` fills files with what compresses to about half, `zstd` with words.
The opening side (zkeep.crypto) is judged by real streams; what is made here is judged by it.
"""

from __future__ import annotations

import argparse
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zkeep.cli.demo import stream
from zkeep.crypto.block import MAC, BlockKeys, expand
from zkeep.crypto.dnodeblock import Metadnode, portable_mac
from zkeep.crypto.mactree import POINTER, MacTree, Shape
from zkeep.crypto.unwrap import SUITES, MasterKeys
from zkeep.format import kernel, zap
from zkeep.format.dnode import SLOT, SLOTS, Dnode, pointer_prop
from zkeep.format.events import SubBegin
from zkeep.format.nvlist import NvList, encode
from zkeep.format.objtypes import ObjectType, is_encrypted
from zkeep.format.reader import Reader
from zkeep.format.records import BeginFlag, End, Feature, Free, Layout, Object, ObjectRange, Write
from zkeep.format.sa import LEGACY, MAGIC

SUITE, GUID, TOGUID = 8, 0x5EA1, 0x5EED_5EA1
INDIRECT = 17
NOW = 1_700_000_000
APART = 7
"Seconds between the times of one file and of the next."
ROOT, SA_MASTER, REGISTRY, LAYOUTS, QUEUE, FIRST = 34, 2, 3, 4, 5, 64
ATTRIBUTES = (5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8)
"Mode, size, generation, owner, group, parent, flags, four times, links."
LAYOUT = 2
ZAP_BLOCK = 16384
OFF, LZ4, ZSTD = 2, 15, 16
Blocks = Iterable[tuple[int, bytes, int, int]]
"Number, content as it is stored before it is sealed, logical size, compression."


@dataclass(frozen=True)
class Thing:
    """An object to be sealed."""

    number: int
    type: int
    blksz: int
    last: int
    "Its last block's number."
    blocks: Blocks
    bonus: bytes = b""
    slots: int = 1


class Sealer:
    """Writes a stream into a file; things come in ascending order of their numbers."""

    def __init__(self, path: Path, key: bytes, suite: int = SUITE) -> None:
        self._sink = path.open("w+b")
        self._wrapping = key
        how = SUITES[suite]
        self._keys = MasterKeys(suite, GUID, 1, os.urandom(how.key_bytes), os.urandom(64))
        self._block_keys = BlockKeys(self._keys)
        self._salt = os.urandom(8)
        self._aead = how.aead(expand(self._keys.master, self._salt))[0]
        self._count = 0
        self._index = -1
        self._things: list[tuple[Dnode, bytes, list[bytes]]] = []
        self._chunks: list[npt.NDArray[np.int64]] = []
        self._ranges: list[tuple[int, bytes]] = []
        self._begin_size = len(self._begin(bytes(32), 0))
        self._sink.write(bytes(self._begin_size))

    def _seal(self, plain: bytes, aad: bytes | None = None) -> tuple[bytes, bytes, bytes]:
        """IV, MAC and ciphertext."""
        self._count += 1
        iv = self._count.to_bytes(12, "little")
        sealed = self._aead.encrypt(iv, plain, aad)
        return iv, sealed[-MAC:], sealed[:-MAC]

    def add(self, thing: Thing) -> None:
        if thing.number // SLOTS != self._index:
            self._flush()
            self._index = thing.number // SLOTS
        pointers = 1 if thing.bonus else 3
        levels = levels_of(thing.last, pointers)
        shape = Shape(thing.type, levels, INDIRECT, pointers)
        writes, roots = self._written(thing, shape)
        bonustype = ObjectType.SA if thing.bonus else 0
        dnode = Dnode(
            *(thing.number, thing.type, bonustype, thing.blksz, len(thing.bonus), thing.slots, 0, 0, False),
            *(INDIRECT, levels, pointers, thing.last, "little", thing.bonus),
        )
        self._things.append((dnode, roots, writes))

    def _written(self, thing: Thing, shape: Shape) -> tuple[list[bytes], bytes]:
        writes: list[bytes] = []
        numbers: list[int] = []
        pointers: list[bytes] = []
        for number, content, logical, compression in thing.blocks:
            iv, mac, sealed = b"", b"", content
            salt = self._salt
            if is_encrypted(thing.type):
                iv, mac, sealed = self._seal(content)
            else:
                salt, iv, mac = bytes(8), bytes(12), self._block_keys.digest(content)[:MAC]
            header = Write(object=thing.number, type=thing.type, offset=number * thing.blksz, checksumtype=7)
            shape_of = {"logical_size": logical, "compressed_size": len(content), "compressiontype": compression}
            header = replace(header, toguid=TOGUID, salt=salt, iv=iv, mac=mac, **_any(shape_of))
            writes.append(header.pack("little") + sealed)
            prop = pointer_prop(logical, len(content), compression, thing.type, little=True)
            numbers.append(number)
            pointers.append(prop.to_bytes(8, "little") + mac + bytes(8))
        tree = MacTree(shape)
        tree.add(np.array(numbers, np.uint64), np.frombuffer(b"".join(pointers), POINTER))
        return writes, tree.finish()

    def _flush(self) -> None:
        """One block of dnodes: sealed, with all that its objects hold."""
        if not self._things:
            return
        first = self._index * SLOTS
        aad: list[bytes] = []
        plain: list[bytes] = []
        at = first
        for dnode, roots, _ in self._things:
            aad += [bytes((dnode.number - at) * SLOT), dnode.core(), roots]
            at = dnode.number + dnode.slots
            (plain if dnode.bonus else aad).append(dnode.bonus.ljust(dnode.bonus_room, b"\0"))
        aad.append(bytes((first + SLOTS - at) * SLOT))
        iv, mac, sealed = self._seal(b"".join(plain), b"".join(aad))
        self._ranges.append((self._index, mac))
        head = ObjectRange(firstobj=first, numslots=SLOTS, toguid=TOGUID, salt=self._salt, iv=iv, mac=mac)
        records = [head.pack("little")]
        for dnode, _, writes in self._things:
            room = dnode.bonus_room if dnode.bonus else 0
            records += [*_object(dnode, sealed[:room]), *writes]
            sealed = sealed[room:]
        self._things = []
        self._put(records)

    def _put(self, records: list[bytes]) -> None:
        self._chunks.append(np.array([len(r) for r in records], np.int64))
        self._sink.writelines(records)

    def finish(self) -> None:
        """All that depends on everything before it: BEGIN, and the checksums."""
        self._flush()
        self._put([End(toguid=TOGUID).pack("little")])
        numbers, macs = zip(*self._ranges, strict=True)
        leaves = np.zeros(len(macs), POINTER)
        leaves["prop"] = pointer_prop(SLOTS * SLOT, SLOTS * SLOT, 2, ObjectType.DNODE, little=True)
        leaves["mac"] = np.frombuffer(b"".join(macs), "V16")
        shape = self._metadnode(numbers[-1])
        tree = MacTree(Shape(ObjectType.DNODE, shape.nlevels, shape.indblkshift, shape.nblkptr))
        tree.add(np.array(numbers, np.uint64), leaves)
        begin = self._begin(portable_mac(self._block_keys, 2, shape, tree.finish()), numbers[-1])
        assert len(begin) == self._begin_size
        self._sink.flush()
        whole = np.memmap(self._sink.name, np.uint8, "r+")
        whole[: len(begin)] = np.frombuffer(begin, np.uint8)
        state, at = np.array(kernel.fletcher4(begin, (0, 0, 0, 0), False), np.uint64), len(begin)
        for lengths in self._chunks:
            piece = whole[at : at + int(lengths.sum())]
            offsets = np.cumsum(lengths) - lengths
            _, sums = kernel.check(piece, offsets, lengths, False)
            state = kernel.stamp(piece, offsets, lengths, sums, False, state)
            at += len(piece)
        self._sink.close()

    def _metadnode(self, last: int) -> Metadnode:
        return Metadnode(INDIRECT, levels_of(last, 3), 3, 0, 0, last)

    def _begin(self, mac: bytes, last: int) -> bytes:
        event = next(event for event in Reader().feed(stream("week-full-s0")) if isinstance(event, SubBegin))
        assert event.nvlist is not None
        crypt = event.nvlist["crypt_keydata"]
        assert isinstance(crypt, NvList)
        aad = struct.pack("<3Q", GUID, self._keys.suite, 1)
        size = len(self._keys.master)
        both = self._keys.master + self._keys.hmac
        wrapped = SUITES[self._keys.suite].aead(self._wrapping)[0].encrypt(bytes(12), both, aad)
        shape = self._metadnode(last)
        values = {
            **{"DSL_CRYPTO_SUITE": self._keys.suite, "DSL_CRYPTO_GUID": GUID, "DSL_CRYPTO_VERSION": 1},
            **{"DSL_CRYPTO_IV": bytes(12), "DSL_CRYPTO_MASTER_KEY_1": wrapped[:size].ljust(32, b"\0")},
            **{"DSL_CRYPTO_HMAC_KEY_1": wrapped[size : size + 64], "DSL_CRYPTO_MAC": wrapped[size + 64 :]},
            **{"keyformat": 1, "pbkdf2iters": 0, "pbkdf2salt": 0, "portable_mac": mac},
            **{"mdn_indblkshift": shape.indblkshift, "mdn_nlevels": shape.nlevels, "mdn_nblkptr": shape.nblkptr},
            **{"mdn_checksum": 0, "mdn_compress": 0, "mdn_maxblkid": last},
            **{"to_ivset_guid": TOGUID + 1, "from_ivset_guid": 0},
        }
        for name, value in values.items():
            crypt.set(name, value)
        payload = encode(event.nvlist)
        flags = event.begin.flags | BeginFlag.SPILL_BLOCK
        named = {"toname": b"bench/sealed@s0", "toguid": TOGUID, "fromguid": 0, "flags": flags}
        named |= {"versioninfo": event.begin.versioninfo | (Feature.ZSTD | Feature.LARGE_BLOCKS) << 2}
        return replace(event.begin, payloadlen=len(payload), **_any(named)).pack("little") + payload


def _any(fields: dict[str, Any]) -> dict[str, Any]:
    return fields


def levels_of(last: int, pointers: int) -> int:
    """Of the tree over blocks 0 to `last`."""
    levels, reach = 1, pointers
    while last >= reach:
        levels, reach = levels + 1, reach << INDIRECT - 7
    return levels


def _object(dnode: Dnode, sealed: bytes) -> Iterator[bytes]:
    yield (
        Object(
            **{"object": dnode.number, "type": dnode.type, "bonustype": dnode.bonustype, "blksz": dnode.blksz},
            **{
                "bonuslen": dnode.bonuslen,
                "raw_bonuslen": len(sealed),
                "dn_slots": dnode.slots,
                "indblkshift": INDIRECT,
            },
            **{"nlevels": dnode.nlevels, "nblkptr": dnode.nblkptr, "maxblkid": dnode.maxblkid, "toguid": TOGUID},
        ).pack("little")
        + sealed
    )
    end = (dnode.maxblkid + 1) * dnode.blksz
    tail: Layout = Free(object=dnode.number, offset=end, length=(1 << 64) - 1, toguid=TOGUID)
    yield tail.pack("little")


# What a filesystem is made of


def attributes(mode: int, size: int, parent: int, links: int = 1, age: int = 0) -> bytes:
    """`age`: seconds after NOW."""
    head = struct.pack("<IHH", MAGIC, 1 << 10 | LAYOUT, 0)
    times = struct.pack("<2Q", NOW + age, 123_456_789) * 4
    return head + struct.pack("<7Q", mode, size, 7, 0, 0, parent, 0) + times + struct.pack("<Q", links)


def micro(entries: dict[bytes, int], size: int = 1024) -> bytes:
    rows = [struct.pack("<QIH50s", value, 0, 0, name) for name, value in entries.items()]
    return (struct.pack("<3Q40x", zap.MICRO, 1, 0) + b"".join(rows)).ljust(size, b"\0")


def fat(entries: list[tuple[bytes, int, bytes]]) -> list[bytes]:
    """Blocks of a ZAP with (name, width, big-endian value)."""
    bits = max(0, (len(entries) // 100).bit_length())
    leaves: list[list[tuple[int, bytes, int, bytes]]] = [[] for _ in range(1 << bits)]
    for name, width, value in entries:
        hashed = zap.hash_of(name, 1, zap.HASH_BITS)
        leaves[hashed >> 64 - bits if bits else 0].append((hashed, name, width, value))
    count = len(leaves)
    head = struct.pack("<13Q", zap.HEADER, zap.MAGIC, 0, 0, bits, 0, 0, count + 1, count, len(entries), 1, 0, 0)
    table = struct.pack(f"<{count}Q", *range(1, count + 1))
    first = head.ljust(ZAP_BLOCK // 2, b"\0") + table.ljust(ZAP_BLOCK // 2, b"\0")
    return [first, *(_leaf(leaf, number, bits) for number, leaf in enumerate(leaves))]


def _leaf(entries: list[tuple[int, bytes, int, bytes]], prefix: int, bits: int) -> bytes:
    shift, chunks = ZAP_BLOCK.bit_length() - 1, bytearray()
    table = [0xFFFF] * (1 << shift - 5)

    def array(content: bytes) -> int:
        at = len(chunks) // zap.CHUNK
        parts = [content[i : i + zap.ARRAY_BYTES] for i in range(0, len(content), zap.ARRAY_BYTES)]
        for i, part in enumerate(parts, at + 1):
            chunks.extend(struct.pack("<B21sH", zap.ARRAY, part, i if i < at + len(parts) else zap.CHAIN_END))
        return at

    for hashed, name, width, value in entries:
        name_at, value_at = array(name + b"\0"), array(value)
        bucket = hashed >> 64 - shift + 5 - bits & len(table) - 1
        shape = width, table[bucket], name_at, len(name) + 1, value_at, len(value) // width
        table[bucket] = len(chunks) // zap.CHUNK
        chunks += struct.pack("<BBHHHHHIQ", zap.ENTRY, *shape, 0, hashed)
    used, most = len(chunks) // zap.CHUNK, (ZAP_BLOCK - 2 * len(table)) // zap.CHUNK - 2
    assert used <= most
    for i in range(used, most):
        chunks += struct.pack("<BxxxxxH16x", 253, i + 1 if i + 1 < most else zap.CHAIN_END)
    free = used if used < most else zap.CHAIN_END
    head = struct.pack("<3QI4HB11x", zap.LEAF, 0, prefix, zap.LEAF_MAGIC, most - used, len(entries), bits, free, 0)
    return (head + struct.pack(f"<{len(table)}H", *table) + chunks).ljust(ZAP_BLOCK, b"\0")


def _plain(number: int, kind: int, content: bytes) -> Thing:
    return Thing(number, kind, len(content), 0, [(0, content, len(content), OFF)])


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
    every = [(i, block, len(block), OFF) for i, block in enumerate(blocks)]
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


def _packed(block: bytes, compression: str) -> tuple[bytes, int]:
    if compression == "lz4":
        import lz4.block

        packed = lz4.block.compress(block, store_size=False)
        head, code = struct.pack(">I", len(packed)), LZ4
    else:
        import zstandard

        made = zstandard.ZstdCompressionParameters.from_level(3, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        packed = zstandard.ZstdCompressor(compression_params=made).compress(block)
        head, code = struct.pack(">II", len(packed), 10506 << 8 | 3), ZSTD
    size = len(head) + len(packed) + 511 & ~511
    return ((head + packed).ljust(size, b"\0"), code) if size < len(block) else (block, OFF)


def file(number: int, parent: int, size: int, record: int, fill: Fill, every: int = 1) -> Thing:
    """`every`: only each such block is written, the others are holes."""
    blksz = record if size > record else size + 511 & ~511
    count = -(-size // blksz)

    def blocks() -> Iterator[tuple[int, bytes, int, int]]:
        for i in range(0, count, every):
            content, code = fill(number << 24 | i, blksz)
            yield i, content, blksz, code

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
    sealer = Sealer(given.file, key)
    for thing in filesystem(given):
        sealer.add(thing)
    sealer.finish()


if __name__ == "__main__":
    main()
