"""Paths by pattern: *, ? and [..] within a name, ** for folders of any depth."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator

from zkeep.tree.filesystem import Filesystem, NoSuchFile

_MAGIC = re.compile(rb"[*?\[]")


def matches(filesystem: Filesystem, pattern: bytes) -> list[bytes]:
    """The paths that a pattern meets, sorted; one that is there as it is needs no pattern."""
    plain = b"/".join(part for part in pattern.split(b"/") if part not in (b"", b"."))
    try:
        filesystem.lookup(plain)
        return [plain]
    except NoSuchFile:
        if not _MAGIC.search(plain):
            return []
    return sorted(set(_below(filesystem, filesystem.root, b"", plain.split(b"/"))))


def _below(filesystem: Filesystem, folder: int, path: bytes, parts: list[bytes]) -> Iterator[bytes]:
    first, rest = parts[0], parts[1:]
    if first == b"**":
        if rest:
            yield from _below(filesystem, folder, path, rest)
        rest_inside = parts
    else:
        rest_inside = rest
    fits = re.compile(fnmatch.translate(first.decode("latin-1"))).match
    for entry in filesystem.names(folder):
        if first != b"**" and not fits(entry.name.decode("latin-1")):
            continue
        inner = path + b"/" + entry.name if path else entry.name
        if not rest:
            yield inner
        if rest_inside and filesystem.is_folder(entry):
            yield from _below(filesystem, entry.number, inner, rest_inside)
