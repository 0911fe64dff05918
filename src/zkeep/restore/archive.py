"""Files as a tar archive (POSIX pax), with what that can hold: no holes, times in nanoseconds, extended attributes."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import BinaryIO

from zkeep.format.acl import Ace, BadAcl, decode
from zkeep.format.znode import Znode
from zkeep.restore.placing import Skipped
from zkeep.tree.filesystem import Extent, Filesystem

_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}
_ZEROS = bytes(1 << 20)


def write_tar(filesystem: Filesystem, paths: Iterable[bytes], sink: BinaryIO) -> Skipped:
    """Write files, and folders with all below them; tells of what has no place in an archive and is left out."""
    linked: dict[int, str] = {}
    skipped = Skipped()
    for path, number in _all(filesystem, paths):
        node = filesystem.znode(number)
        if stat.S_IFMT(node.mode) not in _KINDS:
            skipped.add("sockets")
            continue
        info = _info(filesystem, path, node)
        if node.links > 1 and not node.is_folder:
            if number in linked:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, linked[number], 0
            linked.setdefault(number, info.name)
        sink.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        if info.isreg() and info.size:
            _content(filesystem.extents(node), node.size, sink)
    sink.write(bytes(2 * tarfile.BLOCKSIZE))
    sink.flush()
    return skipped


def _all(filesystem: Filesystem, paths: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    for path in paths:
        node = filesystem.lookup(path)
        yield path, node.number
        if node.is_folder:
            below = filesystem.walk(node.number, path, as_stored=True)
            yield from ((inner, name.number) for inner, name in below)


def _info(filesystem: Filesystem, path: bytes, node: Znode) -> tarfile.TarInfo:
    info = tarfile.TarInfo("./" + path.decode("utf-8", "surrogateescape"))
    info.type = _KINDS[stat.S_IFMT(node.mode)]
    info.mode, info.uid, info.gid = stat.S_IMODE(node.mode), node.uid, node.gid
    info.mtime = node.mtime // 1_000_000_000
    info.size = node.size if node.is_file else 0
    info.linkname = (node.target or b"").decode("utf-8", "surrogateescape")
    info.devmajor, info.devminor = node.device
    headers = {"mtime": f"{node.mtime // 1_000_000_000}.{node.mtime % 1_000_000_000:09d}"}
    for name, value in filesystem.xattrs(node).items():
        headers["SCHILY.xattr." + name.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
    if node.has_acl:
        with suppress(BadAcl):
            headers["SCHILY.acl.ace"] = ",".join(_with_number(ace) for ace in decode(node.acl, node.order))
    info.pax_headers = headers
    return info


def _with_number(ace: Ace) -> str:
    """As bsdtar and star write an entry of an NFSv4 ACL: with the number behind, as names may be others elsewhere."""
    return f"{ace}:{ace.who}" if ace.who >= 0 else str(ace)


def _content(extents: Iterable[Extent], size: int, sink: BinaryIO) -> None:
    at = 0
    for extent in extents:
        _zeros(extent.offset - at, sink)
        sink.write(extent.content)
        at = extent.offset + len(extent.content)
    _zeros(size - at + -size % tarfile.BLOCKSIZE, sink)


def _zeros(count: int, sink: BinaryIO) -> None:
    while count > 0:
        sink.write(memoryview(_ZEROS)[: min(count, len(_ZEROS))])
        count -= len(_ZEROS)
