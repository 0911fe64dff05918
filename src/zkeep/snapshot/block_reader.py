"""Blocks of an opened snapshot: found in the pool, authenticated, decrypted and decompressed.

leaf       one row per block: where its record lies, and its salt, IV and MAC, which the MAC of its dnode covers
record     312 bytes of header, then the block as it was on the sender's disk: compressed, then encrypted
content    the block as the file or directory has it
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np

from zkeep.cache import Cache
from zkeep.crypto.block import MAC, BlockKeys, Forged
from zkeep.crypto.mactree import HOLE, POINTER, MacTree, Numbers, Pointers, TreeShape
from zkeep.format.compress import PLAIN, BadCompression, decompress
from zkeep.format.dnode import SLOTS
from zkeep.format.objtypes import is_encrypted
from zkeep.format.records import HEADER, RecordType, WriteEmbedded
from zkeep.names import MAX_UINT64
from zkeep.pool.datasets.contents import NotHere
from zkeep.pool.timeline.spans import Array
from zkeep.snapshot.changes import HANDED
from zkeep.snapshot.chunks import State
from zkeep.snapshot.dnodes import add_leaves
from zkeep.snapshot.errors import Forgery, Unreadable
from zkeep.snapshot.known import Known
from zkeep.snapshot.prefetch import BlockRow, decrypt_row, stored_blocks
from zkeep.snapshot.verified import NO_LEAVES, VerifiedObject
from zkeep.tree.objects import Content

GROUPS = 64
"Level 1 indirect blocks whose authenticated leaves are cached."
BATCH = 8 << 20
"Bytes of stored blocks that are read at a time."
INFLATED = 64 << 20
"Bytes of contents that are in memory at a time, or one block: a few stored bytes may decompress to large blocks."
WORTHWHILE = 256 << 10
"Bytes of contents that are worth more than one thread."
END = MAX_UINT64
"Behind every block number and every offset."
T = TypeVar("T")
FLAT = -1
"In the place of an indirect block's number: an object has none."
WRITE, EMBEDDED, REDACT = int(RecordType.WRITE), int(RecordType.WRITE_EMBEDDED), int(RecordType.REDACT)


class BlockReader:
    """Reads blocks of objects whose dnodes are authentic. `keys`: None if the stream is not raw.

    Raises (all methods):
        Forgery: something is not authentic.
        Damaged: the pool's own data is not what was stored.
    """

    def __init__(self, name: str, state: State, keys: BlockKeys | None, known: Known | None = None) -> None:
        self.name = name
        self._known = known
        self.keys = keys
        self.records = state.records
        self._state = state
        self._groups: Cache[tuple[int, int], Array] = Cache(GROUPS)

    # Leaves: which blocks an object has

    def leaves(self, obj: VerifiedObject, first: int, end: int) -> Iterator[Array]:
        """The authenticated leaves of an object's blocks with numbers first <= n < end, in several arrays."""
        dnode = obj.dnode
        # Without indirect blocks, all leaves were authenticated together with the dnode.
        flat = self._placed(obj) if obj.unplaced and obj.flat is not None else obj.flat
        if flat is not None:
            if not first and (not len(flat) or int(flat["offset"][-1]) < end * dnode.blksz):
                yield flat
                return
            numbers = flat["offset"] // np.uint64(dnode.blksz)
            yield flat[(numbers >= first) & (numbers < end)]
            return
        # A stream that is not raw has no MACs to compare with.
        if obj.tree is None:
            yield from self._state.leaves_by_chunk(dnode.number, first * dnode.blksz, min(end * dnode.blksz, END))
            return
        # Else read the leaves below each level 1 indirect block in the range, and check that block's MAC.
        fanout = TreeShape.of(dnode).fanout
        low, high = first >> fanout, (end - 1) >> fanout
        for group in [group for group in obj.tree.first if low <= group <= high]:
            leaves = self._group(obj, group, fanout)
            numbers = leaves["offset"] // np.uint64(dnode.blksz)
            start, stop = np.searchsorted(numbers, np.array([first, min(end, END)], np.uint64))
            yield leaves[start:stop]

    def _group(self, obj: VerifiedObject, group: int, fanout: int) -> Array:
        """All leaves below one level 1 indirect block, which are read again: their MAC must be the one seen before."""
        dnode, tree = obj.dnode, obj.tree
        assert tree is not None
        cached = self._groups.get((dnode.number, group))
        if cached is not None:
            return cached
        size = dnode.blksz << fanout
        leaves = self._state.leaves(dnode.number, group * size, min(group * size + size, END))
        # Rebuild the MAC of this indirect block from the leaves; only the one that the dnode covers will do.
        again = MacTree(tree.shape)
        add_leaves(self.name, again, dnode, leaves)
        again.finish()
        if again.first.get(group) != tree.first[group]:
            raise Forgery(self.name, "its blocks changed while they were read", dnode.number, group * size)
        return self._groups.put((dnode.number, group), leaves)

    def _placed(self, obj: VerifiedObject) -> Array:
        """All leaves of an object without indirect blocks, of which only the MACs were known."""
        number = obj.dnode.number
        cached = self._groups.get((number, FLAT))
        if cached is not None:
            return cached
        leaves = self._state.leaves(number, 0, END)
        tree = MacTree(TreeShape.of(obj.dnode))
        add_leaves(self.name, tree, obj.dnode, leaves)
        if tree.finish() != obj.roots:
            raise Forgery(self.name, "its blocks are not those that were written", number)
        return self._groups.put((number, FLAT), leaves)

    def pointers(self, obj: VerifiedObject, group: int) -> tuple[Numbers, Pointers]:
        """Numbers and pointers of the blocks of an object below one indirect block; all, if it has none. No holes."""
        if obj.tree is None:
            found = np.frombuffer(obj.roots, POINTER)
            numbers = np.flatnonzero(found.view("V32") != np.void(HOLE)).astype(np.uint64)
            return numbers, found[numbers]
        number, mac = obj.dnode.number, obj.tree.first.get(group)
        if mac is None:
            return np.empty(0, np.uint64), np.empty(0, POINTER)
        if self._known is not None and (known := self._known.group(number, group, mac)) is not None:
            return known
        leaves = self._group(obj, group, obj.tree.shape.fanout)
        pair = leaves["offset"] // np.uint64(obj.dnode.blksz), np.ascontiguousarray(leaves["pointer"])
        if self._known is not None:
            self._known.put_group(number, group, mac, *pair)
        return pair

    def pointer(self, obj: VerifiedObject, block: int) -> bytes | None:
        """The pointer to one block of an object; None for a hole."""
        if obj.tree is None:
            found = obj.roots[block * len(HOLE) : (block + 1) * len(HOLE)]
            return found if found and found != HOLE else None
        numbers, pointers = self.pointers(obj, block >> obj.tree.shape.fanout)
        at = int(numbers.searchsorted(np.uint64(block)))
        return pointers[at].tobytes() if at < len(numbers) and int(numbers[at]) == block else None

    def only_leaves(self, index: int, wanted: Mapping[int, bytes]) -> Array:
        """The leaves of ordinary blocks at offset 0 of objects in a block of dnodes. `wanted`: the pointers to them.

        None are found where a large object among them spreads over many chunks.
        """
        first = index * SLOTS
        chunks = list(islice(self._state.over((first, 0), (first + SLOTS, 0)), 3))
        parts = [NO_LEAVES]
        for chunk in chunks if len(chunks) < 3 else ():
            low, high = np.searchsorted(chunk.table.blocks["object"], np.array([first, first + SLOTS], np.uint64))
            leaves = chunk.leaves[low:high]
            # Each leaf must be the one that the dnode's own pointer, which is authentic, leads to.
            pointers, size = leaves["pointer"].tobytes(), len(HOLE)
            numbers = enumerate(leaves["object"].tolist())
            mine = [at for at, number in numbers if wanted.get(number) == pointers[at * size : (at + 1) * size]]
            parts.append(leaves[mine])
        found = np.concatenate(parts)
        return np.asarray(found[(found["offset"] == 0) & (found["kind"] == WRITE) & (found["bare"] == 0)])

    # Contents

    def contents(self, kind: int, leaves: Array) -> Iterator[tuple[Array, Content]]:
        """Each leaf with its block's content. `kind`: their object type; for spill blocks, the bonus type."""
        if leaves["bare"].any():
            raise NotHere(self.name)
        # Batches are bounded twice: in stored bytes, and in what they decompress to.
        for batch in chain.from_iterable(batches(part, INFLATED, "logical") for part in batches(leaves, BATCH)):
            records = self.stored_records(batch)
            if len(batch) > 1 and int(batch["logical"].sum()) > WORTHWHILE:
                yield from zip(batch, self._threads.map(partial(self.content, kind), batch, records), strict=True)
                continue
            for leaf, record in zip(batch, records, strict=True):
                yield leaf, self.content(kind, leaf, record)

    def begin_contents(self, kind: int, leaves: Array, start: int, out: memoryview) -> Iterator[Callable[[], None]]:
        """Begin to put the blocks of leaves, as far as they lie in it, into `out`, which begins at offset `start`.

        What is worth it is read and decrypted by threads, while the caller goes on. Call what is yielded: each waits
        for a part, or does it where no thread has begun with it, and says what is wrong.
        """
        if leaves["bare"].any():
            raise NotHere(self.name)
        if int(leaves["logical"].sum()) <= WORTHWHILE:
            self._put_contents(kind, leaves, start, out)
            return
        for part in batches(leaves, HANDED, "logical"):
            put = partial(self._put_contents, kind, part, start, out)
            yield partial(_finish, self._threads.submit(put), put)

    def _put_contents(self, kind: int, leaves: Array, start: int, out: memoryview) -> None:
        if self.keys is None or not is_encrypted(kind) or (leaves["kind"] != WRITE).any():
            for leaf, record in zip(leaves, self.stored_records(leaves), strict=True):
                _put(self.content(kind, leaf, record), int(leaf["offset"]) - start, out)
            return
        offsets = leaves["offset"].tolist()
        for index, row, stored in stored_blocks(self.records, leaves):
            try:
                self._put_block(self.keys, row, stored, offsets[index] - start, out)
            except Forged:
                raise self.forgery(leaves[index]) from None
            except BadCompression as error:
                raise Unreadable(f"{self.name}: {_place(leaves[index])}: {error}") from None

    def _put_block(self, keys: BlockKeys, row: BlockRow, stored: memoryview, at: int, out: memoryview) -> None:
        # A block that is not compressed is decrypted right where it belongs.
        if row.compression in PLAIN and row.size == HEADER + row.logical and 0 <= at <= len(out) - row.logical:
            decrypt_row(keys, row, stored, out[at : at + row.logical])
            return
        compressed = bytearray(row.size - HEADER)
        decrypt_row(keys, row, stored, compressed)
        _put(decompress(compressed, row.compression, row.logical), at, out)

    def spill(self, obj: VerifiedObject) -> bytes | None:
        """The content of an object's spill block, if it has one."""
        if not len(obj.spill):
            return None
        spill = self._placed_spill(obj) if obj.unplaced else obj.spill
        (_, content), *_ = self.contents(obj.dnode.bonustype, spill)
        return bytes(content)

    def _placed_spill(self, obj: VerifiedObject) -> Array:
        """The leaf of a spill block of which only the pointer was known."""
        leaf = self._state.spill(obj.dnode.number, obj.dnode.bonustype)
        if not np.array_equal(leaf["pointer"], obj.spill["pointer"]):
            raise Forgery(self.name, "its spill block is not the one that was written", obj.dnode.number)
        return leaf

    def stored_records(self, leaves: Array) -> list[memoryview]:
        """The records of blocks. In a raw stream there is room for a MAC behind each; else checksums are checked."""
        raw = self.keys is not None
        return self.records.whole(leaves, check=not raw, slack=MAC if raw else 0)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """Threads for large blocks: decryption and decompression run without the interpreter lock."""
        return ThreadPoolExecutor(os.cpu_count() or 1)

    def in_threads(self, call: Callable[..., T], *columns: Iterable[Any]) -> Iterator[T]:
        """map() by the threads that decrypt and decompress."""
        return self._threads.map(call, *columns)

    def stop_threads(self) -> None:
        """End the threads; they are started again when they are needed."""
        threads = self.__dict__.pop("_threads", None)
        if threads is not None:
            threads.shutdown()

    def stored_content(self, kind: int, leaf: Array, record: memoryview) -> Content:
        """The content of a leaf's block as it is stored, decrypted and not decompressed."""
        return self._decrypt(kind, leaf, record[HEADER:])

    def content(self, kind: int, leaf: Array, record: memoryview) -> Content:
        """The content of a leaf's block. `record`: what stored_records() gave for it."""
        kind_of_record = leaf["kind"]
        if kind_of_record == EMBEDDED:
            header = WriteEmbedded.unpack(record, self.records.byteorder(leaf))
            try:
                return decompress(record[HEADER : HEADER + header.psize], header.compression, header.lsize)
            except BadCompression as error:
                raise Unreadable(f"{self.name}: {_place(leaf)}: {error}") from None
        if kind_of_record == REDACT:
            raise Unreadable(f"{self.name}: {_place(leaf)}: it was left out of a redacted stream")
        stored = record[HEADER:]
        compressed = self._decrypt(kind, leaf, stored) if self.keys is not None else stored
        try:
            return decompress(compressed, int(leaf["compression"]), int(leaf["logical"]))
        except BadCompression as error:
            raise Unreadable(f"{self.name}: {_place(leaf)}: {error}") from None

    def _decrypt(self, kind: int, leaf: Array, stored: memoryview) -> memoryview | bytearray:
        """The block as it was before encryption, still compressed. `stored` ends with room for the MAC."""
        assert self.keys is not None
        mac = leaf["pointer"]["mac"].tobytes()
        try:
            # A type that is not encrypted has an HMAC over its bytes as they are stored.
            if not is_encrypted(kind):
                self.keys.authenticate(mac, stored[:-MAC])
                return stored[:-MAC]
            stored[-MAC:] = mac
            compressed = bytearray(len(stored) - MAC)
            self.keys.decrypt_into(leaf["salt"].tobytes(), leaf["iv"].tobytes(), stored, compressed)
            return compressed
        except Forged:
            raise self.forgery(leaf) from None

    def forgery(self, leaf: Array) -> Forgery:
        """The error for a block whose MAC does not verify. Raises Damaged if it is not what was stored."""
        self.records.whole(leaf.reshape(1))
        what = "the MAC of the block does not verify"
        return Forgery(self.name, what, int(leaf["object"]), int(leaf["offset"]))


def batches(leaves: Array, most: int, column: str = "size") -> Iterator[Array]:
    """Cut leaves into batches of at most `most` bytes, or of one block. `column`: "size", as stored, or "logical"."""
    ends = np.cumsum(leaves[column], dtype=np.int64)
    first = 0
    while first < len(leaves):
        base = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, base + most, "right")), first + 1)
        yield leaves[first:last]
        first = last


def _finish(begun: Future[None], put: Callable[[], None]) -> None:
    """Wait for what a thread was given; do it here if none has begun."""
    if begun.cancel():
        put()
    else:
        begun.result()


def _put(content: Content, at: int, out: memoryview) -> None:
    """Put a block into `out`, as far as it lies in there. `at`: where it begins, which may be before."""
    low, high = max(at, 0), min(at + len(content), len(out))
    if low < high:
        out[low:high] = memoryview(content)[low - at : high - at]


def _place(leaf: Array) -> str:
    return f"object {leaf['object']}, offset {leaf['offset']}"
