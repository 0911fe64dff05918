"""A snapshot opened with its key: its objects and their blocks, each authenticated before a byte of it is used (P5).

From the key to a byte of a file, and what is read on the way:

    portable MAC    covers the metadnode: the headers of all OBJECT_RANGE records. Checked when the snapshot is opened
    dnode block     its MAC covers 32 slots: their OBJECT records, and the headers of all blocks of these objects
    MAC tree        of a larger object: the same headers, read again for as many blocks as an indirect block points to
    block           its MAC covers its record's payload

What was authenticated is kept in memory as values; what is read a second time is compared with them. A stream that is
not raw has no MACs: each of its records is compared with the checksum with which it was stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby

import numpy as np

from zkeep.cache import Cache
from zkeep.crypto.block import BlockKeys
from zkeep.crypto.dnodeblock import Metadnode, Seal, portable_mac
from zkeep.crypto.mactree import MacTree, OutOfTree, TreeShape
from zkeep.crypto.unwrap import GetKey
from zkeep.errors import Damaged, Refused, TryAgain
from zkeep.format.dnode import SLOTS, Dnode
from zkeep.format.nvlist import NvList
from zkeep.format.objtypes import ObjectType, ObjsetType
from zkeep.format.records import ByteOrder
from zkeep.pool.datasets import head
from zkeep.pool.datasets.begin import Opening, number
from zkeep.pool.datasets.contents import lacking
from zkeep.pool.datasets.history import history_of
from zkeep.pool.datasets.model import NotThere, Pool, Snapshot
from zkeep.pool.datasets.orphans import reading
from zkeep.pool.timeline.spans import unique
from zkeep.snapshot import recheck
from zkeep.snapshot.block_reader import BlockReader
from zkeep.snapshot.chunks import SCATTERED_ROWS, State
from zkeep.snapshot.dnodes import DnodeBlock, DnodeBlocks
from zkeep.snapshot.errors import Forgery, Unreadable
from zkeep.snapshot.keys import master_keys
from zkeep.snapshot.known import Known
from zkeep.snapshot.malloc import keep_freed_memory
from zkeep.snapshot.metadnode import Seals
from zkeep.snapshot.prefetch import read_ahead
from zkeep.snapshot.verified import NO_LEAVES, VerifiedObject
from zkeep.tree.objects import Bonus, Content, Reading

DNODE_BLOCKS = 1024
"Opened blocks of dnodes that are cached: some 20 KiB each."
SMALL = 128 << 10
"Bytes of a file's only block that may be decrypted before it is asked for."

TOGETHER = 32 << 10
"Bytes of a file's only block that is read together with those of the files beside it."


class NoObject(Unreadable):
    """There is no object of this number."""


class OpenSnapshot:
    """Use it as a context manager. `get_key` is asked for the wrapping key of an encrypted snapshot.

    Raises (all methods):
        Forgery: something is not authentic.
        Damaged: the pool's own data is not what was stored.
    """

    state: State
    blocks: BlockReader
    _dnodes: DnodeBlocks
    _fine: State

    def __init__(
        self,
        pool: Pool,
        snapshot: Snapshot,
        get_key: GetKey | None = None,
        *,
        scattered: bool = False,
        known: Known | None = None,
    ) -> None:
        """`scattered`: little of it will be read, here and there, so that no more is read around it than need be.

        `known`: what is known of states before it, under the same keys.
        """
        self.pool = pool
        self.snapshot = snapshot
        self._scattered = scattered
        self.name = str(snapshot.name)
        doc = pool.catalog.get("begin", snapshot.key)
        if doc is None:
            self._refuse_gone()
            if history_of(pool, snapshot.dataset).upto(snapshot.txg).runs:
                raise Damaged(f"{self.name}: the catalog has lost its BEGIN")
            raise NotThere(f"cannot open {self.name}: it holds nothing")
        opening = Opening.from_doc(doc)
        self.begin = opening.begin
        self.crypt = opening.crypt if self.begin.raw else None
        self.known = known if self.crypt is not None else None
        self._keys = self._unwrap(get_key)
        self._stack = ExitStack()
        self._seals: Seals | None = None
        self._dnode_blocks: Cache[int, Mapping[int, VerifiedObject]] = Cache(DNODE_BLOCKS)
        self._prefetched: dict[int, Content] = {}

    @property
    def is_volume(self) -> bool:
        return self.begin.type == ObjsetType.VOLUME

    def lacks_contents(self) -> bool:
        """Whether contents of files are not here, because they are stored elsewhere (contents=metadata)."""
        return lacking(self.state.runs) and any(chunk.table.blocks["bare"].any() for chunk in self.state.chunks())

    def _unwrap(self, get_key: GetKey | None) -> BlockKeys | None:
        if not self.begin.raw:
            return None
        if self.crypt is None:
            raise Damaged(f"{self.name}: the stream is raw and brought no keys")
        if get_key is None:
            raise Unreadable(f"cannot open {self.name}: it is encrypted and no key is here: give it with -L")
        try:
            keys = master_keys(self.pool, self.snapshot, get_key)
            if self.known is not None and self.known.keys != keys:
                self.known = None
            return BlockKeys(keys)
        except Refused as error:
            raise type(error)(f"cannot open {self.name}: {error}") from None

    def _refuse_gone(self) -> None:
        """Raises TryAgain: it is not where it was when it was looked up."""
        if head.state_at(self.pool, self.snapshot.dataset.id, self.snapshot.txg) is None:
            raise TryAgain(f"cannot open {self.name}: it was destroyed, or a clone of it promoted, meanwhile")

    def __enter__(self) -> OpenSnapshot:
        keep_freed_memory()
        with ExitStack() as stack:
            self._open_state(stack)
            if self._keys is not None:
                self._open_metadnode(self._keys)
            self._stack = stack.pop_all()
        return self

    def _open_state(self, stack: ExitStack) -> None:
        """Open the timeline, which `stack` closes."""
        # From here on no segment that the catalog names is deleted.
        stack.enter_context(reading(self.pool))
        history = history_of(self.pool, self.snapshot.dataset).upto(self.snapshot.txg)
        # If it was destroyed since it was looked up, its runs may be merged: what it was cannot be told any more.
        self._refuse_gone()
        timeline = stack.enter_context(history.timeline(self.pool.store))
        self.state = State(timeline, history.runs)
        fine = State(timeline, history.runs, SCATTERED_ROWS) if self._scattered else self.state
        self._dnodes = DnodeBlocks(self.name, fine, raw=self._keys is not None)
        self._fine = fine
        self.blocks = BlockReader(self.name, fine, self._keys, self.known)
        stack.callback(self.blocks.stop_threads)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # The metadnode

    def _open_metadnode(self, keys: BlockKeys) -> None:
        """Read salt, IV and MAC of all dnode blocks, and check them against the portable MAC."""
        crypt = self.crypt
        assert crypt is not None
        # portable MAC = HMAC(type of object set | core of the metadnode | its pointers), and each pointer has the MAC
        # over what
        # it points to: so this one MAC covers every block of dnodes.
        shape = _metadnode(crypt)
        mac = crypt.get("portable_mac")
        if self.known is not None and isinstance(mac, bytes):
            self._seals = self.known.seals(shape, mac)
            if self._seals is not None:
                return
        self._seals = Seals.read(self.state.ranges(), self.state.records)
        tree = MacTree(TreeShape(ObjectType.DNODE, shape.nlevels, shape.indblkshift, shape.nblkptr))
        try:
            tree.add(self._seals.blocks, self._seals.pointers())
            found = portable_mac(keys, self.begin.type, shape, tree.finish())
        except OutOfTree:
            recheck.seals(self.state)
            raise Forgery(self.name, "there are dnodes beyond the metadnode's end") from None
        if found != mac:
            recheck.seals(self.state)
            raise Forgery(self.name, "the MAC of the object set does not verify")
        if self.known is not None:
            self.known.put_seals(shape, found, self._seals)

    def metadnode_shape(self) -> Metadnode:
        """The shape of the object that holds all dnodes, as the BEGIN of an encrypted snapshot gives it."""
        if self.crypt is None:
            raise Unreadable(f"{self.name}: it is not encrypted")
        return _metadnode(self.crypt)

    @property
    def last_dnode_block(self) -> int:
        """The number of the highest block of dnodes that there ever was."""
        return self.metadnode_shape().maxblkid

    def seals(self) -> Seals:
        """The seals of all blocks of dnodes, which are none in a stream that is not raw.

        Raises:
            Unreadable: a block was written on a big-endian host.
        """
        if self._seals is None:
            return Seals.of({})
        if not self._seals.are_little():
            raise Unreadable(f"{self.name}: it was written on a big-endian host")
        return self._seals

    # Dnodes

    def object(self, wanted: int) -> VerifiedObject:
        """Raises NoObject if it is not there."""
        found = self.dnodes(wanted // SLOTS).get(wanted)
        if found is None:
            raise NoObject(f"{self.name}: there is no object {wanted}")
        return found

    def expect(self, numbers: Iterable[int]) -> None:
        """Objects of these numbers, and others in their blocks of dnodes, are going to be asked for."""
        self._fine.gather(np.fromiter(numbers, np.uint64) // np.uint64(SLOTS))

    def numbers(self) -> Iterator[int]:
        """The numbers of all blocks of dnodes."""
        if self._keys is not None:
            yield from self._seals if self._seals is not None else ()
            return
        last = -1
        for chunk in self.state.chunks():
            for block in unique(chunk.table.objects["object"] // np.uint64(SLOTS)).tolist():
                if block > last:
                    yield block
                    last = block

    def seal(self, index: int) -> Seal | None:
        """Salt, IV and MAC of one block of dnodes: equal seals, equal blocks. None in a stream that is not raw."""
        return self._seals.find(index) if self._seals is not None else None

    def same(self, one: VerifiedObject, another: VerifiedObject) -> bool:
        """Whether an object of this snapshot and one of another agree in everything that MACs cover."""
        # Equal roots: equal MACs of all blocks, so nothing need be read.
        if one.dnode != another.dnode or one.roots != another.roots:
            return False
        if self._keys is None:
            return False
        return bool(np.array_equal(one.spill["pointer"], another.spill["pointer"]))

    def dnodes(self, index: int) -> Mapping[int, VerifiedObject]:
        """The objects of one block of dnodes, by number."""
        cached = self._dnode_blocks.get(index)
        if cached is not None:
            return cached
        # Without keys the dnodes are plain; else each block is decrypted as its OBJECT_RANGE seals it, or is a hole.
        found: Mapping[int, VerifiedObject] = {}
        if self._keys is None:
            found = self._dnodes.read(index)
        elif self._seals is not None and (seal := self._seals.find(index)) is not None:
            found = self._sealed(index, seal, self._keys, "little" if self._seals.is_little(index) else "big")
        return self._dnode_blocks.put(index, found)

    def _sealed(self, index: int, seal: Seal, keys: BlockKeys, order: ByteOrder) -> Mapping[int, VerifiedObject]:
        """A block of dnodes that is known by its seal, or read and decrypted."""
        known = self.known.block(index, seal) if self.known is not None else None
        if known is not None:
            return known
        found = self._dnodes.decrypt(index, keys, seal, order)
        if self.known is not None:
            # Where its records lie is left out: compaction moves them.
            self.known.put_block(index, seal, {number: obj.without_places() for number, obj in found.items()})
        return found

    # What zkeep.tree asks for: see Objects

    def bonus(self, number: int) -> Bonus:
        block = self.dnodes(number // SLOTS)
        if isinstance(block, DnodeBlock) and number in block:
            return block.bonus(number)
        dnode = self.object(number).dnode
        return Bonus(dnode.bonustype, dnode.has_spill, dnode.bonus)

    def dnode(self, number: int) -> Dnode:
        return self.object(number).dnode

    def spill_of(self, number: int) -> bytes | None:
        return self.blocks.spill(self.object(number))

    def read_block(self, number: int, block: int) -> bytes:
        obj = self.object(number)
        if self.known is None:
            return self._stored_block(obj, block)
        pointer = self.blocks.pointer(obj, block)
        if pointer is None:
            return bytes(obj.dnode.blksz)
        found = self.known.content(pointer)
        if found is None:
            found = self._stored_block(obj, block)
            self.known.put_content(pointer, found)
        return found

    def _stored_block(self, obj: VerifiedObject, block: int) -> bytes:
        for leaves in self.blocks.leaves(obj, block, block + 1):
            for _, content in self.blocks.contents(obj.dnode.type, leaves):
                return bytes(content)
        return bytes(obj.dnode.blksz)

    def known_block(self, number: int, block: int) -> bytes | None:
        """A block of a file, or of another object, if its content is known without reading it."""
        if self.known is None:
            return None
        pointer = self.blocks.pointer(self.object(number), block)
        return self.known.content(pointer) if pointer is not None else None

    def learn_small_files(self, index: int) -> None:
        """Read the blocks of all files in a block of dnodes that have a single small one: they are known then.

        One that cannot be read is left out: reading it by itself says why.
        """
        if self.known is None or self._keys is None:
            return
        wanted = {}
        for at, obj in self.dnodes(index).items():
            if obj.dnode.type == ObjectType.PLAIN_FILE and obj.dnode.blksz <= TOGETHER and obj.dnode.maxblkid == 0:
                pointer = self.blocks.pointer(obj, 0)
                if pointer is not None and self.known.content(pointer) is None:
                    wanted[at] = pointer
        leaves = self.blocks.only_leaves(index, wanted)
        for at, content in read_ahead(self.blocks.records, self._keys, leaves):
            self.known.put_content(wanted[at], bytes(content))

    def data(self, number: int, start: int, end: int) -> Iterator[tuple[int, Content]]:
        if end <= start:
            return
        content = self._prefetched.pop(number, None)
        if content is not None and start < len(content):
            yield 0, content
            return
        obj = self.object(number)
        size = obj.dnode.blksz
        for leaves in self.blocks.leaves(obj, start // size, (end + size - 1) // size):
            for leaf, content in self.blocks.contents(obj.dnode.type, leaves):
                yield int(leaf["offset"]), content

    def begin_read(self, number: int, start: int, end: int) -> Reading:
        obj = self.object(number)
        size = obj.dnode.blksz
        first, last = start // size, (end + size - 1) // size
        parts = list(self.blocks.leaves(obj, first, last))
        # Where there are no holes, and each block fills its place, nothing need be zeros before.
        full = sum(len(leaves) for leaves in parts) == last - first
        full = full and all((leaves["logical"] == size).all() for leaves in parts)
        out = (np.empty if full else np.zeros)(end - start, np.uint8).data
        begun: list[Callable[[], None]] = []
        for leaves in parts:
            begun += self.blocks.begin_contents(obj.dnode.type, leaves, start, out)

        def wait() -> None:
            # The threads have begun with the first: who waits begins with the last.
            for finish in reversed(begun):
                finish()

        return Reading(out, wait)

    def prefetch(self, numbers: Iterable[int]) -> None:
        if self._keys is None:
            return
        parts = [NO_LEAVES]
        # Only blocks of dnodes that were opened are looked into: their objects are authentic.
        for index, numbers_there in groupby(numbers, key=lambda number: number // SLOTS):
            block = self.dnodes(index)
            if isinstance(block, DnodeBlock):
                parts.append(block.only_leaves(ObjectType.PLAIN_FILE, numbers_there))
        leaves = np.concatenate(parts)
        # The only block of a sparse file may lie far out.
        begins = (leaves["logical"] <= SMALL) & (leaves["offset"] == 0) & (leaves["bare"] == 0)
        self._prefetched = dict(read_ahead(self.state.records, self._keys, leaves[begins]))

    def stop_threads(self) -> None:
        self.blocks.stop_threads()


def _metadnode(crypt: NvList) -> Metadnode:
    shape = Metadnode(
        indblkshift=number(crypt, "mdn_indblkshift"),
        nlevels=number(crypt, "mdn_nlevels"),
        nblkptr=number(crypt, "mdn_nblkptr"),
        checksum=number(crypt, "mdn_checksum"),
        compress=number(crypt, "mdn_compress"),
        maxblkid=number(crypt, "mdn_maxblkid"),
    )
    # The shape decides how much memory its tree takes, so it is bounded before the MAC is computed.
    sound = 1 <= shape.nlevels <= 13 and 7 < shape.indblkshift <= 20 and 1 <= shape.nblkptr <= 3
    if not sound or max(shape.checksum, shape.compress) > 255:
        raise Damaged("the key record tells of a metadnode that cannot be")
    return shape
