"""Which objects have to be here so that some paths of a snapshot can be extracted.

Level by level, so that each level's dnodes are asked for at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from zkeep.errors import NotAuthentic, TryAgain, ZkeepError
from zkeep.format.zap_layout import BadZap
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import OBJECT_BITS, Filesystem


def wanted_objects(snapshot: OpenSnapshot, filesystem: Filesystem, paths: Iterable[bytes]) -> set[int]:
    """The numbers of all files at and below the paths, and of the values of their extended attributes.

    What cannot be read is left out: extracting it says why.

    Raises:
        NotAuthentic: something is not.
        TryAgain: it could not be fetched.
    """
    beside, whole = _on_the_way(filesystem, paths)
    found: set[int] = set()
    seen: set[int] = set()
    level = beside | whole
    while level:
        snapshot.expect(sorted(level))
        following: set[int] = set()
        for number in sorted(level - seen):
            try:
                node = filesystem.znode(number)
                if node.xattr_folder:
                    following.add(node.xattr_folder)
                if node.is_folder and number not in beside:
                    following.update(value & OBJECT_BITS for _, value in filesystem.zap(number).numbers())
                elif not node.is_folder:
                    found.add(number)
            except (NotAuthentic, TryAgain):
                raise
            except (ZkeepError, BadZap):
                continue
        seen |= level
        level = following - seen
    return found


def expect_paths(snapshot: OpenSnapshot, filesystem: Filesystem, paths: Iterable[bytes]) -> None:
    """Let all that lies on paths be asked for, level by level, before each path is looked up by itself.

    What is no plain path, or cannot be read, is left out: looking it up says why.

    Raises:
        NotAuthentic: something is not.
        TryAgain: it could not be fetched.
    """
    level = [(filesystem.root, [part for part in path.split(b"/") if part not in (b"", b".")]) for path in paths]
    while level:
        snapshot.expect(sorted({number for number, _ in level}))
        following = []
        for number, parts in level:
            try:
                found = filesystem.find(number, parts[0]) if parts and filesystem.znode(number).is_folder else None
            except (NotAuthentic, TryAgain):  # the line broke: that says nothing about the path
                raise
            except ZkeepError:
                continue
            if found is not None:
                following.append((found.number, parts[1:]))
        level = following


def _on_the_way(filesystem: Filesystem, paths: Iterable[bytes]) -> tuple[set[int], set[int]]:
    """The folders on the way to paths, of which only attributes are needed; and what the paths name."""
    beside, whole = set[int](), set[int]()
    for path in paths:
        number = filesystem.root
        for part in (part for part in path.split(b"/") if part not in (b"", b".")):
            beside.add(number)
            name = filesystem.find(number, part)
            if name is None:
                break
            number = name.number
        else:
            whole.add(number)
    return beside - whole, whole
