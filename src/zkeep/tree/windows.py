"""Read access to objects in any order, as a mount needs it: what was read is cached, and what comes next read ahead."""

from __future__ import annotations

from contextlib import suppress
from itertools import takewhile
from typing import NamedTuple

from zkeep.cache import Cache
from zkeep.errors import ZkeepError
from zkeep.tree.objects import Objects, Reading

NARROW = 128 << 10
"Bytes that are decrypted for a read at a random place; at least a whole block."
WIDE = 4 << 20
"Bytes that are decrypted at once for sequential reads."
AHEAD = 2
"Wide windows that are read ahead of the one that is being handed out."
READERS = 4
"Files that are read in turns and of which so many windows are read ahead; of more files fewer are."
IN_TURNS = 256
"Files of which it is known in which order they were read."
HELD = 64 << 20
"Bytes of content in the cache."
OBJECTS = 16_384
"How many objects are known by where they were read last."


class BadBlock(ZkeepError):
    """A stretch of a file that cannot be read: `number` and `offset` say where, the text says why."""

    def __init__(self, number: int, offset: int, why: ZkeepError) -> None:
        self.number = number
        self.offset = offset
        self.why = why
        super().__init__(str(why))


class _Ahead(NamedTuple):
    """A window that is being read: its key, and where its object ends."""

    key: tuple[int, int, int]
    end: int
    reading: Reading


class Content:
    """Reads objects in windows, which are cached: wide ones for sequential reads, single blocks where some are bad."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._windows: Cache[tuple[int, int, int], memoryview] = Cache(HELD, len)
        self._bad: Cache[tuple[int, int, int], bool] = Cache(OBJECTS)
        self._next: Cache[int, int] = Cache(OBJECTS)
        self._ahead: list[_Ahead] = []
        self._in_turns: dict[int, int] = {}
        "Files in the order in which they were read last, and bytes of a wide window of each."

    def read(self, number: int, end: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes of an object of which `end` bytes are shown; holes are zeros.

        Raises:
            BadBlock: a block that the stretch meets is damaged or not authentic.
        """
        return bytes(self.view(number, end, offset, size))

    def view(self, number: int, end: int, offset: int, size: int) -> bytes | memoryview:
        """The same, not copied where all of it lies in one window."""
        last = min(offset + size, end)
        parts = []
        at = offset
        while at < last:
            start, window = self._window(number, end, at)
            part = window[at - start : last - start]
            parts.append(part)
            at += len(part)
        self._next.put(number, at)
        self._in_turns.pop(number, None)
        self._in_turns[number] = min(WIDE, end)
        if len(self._in_turns) > IN_TURNS:
            del self._in_turns[next(iter(self._in_turns))]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _window(self, number: int, end: int, at: int) -> tuple[int, memoryview]:
        """Return where a window begins that holds the byte at `at`, and its content."""
        block = max(self._objects.dnode(number).blksz, 512)
        # Windows of three sizes, all multiples of the block: wide, narrow, a single block. An object of a single block
        # may have a block size that is no power of two; then there is nothing to widen.
        sizes = [block] * 3 if block & block - 1 else [max(WIDE, block), max(NARROW, block), block]
        # Is one of the three windows around this byte cached?
        keys = [(number, at // size * size, size) for size in sizes]
        for key in keys:
            if (found := self._windows.get(key)) is not None:
                return key[1], found
        # Read the widest that makes sense. If it has a bad block, remember that and try a narrower one.
        last = self._next.get(number)
        is_sequential = last is not None and at - WIDE <= last <= at + NARROW
        # Wide ones that others push out of the cache before they are read to their end would be opened again and again.
        is_wide = is_sequential and self._others(number) + WIDE <= HELD
        for key in keys if is_wide else keys[1:]:
            if key[2] != block and not self._bad.get(key):
                try:
                    found = self._windows.put(key, self._open(key, end))
                except ZkeepError:
                    self._bad.put(key, True)
                    continue
                if key is keys[0]:
                    self._read_ahead(key, end)
                return key[1], found
        # Last, the block alone: only a read that meets the bad block itself fails.
        try:
            return keys[-1][1], self._windows.put(keys[-1], self._open(keys[-1], end))
        except ZkeepError as error:
            raise BadBlock(number, keys[-1][1], error) from None

    def _others(self, number: int) -> int:
        """Bytes of the windows of files that were read since this one was read last; of all, if that is long ago."""
        later = takewhile(lambda item: item[0] != number, reversed(self._in_turns.items()))
        return sum(size for _, size in later)

    def _open(self, key: tuple[int, int, int], end: int) -> memoryview:
        begun = self._begun(key, end)
        if begun is not None:
            self._ahead.remove(begun)
        reading = begun.reading if begun is not None else self._begin(key, end)
        reading.wait()
        return reading.content.toreadonly()

    def _begun(self, key: tuple[int, int, int], end: int) -> _Ahead | None:
        return next((each for each in self._ahead if (each.key, each.end) == (key, end)), None)

    def _begin(self, key: tuple[int, int, int], end: int) -> Reading:
        number, start, size = key
        # Blocks that reach beyond the window are cut.
        return self._objects.begin_read(number, start, min(start + size, end))

    def _read_ahead(self, key: tuple[int, int, int], end: int) -> None:
        """Begin to read the windows behind this one, if somebody reads on and on: it has come from the one before."""
        number, start, size = key
        if (number, start - size, size) not in self._windows:
            return
        most = min(AHEAD, READERS * AHEAD * WIDE // (self._others(number) + WIDE))
        for at in range(start + size, min(start + (most + 1) * size, end), size):
            following = number, at, size
            if self._bad.get(following):
                return
            if following in self._windows or self._begun(following, end) is not None:
                continue
            with suppress(ZkeepError):  # who comes to it is told
                self._ahead = [*self._ahead, _Ahead(following, end, self._begin(following, end))][-READERS * AHEAD :]
