"""New files of at most one block, made many at once: most files are so small that Python costs more than their bytes.

The same objects and records that SnapshotWriter makes one by one, as arrays:

    heads     | OBJECT 312 | bonus 320 | FREE 312 |  next file ...      the bonus is encrypted with its block of dnodes
    records   | WRITE 312 | ciphertext |  next file that has a block ...
    aad       | core 64 | pointer 32 |  next file ...                   what the MAC of the block of dnodes covers
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from zkeep.crypto.block import MAC, BlockKeys
from zkeep.crypto.dnodeblock import Stretch
from zkeep.crypto.mactree import POINTER
from zkeep.format.dnode import CORE, SECTOR, core_dtype
from zkeep.format.limits import TO_THE_END
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import HEADER, Free, Object, RecordType, Write
from zkeep.format.sa_writer import BONUS
from zkeep.format.znode_columns import FileColumns, encode_files
from zkeep.pool.timeline.spans import Array
from zkeep.snapshot.changes import Buffer
from zkeep.snapshot.headers import DECIDED_BY_KERNEL

IV = 12
HEAD = HEADER + BONUS + HEADER
"Bytes of a file's OBJECT with its bonus buffer, and of the FREE behind it."
ROW = CORE + POINTER.itemsize
"Bytes of a dnode with one pointer that are authenticated, without its bonus buffer."
_TYPES, _WITH_BLOCK = bytes([RecordType.OBJECT, RecordType.FREE]), bytes([RecordType.WRITE])


@dataclass(frozen=True)
class NewFiles:
    """Files to be made. `blocks`: bytes of each one's only block, 0 if it has none, in whole sectors.

    `contents`: as they are stored, with the zio_compress code of each; None where there is no block, or only zeros.
    """

    numbers: Sequence[int]
    attributes: FileColumns
    blocks: Sequence[int]
    contents: Sequence[Buffer | None]
    codes: Sequence[int]


@dataclass(slots=True)
class MadeFile:
    """Keeps a file that is made while it waits for the others of its block of dnodes, as Waiting does others."""

    number: int
    stretch: Stretch
    "With the plain bonus buffer."
    head: memoryview
    "HEAD bytes; the bonus buffer in it is to be filled in."
    pieces: list[Buffer | tuple[int, int]]
    "Its WRITE, if it has one: bytes, or [start, end) in the spool."
    lengths: list[int]
    types: bytes

    def slots(self) -> range:
        return range(self.number, self.number + 1)

    def set_bonus(self, ciphertext: bytes) -> None:
        self.head[HEADER : HEADER + BONUS] = ciphertext


def make_files(files: NewFiles, keys: BlockKeys, salt: bytes, toguid: int, shift: int) -> list[MadeFile]:
    """Encrypt the blocks of files, and make all but what waits for their blocks of dnodes. `shift`: indblkshift."""
    numbers, blocks = np.array(files.numbers, np.uint64), np.array(files.blocks, np.uint64)
    bonuses, lengths = encode_files(files.attributes)
    shapes = np.maximum(blocks, np.uint64(SECTOR))
    # 1. Blocks, and the pointers to them; those of holes are zeros.
    full = [at for at, content in enumerate(files.contents) if content]
    pointers = np.zeros(len(numbers), POINTER)
    records, starts = _records(files, full, keys, salt, toguid, pointers)
    # 2. Dnodes as the MAC covers them.
    aad = np.zeros(len(numbers), [("core", core_dtype("little")), ("pointer", POINTER)])
    core = aad["core"]
    core["type"], core["bonustype"], core["indblkshift"] = ObjectType.PLAIN_FILE, ObjectType.SA, shift
    core["nlevels"] = core["nblkptr"] = 1
    core["sectors"], core["bonuslen"] = shapes // np.uint64(SECTOR), lengths
    aad["pointer"] = pointers
    # 3. One object for each, which has slices of it all.
    heads = _heads(numbers, shapes, lengths, toguid, shift)
    covered, plain = aad.tobytes(), bonuses.tobytes()
    made = []
    for at, number in enumerate(files.numbers):
        stretch = Stretch(
            *(number, number + 1, covered[at * ROW : (at + 1) * ROW], plain[at * BONUS : (at + 1) * BONUS])
        )
        made.append(MadeFile(number, stretch, heads[at * HEAD : (at + 1) * HEAD], [], [HEADER + BONUS, HEADER], _TYPES))
    for at, start, end in zip(full, starts, starts[1:], strict=False):
        each = made[at]
        each.pieces, each.types = [records[start:end]], _TYPES + _WITH_BLOCK
        each.lengths.append(end - start)
    return made


def _records(
    files: NewFiles, full: list[int], keys: BlockKeys, salt: bytes, toguid: int, pointers: Array
) -> tuple[memoryview, list[int]]:
    """The WRITE records of files that have a block, where each begins, and the end; fills in their pointers."""
    contents = [files.contents[at] or b"" for at in full]
    sizes = [len(content) for content in contents]
    starts = list(accumulate((HEADER + size for size in sizes), initial=0))
    room = bytearray(starts[-1] + MAC)
    view = memoryview(room)
    # The MAC behind each ciphertext lies where the next header will be. Every block gets an IV of its own.
    aead, ivs = keys.aead(salt), os.urandom(IV * len(full))
    for at, (content, start, end) in enumerate(zip(contents, starts, starts[1:], strict=False)):
        aead.encrypt_into(ivs[at * IV : (at + 1) * IV], content, None, view[start + HEADER : end + MAC])
    if not full:
        return view, starts
    bytes_of, ends = np.frombuffer(room, np.uint8), np.array(starts[1:])
    macs = _windows(bytes_of, MAC)[ends]
    head = np.zeros(len(full), Write.dtype("little"))
    head["rtype"], head["type"] = RecordType.WRITE, ObjectType.PLAIN_FILE
    head["checksumtype"], head["toguid"] = DECIDED_BY_KERNEL, toguid
    head["object"] = np.array(files.numbers, np.uint64)[full]
    head["logical_size"] = logical = np.array(files.blocks, np.uint64)[full]
    head["compressed_size"] = stored = np.array(sizes, np.uint64)
    head["compressiontype"] = codes = np.array(files.codes, np.uint64)[full]
    head["salt"], head["iv"] = np.frombuffer(salt, np.uint8), np.frombuffer(ivs, np.uint8).reshape(-1, IV)
    head["mac"] = macs.view(np.uint8).reshape(-1, MAC)
    _windows(bytes_of, HEADER)[ends - HEADER - np.array(sizes)] = head.view(f"V{HEADER}")
    # format.dnode.pointer_prop() in columns; all blocks are little-endian.
    sector, one = np.uint64(SECTOR), np.uint64(1)
    prop = (logical // sector - one) | (stored // sector - one) << np.uint64(16) | codes << np.uint64(32)
    prop |= np.uint64(ObjectType.PLAIN_FILE << 48 | 1 << 61 | 1 << 63)
    found = np.zeros(len(full), POINTER)
    found["prop"], found["mac"] = prop, macs
    pointers[full] = found
    return view, starts


def _heads(numbers: Array, shapes: Array, lengths: Array, toguid: int, shift: int) -> memoryview:
    """HEAD bytes of each file, without its bonus buffer. `shapes`: block sizes, `lengths`: of the bonus buffers."""
    objects, frees = np.zeros(len(numbers), Object.dtype("little")), np.zeros(len(numbers), Free.dtype("little"))
    objects["rtype"], objects["type"], objects["bonustype"] = RecordType.OBJECT, ObjectType.PLAIN_FILE, ObjectType.SA
    objects["object"], objects["blksz"], objects["bonuslen"] = numbers, shapes, lengths
    objects["dn_slots"], objects["raw_bonuslen"], objects["toguid"] = 1, BONUS, toguid
    objects["indblkshift"], objects["nlevels"], objects["nblkptr"] = shift, 1, 1
    frees["rtype"], frees["object"], frees["toguid"] = RecordType.FREE, numbers, toguid
    frees["offset"], frees["length"] = shapes, TO_THE_END
    made = np.zeros((len(numbers), HEAD), np.uint8)
    made[:, :HEADER] = objects.view(np.uint8).reshape(len(numbers), HEADER)
    made[:, HEADER + BONUS :] = frees.view(np.uint8).reshape(len(numbers), HEADER)
    return made.reshape(-1).data


def _windows(content: Array, size: int) -> Array:
    """A view with one item per byte: the `size` bytes that begin there."""
    return np.ndarray((len(content) - size + 1,), f"V{size}", content, 0, (1,))
