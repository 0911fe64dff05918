"""Records made here, collected into batches as a Reader gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from zkeep.format import kernel
from zkeep.format.events import Batch
from zkeep.format.records import NATIVE

Buffer = bytes | bytearray | memoryview
BATCH = 2 << 20
"Bytes of a batch; a single record may be larger."


class RecordBatches:
    """Collects records into batches, with their sums and the running checksum stamped into each."""

    def __init__(self, put: Callable[[Batch], None]) -> None:
        self._put = put
        self.state = kernel.zero_state()
        self._parts: list[Buffer] = []
        self._lengths: list[int] = []
        self._types: list[int] = []
        self._size = 0
        self._offset = 0

    def add(self, rtype: int, header: bytes, payload: Buffer = b"") -> None:
        self._parts += [header, payload] if payload else [header]
        size = len(header) + len(payload)
        self._lengths.append(size)
        self._types.append(rtype)
        self._size += size
        if self._size > BATCH:
            self.flush()

    def add_whole(self, types: Sequence[int], lengths: Sequence[int], parts: list[Any]) -> None:
        """Records that are all in memory. Few or small: a batch gets as large as all of them."""
        if sum(lengths) > BATCH:
            self.add_many(types, lengths, parts)
            return
        self._parts += parts
        self._lengths += lengths
        self._types += types
        self._size += sum(lengths)
        if self._size > BATCH:
            self.flush()

    def add_many(self, types: Sequence[int], lengths: Sequence[int], parts: Iterable[Buffer]) -> None:
        """Records whose bytes come in pieces of any size."""
        at = 0
        pending = memoryview(b"")
        source = iter(parts)
        while at < len(lengths):
            # As many whole records as make a batch.
            stop, size = at, 0
            while stop < len(lengths) and (size == 0 or size + lengths[stop] <= BATCH):
                size += lengths[stop]
                stop += 1
            # Pieces are cut where the batch ends; what is left of one waits for the next batch.
            taken = 0
            while taken < size:
                if not pending:
                    pending = memoryview(next(source))
                part = pending[: size - taken]
                self._parts.append(part)
                taken += len(part)
                pending = pending[len(part) :]
            self._lengths += lengths[at:stop]
            self._types += types[at:stop]
            self._size += size
            at = stop
            if self._size > BATCH:
                self.flush()

    def flush(self) -> None:
        if not self._lengths:
            return
        buffer = bytearray().join(self._parts)
        lengths = np.array(self._lengths, np.int64)
        offsets = np.cumsum(lengths) - lengths
        swap = NATIVE != "little"
        # As a Reader gives them: the records' checks and payload sums, and the running checksum in each header.
        checks, sums = kernel.check(buffer, offsets, lengths, swap)
        self.state = kernel.stamp(buffer, offsets, lengths, sums, swap, self.state)
        types = np.array(self._types, np.uint8)
        batch = Batch(memoryview(buffer), self._offset, offsets, types, lengths, checks, sums, "little")
        self._offset += len(buffer)
        self._parts, self._lengths, self._types, self._size = [], [], [], 0
        self._put(batch)
