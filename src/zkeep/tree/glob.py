"""Paths by pattern: *, ? and [..] within a name, ** for folders of any depth."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator

from zkeep.names import unescaped
from zkeep.tree.filesystem import Filesystem, NoSuchFile

_MAGIC = re.compile(rb"[*?\[]")


def typed(filesystem: Filesystem, text: str) -> list[bytes]:
    """The paths that a typed pattern means: taken as stored, as UTF-8 whatever the terminal has, or as ls shows it."""
    stored, utf8 = os.fsencode(text), text.encode("utf-8", "surrogateescape")
    for pattern in dict.fromkeys((stored, utf8, unescaped(stored), unescaped(utf8))):
        if b"\0" not in pattern and (found := matches(filesystem, pattern)):
            return found
    return []


def matches(filesystem: Filesystem, pattern: bytes) -> list[bytes]:
    """The paths that match a pattern, sorted. A path that exists literally is not taken as a pattern."""
    plain = b"/".join(part for part in pattern.split(b"/") if part not in (b"", b"."))
    try:
        # A file may be called `a*`: what exists is taken as it stands.
        filesystem.lookup(plain)
        return [plain]
    except NoSuchFile:
        if not _MAGIC.search(plain):
            return []
    return sorted(set(_all(filesystem, plain.split(b"/"))))


def _all(filesystem: Filesystem, pattern: list[bytes]) -> Iterator[bytes]:
    todo, seen = [(filesystem.root, b"", pattern)], set[tuple[int, int]]()
    while todo:
        folder, path, parts = todo.pop()
        # `**` can lead to one folder in several ways; once with each rest of the pattern is enough.
        if (folder, len(parts)) in seen:
            continue
        seen.add((folder, len(parts)))
        if parts[0] == b"**" and parts[1:]:
            todo.append((folder, path, parts[1:]))
        inside = parts if parts[0] == b"**" else parts[1:]
        fits = re.compile(fnmatch.translate("*" if parts[0] == b"**" else parts[0].decode("latin-1"))).match
        for entry in filesystem.names(folder):
            if not fits(entry.name.decode("latin-1")):
                continue
            inner = filesystem.below(path, entry.name)
            if not parts[1:]:
                yield inner
            if inside and filesystem.is_folder(entry):
                filesystem.check_inside(folder, entry)
                todo.append((entry.number, inner, inside))
