"""Authenticate all of a snapshot: every object and every block, on all cores."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zkeep.crypto.block import MAC, Forged
from zkeep.errors import Damaged, NotAuthentic, Refused, ZkeepError
from zkeep.format.dnode import SLOTS
from zkeep.format.objtypes import is_encrypted
from zkeep.restore.workers import WorkerPool
from zkeep.snapshot.block_reader import END, batches
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.prefetch import decrypt_row, stored_blocks
from zkeep.snapshot.verified import VerifiedObject

ALONE_BYTES, ALONE_OBJECTS = 32 << 20, 2048
"How much is authenticated before workers are started."
PORTION = 16 << 20
"Bytes of data blocks that are authenticated at a time."
BLOCKS = 8
"Blocks of dnodes that a worker gets at a time."


@dataclass
class Totals:
    """How much was found authentic."""

    objects: int = 0
    blocks: int = 0
    bytes: int = 0
    elsewhere: int = 0
    "Blocks whose payloads are not here. Their MACs are authentic: by them what is elsewhere can be compared."


class Portion(NamedTuple):
    """Data blocks to check, either all encrypted or none.

    `place` orders portions as the snapshot has them: the number of the dnode block that leads to them, and a counter.
    """

    place: tuple[int, int]
    encrypted: bool
    leaves: npt.NDArray[Any]


class Checked(NamedTuple):
    """The result of checking a portion: how much was authentic, or what was wrong."""

    place: tuple[int, int]
    objects: int = 0
    blocks: int = 0
    bytes: int = 0
    elsewhere: int = 0
    error: ZkeepError | None = None


Report = Callable[[Checked], object]


def verify(opened: OpenSnapshot, on_progress: Callable[[Totals], object] = lambda done: None) -> Totals:
    """Check every object and every block of an open snapshot against the MACs that its keys make.

    Raises:
        Forgery: the first that fails.
        Damaged: it fails because the pool's own data is not what was stored.
    """
    return _Verifier(opened, on_progress).run()


class _Verifier:
    """Shares the work out among worker processes.

    A worker gets some blocks of dnodes, and checks all that they lead to. If a block of dnodes leads to much data, this
    process rebuilds its MAC trees itself and shares out the data blocks in portions. While there is little to do, no
    workers are started.
    """

    def __init__(self, opened: OpenSnapshot, on_progress: Callable[[Totals], object]) -> None:
        self._opened = opened
        self._on_progress = on_progress
        self._done = Totals()
        self._failed: dict[tuple[int, int], ZkeepError] = {}
        opened.stop_threads()
        self._must_be_alone = threading.active_count() > 1  # a process with threads must not fork

    @property
    def _is_shared(self) -> bool:
        much = self._done.bytes >= ALONE_BYTES or self._done.objects >= ALONE_OBJECTS
        return much and not self._must_be_alone

    def run(self) -> Totals:
        few: list[int] = []  # blocks of dnodes that a worker will get together
        with WorkerPool[list[int] | Portion](partial(_check, self._opened), self._on_result) as workers:
            for number in self._opened.numbers():
                if self._failed:
                    break
                # The first ones are checked here; starting workers would take longer than small snapshots do. Later, a
                # block of dnodes with much data is checked by all workers, and many small ones by one of them.
                if not self._is_shared or _is_large(self._opened, number):
                    self._share_data_of(workers, number)
                    continue
                few.append(number)
                if len(few) == BLOCKS:
                    workers.submit(few)
                    few = []
            if few:
                workers.submit(few)
            workers.finish()
        # Workers fail in any order; the first failure of the snapshot's own order is named.
        if self._failed:
            raise self._failed[min(self._failed)]
        return self._done

    def _share_data_of(self, workers: WorkerPool[list[int] | Portion], number: int) -> None:
        """Rebuild the MAC trees of a block of dnodes here, and share out its data; stop if an earlier place failed."""
        try:
            for portion in _portions(self._opened, number):
                # What comes later cannot be the first failure any more.
                if self._failed and min(self._failed) < portion.place:
                    return
                if self._is_shared:
                    workers.submit(portion)
                else:
                    _check(self._opened, portion, self._on_result)
            self._done.objects += len(self._opened.dnodes(number))
        except (Damaged, NotAuthentic, Refused) as error:
            self._failed[number, sys.maxsize] = error

    def _on_result(self, checked: Checked) -> None:
        if checked.error is not None:
            self._failed[checked.place] = checked.error
            return
        self._done.objects += checked.objects
        self._done.blocks += checked.blocks
        self._done.bytes += checked.bytes
        self._done.elsewhere += checked.elsewhere
        self._on_progress(self._done)


def _portions(opened: OpenSnapshot, number: int) -> Iterator[Portion]:
    for turn, (encrypted, leaves) in enumerate(_cut(opened, number)):
        yield Portion((number, turn), encrypted, leaves)


def _is_large(opened: OpenSnapshot, number: int) -> bool:
    """Whether the objects of a block of dnodes have more data blocks than one portion, as far as their rows say."""
    try:
        # The rows of the table are not authenticated; here they only decide who does the work.
        size = opened.state.bytes_of(number * SLOTS, SLOTS)
    except Damaged:
        return False  # reading the block of dnodes itself will say what is damaged
    return size is None or size > PORTION


def _cut(opened: OpenSnapshot, number: int) -> Iterator[tuple[bool, npt.NDArray[Any]]]:
    """All data blocks of the objects of a block of dnodes, by object, in batches: each encrypted, or none of it."""
    # Neighbours are joined until they are worth a message to a worker; too large ones are cut again.
    pieces = chain.from_iterable(_pieces(opened, obj) for obj in opened.dnodes(number).values())
    for encrypted, run in groupby(pieces, key=lambda piece: piece[0]):
        pending: list[npt.NDArray[Any]] = []
        size = 0
        for _, leaves in run:
            pending.append(leaves)
            size += int(leaves["size"].sum(dtype="u8"))
            if size >= PORTION:
                yield from ((encrypted, batch) for batch in batches(np.concatenate(pending), PORTION))
                pending, size = [], 0
        if pending:
            yield encrypted, np.concatenate(pending)


def _pieces(opened: OpenSnapshot, obj: VerifiedObject) -> Iterator[tuple[bool, npt.NDArray[Any]]]:
    """The blocks of an object, its spill block last, and whether they are encrypted."""
    of_type = ((obj.dnode.type, leaves) for leaves in opened.blocks.leaves(obj, 0, END))
    for kind, leaves in chain(of_type, [(obj.dnode.bonustype, obj.spill)]):
        if len(leaves):
            yield is_encrypted(kind), leaves


def _check(opened: OpenSnapshot, portion: Iterable[int] | Portion, report: Report) -> None:
    """Check a portion. Failures are reported, not raised: an earlier portion may fail as well, and is then named."""
    if isinstance(portion, Portion):
        report(_check_portion(opened, portion))
        return
    for number in portion:
        _check_dnode_block(opened, number, report)


def _check_dnode_block(opened: OpenSnapshot, number: int, report: Report) -> None:
    place = number, sys.maxsize
    try:
        for portion in _portions(opened, number):
            report(_check_portion(opened, portion))
        report(Checked(place, objects=len(opened.dnodes(number))))
    except (Damaged, NotAuthentic, Refused) as error:
        report(Checked(place, error=error))


def _check_portion(opened: OpenSnapshot, portion: Portion) -> Checked:
    place, encrypted, leaves = portion
    # Bare blocks have no payload here; the MAC tree above has vouched for their MACs.
    here = leaves[leaves["bare"] == 0]
    try:
        if len(here):
            _authenticate(opened, encrypted, here)
    except (Damaged, NotAuthentic, Refused) as error:
        return Checked(place, error=error)
    return Checked(place, 0, len(here), int(here["size"].sum(dtype="u8")), len(leaves) - len(here))


def _authenticate(opened: OpenSnapshot, encrypted: bool, leaves: npt.NDArray[Any]) -> None:
    """Check the MACs of blocks, without decompressing them. Raises Forgery for the first one that fails."""
    blocks = opened.blocks
    # Without encryption the records' own checksums are all there is.
    if blocks.keys is None:
        blocks.stored_records(leaves)
        return
    plain = memoryview(bytearray(int(leaves["size"].max())))  # written to, never read
    failed: list[int] = []
    # Check all, even after one fails: they come in the order of the disk, and the first in the snapshot's order is
    # named.
    for index, row, stored in stored_blocks(blocks.records, leaves):
        try:
            if encrypted:
                decrypt_row(blocks.keys, row, stored, plain[: len(stored) - MAC])
            else:
                blocks.keys.authenticate(row.mac, stored[:-MAC])
        except Forged:
            failed.append(index)
    if failed:
        raise blocks.forgery(leaves[min(failed)])
