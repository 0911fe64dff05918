"""A snapshot, opened with its key: objects and their blocks, each authenticated before a byte of it is seen (P5).

The way from the key to a byte, and what is read for it:

    portable MAC    over the metadnode: all OBJECT_RANGE headers, when the snapshot is opened
    dnode block     over 32 slots: their OBJECT records and the headers of all their blocks, when one is asked for
    MAC tree        of an object: the headers again, of as many blocks as an indirect block holds
    block           its record

What was authenticated is a chain of values in memory; what is read twice is compared twice. A stream that is not raw
has none of this: its records are held against the sums with which they were stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property, partial
from itertools import chain, groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from zkeep.cache import Cache
from zkeep.crypto.block import MAC, BlockKeys, Forged
from zkeep.crypto.dnodeblock import Metadnode, Seal, portable_mac
from zkeep.crypto.mactree import MacTree, OutOfTree, Shape
from zkeep.crypto.unwrap import GetKey
from zkeep.errors import Damaged, Refused
from zkeep.format.compress import BadCompression, decompress
from zkeep.format.dnode import SLOTS, Dnode
from zkeep.format.nvlist import NvList
from zkeep.format.objtypes import ObjectType, is_encrypted
from zkeep.format.records import HEADER, ByteOrder, RecordType, WriteEmbedded
from zkeep.pool.datasets.begin import Opening, number
from zkeep.pool.datasets.history import history_of
from zkeep.pool.datasets.model import NotThere, Pool, Snapshot
from zkeep.pool.datasets.orphans import reading
from zkeep.pool.timeline.spans import unique
from zkeep.snapshot import recheck
from zkeep.snapshot.chunks import State
from zkeep.snapshot.dnodes import Block, DnodeBlocks
from zkeep.snapshot.errors import Forgery, Unreadable
from zkeep.snapshot.keys import master_keys
from zkeep.snapshot.malloc import keep_freed_memory
from zkeep.snapshot.metadnode import Seals
from zkeep.snapshot.prefetch import fetched, open_row, opened_ahead
from zkeep.snapshot.verified import NO_LEAVES, Verified
from zkeep.tree.objects import Bonus

Array = npt.NDArray[Any]
Buffer = memoryview | bytearray
DNODE_BLOCKS = 1024
"OpenSnapshot blocks of dnodes that are held: some 20 KiB each."
GROUPS = 64
BATCH = 8 << 20
"Bytes of blocks that are read at a time."
INFLATED = 64 << 20
"Bytes of contents that are held at a time, or one block: a few bytes may be large blocks, compressed."
END = (1 << 64) - 1
EMBEDDED, REDACT = int(RecordType.WRITE_EMBEDDED), int(RecordType.REDACT)
SMALL = 128 << 10
"Bytes of a file's only block that may be opened before it is asked for."
WORTHWHILE = 256 << 10
"Bytes of blocks that are worth more than one thread."
PORTION = 16 << 20
"Bytes that are authenticated at a time."


class NoObject(Unreadable):
    """There is no object of this number."""


class OpenSnapshot:
    """Use it as a context manager. `get_key` is asked for the wrapping key of an encrypted snapshot.

    Raises (all methods):
        Forgery: something is not authentic.
        Damaged: the pool's own data is not what was stored.
    """

    def __init__(self, pool: Pool, snapshot: Snapshot, get_key: GetKey | None = None) -> None:
        self.snapshot = snapshot
        self.name = str(snapshot.name)
        doc = pool.catalog.get("begin", snapshot.key)
        if doc is None:
            if history_of(pool, snapshot.dataset).upto(snapshot.txg).runs:
                raise Damaged(f"{self.name}: the catalog has lost its BEGIN")
            raise NotThere(f"cannot open {self.name}: it holds nothing")
        self._opening = Opening.from_doc(doc)
        self.begin = self._opening.begin
        self.crypt = self._opening.crypt if self.begin.raw else None
        self.pool = pool
        self._keys = self._unwrap(get_key)
        self._stack = ExitStack()
        self._seals: Seals | None = None
        self._blocks: Cache[int, Mapping[int, Verified]] = Cache(DNODE_BLOCKS)
        self._groups: Cache[tuple[int, int], Array] = Cache(GROUPS)
        self._expected: dict[int, Buffer | bytes] = {}
        self.state: State
        self._dnodes: DnodeBlocks

    @property
    def is_volume(self) -> bool:
        return self.begin.type == 3

    def _unwrap(self, get_key: GetKey | None) -> BlockKeys | None:
        if not self.begin.raw:
            return None
        if self.crypt is None:
            raise Damaged(f"{self.name}: the stream is raw and brought no keys")
        if get_key is None:
            raise Unreadable(f"cannot open {self.name}: it is encrypted and no key is here: give it with -L")
        try:
            return BlockKeys(master_keys(self.pool, self.snapshot, get_key))
        except Refused as error:
            raise type(error)(f"cannot open {self.name}: {error}") from None

    def __enter__(self) -> OpenSnapshot:
        keep_freed_memory()
        with ExitStack() as stack:
            stack.enter_context(reading(self.pool))
            history = history_of(self.pool, self.snapshot.dataset).upto(self.snapshot.txg)
            timeline = stack.enter_context(history.timeline(self.pool.store))
            self.state = State(timeline, history.runs)
            self._dnodes = DnodeBlocks(self.name, self.state, raw=self._keys is not None)
            if self._keys is not None:
                self._open_metadnode(self._keys)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # The metadnode

    def _open_metadnode(self, keys: BlockKeys) -> None:
        """Read the seals of all dnode blocks, and hold them against the portable MAC."""
        crypt = self.crypt
        assert crypt is not None
        shape = _metadnode(crypt)
        self._seals = Seals(self.state.ranges(), self.state.records)
        tree = MacTree(Shape(ObjectType.DNODE, shape.nlevels, shape.indblkshift, shape.nblkptr))
        try:
            tree.add(self._seals.blocks, self._seals.pointers())
            found = portable_mac(keys, self.begin.type, shape, tree.finish())
        except OutOfTree:
            recheck.seals(self.state)
            raise Forgery(self.name, "there are dnodes beyond the metadnode's end") from None
        if found != crypt.get("portable_mac"):
            recheck.seals(self.state)
            raise Forgery(self.name, "the MAC of the object set does not verify")

    def metadnode_shape(self) -> Metadnode:
        """The shape of the object that holds all dnodes, as the BEGIN of an encrypted snapshot tells it."""
        if self.crypt is None:
            raise Unreadable(f"{self.name}: it is not encrypted")
        return _metadnode(self.crypt)

    @property
    def last_dnode_block(self) -> int:
        """The number of the highest block of dnodes that there ever was."""
        return self.metadnode_shape().maxblkid

    def dnode_block_macs(self) -> dict[int, bytes]:
        """The MAC of each block of dnodes, by its number.

        Raises:
            Unreadable: a block was written on a big-endian host.
        """
        if self._seals is None:
            return {}
        if not all(self._seals.is_little(index) for index in self._seals):
            raise Unreadable(f"{self.name}: it was written on a big-endian host")
        return {index: self._seals.get(index).mac for index in self._seals}

    # Dnodes

    def object(self, wanted: int) -> Verified:
        """Raises NoObject if it is not there."""
        found = self.dnodes(wanted // SLOTS).get(wanted)
        if found is None:
            raise NoObject(f"{self.name}: there is no object {wanted}")
        return found

    def numbers(self) -> Iterator[int]:
        """The numbers of all blocks of dnodes."""
        if self._keys is not None:
            yield from self._seals or ()
            return
        last = -1
        for chunk in self.state.chunks():
            for block in unique(chunk.table.objects["object"] // np.uint64(SLOTS)).tolist():
                if block > last:
                    yield block
                    last = block

    def seal(self, index: int) -> Seal | None:
        """What one block of dnodes is sealed with: equal seals, equal blocks. None where nothing is sealed."""
        return self._seals.get(index) if self._seals and index in self._seals else None

    def same(self, one: Verified, another: Verified) -> bool:
        """Whether two objects, of this snapshot and of another, are the same for all that is authenticated of them."""
        if one.dnode != another.dnode or one.roots != another.roots:
            return False
        if self._keys is None:
            return False
        return bool(np.array_equal(one.spill["pointer"], another.spill["pointer"]))

    def dnodes(self, index: int) -> Mapping[int, Verified]:
        """The objects of one block of dnodes, by number."""
        found = self._blocks.get(index)
        return self._blocks.put(index, self._load(index)) if found is None else found

    def _load(self, index: int) -> Mapping[int, Verified]:
        if self._keys is None:
            return self._dnodes.open(index)
        if self._seals is None or index not in self._seals:
            return {}
        order: ByteOrder = "little" if self._seals.is_little(index) else "big"
        return self._dnodes.unseal(index, self._keys, self._seals.get(index), order)

    # Blocks

    def leaves(self, held: Verified, first: int, end: int) -> Iterator[Array]:
        """The leaves of an object's blocks with numbers first <= n < end, authenticated, in stretches."""
        dnode = held.dnode
        if held.flat is not None:
            if not first and (not len(held.flat) or int(held.flat["offset"][-1]) < end * dnode.blksz):
                yield held.flat
                return
            numbers = held.flat["offset"] // np.uint64(dnode.blksz)
            yield held.flat[(numbers >= first) & (numbers < end)]
            return
        if held.tree is None:
            yield self.state.leaves(dnode.number, first * dnode.blksz, min(end * dnode.blksz, END))
            return
        fanout = Shape.of(dnode).fanout
        low, high = first >> fanout, (end - 1) >> fanout
        for group in [group for group in held.tree.first if low <= group <= high]:
            leaves = self._group(held, group, fanout)
            numbers = leaves["offset"] // np.uint64(dnode.blksz)
            start, stop = np.searchsorted(numbers, np.array([first, min(end, END)], np.uint64))
            yield leaves[start:stop]

    def _group(self, held: Verified, group: int, fanout: int) -> Array:
        """All leaves under one indirect block of level 1."""
        number = held.dnode.number
        found = self._groups.get((number, group))
        if found is None:
            found = self._groups.put((number, group), self._fetch_group(held, group, fanout))
        return found

    def _fetch_group(self, held: Verified, group: int, fanout: int) -> Array:
        dnode, tree = held.dnode, held.tree
        assert tree is not None
        size = dnode.blksz << fanout
        leaves = self.state.leaves(dnode.number, group * size, min(group * size + size, END))
        again = MacTree(tree.shape)
        self._dnodes.plant(again, dnode, leaves)
        again.finish()
        if again.first.get(group) != tree.first[group]:
            raise Forgery(self.name, "its blocks changed while they were read", dnode.number, group * size)
        return leaves

    def contents(self, kind: int, leaves: Array) -> Iterator[tuple[Array, bytes | bytearray | memoryview]]:
        """The content of each leaf's block; `kind` is their object type, or a spill block's bonus type."""
        for some in chain.from_iterable(_batches(part, INFLATED, "logical") for part in _batches(leaves, BATCH)):
            records = self._records(some)
            if len(some) > 1 and int(some["logical"].sum()) > WORTHWHILE:
                yield from zip(some, self.crew.map(partial(self._content, kind), some, records), strict=True)
                continue
            for leaf, record in zip(some, records, strict=True):
                yield leaf, self._content(kind, leaf, record)

    def _records(self, leaves: Array) -> list[memoryview]:
        """With room for a MAC behind each where it is sealed; else held against their checks."""
        sealed = self._keys is not None
        return self.state.records.whole(leaves, check=not sealed, slack=MAC if sealed else 0)

    @cached_property
    def crew(self) -> ThreadPoolExecutor:
        """Threads for large blocks: decryption and decompression do without the interpreter."""
        return self._stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))

    def rest(self) -> None:
        crew = self.__dict__.pop("crew", None)
        if crew is not None:
            crew.shutdown()

    def _content(self, kind: int, leaf: Array, record: memoryview) -> bytes | bytearray | memoryview:
        kind_of_record = leaf["kind"]
        if kind_of_record == EMBEDDED:
            return self._embedded(leaf, record)
        if kind_of_record == REDACT:
            raise Unreadable(f"{self.name}: {_place(leaf)}: it was left out of a redacted stream")
        sealed = record[HEADER:]
        opened = self._unseal(kind, leaf, sealed) if self._keys is not None else sealed
        try:
            return decompress(opened, int(leaf["compression"]), int(leaf["logical"]))
        except BadCompression as error:
            raise Unreadable(f"{self.name}: {_place(leaf)}: {error}") from None

    def _unseal(self, kind: int, leaf: Array, sealed: memoryview) -> Buffer:
        """`sealed` ends with room for the MAC."""
        assert self._keys is not None
        mac = leaf["pointer"]["mac"].tobytes()
        try:
            if not is_encrypted(kind):
                self._keys.authenticate(mac, sealed[:-MAC])
                return sealed[:-MAC]
            sealed[-MAC:] = mac
            opened = bytearray(len(sealed) - MAC)
            self._keys.open_into(leaf["salt"].tobytes(), leaf["iv"].tobytes(), sealed, opened)
            return opened
        except Forged:
            raise self._forged(leaf) from None

    def _forged(self, leaf: Array) -> Forgery:
        """Of a block that does not verify. Raises Damaged: it is not what was stored."""
        self.state.records.whole(leaf.reshape(1))
        what = "the MAC of the block does not verify"
        return Forgery(self.name, what, int(leaf["object"]), int(leaf["offset"]))

    def _embedded(self, leaf: Array, record: memoryview) -> bytes | bytearray | memoryview:
        header = WriteEmbedded.unpack(record, self.state.records.byteorder(leaf))
        try:
            return decompress(record[HEADER : HEADER + header.psize], header.compression, header.lsize)
        except BadCompression as error:
            raise Unreadable(f"{self.name}: {_place(leaf)}: {error}") from None

    def leads_to_much(self, index: int) -> bool:
        """Whether the blocks of the objects of a block of dnodes make more than one portion, as far as one can tell."""
        try:
            size = self.state.bytes_of(index * SLOTS, SLOTS)
        except Damaged:
            return False  # whoever looks at it closely says what it is
        return size is None or size > PORTION

    def portions(self, index: int) -> Iterator[tuple[bool, Array]]:
        """All blocks of the objects of a block of dnodes, by number: in stretches, each encrypted or none of it."""
        pieces = chain.from_iterable(map(self._pieces, self.dnodes(index).values()))
        for encrypted, run in groupby(pieces, key=lambda piece: piece[0]):
            waiting: list[Array] = []
            size = 0
            for _, leaves in run:
                waiting.append(leaves)
                size += int(leaves["size"].sum(dtype="u8"))
                if size >= PORTION:
                    yield from ((encrypted, some) for some in _batches(np.concatenate(waiting), PORTION))
                    waiting, size = [], 0
            if waiting:
                yield encrypted, np.concatenate(waiting)

    def _pieces(self, held: Verified) -> Iterator[tuple[bool, Array]]:
        """The blocks of an object in stretches, and whether they are encrypted."""
        of_type = ((held.dnode.type, leaves) for leaves in self.leaves(held, 0, END))
        for kind, leaves in chain(of_type, [(held.dnode.bonustype, held.spill)]):
            if len(leaves):
                yield is_encrypted(kind), leaves

    def check(self, encrypted: bool, leaves: Array) -> None:
        """Authenticate blocks without undoing their compression; of those that fail, the first is told of."""
        keys = self._keys
        if keys is None:
            self._records(leaves)
            return
        nobody = memoryview(bytearray(int(leaves["size"].max())))  # looks at what comes out
        failed: list[int] = []
        for index, row, sealed in fetched(self.state.records, leaves):
            try:
                if encrypted:
                    open_row(keys, row, sealed, nobody[: len(sealed) - MAC])
                else:
                    keys.authenticate(row.mac, sealed[:-MAC])
            except Forged:
                failed.append(index)
        if failed:
            raise self._forged(leaves[min(failed)])

    def spill(self, held: Verified) -> bytes | None:
        """The content of an object's spill block, if it has one."""
        if not len(held.spill):
            return None
        (_, content), *_ = self.contents(held.dnode.bonustype, held.spill)
        return bytes(content)

    # As the tree asks

    def bonus(self, number: int) -> Bonus:
        block = self.dnodes(number // SLOTS)
        if isinstance(block, Block) and number in block:
            return block.bonus(number)
        dnode = self.object(number).dnode
        return Bonus(dnode.bonustype, dnode.has_spill, dnode.bonus)

    def dnode(self, number: int) -> Dnode:
        return self.object(number).dnode

    def spill_of(self, number: int) -> bytes | None:
        return self.spill(self.object(number))

    def read_block(self, number: int, block: int) -> bytes:
        held = self.object(number)
        for leaves in self.leaves(held, block, block + 1):
            for _, content in self.contents(held.dnode.type, leaves):
                return bytes(content)
        return bytes(held.dnode.blksz)

    def data(self, number: int, start: int, end: int) -> Iterator[tuple[int, bytes | bytearray | memoryview]]:
        if end <= start:
            return
        expected = self._expected.pop(number, None)
        if expected is not None and start < len(expected):
            yield 0, expected
            return
        held = self.object(number)
        size = held.dnode.blksz
        for leaves in self.leaves(held, start // size, (end + size - 1) // size):
            for leaf, content in self.contents(held.dnode.type, leaves):
                yield int(leaf["offset"]), content

    def expect(self, numbers: Iterable[int]) -> None:
        if self._keys is None:
            return
        parts = [NO_LEAVES]
        for index, some in groupby(numbers, key=lambda number: number // SLOTS):
            block = self.dnodes(index)
            if isinstance(block, Block):
                parts.append(block.only_leaves(ObjectType.PLAIN_FILE, some))
        leaves = np.concatenate(parts)
        # the only block of a sparse file may lie far out
        begins = (leaves["logical"] <= SMALL) & (leaves["offset"] == 0)
        self._expected = dict(opened_ahead(self.state.records, self._keys, leaves[begins]))


def _metadnode(crypt: NvList) -> Metadnode:
    shape = Metadnode(
        indblkshift=number(crypt, "mdn_indblkshift"),
        nlevels=number(crypt, "mdn_nlevels"),
        nblkptr=number(crypt, "mdn_nblkptr"),
        checksum=number(crypt, "mdn_checksum"),
        compress=number(crypt, "mdn_compress"),
        maxblkid=number(crypt, "mdn_maxblkid"),
    )
    sound = 1 <= shape.nlevels <= 13 and 7 < shape.indblkshift <= 20 and 1 <= shape.nblkptr <= 3
    if not sound or max(shape.checksum, shape.compress) > 255:
        raise Damaged("the key record tells of a metadnode that cannot be")
    return shape


def _batches(leaves: Array, most: int, column: str = "size") -> Iterator[Array]:
    """Stretches of at most so many bytes, or of one block. `column`: "size", as stored, or "logical"."""
    ends = np.cumsum(leaves[column], dtype=np.int64)
    first = 0
    while first < len(leaves):
        base = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, base + most, "right")), first + 1)
        yield leaves[first:last]
        first = last


def _place(leaf: Array) -> str:
    return f"object {leaf['object']}, offset {leaf['offset']}"


__all__ = ["NoObject", "OpenSnapshot", "Verified"]
