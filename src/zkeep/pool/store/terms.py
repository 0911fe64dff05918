"""The fields by which documents can be looked up, beside their keys.

The index keeps one more row for each such field: its kind is `@KIND.FIELD`, its key `TERM`, a line feed and the
document's key. These rows follow from the documents, so that the journal has none of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

MARK = "@"
"The first character of the kind of every such row; no document's kind begins with it."
VERSION = "1"
"Changes with FIELDS: an index with another version is filled again."
FIELDS = {
    "dataset": ("name", "guid", "origin"),
    "snapshot": ("name", "guid"),
    "bookmark": ("guid",),
}
Row = tuple[str, str]


def kind_of(kind: str, field: str) -> str:
    return f"{MARK}{kind}.{field}"


def terms(kind: str, key: str, text: str | None) -> set[Row]:
    """The rows of one document, by its JSON: kind and key of each."""
    if text is None or kind not in FIELDS:
        return set()
    document = json.loads(text)
    found = set()
    for field in FIELDS[kind] if isinstance(document, Mapping) else ():
        value = document.get(field)
        if isinstance(value, Mapping):
            value = origin_term(value.get("dataset"), value.get("txg"))
        if isinstance(value, str | int) and _is_searchable(value):
            found.add((kind_of(kind, field), f"{value}\n{key}"))
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
