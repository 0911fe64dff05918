"""The fields by which documents can be looked up, beside their keys.

The index keeps one more row for each such field: its kind is `@KIND.FIELD`, its key `TERM`, a line feed and the
document's key. These rows follow from the documents, so that the journal has none of them.

A run has a row of kind `@run.sums` instead: its key, a line feed, and its figures in short, for used and written.
Of many runs these are read much faster than the documents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zkeep.pool.store.shapes import fault

MARK = "@"
"The first character of the kind of every such row; no document's kind begins with it."
VERSION = "2"
"Changes with FIELDS: an index with another version is filled again."
FIELDS = {
    "dataset": ("name", "guid", "origin"),
    "snapshot": ("name", "guid"),
    "bookmark": ("guid",),
    "run": ("sums",),
}
MALFORMED = "malformed"
"Stands for a field: such a row says of a document that it is not what one of its kind is, to those who read keys only."
_LONG = 500
"Characters of figures above which only the document has them."
Row = tuple[str, str]


def kind_of(kind: str, field: str) -> str:
    return f"{MARK}{kind}.{field}"


def terms(kind: str, key: str, text: str | None) -> set[Row]:
    """The rows of one document, by its JSON: kind and key of each."""
    if text is None or kind not in FIELDS:
        return set()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return unreadable(kind, key)
    if kind == "run":
        return {(kind_of(kind, "sums"), f"{key}\n{_sums(key, document)}")}
    found = set()
    if not isinstance(document, Mapping) or fault(kind, key, document):
        found.add((kind_of(kind, MALFORMED), key))
    for field in FIELDS[kind] if isinstance(document, Mapping) else ():
        value = document.get(field)
        if isinstance(value, Mapping):
            value = origin_term(value.get("dataset"), value.get("txg"))
        if isinstance(value, str | int) and _is_searchable(value):
            found.add((kind_of(kind, field), f"{value}\n{key}"))
    return found


def unreadable(kind: str, key: str) -> set[Row]:
    """The rows of a document that cannot be read: they lead those who read rows only to it, who are told."""
    return {(kind_of(kind, "sums"), f"{key}\n") if kind == "run" else (kind_of(kind, MALFORMED), key)}


def _sums(key: str, document: Any) -> str:
    """The figures of a run in short; empty where its document has to be read: it is no run's, or they are long."""
    if not isinstance(document, Mapping) or fault("run", key, document):
        return ""
    text = _in_short(document)
    return text if len(text) <= _LONG else ""


def _in_short(document: Mapping[str, Any]) -> str:
    # bytes,logical and for each earlier run of which it killed something:  ;txg,bytes,logical
    deaths = (f"{txg},{stored},{logical}" for txg, (stored, logical) in document["dead"].items())
    return ";".join([f"{document['bytes']},{document['logical']}", *deaths])


def read_sums(text: str) -> dict[str, Any]:
    """The figures, as the run's document has them; shapes say how large they may be. Raises ValueError: no figures."""
    own, *deaths = text.split(";")
    stored, logical = own.split(",")
    dead = {}
    for death in deaths:
        txg, killed, killed_logical = death.split(",")
        dead[str(int(txg))] = (int(killed), int(killed_logical))
    found = {"bytes": int(stored), "logical": int(logical), "dead": dead}
    # int() takes blanks, underscores and leading zeros, too; a run that is there twice would be there once.
    if _in_short(found) != text:
        raise ValueError(text)
    return found


def _is_searchable(value: str | int) -> bool:
    """What is no Unicode is no name either, and nobody looks for it."""
    try:
        return bool(str(value).encode()) or value == ""
    except UnicodeEncodeError:
        return False


def origin_term(dataset: object, txg: object) -> str:
    """The term by which the clones of a snapshot are looked up."""
    return f"{dataset}/{txg}"
