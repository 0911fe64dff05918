"""Files as a tar archive (POSIX pax), with what that can hold: no holes, times in nanoseconds, extended attributes.

Source: POSIX pax, Extended Interchange Format; GNU tar src/xheader.c, src/xattrs.c and star(5) for what SCHILY adds;
Linux include/uapi/linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import stat
import struct
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import BinaryIO
from unicodedata import is_normalized

from zkeep.format.acl import Ace, BadAcl, decode
from zkeep.format.znode import Znode
from zkeep.restore.files.target import Skipped
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
_SECOND = 1_000_000_000
_NAME = 99
"Bytes of a name in a header: a folder's gets a slash."
_TEXTS = ((b"path", "name"), (b"linkpath", "linkname"))
_NUMBERS = ((b"uid", "uid", 7), (b"gid", "gid", 7), (b"size", "size", 11), (b"mtime", "mtime", 11))
"Records, and the octal digits that a header has for the same."
_POSIX_ACLS = {b"system.posix_acl_access": b"SCHILY.acl.access", b"system.posix_acl_default": b"SCHILY.acl.default"}
_POSIX_VERSION = 2
_POSIX_TAGS = {1: "user", 2: "user", 4: "group", 8: "group", 16: "mask", 32: "other"}
_POSIX_NAMED = 2 | 8


def write_tar(filesystem: Filesystem, paths: Iterable[bytes], sink: BinaryIO) -> Skipped:
    """Write files, and folders with all below them; tells of what has no place in an archive and is left out."""
    linked: dict[int, str] = {}
    skipped = Skipped()
    for path, number in _all(filesystem, paths):
        node = filesystem.znode(number)
        if stat.S_IFMT(node.mode) not in _KINDS:
            skipped.add("sockets")
            continue
        info = _info(path, node)
        if node.links > 1 and not node.is_folder:
            if number in linked:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, linked[number], 0
            linked.setdefault(number, info.name)
        size = info.size
        sink.write(_head(info, _records(filesystem, node)))
        if info.isreg() and size:
            _content(filesystem.extents(node), size, sink)
    sink.write(bytes(2 * tarfile.BLOCKSIZE))
    sink.flush()
    return skipped


# Paths


def _all(filesystem: Filesystem, paths: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Every path once, however the wanted ones overlap: a second time it would be a hard link to itself."""
    for path in _outermost([_settled(filesystem, path) for path in paths]):
        node = filesystem.lookup(path)
        yield path, node.number
        if node.is_folder:
            below = filesystem.walk(node.number, path, as_stored=True)
            yield from ((inner, name.number) for inner, name in below)


def _outermost(paths: Iterable[bytes]) -> list[bytes]:
    """Without those that lie below others."""
    wanted = dict.fromkeys(paths)
    return [path for path in wanted if not any(above in wanted for above in _above(path))]


def _above(path: bytes) -> Iterator[bytes]:
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def _settled(filesystem: Filesystem, path: bytes) -> bytes:
    """The same by stored names alone: tar refuses members below `..`, and below links that it has just made."""
    filesystem.lookup(path)
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    found, number = b"", filesystem.root
    for i, part in enumerate(parts, 1):
        name = None if part == b".." else filesystem.find(number, part)
        if name is None:
            found = found.rpartition(b"/")[0]
        else:
            found, number = found + b"/" + name.name if found else name.name, name.number
        if i < len(parts) and name and filesystem.znode(number).is_link:
            found = filesystem.path_of(filesystem.lookup(found, follow=True).number)
            name = None
        if name is None:
            number = filesystem.lookup(found).number
    return found


# Headers


def _info(path: bytes, node: Znode) -> tarfile.TarInfo:
    info = tarfile.TarInfo("./" + _text(path))
    info.type = _KINDS[stat.S_IFMT(node.mode)]
    info.mode, info.uid, info.gid = stat.S_IMODE(node.mode), node.uid, node.gid
    info.mtime = node.mtime // _SECOND
    info.size = node.size if node.is_file else 0
    info.linkname = _text(node.target or b"")
    info.devmajor, info.devminor = node.device
    return info


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _records(filesystem: Filesystem, node: Znode) -> dict[bytes, bytes]:
    """What the extended header says of a file."""
    records = {b"mtime": _decimal(node.mtime)}
    for name, value in filesystem.xattrs(node).items():
        records[b"SCHILY.xattr." + _keyword(name)] = value
        if name in _POSIX_ACLS and (text := _posix_acl(value)):
            records[_POSIX_ACLS[name]] = text
    if node.has_acl:
        with suppress(BadAcl):
            aces = ",".join(_with_number(ace) for ace in decode(node.acl, node.order))
            records[b"SCHILY.acl.ace"] = aces.encode()
    return records


def _decimal(time: int) -> bytes:
    """Nanoseconds as seconds; the sign is the whole number's, so that -0.5 is half a second before 1970."""
    return b"%s%d.%09d" % (b"-" * (time < 0), *divmod(abs(time), _SECOND))


def _keyword(name: bytes) -> bytes:
    """As GNU tar encodes a name that has in it what ends a keyword."""
    return name.replace(b"%", b"%25").replace(b"=", b"%3D")


def _posix_acl(value: bytes) -> bytes:
    """The text of a POSIX ACL as GNU tar writes it, with numbers for names; nothing if it is none."""
    if len(value) % 8 != 4 or int.from_bytes(value[:4], "little") != _POSIX_VERSION:
        return b""
    entries = list(struct.iter_unpack("<HHI", value[4:]))
    if any(tag not in _POSIX_TAGS for tag, _, _ in entries):
        return b""
    return ",".join(_posix_entry(*entry) for entry in entries).encode()


def _posix_entry(tag: int, access: int, who: int) -> str:
    letters = "".join(c if access & bit else "-" for c, bit in (("r", 4), ("w", 2), ("x", 1)))
    return f"{_POSIX_TAGS[tag]}:{who if tag & _POSIX_NAMED else ''}:{letters}"


def _with_number(ace: Ace) -> str:
    """As bsdtar and star write an entry of an NFSv4 ACL: with the number behind, as names may be others elsewhere."""
    return f"{ace}:{ace.who}" if ace.who >= 0 else str(ace)


def _head(info: tarfile.TarInfo, records: dict[bytes, bytes]) -> bytes:
    """A file's header, behind an extended one that also has what does not fit into it.

    tarfile makes no keywords that are not UTF-8, as names of extended attributes may be.
    """
    for keyword, field in _TEXTS:
        name = getattr(info, field).encode("utf-8", "surrogateescape")
        if len(name) > _NAME or not name.isascii():
            records[keyword] = name
            setattr(info, field, _text(name[:_NAME]))
    for keyword, field, digits in _NUMBERS:
        number = getattr(info, field)
        if not 0 <= number < 8**digits:
            records.setdefault(keyword, b"%d" % number)
            setattr(info, field, 0)
    return _extended(records) + info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def _extended(records: dict[bytes, bytes]) -> bytes:
    payload = b"".join(_record(keyword, value) for keyword, value in records.items())
    if not all(_is_plain(records.get(keyword, b"")) for keyword, _ in _TEXTS):
        payload = _record(b"hdrcharset", b"BINARY") + payload
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(payload)
    return info.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % tarfile.BLOCKSIZE)


def _is_plain(name: bytes) -> bool:
    """UTF-8 in the form in which bsdtar makes every name that is not said to be binary."""
    try:
        return is_normalized("NFC", name.decode())
    except UnicodeDecodeError:
        return False


def _record(keyword: bytes, value: bytes) -> bytes:
    """It begins with its length, which counts its own digits."""
    rest = b" %s=%s\n" % (keyword, value)
    size = len(rest)
    while size != len(rest) + len(b"%d" % size):
        size = len(rest) + len(b"%d" % size)
    return b"%d%s" % (size, rest)


# Content


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
