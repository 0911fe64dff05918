"""What zkeep says where it is called by the name of zfs or zpool, in their own words.

Programs that drive zfs look for these: no name of ours before them, names in quotes, and no exit status that zfs
does not have.

Source: OpenZFS cmd/zfs/zfs_main.c, lib/libzfs/libzfs_util.c zfs_standard_error_fmt(), lib/libzfs/libzfs_dataset.c.
"""

from __future__ import annotations

import re

_NAME = r"([^\s']+)"
_DATASET = r"([^\s'@#]+)"
_WORDS = [
    (rf"cannot open {_DATASET}#(\S+): bookmark does not exist.*", r"bookmark '\1#\2' does not exist."),
    (rf"cannot open {_NAME}: (?:dataset|snapshot) does not exist.*", r"cannot open '\1': dataset does not exist"),
    (rf"cannot open {_NAME}: no such pool;.*", r"cannot open '\1': dataset does not exist"),
    (
        rf"cannot destroy {_DATASET}@(\S+): it is held.*",
        r"cannot destroy snapshot \1@\2: it's being held. Run 'zfs holds -r \1@\2' to see holders.",
    ),
    (
        r"cannot destroy \S+: could not find any snapshots to destroy.*",
        "could not find any snapshots to destroy; check snapshot names.",
    ),
    (
        rf"cannot hold {_NAME}: tag .* already exists on it.*",
        r"cannot hold snapshot '\1': tag already exists on this dataset",
    ),
    (
        rf"cannot release {_NAME}: no hold .* on it.*",
        r"cannot release hold from snapshot '\1': no such tag on this dataset",
    ),
    (rf"cannot create bookmark {_NAME}: bookmark exists.*", r"cannot create bookmark '\1': bookmark exists"),
    (rf"cannot create {_NAME}: parent does not exist.*", r"cannot create '\1': parent does not exist"),
    (rf"cannot rename to {_NAME}: parent does not exist.*", r"cannot rename to \1: parent does not exist"),
    (rf"cannot (create|destroy|rename|promote|inherit) {_NAME}: (.*)", r"cannot \1 '\2': \3"),
    (
        rf"{_NAME} has no resumable receive state to abort.*",
        r"'\1' does not have any resumable receive state to abort",
    ),
    (
        r"the resume token is corrupt: its checksum differs.*",
        "cannot resume send: resume token is corrupt (incorrect checksum)",
    ),
]


_NO_POOL = re.compile(rf"cannot open {_NAME}: no such pool;.*")


def words(text: str, called: str) -> str:
    """An error of ours as zfs, or zpool, would say it, where programs are known to look for that."""
    if called == "zpool" and (missing := _NO_POOL.fullmatch(text)):
        return f"cannot open '{missing[1]}': no such pool"
    for pattern, theirs in _WORDS:
        if found := re.fullmatch(pattern, text):
            return found.expand(theirs)
    return text.replace("'zkeep pool ", "'zpool ").replace("'zkeep ", "'zfs ")


def status(ours: int) -> int:
    """zfs has 0, 1 and, for wrong usage, 2."""
    return min(ours, 2) if ours in (0, 2) else 1
