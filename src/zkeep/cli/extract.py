"""zkeep extract: files out of a snapshot."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from zkeep.cli.main import say
from zkeep.cli.open_snapshot import opened_snapshot, takes_key
from zkeep.cli.progress import Meter
from zkeep.cli.text import nice
from zkeep.errors import Damaged, NotAuthentic, Refused, WrongUsage, ZkeepError

if TYPE_CHECKING:
    from zkeep.restore.files.extract import Extraction
    from zkeep.restore.files.target import Skipped
    from zkeep.snapshot.open import OpenSnapshot


@click.command("extract")
@click.option("-C", "target", metavar="DIR", default=".", help="The folder to extract into; made if need be.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.option("--stdout", "to_stdout", is_flag=True, help="Write a tar archive to standard output instead.")
@click.option("-v", "--verbose", "verbose", is_flag=True, help="Say what was extracted.")
@takes_key
@click.argument("arguments", nargs=-1, required=True, metavar="SNAPSHOT|STREAM... [PATH...]")
def extract_verb(
    *,
    target: str,
    force: bool,
    to_stdout: bool,
    verbose: bool,
    key_locations: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:
    """Extract files of a snapshot with all that is stored of them, or a volume's disk image.

    Nothing is written outside DIR, nothing that is there is overwritten without --force, and an interrupted call can
    be repeated: what it had extracted is kept. Owners and devices need root. What cannot be read is named and left
    out; everything else is extracted, and the exit status is 3 or 4.

    \b
        zkeep extract -C /mnt/new -L file:///root/key vault/home@monday
        zkeep extract -L prompt full.zfs inc1.zfs 'docs/*.txt'
    """
    if to_stdout and (force or target != "."):
        raise WrongUsage("--stdout goes with neither -C nor --force")
    with opened_snapshot(arguments, key_locations) as (opened, paths):
        if opened.is_volume:
            _volume(opened, target, paths, force=force, to_stdout=to_stdout)
        elif to_stdout:
            _archive(opened, paths)
        else:
            _files(opened, target, paths, force=force, verbose=verbose)


def _volume(opened: OpenSnapshot, target: str, paths: list[str], *, force: bool, to_stdout: bool) -> None:
    from zkeep.restore.files.extract import extract_volume
    from zkeep.tree.volume import Volume

    if paths or to_stdout:
        raise WrongUsage("a volume is one disk image: extract it as a whole, or use zkeep cat")
    name = opened.snapshot.dataset.name.text.rpartition("/")[2] + ".img"
    click.echo(extract_volume(Volume(opened), target, name, force=force))


def _archive(opened: OpenSnapshot, paths: list[str]) -> None:
    from zkeep.restore.files.tar import write_tar
    from zkeep.tree.filesystem import Filesystem

    if sys.stdout.isatty():
        raise Refused("cannot extract: an archive is not written to a terminal; redirect standard output")
    filesystem = Filesystem(opened)
    _tell_skipped(write_tar(filesystem, _wanted(filesystem, paths) if paths else [b""], sys.stdout.buffer))


def _files(opened: OpenSnapshot, target: str, paths: list[str], *, force: bool, verbose: bool) -> None:
    from zkeep.restore.files.extract import Extraction, Options
    from zkeep.tree.filesystem import Filesystem

    started = time.monotonic()
    shows = Meter(0 if paths else _logical(opened)) if sys.stderr.isatty() else None
    work = Extraction(Filesystem(opened), Options(force=force, tell=shows or (lambda progress: None)))
    try:
        if paths:
            work.some(target, _wanted(work.filesystem, paths))
        else:
            work.everything(target)
    finally:
        if shows:
            shows.end()
    _conclude(work, time.monotonic() - started, verbose=verbose)


def _logical(opened: OpenSnapshot) -> int:
    """About how many bytes there are to write."""
    from zkeep.pool.datasets.view import View

    return int(View(opened.pool).get(opened.snapshot, "logicalreferenced").value or 0)


def _conclude(work: Extraction, seconds: float, *, verbose: bool) -> None:
    done = work.progress
    if verbose:
        kept = f", {done.kept} of them there already" if done.kept else ""
        click.echo(f"extracted {done.files} files{kept}, {nice(done.bytes)} in {seconds:.1f} s", err=True)
    _tell_skipped(work.skipped)
    if work.failed:
        raise _unreadable(work)


def _unreadable(work: Extraction) -> ZkeepError:
    """Say of each file what is wrong with it, and give what ends the call."""
    from zkeep.tree.filesystem import shown

    for path, error in sorted(work.failed, key=lambda failed: failed[0]):
        say(f"{shown(path)}: {error}")
    worst = max((error for _, error in work.failed), key=lambda error: error.status)
    kind = next(kind for kind in (NotAuthentic, Damaged, Refused) if isinstance(worst, kind))
    count = len(work.failed)
    return kind(f"{count} of the files could not be extracted" if count > 1 else "one file could not be extracted")


def _tell_skipped(skipped: Skipped) -> None:
    if skipped.counts:
        click.echo(f"zkeep: could not be made here: {skipped}", err=True)


def _wanted(filesystem: object, paths: list[str]) -> list[bytes]:
    from zkeep.tree.filesystem import Filesystem
    from zkeep.tree.glob import matches

    assert isinstance(filesystem, Filesystem)
    found = []
    for path in paths:
        some = matches(filesystem, os.fsencode(path))
        if not some:
            raise Refused(f"{path}: no such file or directory")
        found += some
    return found
