"""Write files as a tar archive (POSIX pax) with holes, times in nanoseconds, and extended attributes.

A file that cannot be read is left out and reported, and the archive goes on with the next one.

Source: POSIX pax, Extended Interchange Format; GNU tar src/xheader.c, src/xattrs.c, manual, Sparse Formats (PAX format,
version 1.0); star(5) for what SCHILY adds; Linux include/uapi/linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import re
import stat
import struct
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO
from unicodedata import is_normalized

from zkeep.errors import ZkeepError
from zkeep.format.acl import BadAcl, decode
from zkeep.format.znode import Znode
from zkeep.restore.files.report import RestoreReport
from zkeep.restore.files.sparse import Gathered
from zkeep.tree.filesystem import BadTree, Filesystem
from zkeep.tree.xattrs import each_xattr

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
"Bytes of a name in a header: the 100th is for the slash of a folder."
_SPARSE_FOLDER = "./GNUSparseFile.0/"
"Programs that do not know the sparse format extract the file below this folder."
_ODD = re.compile(rb"[^!-~]")
_DEVICE_DIGITS = 7
"Octal digits of a device number in a header."
_TEXTS = ((b"path", "name"), (b"linkpath", "linkname"))
_NAMES = (b"path", b"linkpath", b"GNU.sparse.name")
_NUMBERS = ((b"uid", "uid", 7), (b"gid", "gid", 7), (b"size", "size", 11), (b"mtime", "mtime", 11))
"Keyword of the extended header, field of the plain one, and its octal digits."
_POSIX_ACLS = {b"system.posix_acl_access": b"SCHILY.acl.access", b"system.posix_acl_default": b"SCHILY.acl.default"}
_POSIX_VERSION = 2
_POSIX_TAGS = {1: "user", 2: "user", 4: "group", 8: "group", 16: "mask", 32: "other"}
_POSIX_NAMED = 2 | 8


def write_tar(
    filesystem: Filesystem, paths: Iterable[bytes], sink: BinaryIO, report: RestoreReport | None = None
) -> RestoreReport:
    """Write files, and folders with all below them. The report says what an archive cannot hold or lacks."""
    report = RestoreReport() if report is None else report
    linked: dict[int, str] = {}
    for path, number in _all(filesystem, paths, report):
        member = None
        with report.spared(path):
            member = _member(filesystem, path, number, linked, report)
        if member is not None:  # outside of spared(): if the sink fails, all ends
            member.write(sink)
    sink.write(bytes(2 * tarfile.BLOCKSIZE))
    sink.flush()
    return report


@dataclass
class Member:
    """A file, ready to be written: all of it can be read."""

    info: tarfile.TarInfo
    records: dict[bytes, bytes]
    content: Gathered | None = None

    def write(self, sink: BinaryIO) -> None:
        if self.content is None:
            sink.write(_head(self.info, self.records))
        elif self.content.is_sparse:
            self._write_sparse(self.content, sink)
        else:
            sink.write(_head(self.info, self.records))
            # Write the content, with zeros for its holes.
            at = 0
            for extent in self.content.extents():
                _zeros(extent.offset - at, sink)
                sink.write(extent.content)
                at = extent.offset + len(extent.content)
            _zeros(self.content.size - at + -self.content.size % tarfile.BLOCKSIZE, sink)

    def _write_sparse(self, content: Gathered, sink: BinaryIO) -> None:
        """GNU's sparse format 1.0: the real name and size are in the extended header, the holes before the content."""
        name = self.info.name.encode("utf-8", "surrogateescape")
        self.records |= {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": name}
        self.records[b"GNU.sparse.realsize"] = b"%d" % content.size
        # Programs that do not know the format make a file of this name, with the map before the content.
        short = _ODD.sub(b"_", name.rpartition(b"/")[2])[: _NAME - len(_SPARSE_FOLDER)]
        self.info.name = _SPARSE_FOLDER + short.decode()
        # The map of data comes first, then the data without the holes, then zeros up to a whole block.
        sparse_map = content.sparse_map()
        self.info.size = len(sparse_map) + content.stored
        sink.write(_head(self.info, self.records) + sparse_map)
        for extent in content.extents():
            sink.write(extent.content)
        _zeros(-self.info.size % tarfile.BLOCKSIZE, sink)


def _member(
    filesystem: Filesystem, path: bytes, number: int, linked: dict[int, str], report: RestoreReport
) -> Member | None:
    """Prepare a file; None if an archive cannot hold it. `linked`: by object, the name under which it was written."""
    node, error = filesystem.znode_if_spill_is_lost(number)
    # Sockets and doors have no place in an archive.
    kind = _without_place(node)
    if kind:
        report.add(kind, path)
        return None
    info = _info(path, node)
    # A second name of a file becomes a hard link to the first in the archive.
    if node.links > 1 and number in linked:
        info.type, info.linkname, info.size = tarfile.LNKTYPE, linked[number], 0
    content = None
    # Read it once before anything is written: a damaged file must not break the archive in the middle.
    if info.isreg() and info.size:
        content = Gathered.of(partial(filesystem.extents, node), node.size)
    if error is not None:
        report.lost.append((path, error))
    member = Member(info, _records(filesystem, path, node, report), content)
    if node.links > 1 and not node.is_folder:
        linked.setdefault(number, info.name)
    return member


def _without_place(node: Znode) -> str:
    """The kind of a file that an archive cannot hold; empty if it can."""
    kind = stat.S_IFMT(node.mode)
    if kind == stat.S_IFSOCK:
        return "sockets"
    if kind not in _KINDS:
        raise BadTree(f"object {node.number}: no kind of file has mode {node.mode:o}")
    if b"\0" in (node.target or b""):
        raise BadTree(f"object {node.number}: a link with a zero byte in it")
    too_large = max(node.device) >= 8**_DEVICE_DIGITS
    return "devices" if too_large and kind in (stat.S_IFCHR, stat.S_IFBLK) else ""


# Paths


def _all(filesystem: Filesystem, paths: Iterable[bytes], report: RestoreReport) -> Iterator[tuple[bytes, int]]:
    """Yield every path once, even if the wanted ones overlap: a second time, it would become a hard link to itself."""
    for path in _outermost([_settled(filesystem, path) for path in paths]):
        number = filesystem.lookup(path).number
        yield path, number
        yield from _below(filesystem, path, number, report)


def _below(filesystem: Filesystem, path: bytes, number: int, report: RestoreReport) -> Iterator[tuple[bytes, int]]:
    """Walk through a folder, each folder before its content, ordered as they lie in the pool."""
    todo = [iter([(path, number, True)])]
    while todo:
        path, number, is_folder = next(todo[-1], (b"", 0, None))
        if is_folder is None:
            todo.pop()
            continue
        if len(todo) > 1:
            yield path, number
        if is_folder:
            todo.append(iter(_entries(filesystem, path, number, report)))


def _entries(filesystem: Filesystem, path: bytes, number: int, report: RestoreReport) -> list[tuple[bytes, int, bool]]:
    """List a folder as far as it can be read: path, object number, whether it is a folder."""
    found: list[tuple[bytes, int, bool]] = []
    with report.spared(path):
        is_folder = filesystem.znode(number).is_folder
        # In the order of object numbers, which is mostly that of their records in the pool.
        names = sorted(filesystem.names(number), key=lambda name: name.number) if is_folder else []
        for name in names:
            with report.spared(path + b"/" + name.name if path else name.name):
                below = filesystem.below(path, name.name)
                if filesystem.is_folder(name):
                    # A folder must say that this is its parent: otherwise a forged tree could lead in circles.
                    filesystem.check_inside(number, name)
                found.append((below, name.number, filesystem.is_folder(name)))
    return found


def _outermost(paths: Iterable[bytes]) -> list[bytes]:
    """Leave out the paths that lie below others."""
    wanted = dict.fromkeys(paths)
    return [path for path in wanted if not any(above in wanted for above in _above(path))]


def _above(path: bytes) -> Iterator[bytes]:
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def _settled(filesystem: Filesystem, path: bytes) -> bytes:
    """Resolve `..` and links in a path: tar refuses members below them."""
    filesystem.lookup(path)
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    found, number = b"", filesystem.root
    # Go down part by part, keeping both the path so far and the object that it names.
    for i, part in enumerate(parts, 1):
        name = None if part == b".." else filesystem.find(number, part)
        if name is None:
            found = found.rpartition(b"/")[0]
        else:
            found, number = found + b"/" + name.name if found else name.name, name.number
        # A link in the middle is followed; at the end it is the link itself that is meant.
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
    if info.isdev() and not info.isfifo():
        info.devmajor, info.devminor = node.device
    return info


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _records(filesystem: Filesystem, path: bytes, node: Znode, report: RestoreReport) -> dict[bytes, bytes]:
    """The records of the extended header of a file."""
    # Nanoseconds as seconds; the sign is the whole number's, so that -0.5 is half a second before 1970
    records = {b"mtime": (b"%s%d.%09d" % (b"-" * (node.mtime < 0), *divmod(abs(node.mtime), _SECOND)))}
    for name, value in each_xattr(filesystem, node):
        if isinstance(value, ZkeepError):
            report.lacks(path, name, value)
            continue
        # Escape what would end a keyword, as GNU tar does
        records[b"SCHILY.xattr." + name.replace(b"%", b"%25").replace(b"=", b"%3D")] = value
        if name in _POSIX_ACLS and (text := _posix_acl(value)):
            records[_POSIX_ACLS[name]] = text
    if node.has_acl:
        with suppress(BadAcl):
            # Write an entry of an NFSv4 ACL as bsdtar and star do: with the number at the end, as names can differ
            aces = ",".join((f"{ace}:{ace.who}" if ace.who >= 0 else str(ace)) for ace in decode(node.acl, node.order))
            records[b"SCHILY.acl.ace"] = aces.encode()
    return records


def _posix_acl(value: bytes) -> bytes:
    """The text of a POSIX ACL as GNU tar writes it, with numbers instead of names; empty if it is not valid."""
    if len(value) % 8 != 4 or int.from_bytes(value[:4], "little") != _POSIX_VERSION:
        return b""
    entries = list(struct.iter_unpack("<HHI", value[4:]))
    if any(tag not in _POSIX_TAGS for tag, _, _ in entries):
        return b""
    return ",".join(_posix_entry(*entry) for entry in entries).encode()


def _posix_entry(tag: int, access: int, who: int) -> str:
    letters = "".join(c if access & bit else "-" for c, bit in (("r", 4), ("w", 2), ("x", 1)))
    return f"{_POSIX_TAGS[tag]}:{who if tag & _POSIX_NAMED else ''}:{letters}"


def _head(info: tarfile.TarInfo, records: dict[bytes, bytes]) -> bytes:
    """The header of a file, preceded by an extended one for what does not fit into it.

    tarfile makes no keywords that are not UTF-8, as names of extended attributes may be.
    """
    # Names that are too long or not ASCII go into the extended header, and a cut one into the old field.
    for keyword, field in _TEXTS:
        name = getattr(info, field).encode("utf-8", "surrogateescape")
        if len(name) > _NAME or not name.isascii():
            records[keyword] = name
            setattr(info, field, _text(name[:_NAME]))
    # The same for numbers: old fields are octal, and a few digits wide.
    for keyword, field, digits in _NUMBERS:
        number = getattr(info, field)
        if not 0 <= number < 8**digits:
            records.setdefault(keyword, b"%d" % number)
            setattr(info, field, 0)
    # pax: a member of its own before the file, with a line "LENGTH KEYWORD=VALUE" for each record.
    payload = b"".join(_record(key, value) for key, value in records.items())
    if not all(_is_plain(records.get(key, b"")) for key in _NAMES):
        payload = _record(b"hdrcharset", b"BINARY") + payload
    extended = tarfile.TarInfo("././@PaxHeader")
    extended.type, extended.size = tarfile.XHDTYPE, len(payload)
    before = extended.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % tarfile.BLOCKSIZE)
    return before + info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def _is_plain(name: bytes) -> bool:
    """UTF-8 in the form in which bsdtar makes every name that is not said to be binary."""
    try:
        return is_normalized("NFC", name.decode())
    except UnicodeDecodeError:
        return False


def _record(keyword: bytes, value: bytes) -> bytes:
    """A record of the extended header begins with its length, which includes its own digits."""
    rest = b" %s=%s\n" % (keyword, value)
    size = len(rest)
    while size != len(rest) + len(b"%d" % size):
        size = len(rest) + len(b"%d" % size)
    return b"%d%s" % (size, rest)


# Content


def _zeros(count: int, sink: BinaryIO) -> None:
    while count > 0:
        sink.write(memoryview(_ZEROS)[: min(count, len(_ZEROS))])
        count -= len(_ZEROS)
