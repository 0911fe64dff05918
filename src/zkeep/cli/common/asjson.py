"""The JSON of `-j`, as OpenZFS 2.3 prints it.

Source: OpenZFS man/man8/zfs-list.8, zfs-get.8, zpool-list.8;
lib/libzfs/libzfs_util.c zprop_nvlist_one_property().
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress

from zkeep.cli.common import text
from zkeep.names import MAX_UINT64, whole_number
from zkeep.pool.datasets.answers import Answer, Thing, type_name
from zkeep.pool.datasets.model import Snapshot
from zkeep.pool.datasets.properties import Property

Object = dict[str, object]


def version(command: str) -> Object:
    return {"command": command, "vers_major": 0, "vers_minor": 1}


def number(value: int, as_int: bool) -> object:
    return value if as_int else str(value)


def prop(answer: Answer, shown: str, as_int: bool) -> Object:
    value: object = shown
    with suppress(ValueError):
        value = whole_number(shown, MAX_UINT64) if as_int else shown
    return {"value": value, "source": _source(answer)}


def _source(answer: Answer) -> Object:
    if answer.source.startswith("inherited from "):
        return {"type": "INHERITED", "data": answer.source.removeprefix("inherited from ")}
    if answer.source == "received":
        return {"type": "RECEIVED", "data": answer.received or "-"}
    return {"type": {"local": "LOCAL", "default": "DEFAULT"}.get(answer.source, "NONE"), "data": "-"}


def thing(item: Thing, answers: Iterable[tuple[Property, Answer]], exact: bool, as_int: bool) -> Object:
    """One dataset, snapshot or bookmark with these properties."""
    found: Object = {"name": str(item.name), "type": type_name(item).upper()}
    dataset = item.dataset if isinstance(item, Snapshot) else None
    found["pool"] = str(item.name).partition("/")[0].partition("@")[0].partition("#")[0]
    found["createtxg"] = number(item.doc["createtxg"], as_int)
    if dataset:
        found["dataset"] = dataset.name.text
        found["snapshot_name"] = item.doc["name"]
    found["properties"] = {p.name: prop(answer, text.value(p, answer.value, exact), as_int) for p, answer in answers}
    return found


def dump(content: Object) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"
