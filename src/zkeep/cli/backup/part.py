"""Fetches what is needed of a snapshot to restore some paths of it: for `zkeep restore` from another host."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from zkeep.backup import fetch
from zkeep.backup.parts import Parts
from zkeep.errors import NotAuthentic, TryAgain
from zkeep.pool.datasets.contents import NotHere
from zkeep.pool.datasets.model import Pool, Snapshot

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey
    from zkeep.snapshot.partial import PartialSnapshot

PORTION = 1 << 30
"Bytes of contents that are asked for at once."


def fetch_paths(
    parts: Parts,
    pool: Pool,
    paths: Sequence[str],
    get_key: GetKey,
    check: Callable[[Snapshot], None],
    on_retry: Callable[[str], None],
    pause: Callable[[float], None],
) -> Snapshot:
    """Fetch what paths (and patterns) of a snapshot need into the pool; returns the snapshot with that in it.

    `check`: called with the snapshot before anything else is fetched than its index; it may raise.

    Raises:
        NoParts: its keeper can only send the whole.
        TryAgain: the line breaks again and again; what came is in the pool.
        NotAuthentic: something is not.
    """
    from zkeep.restore.wanted import expect_paths, wanted_objects
    from zkeep.snapshot.partial import PartialSnapshot
    from zkeep.tree.filesystem import Filesystem
    from zkeep.tree.glob import typed

    snapshot = parts.index()
    check(snapshot)
    with PartialSnapshot(pool, snapshot, get_key, parts.blocks) as opened:
        if opened.is_volume:
            return opened.snapshot
        try:
            filesystem = Filesystem(opened)
            expect_paths(opened, filesystem, map(os.fsencode, paths))
            found = [path for text in paths for path in typed(filesystem, text, opened.expect)]
            wanted = wanted_objects(opened, filesystem, found)
        except NotHere:
            raise NotAuthentic(f"{opened.name}: not all came that was asked for: a folder lacks blocks") from None
        _fetch_contents(parts, opened, wanted, on_retry, pause)
        return opened.snapshot


def _fetch_contents(
    parts: Parts,
    opened: PartialSnapshot,
    objects: set[int],
    on_retry: Callable[[str], None],
    pause: Callable[[float], None],
) -> None:
    """Fetch the contents of objects, portion by portion; each try asks for what is still missing."""
    failed = 0
    while len((missing := opened.missing(objects).upto(PORTION)).objects):
        before = opened.snapshot
        size = int(missing.sizes.sum())
        snapshot, why = parts.contents(before, missing.objects, missing.offset, size)
        opened.take(snapshot)
        left = opened.missing(missing.objects.tolist())
        if why is None and len(left.objects):
            raise NotAuthentic(f"{opened.name}: not all came that was asked for: object {left.objects[0]} lacks blocks")
        # Count failures in a row only: an attempt that brought blocks starts the count again.
        failed = 0 if why is None or int(left.sizes.sum()) < size else failed + 1
        if failed == fetch.TRIES:
            raise TryAgain(why or f"cannot fetch {opened.name}")
        if why is not None:
            on_retry(why)
            pause(fetch.PAUSES[min(failed, len(fetch.PAUSES) - 1)])
