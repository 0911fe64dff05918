"""What quotas count beside the space figures: everything else durable that streams bring.

It is counted in bytes of the stream, so a stream of N bytes needs no more room than N:

    a run         `extra`: records that no row stands for (FREE, FREEOBJECTS), until compaction rewrites it
    a snapshot    `begin_bytes`: its BEGIN and END; the properties and holds that came with it, or were set here
    a dataset     the properties that came or were set here, but for those that zkeep acts on; PARENT if it was made
                  only for one below it that was received (receive -d)
    a bookmark    its document
    a receive     that is under way or partial: what its `reserve` document says, taken before anything is written

zkeep's own tables and documents are in proportion to these and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from zkeep.pool.datasets.properties import PROPERTIES
from zkeep.pool.types import ReadOnlyDoc

if TYPE_CHECKING:
    from zkeep.pool.datasets.begin import Opening

PARENT = 1024
"Bytes that a dataset counts that was made because one below it was received: no record of a stream stands for it."
IMPLIED = "implied"
"The field of a dataset's document that says so."
_NUMBER = 8
"Bytes that a number counts beside its name."


def of_properties(texts: Mapping[str, str | None]) -> int:
    return sum(_size(name) + _size(text or "") for name, text in texts.items())


def of_settings(local: Mapping[str, str | None]) -> int:
    """Bytes of a dataset's own settings. What zkeep acts on is the administrator's, and short."""
    own = {name: text for name, text in local.items() if name not in PROPERTIES or not PROPERTIES[name].is_policy}
    return of_properties(own)


def of_holds(holds: Mapping[str, int]) -> int:
    return sum(_size(tag) + _NUMBER for tag in holds)


def of_begin(opening: Opening) -> int:
    """A BEGIN with its payload, and the END, which is as long as the BEGIN alone."""
    return 2 * len(opening.header) + len(opening.payload)


def of_snapshot(doc: ReadOnlyDoc) -> int:
    """Bytes that a snapshot counts, by its document, or by the fields that a stream brings for it."""
    begin = int(doc.get("begin_bytes", 0))
    settings = of_properties(doc.get("received", {})) + of_properties(doc.get("local", {}))
    return begin + settings + of_holds(doc.get("holds", {}))


def of_bookmark(doc: ReadOnlyDoc) -> int:
    return _size(str(doc["name"])) + len(doc) * _NUMBER


def of_dataset(
    doc: ReadOnlyDoc,
    runs: Iterable[ReadOnlyDoc],
    snapshots: Iterable[ReadOnlyDoc],
    bookmarks: Iterable[ReadOnlyDoc],
) -> int:
    """Everything but the bytes of runs that the space figures count."""
    total = of_properties(doc.get("received", {})) + of_settings(doc.get("local", {}))
    total += PARENT if doc.get(IMPLIED) else 0
    total += sum(int(run.get("extra", 0)) for run in runs)
    total += sum(of_snapshot(snapshot) for snapshot in snapshots)
    return total + sum(map(of_bookmark, bookmarks))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
