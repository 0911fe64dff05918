"""Verifies one snapshot with the key, for `verify` and `restore`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from zkeep.cli.common.progress import Meter
from zkeep.cli.common.text import nice
from zkeep.errors import Damaged, NotAuthentic, ZkeepError

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey
    from zkeep.pool.datasets.model import Pool, Snapshot
    from zkeep.restore.verify import Totals
    from zkeep.snapshot.errors import BadRecord, Forgery
    from zkeep.snapshot.open import OpenSnapshot


def check_snapshot(pool: Pool, snapshot: Snapshot, get_key: GetKey, name: str) -> str:
    """Verify one snapshot; returns a line about it. Errors are those of verify(), with the name added."""
    from zkeep.snapshot.errors import BadRecord, Forgery
    from zkeep.snapshot.open import OpenSnapshot

    started = time.monotonic()
    try:
        with OpenSnapshot(pool, snapshot, get_key) as opened:
            try:
                done = _metered(opened)
            except (BadRecord, Forgery) as error:
                raise _named(error, name, _path(error, opened)) from None
    except (BadRecord, Forgery) as error:
        raise _named(error, name) from None
    except Damaged as error:
        raise Damaged(str(error) if name in str(error) else f"{name}: {error}") from None
    seconds = max(time.monotonic() - started, 1e-6)
    # Without encryption there are no MACs: then checksums say that it is whole, not that nobody changed it.
    how = "authentic" if opened.begin.raw else "whole (it is not encrypted)"
    rate = nice(int(done.bytes / seconds))
    apart = f", {done.elsewhere} blocks are not here" if done.elsewhere else ""
    return f"{name}: {how}: {done.objects} objects, {nice(done.bytes)}, {rate}/s{apart}"


def _metered(opened: OpenSnapshot) -> Totals:
    """Verify; on a terminal, show the progress."""
    from zkeep.restore.verify import verify

    if not sys.stderr.isatty():
        return verify(opened)
    from zkeep.pool.datasets.view import View
    from zkeep.restore.files.extract import ExtractProgress

    meter = Meter(int(View(opened.pool).get(opened.snapshot, "referenced").value or 0), "objects")
    try:
        return verify(opened, lambda done: meter(ExtractProgress(done.objects, done.bytes)))
    finally:
        meter.end()


def _named(error: BadRecord | Forgery, name: str, path: str = "") -> ZkeepError:
    kind = Damaged if isinstance(error, Damaged) else NotAuthentic
    return kind(f"{name}: {path}{error.place}{error.what}")


def _path(error: BadRecord | Forgery, opened: OpenSnapshot) -> str:
    """The path of the file that a block belongs to, if it can still be found."""
    from zkeep.names import printable_path
    from zkeep.tree.filesystem import Filesystem

    if error.object < 0 or error.offset < 0 or opened.is_volume:
        return ""
    try:
        return f"{printable_path(Filesystem(opened).path_of(error.object))}: "
    except ZkeepError:
        return ""
