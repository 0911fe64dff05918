"""Extracts the files of snapshots, and says what could not be, for `extract` and `restore`."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from zkeep.cli.common.progress import Meter
from zkeep.cli.common.recursive import Errors, SnapshotTree
from zkeep.cli.common.terminal import say
from zkeep.cli.common.text import nice
from zkeep.errors import Damaged, NotAuthentic, Refused, WrongUsage
from zkeep.pool.datasets.contents import NotHere

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkeep.crypto.unwrap import GetKey
    from zkeep.pool.datasets.model import Pool
    from zkeep.restore.files.report import RestoreReport
    from zkeep.snapshot.open import OpenSnapshot
    from zkeep.tree.filesystem import Filesystem


@dataclass(frozen=True)
class ExtractRequest:
    """The options of the call. `paths`: what is extracted of each dataset, as typed; empty for all."""

    target: str
    paths: list[str]
    force: bool
    recursive: bool
    to_stdout: bool
    verbose: bool
    verb: str = "extract"
    "What the user called, for messages."

    def extract(self, pool: Pool, tree: SnapshotTree, get_key: GetKey) -> None:
        """Extract each dataset to its place; if one fails, the others go on."""
        from zkeep.snapshot.open import OpenSnapshot

        errors = Errors()
        for snapshot in tree.snapshots(self.recursive):
            with errors.spared(), OpenSnapshot(pool, snapshot, get_key) as opened:
                self._one(opened, tree.place(snapshot.dataset))
        if not self.paths:
            tree.say_left_out(self.recursive, self.verb)
        errors.conclude()

    def _one(self, opened: OpenSnapshot, place: str) -> None:
        if not self.paths and opened.lacks_contents():
            raise NotHere(opened.name)
        if opened.is_volume:
            self._volume(opened, place.rpartition("/")[0])
        elif self.to_stdout:
            self._archive(opened)
        else:
            self._files(opened, place)

    def _volume(self, opened: OpenSnapshot, place: str) -> None:
        """Write the image of a volume where the folder of a filesystem would be."""
        from zkeep.restore.files.volume import extract_volume
        from zkeep.tree.volume import Volume

        if self.paths or self.to_stdout:
            raise WrongUsage("a volume is one disk image: extract it as a whole, or use zkeep cat")
        name = opened.snapshot.dataset.name.text.rpartition("/")[2] + ".img"
        click.echo(extract_volume(Volume(opened), self.target, name, force=self.force, place=place))

    def _archive(self, opened: OpenSnapshot) -> None:
        from zkeep.restore.files.report import RestoreReport
        from zkeep.restore.files.tar import write_tar
        from zkeep.tree.filesystem import Filesystem

        if sys.stdout.isatty():
            raise Refused("cannot extract: an archive is not written to a terminal; redirect standard output")
        filesystem = Filesystem(opened)
        report = RestoreReport(notes=[] if self.verbose else None)
        write_tar(filesystem, self._wanted(filesystem), sys.stdout.buffer, report)
        for path, kind in report.notes or ():
            _note("", path, kind)
        _conclude(report, "", verbose=self.verbose)

    def _files(self, opened: OpenSnapshot, place: str) -> None:
        from zkeep.restore.files.extract import Extraction, ExtractOptions
        from zkeep.tree.filesystem import Filesystem

        started = time.monotonic()
        # How much there is to do is known for a whole snapshot only.
        shows = Meter(0 if self.paths else _logical(opened)) if sys.stderr.isatty() else None
        note = partial(_note, place) if self.verbose else None
        options = ExtractOptions(force=self.force, on_progress=shows or (lambda progress: None), note=note)
        work = Extraction(Filesystem(opened), options)
        try:
            work.extract(self.target, self._wanted(work.filesystem), os.fsencode(place))
        finally:
            if shows:
                shows.end()
        # What was done, in one line; what could not be, from _conclude().
        if self.verbose:
            done = work.progress
            of = f"{place}: " if place else ""
            kept = f", {done.kept} of them there already" if done.kept else ""
            took = time.monotonic() - started
            click.echo(f"{of}extracted {done.files} files{kept}, {nice(done.bytes)} in {took:.1f} s", err=True)
        _conclude(work.report, place, verbose=self.verbose)

    def _wanted(self, filesystem: Filesystem) -> list[bytes]:
        """The paths in the filesystem that are meant, patterns resolved. Raises Refused: there is none."""
        from zkeep.tree.glob import typed

        found = []
        for path in self.paths:
            matches = typed(filesystem, path)
            if not matches:
                raise Refused(f"{path}: no such file or directory")
            found += matches
        return found if self.paths else [b""]


def _logical(opened: OpenSnapshot) -> int:
    """About how many bytes there are to write."""
    from zkeep.pool.datasets.view import View

    return int(View(opened.pool).get(opened.snapshot, "logicalreferenced").value or 0)


def _note(place: str, path: bytes, kind: str) -> None:
    """Name a file of which something that holds no data could not be made."""
    click.echo(f"{_path(place, path)}: could not be made here: {kind}", err=True)


def _conclude(report: RestoreReport, place: str, *, verbose: bool) -> None:
    """Say what could not be restored of the dataset at a place; raises if data is missing."""
    if report.counts:
        click.echo(f"zkeep: could not be made here: {report}", err=True)
    gone = sorted(path for path, error in report.failed if isinstance(error, NotHere))
    if gone:  # one line for all: there may be thousands
        which = _path(place, gone[0]) + (f" and {len(gone) - 1} more" if len(gone) > 1 else "")
        say(f"{which}: {next(error for _, error in report.failed if isinstance(error, NotHere))}")
    for path, error in sorted(report.failed, key=lambda failed: failed[0]):
        if not isinstance(error, NotHere):
            say(f"{_path(place, path)}: {error}")
    for path, error in sorted(report.lost, key=lambda lost: lost[0]):
        if verbose or error.status != Refused.status:
            say(f"{_path(place, path)}: {error}")
    missing = [error for _, error in report.failed + report.lost]
    if missing:
        worst = max(missing, key=lambda error: error.status)
        kind = next(kind for kind in (NotAuthentic, Damaged, Refused) if isinstance(worst, kind))
        raise kind(" and ".join(_summary(report, verbose=verbose)))


def _path(place: str, path: bytes) -> str:
    from zkeep.names import printable_path as printed

    return printed(b"/".join(part for part in (os.fsencode(place), path) if part))


def _summary(report: RestoreReport, *, verbose: bool) -> Iterator[str]:
    failed, lost = len(report.failed), len(report.lost)
    if failed:
        yield f"{failed} of the files could not be extracted" if failed > 1 else "one file could not be extracted"
    if lost:
        what = f"{lost} extended attributes" if lost > 1 else "one extended attribute"
        yield f"{what} with data could not be extracted" + ("" if verbose else " (-v names them)")
