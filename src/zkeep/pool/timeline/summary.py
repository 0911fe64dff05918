"""A summary: the merged tables of consecutive runs of one dataset, without records.

Without them a query would have to read each run of a long timeline. Summaries of 16 runs, of 16 such summaries and so
on answer for all their runs at once, so that the cost of a query grows with the logarithm of the number of runs.

They are derived from segments alone, and no document names them: the name of the file says which runs it sums up, and
has a digest of their segments. When runs are merged, trimmed or rolled back, the digest matches no runs any more, and
the file is an orphan. If a summary is missing or damaged, its runs are read instead.

The file is a segment whose body is no record but the ids of the segments that rows point to:

    body     BLAKE2b-128 of what follows, then the ids, parted by blanks
    pages    as in a segment, but that `segment` of a row is the place of an id in the body
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from zkeep.errors import Damaged
from zkeep.pool.store.port import Blob, Buffer
from zkeep.pool.timeline import segment as seg
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.segment import RecentContents, Segment
from zkeep.pool.timeline.spans import Array, Ints
from zkeep.pool.timeline.table import DTYPES, Table

FOLDER = "summaries"
_DIGEST = 16


class Summed(Protocol):
    """The part of a run that a summary depends on."""

    @property
    def txg(self) -> int: ...

    @property
    def segments(self) -> tuple[str, ...]: ...


def digest(runs: Sequence[Summed]) -> str:
    """A digest of runs: of their txgs and segments."""
    text = "\n".join(f"{run.txg:x} {' '.join(run.segments)}" for run in runs)
    return blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class SummaryName:
    """The name of a summary in the store: its dataset, level (1: of runs), and first and last run."""

    dataset: str
    level: int
    first: int
    last: int
    digest: str

    @classmethod
    def of(cls, dataset: str, level: int, runs: Sequence[Summed]) -> SummaryName:
        return cls(dataset, level, runs[0].txg, runs[-1].txg, digest(runs))

    @classmethod
    def parse(cls, text: str) -> SummaryName | None:
        """The parsed name; None if it is not the name of a summary."""
        try:
            folder, dataset, base = text.split("/")
            level, first, last, digest = base.split("-")
            return cls(dataset, int(level, 16), int(first, 16), int(last, 16), digest) if folder == FOLDER else None
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{FOLDER}/{self.dataset}/{self.level:x}-{self.first:x}-{self.last:x}-{self.digest}"


def matching(
    texts: Sequence[str], runs: Sequence[Summed], checked: dict[str, bool] | None = None
) -> list[tuple[int, int, SummaryName]]:
    """The summaries of some of these runs among the names: (place of the first run, how many runs, name).

    `checked`: a cache, by name, whether it matches; valid as long as the runs do not change.
    """
    place = {run.txg: i for i, run in enumerate(runs)}
    known = {} if checked is None else checked
    found = []
    for text, name in zip(texts, map(SummaryName.parse, texts), strict=True):
        if name is None or name.first not in place or name.last not in place:
            continue
        start, end = place[name.first], place[name.last] + 1
        if text not in known:
            known[text] = digest(runs[start:end]) == name.digest
        if known[text]:
            found.append((start, end - start, name))
    return found


class _Memory:
    """A file that is built in memory; a Sink for seg.finish()."""

    def __init__(self, content: bytes) -> None:
        self.parts: list[Buffer] = [content]
        self.size = len(content)

    def write(self, *buffers: Buffer, soon: bool = False) -> None:
        self.parts += buffers
        self.size += sum(len(buffer) for buffer in buffers)


def encode(table: Table, ids: Sequence[str]) -> bytes:
    """The file of a table whose rows have in `segment` the places of their segments in `ids`."""
    text = " ".join(ids).encode()
    # | head (64, as of a segment) | digest of the ids (16) | "3-0 3-1 5-0" | pages | footer | trail |
    #                              ^--- the body ---------------------------^
    memory = _Memory(seg.head((0, 0, 0, 0), big_endian=False) + blake2b(text, digest_size=_DIGEST).digest() + text)
    seg.finish(memory, table, (0, 0, 0, 0), 0)
    return b"".join(memory.parts)


class Summary(Segment):
    """A published summary. `number_of` gives the numbers that rows shall carry for the ids of segments."""

    def __init__(
        self,
        opened: Callable[[], Blob],
        name: str,
        number_of: Callable[[str], int],
        recent: RecentContents | None = None,
    ) -> None:
        super().__init__(opened, name, recent=recent)
        self._number_of = number_of
        self._given: Ints | None = None
        "The numbers of the segments that rows named so far; -1 of the others."

    def ids(self) -> list[str]:
        """Raises Damaged."""
        return self._contents.ids or self._listed(self.footer)

    def _listed(self, footer: dict[str, Any]) -> list[str]:
        start, end = footer["body"]
        text = self.blob.read(start, end - start)
        if blake2b(text[_DIGEST:], digest_size=_DIGEST).digest() != text[:_DIGEST]:
            raise Damaged(f"{self.name}: its list of segments is damaged")
        return text[_DIGEST:].decode().split()

    @cached_property
    def _ids(self) -> list[str]:
        return self.ids()

    def place(self, rows: Array) -> None:
        """Raises Damaged: a row names a segment that is not in the list, or not of its runs."""
        last, count = int(rows["segment"].max()), len(self._ids)
        if last >= count:
            raise Damaged(f"{self.name}: a row names segment {last} of {count}")
        # A summary of many runs names many segments; those get numbers that rows lead to.
        if self._given is None:
            self._given = np.full(count, -1, np.int64)
        try:
            for at in sp.unique(rows["segment"]).tolist():
                if self._given[at] < 0:
                    self._given[at] = self._number_of(self._ids[at])
        except KeyError as error:
            raise Damaged(f"{self.name}: {error} is not a segment of its runs") from None
        rows["segment"] = self._given[rows["segment"]]

    def check(self) -> None:
        """Read all of it. Raises Damaged."""
        self.head  # noqa: B018 (verified when it is read)
        count = len(self.ids())
        for name in DTYPES:
            rows = self.stored_rows(name)
            if "segment" in (rows.dtype.names or ()) and len(rows) and int(rows["segment"].max()) >= count:
                raise Damaged(f"{self.name}: a row names segment {int(rows['segment'].max())} of {count}")
