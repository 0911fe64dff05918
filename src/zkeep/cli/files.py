"""zkeep ls, cat: what is in a snapshot."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from zkeep.cli.opening import opened_snapshot, takes_key
from zkeep.errors import Refused, WrongUsage

if TYPE_CHECKING:
    from zkeep.format.znode import Znode
    from zkeep.tree.filesystem import Extent, Filesystem, Name

HALF_YEAR = 182 * 86400
ZEROS = bytes(1 << 20)


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

    \b
        zkeep ls -l -L file:///root/key vault/home@monday docs
        zkeep ls -R full.zfs inc1.zfs inc2.zfs -L file:///root/key
    """
    from zkeep.tree.filesystem import Filesystem

    with opened_snapshot(arguments, key_locations) as (opened, paths):
        if opened.is_volume:
            _write(f"{opened.name}\n".encode())
            return
        show = _Lister(Filesystem(opened), long, recursive, itself, b"\0" if zero else b"\n")
        for path in _found(show.filesystem, paths or [""]):
            show.path(path, many=len(paths) > 1)


class _Lister:
    def __init__(self, filesystem: Filesystem, long: bool, recursive: bool, itself: bool, end: bytes) -> None:
        self.filesystem = filesystem
        self._long, self._recursive, self._itself, self._end = long, recursive, itself, end

    def path(self, path: bytes, *, many: bool) -> None:
        node = self.filesystem.lookup(path)
        if not node.is_folder or self._itself:
            self._line(path or b".", node.number)
            return
        entries = self.filesystem.walk(node.number, path) if self._recursive else self._flat(node.number, path, many)
        for shown_path, name in entries:
            self._line(shown_path, name.number)

    def _flat(self, number: int, path: bytes, many: bool) -> Iterator[tuple[bytes, Name]]:
        return iter(self.filesystem.sorted_names(number, path if many else b""))

    def _line(self, path: bytes, number: int) -> None:
        text = path if self._end == b"\0" else _printable(path)
        if not self._long:
            _write(text + self._end)
            return
        node = self.filesystem.znode(number)
        if node.is_link:
            text += b" -> " + (node.target or b"" if self._end == b"\0" else _printable(node.target or b""))
        _write(_columns(node).encode() + text + self._end)


def _columns(node: Znode) -> str:
    size = "{}, {}".format(*node.device) if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else str(node.size)
    mark = "+" if node.has_acl or b"system.posix_acl_access" in node.packed_xattrs else " "
    mode = stat.filemode(node.mode) + mark
    return f"{mode}{node.links:>4} {node.uid:>6} {node.gid:>6} {size:>12} {_when(node.mtime)} "


def _when(nanoseconds: int) -> str:
    seconds = nanoseconds // 1_000_000_000
    moment = time.localtime(seconds)
    recent = -3600 < time.time() - seconds < HALF_YEAR
    return time.strftime("%b %e %H:%M" if recent else "%b %e  %Y", moment)


def _printable(path: bytes) -> bytes:
    """As it is, but for what would steer a terminal."""
    if path.isascii() and path.decode().isprintable():
        return path
    from zkeep.tree.filesystem import shown

    return shown(path).encode("utf-8", "surrogateescape")


def _write(content: bytes) -> None:
    sys.stdout.buffer.write(content)


def _found(filesystem: Filesystem, paths: list[str]) -> list[bytes]:
    from zkeep.tree.glob import matches

    found = []
    for path in paths:
        some = matches(filesystem, os.fsencode(path))
        if not some:
            raise Refused(f"{path}: no such file or directory")
        found += some
    return found


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
        if opened.is_volume:
            volume = Volume(opened)
            _pour(volume.extents(), volume.size)
            return
        if not paths:
            raise WrongUsage("name the files to write")
        filesystem = Filesystem(opened)
        for path in _found(filesystem, paths):
            node = filesystem.lookup(path, follow=True)
            if not node.is_file:
                raise Refused(f"{os.fsdecode(path)}: not a plain file")
            _pour(filesystem.extents(node), node.size)


def _pour(extents: Iterator[Extent], size: int) -> None:
    """Content and zeros to standard output; over holes a file is skipped."""
    out = sys.stdout.fileno()
    seekable = stat.S_ISREG(os.fstat(out).st_mode) and not _appends(out)
    at = 0
    for extent in extents:
        _skip(out, extent.offset - at, seekable)
        _all(out, memoryview(extent.content))
        at = extent.offset + len(extent.content)
    _skip(out, size - at, seekable)
    if seekable:
        os.ftruncate(out, max(os.fstat(out).st_size, os.lseek(out, 0, os.SEEK_CUR)))


def _appends(out: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(out, fcntl.F_GETFL) & os.O_APPEND)


def _skip(out: int, count: int, seekable: bool) -> None:
    if seekable and count:
        os.lseek(out, count, os.SEEK_CUR)
        return
    while count > 0:
        _all(out, memoryview(ZEROS)[: min(count, len(ZEROS))])
        count -= len(ZEROS)


def _all(out: int, view: memoryview) -> None:
    while view:
        view = view[os.write(out, view) :]
