"""Authenticating all of a snapshot, without making anything of it."""

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
from zkeep.restore.workers import Crew
from zkeep.snapshot.block_reader import END, batches
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.prefetch import decrypt_row, stored_blocks
from zkeep.snapshot.verified import VerifiedObject

ALONE_BYTES, ALONE_OBJECTS = 32 << 20, 2048
"What is authenticated before other processes are made to help."
PORTION = 16 << 20
"Bytes of data blocks that are authenticated at a time."
BLOCKS = 8
"Of dnodes, that a process is given at once."


@dataclass
class Verified:
    """What was found authentic."""

    objects: int = 0
    blocks: int = 0
    bytes: int = 0


class Portion(NamedTuple):
    """Data blocks, all encrypted or none. `place`: the number of the block of dnodes that leads to them, and a turn."""

    place: tuple[int, int]
    encrypted: bool
    leaves: npt.NDArray[Any]


class Checked(NamedTuple):
    """What was looked at, and what was wrong with it."""

    place: tuple[int, int]
    objects: int = 0
    blocks: int = 0
    bytes: int = 0
    error: ZkeepError | None = None


Tell = Callable[[Checked], object]


def verify(opened: OpenSnapshot, tell: Callable[[Verified], object] = lambda done: None) -> Verified:
    """Hold every object and every block of an opened snapshot against the keys.

    Raises:
        Forgery: the first that fails.
        Damaged: it fails because the pool's own data is not what was stored.
    """
    return _Verifier(opened, tell).run()


class _Verifier:
    """Shares the work out among processes: blocks of dnodes, or, of one that leads to much, its data blocks.

    Where there is little, it does all of it itself.
    """

    def __init__(self, opened: OpenSnapshot, tell: Callable[[Verified], object]) -> None:
        self._opened = opened
        self._tell = tell
        self._done = Verified()
        self._failed: dict[tuple[int, int], ZkeepError] = {}
        opened.stop_threads()
        self._alone = threading.active_count() > 1  # whoever forks must have no other thread

    @property
    def _is_shared(self) -> bool:
        much = self._done.bytes >= ALONE_BYTES or self._done.objects >= ALONE_OBJECTS
        return much and not self._alone

    def run(self) -> Verified:
        few: list[int] = []
        with Crew[list[int] | Portion](partial(_check, self._opened), self._heard) as crew:
            for number in self._opened.numbers():
                if self._failed:
                    break
                if not self._is_shared or _is_large(self._opened, number):
                    self._data_of(crew, number)
                    continue
                few.append(number)
                if len(few) == BLOCKS:
                    crew.give(few)
                    few = []
            if few:
                crew.give(few)
            crew.finish()
        if self._failed:
            raise self._failed[min(self._failed)]
        return self._done

    def _data_of(self, crew: Crew[list[int] | Portion], number: int) -> None:
        """What a block of dnodes leads to, until something fails that comes before."""
        try:
            for portion in _portions(self._opened, number):
                if self._failed and min(self._failed) < portion.place:
                    return
                if self._is_shared:
                    crew.give(portion)
                else:
                    _check(self._opened, portion, self._heard)
            self._done.objects += len(self._opened.dnodes(number))
        except (Damaged, NotAuthentic, Refused) as error:
            self._failed[number, sys.maxsize] = error

    def _heard(self, checked: Checked) -> None:
        if checked.error is not None:
            self._failed[checked.place] = checked.error
            return
        self._done.objects += checked.objects
        self._done.blocks += checked.blocks
        self._done.bytes += checked.bytes
        self._tell(self._done)


def _portions(opened: OpenSnapshot, number: int) -> Iterator[Portion]:
    for turn, (encrypted, leaves) in enumerate(_cut(opened, number)):
        yield Portion((number, turn), encrypted, leaves)


def _is_large(opened: OpenSnapshot, number: int) -> bool:
    """Whether the objects of a block of dnodes have more data blocks than one portion, as far as their rows say."""
    try:
        size = opened.state.bytes_of(number * SLOTS, SLOTS)
    except Damaged:
        return False  # reading the block of dnodes itself will say what is damaged
    return size is None or size > PORTION


def _cut(opened: OpenSnapshot, number: int) -> Iterator[tuple[bool, npt.NDArray[Any]]]:
    """All data blocks of the objects of a block of dnodes, by object, in batches: each encrypted, or none of it."""
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


def _check(opened: OpenSnapshot, portion: Iterable[int] | Portion, tell: Tell) -> None:
    """What fails is told of like the rest: what was given before may fail as well, and comes first."""
    if isinstance(portion, Portion):
        tell(_checked(opened, portion))
        return
    for number in portion:
        _block_of_dnodes(opened, number, tell)


def _block_of_dnodes(opened: OpenSnapshot, number: int, tell: Tell) -> None:
    place = number, sys.maxsize
    try:
        for portion in _portions(opened, number):
            tell(_checked(opened, portion))
        tell(Checked(place, objects=len(opened.dnodes(number))))
    except (Damaged, NotAuthentic, Refused) as error:
        tell(Checked(place, error=error))


def _checked(opened: OpenSnapshot, portion: Portion) -> Checked:
    place, encrypted, leaves = portion
    try:
        _authenticate(opened, encrypted, leaves)
    except (Damaged, NotAuthentic, Refused) as error:
        return Checked(place, error=error)
    return Checked(place, 0, len(leaves), int(leaves["size"].sum(dtype="u8")))


def _authenticate(opened: OpenSnapshot, encrypted: bool, leaves: npt.NDArray[Any]) -> None:
    """Check the MACs of blocks, without decompressing them. Raises Forgery for the first one that fails."""
    blocks = opened.blocks
    if blocks.keys is None:
        blocks.stored_records(leaves)
        return
    plain = memoryview(bytearray(int(leaves["size"].max())))  # written to, never read
    failed: list[int] = []
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
