"""Writes the records of a plain stream; no byte of a chunk leaves before all of the chunk is authentic.

Three things go on at a time: the next chunk's dnodes and leaves are authenticated, threads read and decrypt the blocks
of this one, and the one before is written.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from zkeep.format.records import Feature
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.timeline.emit import StreamWriter
from zkeep.pool.timeline.spans import Array
from zkeep.restore.plain.batch import PlainBatch, Verifier
from zkeep.restore.plain.chunk import ChunkLayout, Headers, cuts
from zkeep.restore.plain.difference import Difference
from zkeep.snapshot.open import OpenSnapshot

Place = list[tuple[int, int]]
"Where the parts of a block's content go, [start, end) each."
PORTION = 512 << 10
"Bytes of contents that a thread is given at a time, at least."


class _PlainChunk(NamedTuple):
    layout: ChunkLayout
    buffer: Array
    filled: list[Future[None]]


class PlainWriter:
    """Use it as a context manager. `opening`: the BEGIN of the stream, whose features say how blocks are sent.

    `difference`: from the source.

    Raises:
        Forgery: something is not authentic.
        Damaged: the pool's own data is not what was stored.
        Unreadable: it is authentic, but cannot be sent.
    """

    def __init__(self, snapshot: OpenSnapshot, opening: Opening, out: StreamWriter, difference: Difference) -> None:
        self._snapshot = snapshot
        self._out = out
        begin, order = opening.begin, opening.byteorder
        large = bool(begin.features & Feature.LARGE_BLOCKS)
        compressed = bool(begin.features & Feature.COMPRESSED)
        self._verifier = Verifier(snapshot, order, difference, large=large, compressed=compressed)
        self._headers = Headers(order, begin.toguid, large)
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)

    def __enter__(self) -> PlainWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def steps(self, plans: Iterable[Array]) -> None:
        """Write the records of all steps, which come in arrays."""
        ahead: deque[_PlainChunk] = deque()
        for batch in (batch for steps in plans for batch in self._verifier.batches(steps)):
            for first, last in cuts(batch):
                # Begin a chunk: make its headers, and let threads fill in the blocks
                layout = ChunkLayout(batch, first, last)
                buffer = self._out.space(layout.size)
                self._headers.make(buffer, layout)
                fill = partial(self._fill, batch, buffer)
                ahead.append(
                    _PlainChunk(layout, buffer, [self._threads.submit(fill, *portion) for portion in _portions(layout)])
                )
                if len(ahead) > 1:
                    self._finish(ahead.popleft())
        self._verifier.finish()
        while ahead:
            self._finish(ahead.popleft())

    def _finish(self, chunk: _PlainChunk) -> None:
        for filled in chunk.filled:
            filled.result()
        self._out.made(chunk.buffer, chunk.layout.offsets, chunk.layout.lengths)

    def _fill(self, batch: PlainBatch, buffer: Array, steps: list[int], places: list[Place]) -> None:
        """Read the blocks of some steps, and put their contents into their places."""
        leaves, view = batch.leaves[steps], buffer.data
        blocks = self._snapshot.blocks
        # Read the records in the order in which they lie on the disk, all in one go.
        records = blocks.stored_records(leaves)
        for index, step in enumerate(steps):
            leaf, kind, place = leaves[index], int(batch.kinds[step]), places[index]
            # The receiver takes compressed blocks: decrypt, and leave compressed. Otherwise decompress too.
            if batch.packed[step]:
                content = blocks.stored_content(kind, leaf, records[index])
            else:
                content = blocks.content(kind, leaf, records[index])
            at = 0
            # One block may lie in several records, each with its own place in the buffer.
            for start, end in place:
                view[start:end] = content[at : at + end - start]
                at += end - start


def _portions(layout: ChunkLayout) -> Iterator[tuple[list[int], list[Place]]]:
    """The blocks of a chunk, in portions for threads."""
    # Large enough that threads are not busy handing over; as many portions as there are cores, at least.
    least = max(PORTION, layout.size // (os.cpu_count() or 1))
    steps: list[int] = []
    places: list[Place] = []
    size = 0
    for step, place in layout.blocks():
        steps.append(step)
        places.append(place)
        size += place[-1][1] - place[0][0]
        if size >= least:
            yield steps, places
            steps, places, size = [], [], 0
    if steps:
        yield steps, places
