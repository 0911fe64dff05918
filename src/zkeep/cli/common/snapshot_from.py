"""zkeep snapshot --from: options, and what is said meanwhile."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zkeep.cli.common.named_files import read_small
from zkeep.cli.common.open_snapshot import keys_from
from zkeep.cli.common.pools import registry
from zkeep.cli.common.progress import Meter
from zkeep.cli.common.terminal import encoded, say
from zkeep.cli.common.text import count, nice_bytes
from zkeep.errors import Damaged, WrongUsage
from zkeep.names import SnapshotName, printable_path, shown, whole_number
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.properties import parse_size

if TYPE_CHECKING:
    from zkeep.capture.exclude import ExcludeOptions
    from zkeep.capture.report import FileChange, Watch
    from zkeep.capture.scan import ReadProblem, Scan
    from zkeep.capture.snapshot import Taken

KINDS = ("auto", "none", "btrfs", "lvm", "zfs")
F = TypeVar("F", bound=Callable[..., Any])
_SOURCE = click.option("--from", "source", metavar="DIR|IMAGE", help="Store a folder; in a volume, an image or device.")


def _check_size(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    try:
        if text is not None:
            parse_size(text)
    except ValueError:
        raise click.BadParameter(f"{shown(text or '')} is not a size, such as 512M or 1.5G") from None
    return text


_EXCLUDING = [
    click.option("--one-file-system", is_flag=True, help="Leave out what other file systems hold."),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out what matches, as in .gitignore."),
    click.option("--exclude-from", multiple=True, metavar="FILE", help="Patterns to leave out, one a line."),
    click.option("--exclude-caches", is_flag=True, help="Leave out folders that hold a CACHEDIR.TAG."),
    click.option("--exclude-if-present", multiple=True, metavar="NAME", help="Leave out folders that hold NAME."),
    click.option(
        "--exclude-larger-than", metavar="SIZE", callback=_check_size, help="Leave out larger files."
    ),
    click.option(
        "--fs-snapshot",
        type=click.Choice(KINDS),
        help="Read from a snapshot of the file system, which is removed at the end; auto: where there can be one.",
    ),
]
_SAYING = [
    click.option("-n", "dry_run", is_flag=True, help="Store nothing; -v lists what would be, and what is left out."),
    click.option("-v", "verbose", is_flag=True, help="List files: + new, M changed, R renamed, - gone, x left out."),
    click.option("-j", "as_json", is_flag=True, help="The same as one JSON object a line."),
]


@dataclass(frozen=True)
class FromOptions:
    """The options of `snapshot --from`, as they were given."""

    source: str | None
    one_file_system: bool
    exclude: Sequence[str]
    exclude_from: Sequence[str]
    exclude_caches: bool
    exclude_if_present: Sequence[str]
    exclude_larger_than: str | None
    fs_snapshot: str | None
    dry_run: bool
    verbose: bool
    as_json: bool
    quiet: bool = False
    "With as_json: no line for each file that changed."

    @property
    def any(self) -> bool:
        """Whether one was given that needs --from."""
        return any(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def excludes(self) -> bool:
        """Whether something is to be left out."""
        names = set(self.__dataclass_fields__) - {"source", "dry_run", "verbose", "as_json", "quiet", "fs_snapshot"}
        return any(getattr(self, name) for name in names)

    def read_at(self) -> AbstractContextManager[str]:
        """Where the source is to be read: itself, or in a snapshot of its file system, inside the context."""
        assert self.source is not None
        kind = self.fs_snapshot or "none"
        if kind == "none":
            return nullcontext(self.source)
        from zkeep.capture.fs_snapshot import snapshot_of

        return snapshot_of(self.source, kind, one_file_system=self.one_file_system, warn=say)

    def exclusions(self) -> ExcludeOptions:
        """Raises WrongUsage, Refused: a pattern is none, a file of them cannot be read."""
        from zkeep.capture.exclude import ExcludeOptions, parse_patterns

        lines = list(self.exclude)
        for name in self.exclude_from:
            lines += os.fsdecode(read_small(name)).split("\n")
        # Only to refuse bad patterns now, before anything is read.
        parse_patterns(lines)
        for name in self.exclude_if_present:
            if not name or "/" in name:
                raise WrongUsage(f"--exclude-if-present takes the name of a file, not {shown(name)}")
        largest = parse_size(self.exclude_larger_than) if self.exclude_larger_than is not None else None
        names = tuple(map(os.fsencode, self.exclude_if_present))
        return ExcludeOptions(tuple(lines), self.one_file_system, self.exclude_caches, names, largest, _own())


def _own() -> frozenset[tuple[int, int]]:
    """The folder of what files looked like the last time, by device and inode: it changes with every snapshot."""
    try:
        status = os.stat(registry().home / "capture")
    except OSError:
        return frozenset()
    return frozenset({(status.st_dev, status.st_ino)})


def from_options(verb: F) -> F:
    return _with(verb, [_SOURCE, *_EXCLUDING, *_SAYING])


def excluding_options(verb: F) -> F:
    """The options that say what is left out of a folder."""
    return _with(verb, _EXCLUDING)


def _with(verb: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        verb = option(verb)
    return verb


class NotAllRead(Damaged):
    """A snapshot was taken, but not all files are in it as they are."""


def take(pool: Pool, name: SnapshotName, options: FromOptions, locations: Sequence[str]) -> None:
    """Store a folder, and say what the options ask for.

    Raises:
        NotAllRead: the snapshot was taken, but not all files are in it as they are.
    """
    from zkeep.capture.snapshot import CaptureRequest, take_folder

    assert options.source is not None
    # A volume is made of one image, not of a folder.
    if pool.dataset(name.dataset).is_volume:
        _take_image(pool, name, options, locations)
        return
    printer = Printer(options)
    exclusions, step, get_key = options.exclusions(), _step(), keys_from(locations)
    # Read from a snapshot of the file system where there is one: files do not change meanwhile.
    with options.read_at() as at:
        request = CaptureRequest(
            *(name, options.source, registry().home / "capture", exclusions, printer.left_out, printer.watch()),
            dry_run=options.dry_run,
            at=at,
            step=step,
        )
        try:
            taken = take_folder(pool, request, get_key)
        finally:
            printer.end()
    # The snapshot is there; but the exit status must say that it lacks something.
    for problem in taken.problems:
        printer.problem(problem)
    printer.summary(name, taken)
    if taken.problems:
        what = f"{name} was taken" if taken.snapshot else f"{name} would be taken"
        files = count(len(taken.problems), "file")
        raise NotAllRead(f"{what}, but {files} could not be read as {'it is' if files == '1 file' else 'they are'}")


def _step() -> int:
    """Bytes of new data after which a large folder's capture goes on in another transaction group."""
    from zkeep.capture.folder import STEP

    text = os.environ.get("ZKEEP_STEP", str(STEP))
    try:
        return whole_number(text, 1 << 62, 1)
    except ValueError:
        raise WrongUsage(f"ZKEEP_STEP must be a number of bytes, not {shown(text)}") from None


def _take_image(pool: Pool, name: SnapshotName, options: FromOptions, locations: Sequence[str]) -> None:
    from zkeep.capture.image import take_image
    from zkeep.capture.snapshot import Taken, new_snapshot

    if options.dry_run or options.excludes:
        raise WrongUsage("-n, --one-file-system and --exclude... go with a folder, and not with a volume")
    printer = Printer(options)
    printer.watch().start(0)
    new, _ = new_snapshot(pool, name)
    get_key = keys_from(locations)
    with options.read_at() as at:
        try:
            snapshot, problems = take_image(pool, new, at, get_key, printer.read)
        finally:
            printer.end()
    for problem in problems:
        printer.problem(problem)
    printer.summary(name, Taken(snapshot, problems, 2, printer.done))
    if problems:
        raise NotAllRead(f"{name} was taken, but its source changed meanwhile: take the next from one at rest")


@dataclass
class Printer:
    """Prints the list of changes on standard output, and how far it is on a terminal."""

    options: FromOptions
    _meter: Meter | None = None
    _files: int = 0
    done: int = 0
    "Read so far."
    _total: int = field(default=0)

    def watch(self) -> Watch:
        from zkeep.capture.report import Watch

        watch = Watch()
        if (self.options.verbose or self.options.as_json) and not self.options.quiet:
            watch.change = self._change
        if sys.stderr.isatty() and not self.options.as_json:
            self._meter = Meter(0)
            watch.folder, watch.start, watch.bytes, watch.file = self._looked, self._start, self.read, self._stored
        return watch

    def left_out(self, path: bytes, why: str) -> None:
        if self.options.quiet:
            return
        if self.options.as_json:
            _json(what="left out", path=os.fsdecode(path), why=why)
        elif self.options.verbose:
            _line("x", path, why.encode(errors="surrogateescape"))

    def problem(self, problem: ReadProblem) -> None:
        if self.options.as_json:
            _json(what="problem", path=os.fsdecode(problem.path), why=problem.reason)
        say(f"{shown(os.fsdecode(problem.path or b'.'))}: {problem.reason}")

    def summary(self, name: SnapshotName, taken: Taken) -> None:
        if self.options.as_json:
            guid = str(taken.snapshot.guid) if taken.snapshot else None
            figures = {"written": taken.written, "bytes": taken.bytes, "problems": len(taken.problems)}
            _json(what="snapshot", name=str(name), guid=guid, **figures)
        elif self.options.verbose:
            verb = "would take" if self.options.dry_run else "took"
            read = f"{count(taken.written, 'object')} written, {nice_bytes(taken.bytes)} read"
            click.echo(f"{verb} {name}: {read}")

    def end(self) -> None:
        if self._meter is not None:
            self._meter.end()

    def _change(self, change: FileChange) -> None:
        if self.options.as_json:
            found = {"what": change.what, "type": change.kind, "path": os.fsdecode(change.path)}
            _json(**found, **({"renamed": os.fsdecode(change.renamed)} if change.renamed is not None else {}))
        else:
            _line(change.what, change.path or b".", change.renamed)

    def _looked(self, scan: Scan) -> None:
        if self._meter is not None:
            self._meter.say(f"{count(scan.folders, 'folder')} looked at, {count(scan.files, 'file')} to be read")

    def _start(self, total: int) -> None:
        self._meter, self._total = Meter(total), total

    def read(self, size: int) -> None:
        self.done += size
        if self._meter is not None:
            self._meter.bytes(count(self._files, "file"), self.done, self._total)

    def _stored(self) -> None:
        self._files += 1
        self.read(0)


def _json(**fields: object) -> None:
    sys.stdout.buffer.write(json.dumps(fields, separators=(",", ":")).encode() + b"\n")


def _line(what: str, path: bytes, more: bytes | None = None) -> None:
    parts = [what.encode(), encoded(printable_path(path))]
    if more is not None:
        parts.append(encoded(printable_path(more)))
    sys.stdout.buffer.write(b"\t".join(parts) + b"\n")
