"""What documents of each kind have: their fields, and what each may hold.

A pool's folder may come from anywhere, and its maker can write documents that prove themselves and say anything.
So each is compared with its kind's shape when it is read; what reads it then can rely on every field named here. That
documents agree with one another is for those who follow them from one to the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from zkeep.names import MAX_UINT64, BadName, BookmarkName, DatasetName, SnapshotName

Check = Callable[[Any], bool]
_ID = 12
"Digits of a dataset's number in keys."
_TXG = 20
_SEGMENT = re.compile(r"[0-9a-f]{1,16}-[0-9a-f]{1,16}")


def _number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_UINT64


def _amount(value: Any) -> bool:
    """A figure, which is a difference of others and may be less than nothing."""
    return type(value) is int and -MAX_UINT64 <= value <= MAX_UINT64


def _text(value: Any) -> bool:
    return type(value) is str


def _texts(value: Any) -> bool:
    return type(value) is list and all(map(_text, value))


def _flag(value: Any) -> bool:
    return type(value) is bool


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _numbers(count: int) -> Check:
    return lambda value: type(value) is list and len(value) == count and all(map(_number, value))


def _id_list(value: Any) -> bool:
    return type(value) is list and all(map(_number, value))


def _by_name(check: Check) -> Check:
    return lambda value: type(value) is dict and all(map(check, value.values()))


def _parsed(parse: Callable[[str], object], before: str) -> Check:
    """A name by zfs's rules; `before`: what stands before it in a whole one."""

    def check(value: Any) -> bool:
        try:
            return type(value) is str and bool(parse(f"{before}{value}"))
        except BadName:
            return False

    return check


_below_the_top = _parsed(DatasetName.parse, "p/")


def _dataset_name(value: Any) -> bool:
    return value == "" or _below_the_top(value)


def _deaths(value: Any) -> bool:
    """By the txg of earlier runs, stored and logical bytes."""
    if type(value) is not dict or not all(_is_key(txg, 1, _TXG) for txg in value):
        return False
    return all(type(pair) in (list, tuple) and len(pair) == 2 and all(map(_amount, pair)) for pair in value.values())


def _refusals(value: Any) -> bool:
    """By the name of a dataset, below another or of itself: when it was, and the txg then."""
    if type(value) is not dict or not all(map(_dataset_name, value)):
        return False
    return all(type(pair) is list and len(pair) == 2 and all(map(_number, pair)) for pair in value.values())


def _position(value: Any) -> bool:
    """A record's position: object, offset (-1: before all), kind."""
    return type(value) is list and len(value) == 3 and all(type(n) is int and -1 <= n <= MAX_UINT64 for n in value)


def _shaped(name: str) -> Check:
    return lambda value: type(value) is dict and wrong_field(name, value) is None


def _is_key(text: str, least: int, most: int) -> bool:
    return least <= len(text) <= most and text.isascii() and text.isdecimal()


_PROPERTIES = _by_name(_or_none(_text))
_SUMS: dict[str, Check] = {"bytes": _amount, "logical": _amount, "dead": _deaths}
_TALLY: dict[str, Check] = {
    "segments": lambda value: type(value) is list and all(type(s) is str and _SEGMENT.fullmatch(s) for s in value),
    **dict.fromkeys(("records", "file_bytes"), _number),
    **_SUMS,
}
REQUIRED: Mapping[str, Mapping[str, Check]] = {
    "pool": {"next_id": _number, "next_txg": _number},
    "dataset": {
        **dict.fromkeys(("id", "guid", "createtxg", "creation"), _number),
        "name": _dataset_name,
        "type": ("filesystem", "volume").__contains__,
        "origin": _or_none(_shaped("origin")),
        "local": _PROPERTIES,
        "received": _PROPERTIES,
    },
    "origin": {"dataset": _number, "txg": _number},
    "snapshot": {
        "name": _parsed(SnapshotName.parse, "p@"),
        **dict.fromkeys(("guid", "txg", "createtxg", "creation", "ivset_guid", "features"), _number),
        "holds": _by_name(_number),
        "local": _PROPERTIES,
        "received": _PROPERTIES,
    },
    "head": {
        "name": _text,
        **dict.fromkeys(("guid", "txg", "createtxg", "creation", "ivset_guid", "features"), _number),
        "holds": _by_name(_number),
        "local": _PROPERTIES,
        "received": _PROPERTIES,
    },
    "bookmark": {
        "name": _parsed(BookmarkName.parse, "p#"),
        **dict.fromkeys(("guid", "txg", "createtxg", "creation", "ivset_guid", "features"), _number),
    },
    "begin": {"header": _text, "payload": _text, "byteorder": ("little", "big").__contains__},
    "run": {
        "whole": _flag,
        **dict.fromkeys(("txg", "from_txg", "fromguid", "features", "maxblkid"), _number),
        **_TALLY,
    },
    "tally": _TALLY,
    "sums": {"txg": _number, **_SUMS},
    "receive": {
        **dict.fromkeys(("txg", "toguid", "fromguid", "features", "object", "offset"), _number),
        **dict.fromkeys(("resumable", "clone", "new"), _flag),
        "snapshot": _parsed(SnapshotName.parse, "p@"),
        "toname": _text,
        "begin": _shaped("begin"),
        "source": _or_none(_numbers(2)),
        "fields": _shaped("fields"),
        "snapshot_fields": _shaped("snapshot fields"),
        "tally": _shaped("tally"),
        "state": _or_none(_numbers(4)),
        "last": _or_none(_position),
    },
    "reserve": {"dataset": _number, "bytes": _number},
    "compact": {"txg": _number, "dataset": _number},
    "history": {
        **dict.fromkeys(("at", "received", "sent", "milliseconds", "status"), _number),
        **dict.fromkeys(("client", "peer", "command"), _text),
        "root": _dataset_name,
    },
    "sent": {
        **dict.fromkeys(("guid", "ivset_guid", "at"), _number),
        "name": _parsed(SnapshotName.parse, "p@"),
        "portable_mac": lambda value: type(value) is str and re.fullmatch(r"([0-9a-f]{2})*", value) is not None,
        "to": _texts,
    },
}
"Fields that a document of the kind has."
OPTIONAL: Mapping[str, Mapping[str, Check]] = {
    "pool": {"guid": _number, "name": _text, "created": _number},
    "dataset": {
        "received_name": _or_none(_text),
        "raw": _or_none(_flag),
        "crypt": _or_none(_by_name(_number)),
        "encroot": _or_none(_flag),
        "own_key": _or_none(_flag),
        "snapshots_changed": _number,
        "live": _flag,
        "implied": _flag,
        "naming": _by_name(_number),
        "runtime": _text,
    },
    "head": {"begin_bytes": _number, "received_at": _number, "defer_destroy": _flag, "unchanged": _flag},
    "snapshot": {
        "defer_destroy": _flag,
        "begin_bytes": _number,
        "client_tags": _texts,
        "received_at": _number,
        "redacted": _id_list,
    },
    "run": {"extra": _number, "bare": _number, "contents": ("metadata",).__contains__},
    "tally": {"extra": _number},
    "receive": {"base": _number, "started": _number, "token": _text, "local": _PROPERTIES},
    "fields": {
        "local": _PROPERTIES,
        "received": _PROPERTIES,
        "encroot": _or_none(_flag),
        "received_name": _or_none(_text),
    },
    "snapshot fields": {"holds": _by_name(_number), "local": _PROPERTIES, "received": _PROPERTIES},
    "scrub": {"errors": lambda value: type(value) is list, "damaged": _or_none(_id_list)},
    "clock": {"seen": _number},
    "health": {"kinds": _texts},
    "verify": {"at": _number, "snapshot": _number, "failed": _id_list},
    "no-room": {"names": _refusals},
    "sent": {"noted_at": _number},
}
"Fields that it may have. Of a kind that is named in neither table nothing is known."


def _shape(kind: str) -> list[tuple[str, Check, bool]]:
    required = [(field, check, True) for field, check in REQUIRED.get(kind, {}).items()]
    return required + [(field, check, False) for field, check in OPTIONAL.get(kind, {}).items()]


_SHAPES = {kind: _shape(kind) for kind in {*REQUIRED, *OPTIONAL}}


def wrong_field(kind: str, document: Mapping[str, Any]) -> str | None:
    """The first field that is missing or holds what it may not."""
    for field, check, required in _SHAPES.get(kind, ()):
        if field in document:
            if not check(document[field]):
                return field
        elif required:
            return field
    return None


def _txg_key(key: str, document: Mapping[str, Any]) -> bool:
    head, _, tail = key.partition("/")
    return _is_key(head, _ID, _TXG) and tail == f"{document['txg']:0{_TXG}d}"


def _child_key(key: str, document: Mapping[str, Any]) -> bool:
    head, slash, tail = key.partition("/")
    return _is_key(head, _ID, _TXG) and bool(slash and tail)


def _begin_key(key: str, document: Mapping[str, Any]) -> bool:
    return _child_key(key, document) and _is_key(key.partition("/")[2], 1, _TXG)


def _receive_key(key: str, document: Mapping[str, Any]) -> bool:
    return _is_key(key.removeprefix("txg/"), _ID, _TXG)


_KEYS: Mapping[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "dataset": lambda key, document: key == f"{document['id']:0{_ID}d}",
    "snapshot": _txg_key,
    "run": _txg_key,
    "sums": _txg_key,
    "begin": _begin_key,
    "key": _begin_key,
    "bookmark": lambda key, document: _child_key(key, document) and key.partition("/")[2] == document["name"],
    "sent": _child_key,
    "head": lambda key, document: _is_key(key, _ID, _TXG),
    "receive": _receive_key,
    "reserve": _receive_key,
}
"Whether a document that is otherwise sound belongs under its key."


def fault(kind: str, key: str, document: Mapping[str, Any]) -> str | None:
    """What is wrong with a document, in words that follow its name; None if it is as one of its kind."""
    field = wrong_field(kind, document)
    if field is not None:
        return f"has no {field}" if field not in document else f"has a {field} that is none"
    if kind in _KEYS and not _KEYS[kind](key, document):
        return "is not the one of this key"
    return None
