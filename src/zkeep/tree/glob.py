"""Paths by pattern: *, ? and [..] within a name, ** for folders of any depth."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from zkeep.names import unescaped
from zkeep.tree.filesystem import Filesystem, Name, NoSuchFile

Expect = Callable[[list[int]], object]
"""Called with the numbers of objects that will be looked at next, ascending: what is elsewhere is fetched at once."""

_MAGIC = re.compile(rb"[*?\[]")


def typed(filesystem: Filesystem, text: str, expect: Expect = lambda numbers: None) -> list[bytes]:
    """The paths that a typed pattern means: taken as stored, as UTF-8 whatever the terminal has, or as ls shows it."""
    stored, utf8 = os.fsencode(text), text.encode("utf-8", "surrogateescape")
    for pattern in dict.fromkeys((stored, utf8, unescaped(stored), unescaped(utf8))):
        if b"\0" not in pattern and (found := matches(filesystem, pattern, expect)):
            return found
    return []


def matches(filesystem: Filesystem, pattern: bytes, expect: Expect = lambda numbers: None) -> list[bytes]:
    """The paths that match a pattern, sorted. A path that exists literally is not taken as a pattern."""
    plain = b"/".join(part for part in pattern.split(b"/") if part not in (b"", b"."))
    try:
        # A file may be called `a*`: what exists is taken as it stands.
        filesystem.lookup(plain)
        return [plain]
    except NoSuchFile:
        if not _MAGIC.search(plain):
            return []
    return sorted(set(_all(filesystem, plain.split(b"/"), expect)))


class _Inside(NamedTuple):
    """What may be a folder in which names are to be matched.

    `above`: the folder in which it was found, None for the root; `parts`: the rest of the pattern.
    """

    above: int | None
    entry: Name
    path: bytes
    parts: list[bytes]


def _all(filesystem: Filesystem, pattern: list[bytes], expect: Expect) -> Iterator[bytes]:
    level, seen = [_Inside(None, Name(b"", filesystem.root, 0), b"", pattern)], set[tuple[int, int]]()
    while level:
        # Folder by folder, each would be fetched for itself; so all of a level are expected before one is looked at.
        expect(sorted({each.entry.number for each in level}))
        following: list[_Inside] = []
        for above, entry, path, parts in level:
            if above is not None:
                if not filesystem.is_folder(entry):
                    continue
                filesystem.check_inside(above, entry)
            # `**` can lead to one folder in several ways; once with each rest of the pattern is enough.
            if (entry.number, len(parts)) in seen:
                continue
            seen.add((entry.number, len(parts)))
            if parts[0] == b"**" and parts[1:]:
                following.append(_Inside(above, entry, path, parts[1:]))
            for inner, found, inside in _fitting(filesystem, entry.number, path, parts):
                if not parts[1:]:
                    yield inner
                if inside and found.kind in (0, stat.S_IFDIR >> 12):
                    following.append(_Inside(entry.number, found, inner, inside))
        level = following


def _fitting(
    filesystem: Filesystem, folder: int, path: bytes, parts: list[bytes]
) -> Iterator[tuple[bytes, Name, list[bytes]]]:
    """The entries of a folder that a pattern's first part fits: path, entry, and the pattern for what is inside."""
    inside = parts if parts[0] == b"**" else parts[1:]
    fits = re.compile(fnmatch.translate("*" if parts[0] == b"**" else parts[0].decode("latin-1"))).match
    for entry in filesystem.names(folder):
        if fits(entry.name.decode("latin-1")):
            yield filesystem.below(path, entry.name), entry, inside
