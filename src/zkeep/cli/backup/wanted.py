"""What a backup was asked for: the options that each run has, and the lock that keeps a second one out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from zkeep.backup.local import Job, digest
from zkeep.cli.common.pools import registry
from zkeep.cli.common.snapshot_from import FromOptions, excluding_options
from zkeep.errors import TryAgain
from zkeep.pool.store.disk import make_folder
from zkeep.pool.store.files import LocalStore


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    job: Job
    dry_run: bool
    verbose: bool
    as_json: bool
    yes: bool
    key_file: str | None
    retention: str | None
    recursive: bool
    ssh: tuple[str, ...]
    "Words for ssh."
    locations: tuple[str, ...]
    excluding: dict[str, Any]
    recovers: bool = False
    "What is known here is lost, and is to be fetched from the destination."

    def reading(self) -> FromOptions:
        """How the folder is read."""
        source = str(self.job.source)
        quiet = self.as_json and not self.verbose
        return FromOptions(source, **self.excluding, dry_run=False, verbose=False, as_json=self.as_json, quiet=quiet)


def ssh_words(options: Sequence[str], key: str | None) -> tuple[str, ...]:
    """The words for ssh of --ssh-option and --sshkey."""
    return (*(word for text in options for word in ("-o", text)), *(("-i", key) if key is not None else ()))


F = TypeVar("F", bound=Callable[..., Any])
_SSH = (
    click.option("--sshkey", metavar="FILE", help="As ssh -i."),
    click.option("--ssh-option", "ssh_options", multiple=True, metavar="OPTION", help="As ssh -o."),
)


def takes_ssh_options(verb: F) -> F:
    """Add --sshkey and --ssh-option, for ssh_words()."""
    for option in reversed(_SSH):
        verb = option(verb)
    return verb


_PASSING = (
    click.option("-r", "recursive", is_flag=True, help="Of a dataset: with the datasets below."),
    click.option("--retention", metavar="POLICY", help="Set this property on DEST, as 'daily=30,weekly=8'."),
    click.option("--ping", "url", metavar="URL", help="POST to URL/start, then URL or URL/fail."),
    takes_ssh_options,
    click.option("-L", "locations", multiple=True, metavar="KEYLOCATION", help="file:///path or prompt: a key to use."),
)


def passing_options(verb: F) -> F:
    """The options of each run, which a schedule passes on."""
    for option in reversed((*_PASSING, excluding_options)):
        verb = option(verb)
    return verb


class RunsAlready(TryAgain):
    """The same backup is done by another process."""


PROBE_SECONDS = 0.5
"A `--due` that only looks holds the lock for a moment: a backup that begins in it waits."


@contextmanager
def locked(job: Job, wait: float = PROBE_SECONDS) -> Iterator[None]:
    """Inside, no other process does the same backup.

    Raises:
        RunsAlready: one does.
    """
    home = registry().home
    make_folder(home, 0o700)
    with ExitStack() as stack:
        try:
            stack.enter_context(LocalStore(home).lock(f"backup-{digest(job)[:16]}", wait=wait))
        except TryAgain:
            raise RunsAlready(f"cannot back up {job.source}: the same backup runs already") from None
        yield


def is_running(job: Job) -> bool:
    """Whether another process does the same backup right now."""
    try:
        with locked(job, 0.0):
            return False
    except RunsAlready:
        return True
    except OSError:  # the backup itself says what is wrong
        return False
