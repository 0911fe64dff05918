"""zkeep ls, cat: what is in a snapshot."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import click

from zkeep.cli.common.open_snapshot import opened_snapshot, takes_key
from zkeep.cli.common.recursive import Errors
from zkeep.cli.common.terminal import encoded
from zkeep.errors import Damaged, NotAuthentic, Refused, WrongUsage, ZkeepError
from zkeep.names import printable_path

if TYPE_CHECKING:
    from zkeep.format.znode import Znode
    from zkeep.tree.filesystem import Extent, Filesystem

HALF_YEAR = 182 * 86400
ZEROS = bytes(1 << 20)
AT_ONCE = 1 << 17
"Entries that are looked at before the first of them is shown."
UNKNOWN = b"?" * 10 + b"    ?      ?      ?" + b"?".rjust(13) + b"?".rjust(13) + b" "
"The columns of what cannot be read."
PATHS = 64 << 20
"Bytes of their paths."


@click.command("ls")
@click.option("-l", "--long", "long", is_flag=True, help="With mode, links, owner, group, size and time.")
@click.option("-R", "--recursive", "recursive", is_flag=True, help="With all that lies below.")
@click.option("-d", "--directory", "itself", is_flag=True, help="Folders themselves, not what is in them.")
@click.option("-0", "zero", is_flag=True, help="End each line with a zero byte, and print names as they are.")
@takes_key
@click.argument("arguments", nargs=-1, required=True, metavar="SNAPSHOT|STREAM... [PATH...]")
def ls_verb(
    *, long: bool, recursive: bool, itself: bool, zero: bool, key_locations: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    """List the files of a snapshot. PATH may hold *, ? and [..]; ** stands for folders of any depth.

    STREAM is a file with a send stream, or several in a row, also compressed (gzip, xz, bzip2, zstd, lz4); a pipe; or -
    for standard input. The newest snapshot is meant, unless @SNAPSHOT or CHILD@SNAPSHOT follows.

    \b
        zkeep ls -l -L file:///root/key vault/home@monday docs
        zkeep ls -R full.zfs inc1.zfs.zst inc2.zfs -L file:///root/key
        ssh server cat full.zfs.gz | zkeep ls -L file:///root/key - docs
    """
    from zkeep.tree.filesystem import Filesystem

    with opened_snapshot(arguments, key_locations) as (opened, paths):
        if opened.is_volume:
            _has_no_paths(paths)
            _write(f"{opened.name}\n".encode())
            return
        show = _Lister(Filesystem(opened), long, recursive, itself, b"\0" if zero else b"\n")
        found = _found(show.filesystem, paths or [""], show.errors)
        for path in found:
            show.path(path, many=len(found) > 1)
        show.errors.conclude()


def _has_no_paths(paths: list[str]) -> None:
    if paths:
        raise WrongUsage("a volume is one disk image: name no path in it")


class _Lister:
    def __init__(self, filesystem: Filesystem, long: bool, recursive: bool, itself: bool, end: bytes) -> None:
        self.filesystem = filesystem
        self._recursive, self._itself, self._end = recursive, itself, end
        self._columns = _Columns() if long else None
        self.errors = Errors()
        self._failed_paths = set[bytes]()

    def path(self, path: bytes, *, many: bool) -> None:
        node = self.filesystem.lookup(path)
        entries: Iterable[tuple[bytes, int]] = [(path or b".", node.number)]
        if node.is_folder and not self._itself:
            if self._recursive:
                walk = self.filesystem.walk(node.number, path, failed=self._failed)
                entries = ((inner, name.number) for inner, name in walk)
            else:
                # Below one folder the names alone; where several are listed, with the folder before them.
                prefix = path + b"/" if many and path else b""
                entries = ((prefix + name.name, name.number) for name in self.filesystem.ordered(node.number))
        for batch in _batches(entries):
            _write(b"".join(self._lines(batch)))

    def _lines(self, entries: list[tuple[bytes, int]]) -> Iterator[bytes]:
        """Print in the given order, but read in the order in which the pool has them."""
        if self._columns is None:
            return (self._shown(path) + self._end for path, _ in entries)
        lines = [b""] * len(entries)
        for number, at in sorted((number, at) for at, (_, number) in enumerate(entries)):
            lines[at] = self._read_line(self._columns, entries[at][0], number)
        return iter(lines)

    def _read_line(self, columns: _Columns, path: bytes, number: int) -> bytes:
        try:
            node = self.filesystem.znode(number)
            text = self._shown(path)
            if node.is_link:
                text += b" -> " + self._shown(node.target or b"")
            return columns.of(node) + text + self._end
        except (Damaged, NotAuthentic, Refused) as error:
            self._failed(path, error)
            return UNKNOWN + self._shown(path) + self._end

    def _failed(self, path: bytes, error: ZkeepError) -> None:
        """Remember a file that cannot be read, so that the others are still listed; conclude() reports it."""
        if path in self._failed_paths:
            return
        self._failed_paths.add(path)
        with _spared(self.errors, path):
            raise error

    def _shown(self, path: bytes) -> bytes:
        return path if self._end == b"\0" else _printable(path)


def _batches(entries: Iterable[tuple[bytes, int]]) -> Iterator[list[tuple[bytes, int]]]:
    """Split entries into batches that are held in memory together."""
    batch: list[tuple[bytes, int]] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry[0])
        if len(batch) == AT_ONCE or size > PATHS:
            yield batch
            batch, size = [], 0
    yield batch


class _Columns:
    """The columns of `ls -l` before a name."""

    def __init__(self) -> None:
        self._now = time.time()

    def of(self, node: Znode) -> bytes:
        device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
        size = "{}, {}".format(*node.device) if device else node.size
        mark = "+" if node.has_acl or b"system.posix_acl_access" in node.packed_xattrs else " "
        seconds = node.mtime // 1_000_000_000
        when = _when(seconds // 60, -3600 < self._now - seconds < HALF_YEAR)
        return f"{_mode(node.mode)}{mark}{node.links:>4} {node.uid:>6} {node.gid:>6} {size:>12} {when} ".encode()


@lru_cache
def _mode(mode: int) -> str:
    return stat.filemode(mode)


@lru_cache(1 << 12)
def _when(minute: int, recent: bool) -> str:
    try:
        moment = time.localtime(minute * 60)
    except (OverflowError, ValueError, OSError):
        return f"{minute * 60:>12}"
    return time.strftime("%b %e %H:%M" if recent else "%b %e  %Y", moment)


def _printable(path: bytes) -> bytes:
    """Escape what would steer a terminal."""
    if path.isascii() and path.decode().isprintable():
        return path
    return encoded(printable_path(path))


def _write(content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[sys.stdout.buffer.write(view) :]


def _found(filesystem: Filesystem, paths: list[str], errors: Errors) -> list[bytes]:
    """The paths that exist, patterns resolved; what does not exist becomes an error."""
    from zkeep.tree.glob import typed

    found: list[bytes] = []
    for path in paths:
        with errors.spared():
            matches = typed(filesystem, path)
            if not matches:
                raise Refused(f"{path}: no such file or directory")
            found += matches
    return found


@contextmanager
def _spared(errors: Errors, path: bytes) -> Iterator[None]:
    """Let other paths go on if one cannot be read; it is reported with its path at the end."""
    try:
        yield
    except (Damaged, NotAuthentic, Refused) as error:
        kind = next(kind for kind in (NotAuthentic, Damaged, Refused) if isinstance(error, kind))
        errors.found.append(kind(f"{printable_path(path)}: {error}"))


@click.command("cat")
@takes_key
@click.argument("arguments", nargs=-1, required=True, metavar="SNAPSHOT|STREAM... PATH...")
def cat_verb(*, key_locations: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Write files of a snapshot, or a volume's disk image, to standard output (sparse, if that is a file).

    \b
        zkeep cat -L file:///root/key vault/home@monday docs/letter.txt
        zkeep cat -L prompt vault/disk@monday > disk.img
    """
    from zkeep.tree.filesystem import Filesystem
    from zkeep.tree.volume import Volume

    with opened_snapshot(arguments, key_locations) as (opened, paths):
        sys.stdout.flush()
        sys.stdout.fileno()  # that there is none is no matter of one file
        # A volume has one content and no paths.
        if opened.is_volume:
            _has_no_paths(paths)
            volume = Volume(opened)
            _pour(volume.extents(), volume.size)
            return
        if not paths:
            raise WrongUsage("name the files to write")
        filesystem = Filesystem(opened)
        errors = Errors()
        # A file that cannot be read is reported, and the others are written.
        for path in _found(filesystem, paths, errors):
            with _spared(errors, path):
                node = filesystem.lookup(path, follow=True)
                if not node.is_file:
                    raise Refused("not a plain file")
                _pour(filesystem.extents(node), node.size)
        errors.conclude()


def _pour(extents: Iterator[Extent], size: int) -> None:
    """Content and zeros to standard output; over holes a file is skipped, where it holds nothing."""
    import fcntl

    out = sys.stdout.fileno()
    # A file that is appended to (>>) writes at its end, wherever one seeks to.
    appends = bool(fcntl.fcntl(out, fcntl.F_GETFL) & os.O_APPEND)
    seekable = stat.S_ISREG(os.fstat(out).st_mode) and not appends
    at = 0
    for extent in extents:
        _skip(out, extent.offset - at, seekable)
        _all(out, memoryview(extent.content))
        at = extent.offset + len(extent.content)
    _skip(out, size - at, seekable)
    if seekable:
        os.ftruncate(out, max(os.fstat(out).st_size, os.lseek(out, 0, os.SEEK_CUR)))


def _skip(out: int, count: int, seekable: bool) -> None:
    if not seekable:
        _zeros(out, count)
    elif count:
        at = os.lseek(out, 0, os.SEEK_CUR)
        after = at + count
        # Overwrite data that the output file has there with zeros; its holes stay holes.
        end = min(after, os.fstat(out).st_size)
        while at < end and (start := _next(out, at, os.SEEK_DATA, end)) < end:
            at = _next(out, start, os.SEEK_HOLE, end)
            os.lseek(out, start, os.SEEK_SET)
            _zeros(out, at - start)
        os.lseek(out, after, os.SEEK_SET)


def _next(out: int, at: int, what: int, end: int) -> int:
    """Where the next data or hole begins; at most `end`. On filesystems that cannot tell, all is data."""
    try:
        return min(os.lseek(out, at, what), end)
    except OSError as error:
        return end if error.errno == errno.ENXIO or what == os.SEEK_HOLE else at


def _zeros(out: int, count: int) -> None:
    while count > 0:
        _all(out, memoryview(ZEROS)[: min(count, len(ZEROS))])
        count -= len(ZEROS)


def _all(out: int, view: memoryview) -> None:
    while view:
        view = view[os.write(out, view) :]
