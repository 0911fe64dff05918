"""Options of zfs(8) and zpool(8) that are not here: why, and what to do instead.

Those that ask for nothing here (no devices, no mounts, no deduplication) are accepted: see accepted().
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Verb = TypeVar("Verb", bound=Callable[..., Any])

_NO_DEVICES = "a pool is a folder and has no devices"
_NO_TEMPORARY = "nothing is kept for one import only"
_NO_REWIND = "a pool is never rewound: 'zkeep pool scrub --rebuild-catalog NAME' mends what a crash or a disk left"
_AGAIN = "use watch(1), or 'zkeep metrics' for what a program shall follow"
_KEPT_SPACE = "what was begun is kept until it is gone on with; 'zkeep receive -A DATASET' gives it up"
_NOTHING_OVER = "nothing that is there is overwritten; empty the folder, or 'zkeep pool import' the pool that it holds"
_REDACTED = "what is redacted is chosen by reading files, and bookmarks of it are made by ZFS; send it from there"
_SAVED = (
    "what an interrupted receive has kept is not sent on; finish it with its token "
    "('zkeep get -r receive_resume_token'), then send the snapshot"
)

REASONS: dict[str, dict[str, str]] = {
    "send": {
        **dict.fromkeys(("-S", "--saved"), _SAVED),
        **dict.fromkeys(("-d", "--redact"), _REDACTED),
    },
    "mount": {"-R": "'-r' mounts the datasets below, read-only; for all that were made here, '-a'"},
    "unmount": {"-u": "unload the key afterwards: 'zkeep unload-key DATASET'"},
    "pool create": {
        "-f": _NOTHING_OVER,
        "-m": "set it: -O mountpoint=DIR",
        "-n": "there are no devices to lay out; leave -n out, and 'zkeep pool destroy' takes the pool away again",
        "-R": f"{_NO_TEMPORARY}; set it: -O mountpoint=DIR",
        "-t": f"{_NO_TEMPORARY}; give the name that it shall have",
    },
    "pool export": {"-f": "a pool that is in use is not taken away; unmount and wait, then export it"},
    "pool import": {
        **dict.fromkeys(("-F", "-T", "-X", "-n", "--rewind-to-checkpoint"), _NO_REWIND),
        "-R": f"{_NO_TEMPORARY}; set it then: 'zkeep set mountpoint=DIR NAME'",
        "-c": "a pool's folder says all; give it: 'zkeep pool import PATH'",
        "-l": "load keys then: 'zkeep load-key -r NAME'",
        "-o": f"{_NO_TEMPORARY}; set it then: 'zkeep set PROPERTY=VALUE NAME'",
        "-s": f"{_NO_DEVICES} to look through; give a folder: -d DIR",
        "-t": f"{_NO_TEMPORARY}; give the name that it shall have: 'zkeep pool import PATH NEWNAME'",
    },
    "pool list": {"-T": _AGAIN},
    "pool scrub": {
        "-C": "it reads all, every time; what is to be sent is verified as it is read",
        "-e": "it reads all, every time; 'zkeep verify SNAPSHOT' checks one snapshot",
        "-p": "a scrub that was stopped begins at the start; '-s' stops it",
    },
    "pool status": {"-T": _AGAIN, "-c": f"{_NO_DEVICES} to run scripts for", "-d": f"{_NO_DEVICES} that do I/O"},
    "pool upgrade": {"-V": "there is one format so far: 'zkeep pool upgrade -v' lists it"},
}
"By verb, as it is typed."


def reason(verb: str, error: click.NoSuchOption) -> str:
    """What is to be said of an option of zfs's that is not here; empty for what is none."""
    return REASONS.get(verb, {}).get(error.option_name, "")


class Accepted(click.Option):
    """A flag that asks for nothing here; help names it, usage lines do not."""


def accepted(*letters: str, why: str) -> Callable[[Verb], Verb]:
    """A decorator for a verb that takes these flags, and does nothing else for them."""

    def decorate(verb: Verb) -> Verb:
        for letter in reversed(letters):
            verb = click.option(letter, cls=Accepted, is_flag=True, expose_value=False, help=f"Accepted: {why}.")(verb)
        return verb

    return decorate
