"""Writing a snapshot: the twin of OpenSnapshot. Changed objects in, the records of a raw stream out.

The chain of keys and MACs is the one that OpenSnapshot follows, walked the other way:

    block           compressed, encrypted under a random IV; its MAC goes into
    MAC tree        of its object, whose roots, with the dnode, go into
    dnode block     32 slots, encrypted and authenticated together under one IV; its MAC goes into
    portable MAC    over the metadnode, which the BEGIN of the stream carries

Everything of a block of dnodes depends on all data of its objects, so their ciphertext waits, in memory and beyond
SPOOL bytes in a file, until the last of its objects is complete. A block in which nothing changed is not touched.

Source: OpenZFS module/zfs/dmu_send.c (order of records); module/os/linux/zfs/zio_crypt.c.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from zkeep.crypto.block import MAC, BlockKeys
from zkeep.crypto.dnodeblock import (
    Metadnode,
    Seal,
    Stretch,
    encrypt_dnodes,
    has_encrypted_bonus,
    portable_mac,
    stretch_of,
)
from zkeep.crypto.mactree import HOLE, MacTree, TreeShape
from zkeep.crypto.unwrap import MasterKeys
from zkeep.errors import Refused
from zkeep.format.compress import Compression
from zkeep.format.compress_writer import Compress, compressor
from zkeep.format.dnode import CORE, POINTER, SLOT, SLOTS, Dnode, pointer_prop, pointers_beside
from zkeep.format.events import Batch
from zkeep.format.objtypes import ObjectType, ObjsetType, is_encrypted
from zkeep.format.records import Free, FreeObjects, ObjectRange, RecordType, Spill, Words
from zkeep.format.sa_writer import BONUS
from zkeep.snapshot.batches import BATCH, RecordBatches
from zkeep.snapshot.changes import Block, HoleRun, ObjectChange, is_large, together
from zkeep.snapshot.encrypted import StoredBlock, encrypt, is_zeros
from zkeep.snapshot.headers import free_to_the_end, object_header, write_header
from zkeep.snapshot.made_files import MadeFile, NewFiles, make_files
from zkeep.snapshot.metadnode import Seals
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.roots import NewLeaves, roots_of
from zkeep.snapshot.spool import Spool
from zkeep.snapshot.verified import VerifiedObject
from zkeep.snapshot.waiting import Waiting, slots_of, unchanged, verified

Buffer = bytes | bytearray | memoryview
INDIRECT_SHIFT = 17
FANOUT = 1 << INDIRECT_SHIFT - 7
METADNODE = (INDIRECT_SHIFT, 6, 3, 0, 0)
"Shape of a metadnode: indblkshift, levels, pointers, checksum, compression. A kernel takes no other for an increment."
SPOOL = 16 << 20
"Bytes of ciphertext that wait in memory."
PIECES = 1 << 10
"Bytes that the pieces of a record take beside what is in them: small blocks take more room than they hold."
THREADS = os.cpu_count() or 1
KEPT = 32
"Blocks of an object of which the content stays known, as some of them may be changed again."
Encrypted = tuple[bytes, Buffer, bytes]
"Header, ciphertext and pointer of a block."


class SnapshotWriter:
    """Takes changes in ascending order of object numbers; `put` gets the records, batch by batch.

    `base`: the snapshot before, open, whose unchanged objects stay; None for a full one. Use as a context manager.

    Raises (all methods):
        Forgery, Damaged: the base is not what was stored.
    """

    def __init__(
        self,
        keys: MasterKeys,
        toguid: int,
        compress: Compress,
        put: Callable[[Batch], None],
        base: OpenSnapshot | None = None,
        objset_type: int = ObjsetType.FILESYSTEM,
        spool: Spool | None = None,
    ) -> None:
        self._keys = BlockKeys(keys)
        self._toguid = toguid
        self.compress = compress
        self._compress_metadata = compressor("lz4")
        self._base = base
        self._objset_type = objset_type
        self._salt = os.urandom(8)
        self._out = RecordBatches(put)
        self._spool = spool
        self._held = 0
        self._index = -1
        self._there: Mapping[int, VerifiedObject] = {}
        "What the base has in the block of dnodes that is being written."
        self._waiting: dict[int, Waiting | MadeFile] = {}
        self._freed: set[int] = set()
        self._known = base.known if base is not None else None
        self._seals = _base_seals(base)
        self._sealed: dict[int, Seal | None] = {}
        "Blocks of dnodes that were written; None: one that is a hole now."
        self._pool = ThreadPoolExecutor(THREADS)
        self.last_block = base.last_dnode_block if base is not None else 0

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, state: Words) -> None:
        """Records follow a BEGIN whose running fletcher-4 is `state`."""
        self._out.state = np.array(state, np.uint64)

    def write(self, change: ObjectChange) -> None:
        """Write an object. Its number is larger than all before."""
        self._go_to(change.number // SLOTS)
        held = None
        if change.keep:
            assert self._base is not None
            held = self._base.object(change.number)
        waiting = self._begun(change, held)
        # Data first: the MAC tree over it gives the dnode's pointers.
        if change.last <= 0 and not change.keep and change.number not in self._there:
            waiting.roots = self._write_only_block(change, waiting)
        else:
            leaves = self._write_blocks(change, waiting)
            blocks = self._base.blocks if self._base is not None else None
            waiting.roots, waiting.tree = roots_of(waiting.dnode, leaves, held, blocks, self._known)
        # Only now it is known whether it has a spill block, which takes room from the bonus.
        if change.spill is not None:
            dnode = waiting.dnode._replace(has_spill=True)
            bonus = change.bonus.ljust(dnode.bonus_room, b"\0") if change.bonus else b""
            waiting.dnode = dnode._replace(bonus=bonus)
            self._write_spill(change, waiting, held)
        self._waiting[change.number] = waiting

    def make_files(self, files: NewFiles) -> list[MadeFile]:
        """Make new files, which have no object in the base, for write_made()."""
        assert self._known is None  # it would have to know their dnodes
        return make_files(files, self._keys, self._salt, self._toguid, INDIRECT_SHIFT)

    def write_made(self, made: MadeFile) -> None:
        """Write one of them. Its number is larger than all before."""
        self._go_to(made.number // SLOTS)
        self._waiting[made.number] = made
        self._hold(made, sum(made.lengths))

    def free(self, number: int) -> None:
        """Drop an object of the base. Its number is larger than all before."""
        self._go_to(number // SLOTS)
        self._freed.add(number)

    def finish(self) -> tuple[bytes, int]:
        """Write what waits; returns the portable MAC, and the number of the metadnode's last block."""
        self._flush()
        self._out.flush()
        # The tree of MACs over all blocks of dnodes, those of the base that did not change among them.
        shape = Metadnode(*METADNODE, self.last_block)
        tree = MacTree(TreeShape(ObjectType.DNODE, shape.nlevels, shape.indblkshift, shape.nblkptr))
        seals = self._seals.changed(self._sealed)
        tree.add(seals.blocks, seals.pointers())
        mac = portable_mac(self._keys, self._objset_type, shape, tree.finish())
        if self._known is not None:
            self._known.put_seals(shape, mac, seals)
        return mac, self.last_block

    # One object

    def _begun(self, change: ObjectChange, held: VerifiedObject | None) -> Waiting:
        pointers = pointers_beside(change.bonustype, len(change.bonus), change.slots)
        last = max(change.last, 0)
        levels = levels_of(last, pointers)
        if held is not None and held.dnode.blksz == change.blksz:
            # A tree never loses a level, and never forgets how far it reached, while its object lives.
            last = max(last, held.dnode.maxblkid)
            levels = max(levels_of(last, pointers), held.dnode.nlevels)
        # In the order of its fields, which takes half as long as to name them; it has no spill block so far.
        shape = change.type, change.bonustype, change.blksz, len(change.bonus), change.slots
        tree = INDIRECT_SHIFT, levels, pointers, last
        room = change.slots * SLOT - CORE - POINTER * pointers
        bonus = change.bonus.ljust(room, b"\0") if change.bonus else b""
        dnode = Dnode(change.number, *shape, change.checksum, change.compress, False, *tree, "little", bonus)
        return Waiting(dnode, b"", b"")

    def _write_only_block(self, change: ObjectChange, waiting: Waiting) -> bytes:
        """Encrypt the block of a new object that has no other, if it has one; returns the dnode's pointers."""
        roots = HOLE * waiting.dnode.nblkptr
        for count, block in enumerate(change.blocks):
            made = self._encrypt(change, block, count)
            if made is not None:
                header, payload, pointer = made
                self._put(waiting, RecordType.WRITE, header, payload)
                roots = pointer + roots[len(HOLE) :]
        return roots

    def _write_blocks(self, change: ObjectChange, waiting: Waiting) -> NewLeaves:
        """Encrypt the blocks that are given; returns their pointers, a hole's is zeros."""
        # An object that takes the place of another one must free what it does not write: a receiver keeps old blocks
        # where the shape is the same. One that is kept frees only what became a hole.
        leaves = NewLeaves()
        replaces = not change.keep and change.number in self._there
        holes = HoleRun(partial(self._put_free, waiting))
        expected = 0
        for number, result in self._encrypted(change):
            if replaces and number > expected:
                holes.add(expected, number)
            expected = number + 1
            if result is None:
                if change.keep or replaces:
                    holes.add(number, number + 1)
                leaves.add(number, HOLE)
                continue
            header, payload, pointer = result
            self._put(waiting, RecordType.WRITE, header, payload)
            leaves.add(number, pointer)
        if replaces and expected <= waiting.dnode.maxblkid:
            holes.add(expected, waiting.dnode.maxblkid + 1)
        holes.flush()
        return leaves

    def _encrypted(self, change: ObjectChange) -> Iterator[tuple[int, Encrypted | None]]:
        """Header, ciphertext and pointer of each block; large ones by several threads, in order."""
        if change.last <= 0:  # there is only one: no other is encrypted meanwhile
            for count, block in enumerate(change.blocks):
                yield block.number, self._encrypt(change, block, count)
            return
        ahead: deque[Future[list[tuple[int, Encrypted | None]]]] = deque()
        for blocks in together(change.blocks):
            block, count = blocks[0]
            if not is_large(block):
                # A small block is not worth a thread, but must come behind those that are still at work.
                while ahead:
                    yield from ahead.popleft().result()
                yield block.number, self._encrypt(change, block, count)
                continue
            ahead.append(self._pool.submit(self._encrypt_each, change, blocks))
            if len(ahead) > 2 * THREADS:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()

    def _encrypt_each(
        self, change: ObjectChange, blocks: list[tuple[Block, int]]
    ) -> list[tuple[int, Encrypted | None]]:
        return [(block.number, self._encrypt(change, block, count)) for block, count in blocks]

    def _encrypt(self, change: ObjectChange, block: Block, count: int) -> Encrypted | None:
        """Header, ciphertext and pointer of one block; None: it is a hole. `count`: blocks that came before it."""
        stored = block.early.result() if block.early is not None else self._stored(change.type, block)
        if stored is None:
            return None
        logical, (code, salt, iv, ciphertext, mac) = change.blksz, stored
        sizes = logical, len(ciphertext)
        header = write_header(change.number, change.type, block.number, sizes, self._toguid, code, (salt, iv, mac))
        # The pointer's authenticated part: blk_prop (8) | MAC (16) | padding (8).
        prop = pointer_prop(logical, len(ciphertext), code, change.type, little=True)
        pointer = prop.to_bytes(8, "little") + mac + bytes(8)
        # Who writes many blocks at once writes a stream, and will not ask for its end soon.
        if self._known is not None and count < KEPT and block.compression is None and block.content is not None:
            self._known.put_content(pointer, bytes(block.content))
        return header, ciphertext, pointer

    def _stored(self, kind: int, block: Block) -> StoredBlock | None:
        """The block as it is stored; None: a hole."""
        content, code = block.content, block.compression
        if content is None or (code is None and is_zeros(content)):
            return None
        if code is None:
            # Contents as the dataset's property says; metadata by lz4, as every kernel can read it.
            contents = kind in (ObjectType.PLAIN_FILE, ObjectType.ZVOL)
            content, code = self.compress(content) if contents else self._compress_metadata(content)
        return self._ciphertext(kind, code, content)

    def _ciphertext(self, kind: int, code: int, content: Buffer) -> StoredBlock:
        """Encrypt a block; one of a type that is not encrypted is only authenticated."""
        if not is_encrypted(kind):
            return StoredBlock(code, bytes(8), bytes(12), content, self._keys.digest(content)[:MAC])
        return encrypt(self._keys, self._salt, code, content)

    def _write_spill(self, change: ObjectChange, waiting: Waiting, held: VerifiedObject | None) -> None:
        assert change.spill is not None
        if isinstance(change.spill, str):
            assert held is not None
            waiting.spill = held.spill["pointer"].tobytes()
            return
        # Stored as it is: kernels before 2026-07 overrun a buffer where a compressed spill block changes its size.
        _, salt, iv, ciphertext, mac = self._ciphertext(change.bonustype, Compression.OFF, change.spill)
        size = len(change.spill)
        header = Spill(
            object=change.number,
            length=size,
            toguid=self._toguid,
            compressiontype=Compression.OFF,
            compressed_size=size,
            salt=salt,
            iv=iv,
            mac=mac,
        )
        self._put(waiting, RecordType.SPILL, header.pack("little"), ciphertext)
        prop = pointer_prop(size, size, Compression.OFF, change.bonustype, little=True)
        waiting.spill = prop.to_bytes(8, "little") + mac + bytes(8)

    def _put(self, waiting: Waiting, rtype: RecordType, header: bytes, payload: Buffer = b"") -> None:
        size = len(header) + len(payload)
        waiting.pieces += [header, payload] if payload else [header]
        waiting.lengths.append(size)
        waiting.types.append(rtype)
        self._hold(waiting, size)

    def _hold(self, waiting: Waiting | MadeFile, size: int) -> None:
        self._held += size + PIECES
        # Ciphertext may lie in a file; plain text never does.
        if self._held > SPOOL and self._spool is not None:
            self._spill_to_disk(waiting)

    def _put_free(self, waiting: Waiting, first: int, end: int) -> None:
        size = waiting.dnode.blksz
        header = Free(
            object=waiting.dnode.number, offset=first * size, length=(end - first) * size, toguid=self._toguid
        )
        self._put(waiting, RecordType.FREE, header.pack("little"))

    def _spill_to_disk(self, waiting: Waiting | MadeFile) -> None:
        """Move what waits in memory to the spool; it is ciphertext."""
        assert self._spool is not None
        for each in [*self._waiting.values(), waiting]:
            start = self._spool.size
            pieces: list[Buffer | tuple[int, int]] = []
            for piece in each.pieces:
                if isinstance(piece, tuple):
                    pieces.append(piece)
                    continue
                self._spool.write(piece)
            if self._spool.size > start:
                pieces.append((start, self._spool.size))
            each.pieces = pieces
        self._held = 0

    # A block of dnodes

    def _go_to(self, index: int) -> None:
        if index == self._index:
            return
        if index < self._index:
            raise ValueError("objects come in ascending order")
        self._flush()
        self._index = index
        is_there = self._base is not None and index in self._seals
        self._there = self._base.dnodes(index) if self._base is not None and is_there else {}

    def _flush(self) -> None:
        """Encrypt the block of dnodes that is complete, and give its records away."""
        index, first = self._index, self._index * SLOTS
        if not self._waiting and not self._freed:
            return
        every = self._all_objects(index)
        if not every:
            # A block without a dnode is a hole, which only FREEOBJECTS tells.
            self._sealed[index] = None
            self._out.add(RecordType.FREEOBJECTS, self._free_objects(first, SLOTS))
        else:
            self._emit_block(index, every)
        self._waiting, self._freed, self._held = {}, set(), 0
        if self._spool is not None and self._spool.size:
            self._out.flush()
            self._spool.clear()

    def _all_objects(self, index: int) -> list[Waiting | MadeFile]:
        """The objects of the block as they will be: changed ones, and those of the base that stay."""
        every = dict(self._waiting)
        if self._there:
            # One MAC covers the whole block, so unchanged dnodes of the base are written again beside the changed
            # ones.
            taken = {slot for each in self._waiting.values() for slot in each.slots()}
            for number, held in self._there.items():
                if number in every or number in self._freed:
                    continue
                if taken.intersection(slots_of(held.dnode)):  # a larger dnode lies there now
                    self._freed.add(number)
                    continue
                every[number] = unchanged(held)
        return [every[number] for number in sorted(every)]

    def _emit_block(self, index: int, every: list[Waiting | MadeFile]) -> None:
        # One MAC covers the shapes, bonus buffers and pointers of all 32 slots, so their records come together: first
        # the OBJECT_RANGE with that MAC, then each object with its data, FREEOBJECTS in between.
        first, iv = index * SLOTS, os.urandom(12)
        stretches: list[Stretch] = [
            each.stretch if isinstance(each, MadeFile) else stretch_of(each.dnode, each.roots, each.spill)
            for each in every
        ]
        ciphertext, mac = encrypt_dnodes(self._keys, self._salt, iv, first, stretches)
        seal = self._sealed[index] = Seal(self._salt, iv, mac)
        if self._known is not None:  # whatever reads this block later has read the seal first
            waiting = (each for each in every if isinstance(each, Waiting))
            self._known.put_block(index, seal, {each.dnode.number: verified(each) for each in waiting})
        self.last_block = max(self.last_block, index)
        head = ObjectRange(firstobj=first, numslots=SLOTS, toguid=self._toguid, salt=self._salt, iv=iv, mac=mac)
        self._out.add(RecordType.OBJECT_RANGE, head.pack("little"))
        at = 0
        freed = sorted(self._freed - {slot for each in every for slot in each.slots()})
        for each in every:
            while freed and freed[0] < each.slots().start:
                self._out.add(RecordType.FREEOBJECTS, self._free_objects(freed.pop(0), 1))
            if isinstance(each, MadeFile):
                each.set_bonus(ciphertext[at : at + BONUS])
                self._emit(each.types, each.lengths, [each.head, *each.pieces])
                at += BONUS
                continue
            if not has_encrypted_bonus(each.dnode):
                self._emit_object(each, each.dnode.bonus)
                continue
            room = len(each.dnode.bonus)
            self._emit_object(each, ciphertext[at : at + room])
            at += room
        for number in freed:
            self._out.add(RecordType.FREEOBJECTS, self._free_objects(number, 1))

    def _free_objects(self, first: int, count: int) -> bytes:
        return FreeObjects(firstobj=first, numobjs=count, toguid=self._toguid).pack("little")

    def _emit_object(self, each: Waiting, bonus: bytes) -> None:
        head, free = object_header(each.dnode, self._toguid, len(bonus)), free_to_the_end(each.dnode, self._toguid)
        types, lengths = [RecordType.OBJECT, RecordType.FREE], [len(head) + len(bonus), len(free)]
        if len(each.pieces) > 2 or any(isinstance(piece, tuple) for piece in each.pieces):
            self._out.add_whole(types, lengths, [head, bonus, free])
            self._emit(each.types, each.lengths, each.pieces)
            return
        # Most objects have one block at most: all of their records go in one step.
        self._out.add_whole([*types, *each.types], [*lengths, *each.lengths], [head, bonus, free, *each.pieces])
        each.pieces.clear()

    def _emit(self, types: Sequence[int], lengths: Sequence[int], pieces: list[Buffer | tuple[int, int]]) -> None:
        if sum(lengths) <= BATCH and not any(isinstance(piece, tuple) for piece in pieces):
            self._out.add_whole(types, lengths, pieces)
        else:
            self._out.add_many(types, lengths, self._bytes_of(pieces))
        pieces.clear()  # their memory is free as soon as they are written

    def _bytes_of(self, pieces: list[Buffer | tuple[int, int]]) -> Iterator[Buffer]:
        for at, piece in enumerate(pieces):
            pieces[at] = b""
            if not isinstance(piece, tuple):
                yield piece
                continue
            assert self._spool is not None
            yield from self._spool.taken(*piece, BATCH)


def _base_seals(base: OpenSnapshot | None) -> Seals:
    """The seals of all blocks of dnodes of the base.

    Raises:
        Refused: its metadnode has a shape that no increment made here could have.
    """
    if base is None:
        return Seals.of({})
    shape = base.metadnode_shape()
    if shape != Metadnode(*METADNODE, shape.maxblkid):
        raise Refused(f"{base.name}: its metadnode has an unusual shape: it cannot be written on here")
    return base.seals()


def levels_of(last: int, pointers: int) -> int:
    """Levels of the tree over blocks 0 to `last` under so many pointers in the dnode."""
    levels, reach = 1, pointers
    # Each level multiplies by 1024 pointers of 128 bytes in 128 KiB.
    while last >= reach:
        levels, reach = levels + 1, reach * FANOUT
    return levels
