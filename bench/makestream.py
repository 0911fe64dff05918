"""Make raw send streams of any size: a dataset of files of equal records with random content, and increments to it.

    python bench/makestream.py FILE --size 2048 --record 131072          a full stream of 2 GiB
    python bench/makestream.py FILE --size 40 --record 512 --from 1 --changed 1000

They have the shape of what the kernel sends (BEGIN with crypt_keydata, OBJECT_RANGE, OBJECT, FREE, WRITE, END, each
stamped), but what is encrypted in them is noise: no key opens them. The same arguments make the same stream.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from zkeep.cli.demo.demo import stream
from zkeep.format import kernel
from zkeep.format.events import SubBegin
from zkeep.format.nvlist import NvList, encode
from zkeep.format.reader import Reader
from zkeep.format.records import HEADER, BeginFlag, End, Feature, Free, Object, ObjectRange, Write

Bytes = npt.NDArray[np.uint8]
FIRST = 128
"""The first file's object number."""
GROUP = 32
"""Objects in one metadnode block."""
PIECE = 8 << 20
LARGE = 128 << 10
"""Above it blocks are what the stream must say that it has."""


@dataclass(frozen=True)
class Shape:
    """A dataset: `records` of `size` bytes, `per_file` of them in each file."""

    records: int
    size: int
    per_file: int

    @property
    def files(self) -> int:
        return -(-self.records // self.per_file)

    def length(self, file: int) -> int:
        """Records of a file."""
        return min(self.per_file, self.records - file * self.per_file)


def guid(number: int) -> int:
    """The guid of snapshot `number`; its IV set's is one more."""
    return 0x5EED_0000_0000_0000 + 2 * number


def full(shape: Shape, sink: BinaryIO) -> None:
    """Snapshot 0 of a dataset."""
    _Maker(sink, shape, 0).run({file: np.arange(shape.length(file)) for file in range(shape.files)})


def increment(shape: Shape, sink: BinaryIO, number: int, changed: int) -> None:
    """Snapshot `number`, from the one before: so many records anywhere were written again."""
    chosen = np.sort(np.random.default_rng(number).choice(shape.records, min(changed, shape.records), replace=False))
    files, blocks = np.divmod(chosen, shape.per_file)
    _Maker(sink, shape, number).run({int(file): blocks[files == file] for file in np.unique(files)})


def _template() -> SubBegin:
    return next(event for event in Reader().feed(stream("week-full-s0")) if isinstance(event, SubBegin))


class _Maker:
    def __init__(self, sink: BinaryIO, shape: Shape, number: int) -> None:
        self._sink = sink
        self._shape = shape
        self._number = number
        self._random = np.random.default_rng(1000 + number)
        self._state = kernel.zero_state()

    def run(self, written: dict[int, npt.NDArray[np.int64]]) -> None:
        """`written`: the block numbers that go out of each file."""
        self._begin()
        groups = sorted({(FIRST + file) // GROUP for file in written})
        for group in groups:
            self._stamped(self._group(group, written))
        end = np.frombuffer(bytearray(End(payloadlen=0, toguid=guid(self._number)).pack("little")), np.uint8)
        self._write(end, np.full(1, HEADER))

    def _begin(self) -> None:
        event = _template()
        assert event.nvlist is not None
        crypt = event.nvlist["crypt_keydata"]
        assert isinstance(crypt, NvList)
        before = guid(self._number - 1) if self._number else 0
        crypt.set("mdn_maxblkid", (FIRST + self._shape.files) // GROUP)
        crypt.set("to_ivset_guid", guid(self._number) + 1)
        crypt.set("from_ivset_guid", before + 1 if before else 0)
        payload = encode(event.nvlist)
        begin = replace(
            event.begin,
            payloadlen=len(payload),
            toname=f"bench/data@s{self._number}".encode(),
            toguid=guid(self._number),
            fromguid=before,
            flags=event.begin.flags | BeginFlag.SPILL_BLOCK,
            versioninfo=event.begin.versioninfo | (Feature.LARGE_BLOCKS << 2 if self._shape.size > LARGE else 0),
        )
        whole = begin.pack("little") + payload
        self._state = np.array(kernel.fletcher4(whole, (0, 0, 0, 0), False), np.uint64)
        self._sink.write(whole)

    def _group(self, group: int, written: dict[int, npt.NDArray[np.int64]]) -> Iterator[Bytes]:
        """One metadnode block, and what its files wrote: arrays of equally long records, a row each."""
        rows = np.zeros(1, ObjectRange.dtype("little"))
        rows["rtype"], rows["firstobj"], rows["numslots"] = ObjectRange.RTYPE, group * GROUP, GROUP
        yield self._sealed(rows)
        for number in range(group * GROUP, (group + 1) * GROUP):
            file = number - FIRST
            if file < self._shape.files:
                yield from self._object(number, self._shape.length(file))
                if len(written.get(file, ())):
                    yield from self._blocks(number, written[file])

    def _object(self, number: int, length: int) -> Iterator[Bytes]:
        levels = 1 if length == 1 else 2 if length <= 1024 else 3
        made = Object(
            **{"payloadlen": 0, "object": number, "type": 19, "bonustype": 44, "bonuslen": 168, "raw_bonuslen": 320},
            **{"blksz": self._shape.size, "dn_slots": 1, "indblkshift": 17, "nlevels": levels, "nblkptr": 1},
            **{"maxblkid": length - 1, "toguid": guid(self._number)},
        )
        yield _row(made.pack("little") + self._random.bytes(320))
        tail = Free(
            payloadlen=0,
            object=number,
            offset=length * self._shape.size,
            length=(1 << 64) - 1,
            toguid=guid(self._number),
        )
        yield _row(tail.pack("little"))

    def _blocks(self, number: int, blocks: npt.NDArray[np.int64]) -> Iterator[Bytes]:
        size, most = self._shape.size, max(PIECE // self._shape.size, 1)
        for first in range(0, len(blocks), most):
            some = blocks[first : first + most]
            rows = np.zeros(len(some), Write.dtype("little"))
            rows["rtype"], rows["object"], rows["type"] = Write.RTYPE, number, 19
            rows["offset"], rows["logical_size"], rows["compressed_size"] = some * size, size, size
            rows["compressiontype"], rows["checksumtype"] = 2, 7
            records = np.empty((len(rows), HEADER + size), np.uint8)
            records[:, :HEADER] = self._sealed(rows)
            records[:, HEADER:] = np.frombuffer(self._random.bytes(len(rows) * size), np.uint8).reshape(-1, size)
            yield records

    def _sealed(self, rows: npt.NDArray[np.void]) -> Bytes:
        """Headers with noise for salt, IV and MAC, as bytes."""
        rows["toguid"] = guid(self._number)
        for name in ("salt", "iv", "mac"):
            noise = self._random.bytes(rows[name].nbytes)
            rows[name] = np.frombuffer(noise, np.uint8).reshape(rows[name].shape)
        return rows.view(np.uint8).reshape(-1, HEADER)

    def _stamped(self, parts: Iterator[Bytes]) -> None:
        waiting: list[Bytes] = []
        for part in parts:
            waiting.append(part)
            if sum(p.nbytes for p in waiting) >= PIECE:
                self._flush(waiting)
        self._flush(waiting)

    def _flush(self, waiting: list[Bytes]) -> None:
        if waiting:
            lengths = np.concatenate([np.full(len(part), part.shape[1]) for part in waiting])
            self._write(np.concatenate([part.reshape(-1) for part in waiting]), lengths)
            waiting.clear()

    def _write(self, records: Bytes, lengths: npt.NDArray[np.int64]) -> None:
        lengths = lengths.astype(np.int64)
        offsets = np.cumsum(lengths) - lengths
        _, sums = kernel.check(records, offsets, lengths, False)
        self._state = kernel.stamp(records, offsets, lengths, sums, False, self._state)
        self._sink.write(records.data)


def fill(home: Path, count: int) -> None:
    """Receive a dataset of 2,000 records, and increments of 20 changed ones, into a pool."""
    from zkeep.pool.datasets.registry import Registry
    from zkeep.pool.transfer.receive import ReceiveOptions, receive

    shape = Shape(2000, 4096, 512)
    with Registry(home).open("b") as pool, tempfile.TemporaryFile(dir=home) as file:
        for number in range(count):
            file.seek(0)
            file.truncate()
            if number:
                increment(shape, file, number, 20)
            else:
                full(shape, file)
            file.seek(0)
            receive(pool, file, "b/data", ReceiveOptions())


def _row(record: bytes) -> Bytes:
    return np.frombuffer(record, np.uint8).reshape(1, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", type=int, default=64, help="MiB of the dataset")
    parser.add_argument("--record", type=int, default=131072, help="bytes")
    parser.add_argument("--per-file", type=int, default=512, help="records")
    parser.add_argument("--from", dest="number", type=int, default=0, help="make the increment to this snapshot")
    parser.add_argument("--changed", type=int, default=1000, help="records in the increment")
    parser.add_argument("--snapshots", type=int, default=0, help="FILE is a ZKEEP_HOME: fill b/data of its pool b")
    given = parser.parse_args()
    if given.snapshots:
        fill(given.file, given.snapshots)
        return
    shape = Shape((given.size << 20) // given.record, given.record, given.per_file)
    with given.file.open("wb") as sink:
        if given.number:
            increment(shape, sink, given.number, given.changed)
        else:
            full(shape, sink)


if __name__ == "__main__":
    main()
