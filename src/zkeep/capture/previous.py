"""The files of the last snapshot: the object of each, and its status when it was read.

They are kept as columns, one row a file, sorted by device and inode. The file on disk is a cache, derived from the
snapshot and the folder; it is made again from both where it is missing or belongs to another snapshot:

    magic         JSON, one line: what it belongs to, counts     rows                       extras
    +-------------+---------------------------------------------+--------------------------+-----------------------+
    | 16 bytes    | {"pool": .., "rows": n, "extras": m, ..} LF | n of 68 bytes (ROW)      | m of 16 bytes (EXTRA) |
    +-------------+---------------------------------------------+--------------------------+-----------------------+
"""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from zkeep.pool.timeline.spans import Array

ROW = np.dtype(
    [
        ("dev", "<u8"),
        ("ino", "<u8"),
        ("size", "<u8"),
        ("mtime", "<i8"),
        ("ctime", "<i8"),
        ("object", "<u8"),
        ("parent", "<u8"),
        ("links", "<u4"),
        ("names", "<u4"),
        ("kind", "<u4"),
    ]
)
"""A file or folder: times in nanoseconds, `parent` the object of its folder, `links` the count that its object has
(0: only a part of it is stored), `names` a check of the names in a folder, `kind` as in d_type.

A ctime of 0 means that the file is to be read again: it may have changed in the moment in which it was read.
"""
EXTRA = np.dtype([("owner", "<u8"), ("object", "<u8")])
"Objects that hold extended attributes, and the file whose they are."
_PACKED = struct.Struct("<3Q2q2Q3I")
MAGIC = b"zkeep-capture-3\n"
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"Nothing waits here: what is no regular file is no cache."


UNKNOWN = 0
"For `names`: they are to be compared with those in the snapshot."


_SECOND = 1_000_000_000
CLOCK_TICK = 20_000_000
"Nanoseconds by which the time of a change may lie before the change: the kernel's clock for files goes in ticks."


def is_settled(ctime: int, started: int) -> bool:
    """Whether a file is as it was while its ctime stays: its last change was before a scan started.

    What changed within a tick of the scan's begin may change again and keep this ctime: it is read again.
    """
    return ctime + (CLOCK_TICK if ctime % _SECOND else 2 * _SECOND) < started  # some file systems know seconds only


def are_settled(ctimes: Array, started: int) -> Array:
    """The same of many files."""
    return np.asarray(ctimes + np.where(ctimes % _SECOND, CLOCK_TICK, 2 * _SECOND) < started)


def check_of(names: list[bytes]) -> int:
    """A check of the names in a folder, in their order; never UNKNOWN."""
    return check_of_joined(b"/".join(names), len(names))


def check_of_joined(names: bytes, count: int) -> int:
    """The same of names that are joined by slashes."""
    return zlib.crc32(names, count) or 1


class Match(NamedTuple):
    """What the last snapshot has of a file: its object, 0 if it is new; whether the file is as it was."""

    number: int = 0
    same: bool = False
    moved: bool = False
    "Whether it was in another folder, as far as can be told."


NEW = Match()


class Compared(NamedTuple):
    """The entries of a folder, compared with their rows."""

    names: bytes
    "The names of all entries, in their order, with slashes between them."
    numbers: list[int]
    "Their objects; 0 where an entry is not what the row of its inode says, or has several names."
    kinds: bytes
    "As in d_type; 0 where the object is."
    folders: list[tuple[int, bytes, int, int, int]]
    "Index, name, object, inode and check of names of the folders that are as they were."


def _compiled() -> ModuleType | None:
    """What looks at a whole folder in one call. None: it is not there, and each entry is looked at by itself."""
    if os.environ.get("ZKEEP_KERNEL") == "numpy" or sys.byteorder != "little":
        return None
    try:
        from zkeep.capture import _listing  # type: ignore[attr-defined]
    except ImportError:
        return None
    listing: ModuleType = _listing
    return listing if hasattr(listing, "compared") else None  # what an older version compiled


_listing = _compiled()


@dataclass
class Previous:
    """The rows of the last snapshot; none if there was none."""

    rows: Array = field(default_factory=lambda: np.empty(0, ROW))
    extras: Array = field(default_factory=lambda: np.empty(0, EXTRA))
    root: int = 0

    def __post_init__(self) -> None:
        # Look-ups search by halves, so the rows must ascend by device and inode.
        devs, inodes = self.rows["dev"], self.rows["ino"]
        ascends = (devs[1:] > devs[:-1]) | ((devs[1:] == devs[:-1]) & (inodes[1:] >= inodes[:-1]))
        if not ascends.all():
            self.rows = self.rows[np.lexsort((self.rows["ino"], self.rows["dev"]))]
        # Columns that lie apart from the others: searchsorted() copies what does not, all of it at each call.
        self._inodes = np.ascontiguousarray(self.rows["ino"])
        devices = self.rows["dev"]
        starts = np.flatnonzero(np.append(True, devices[1:] != devices[:-1])) if len(devices) else np.empty(0, np.int64)
        reaches = pairwise([*starts.tolist(), len(devices)])
        self._devices = dict(zip(devices[starts].tolist(), reaches, strict=True))

    @cached_property
    def _by_object(self) -> Array:
        return np.argsort(self.rows["object"])

    @cached_property
    def _objects(self) -> Array:
        objects: Array = self.rows["object"][self._by_object]
        return objects

    def on_device(self, device: int) -> Previous:
        """The same files, if the file system of the topmost folder has another device number now.

        So have snapshots of a file system, and what is mounted again. That a file is as it was is told by its inode,
        size and times.
        """
        row = self.row_of(self.root)
        if row is None or int(row["dev"]) == device or device in self._devices:
            return self
        rows = self.rows.copy()
        rows["dev"][rows["dev"] == row["dev"]] = device
        return Previous(rows, self.extras, self.root)

    def find_root(self, status: os.stat_result) -> tuple[int, bool]:
        """The object of the folder at the top, whichever inode it has now, and whether it is as it was."""
        if not self.root:
            return 0, False
        (match,) = self.match([status], self.root)
        return self.root, match.same and match.number == self.root

    def compared(self, fd: int, device: int, folder: int) -> Compared | None:
        """The entries of a folder whose object is `folder`, each compared with what it was.

        None: one of them cannot be had or is on another device, or it cannot be told here.
        """
        if _listing is None or not len(self.rows):
            return None
        start, end = self._devices.get(device, (0, 0))
        found = _listing.compared(fd, device, self.rows, start, end, folder)
        return Compared(*found) if found is not None else None

    def match(self, statuses: Sequence[os.stat_result], parent: int) -> list[Match]:
        """For each status what the last snapshot has of it.

        `parent`: the object of their folder; what moved here from another folder has changed.
        """
        if not len(self.rows) or not statuses:
            return [NEW] * len(statuses)
        # One search for all entries of a folder: it is what a capture of an unchanged tree spends its time on.
        found = []
        for status, row in zip(statuses, self._rows_of(statuses), strict=True):
            device, inode, size, mtime, ctime, number, above, _, _, kind = row
            if inode != status.st_ino or device != status.st_dev:
                found.append(NEW)
                continue
            if kind != stat.S_IFMT(status.st_mode) >> 12:  # the inode was used again
                found.append(NEW)
                continue
            is_linked = status.st_nlink > 1 and kind != stat.S_IFDIR >> 12
            # A ctime of 0 says: read it again. Some file systems say the same of all files, and know no better.
            same = ctime == status.st_ctime_ns != 0 and size == status.st_size
            same = same and (mtime == status.st_mtime_ns or mtime == _stored_time(status.st_mtime_ns))
            moved = above != parent and not is_linked
            found.append(Match(number, same and not moved, moved))
        return found

    def _rows_of(self, statuses: Sequence[os.stat_result]) -> list[tuple[int, ...]]:
        """For each status the row of its inode, or another where there is none."""
        inodes = np.array([status.st_ino for status in statuses], np.uint64)
        devices = {status.st_dev for status in statuses}
        if len(devices) == 1:  # as in nearly all folders
            places = self._places(devices.pop(), inodes)
        else:
            places = np.zeros(len(inodes), np.int64)
            for device in devices:
                mine = np.array([status.st_dev == device for status in statuses])
                places[mine] = self._places(device, inodes[mine])
        found: list[tuple[int, ...]] = self.rows[places].tolist()
        return found

    def _places(self, device: int, inodes: Array) -> Array:
        """Where each inode of a device is or would be among the rows."""
        start, end = self._devices.get(device, (0, 0))
        places: Array = np.minimum(self._inodes[start:end].searchsorted(inodes) + start, len(self.rows) - 1)
        return places

    def object_of(self, device: int, inode: int, kind: int, parent: int) -> int:
        """The object of an inode in a folder whose object is `parent`; 0: none.

        A row has one folder. A file with several names may have another one here.
        """
        if not len(self.rows):
            return 0
        row = self.rows[self._places(device, np.array([inode], np.uint64))][0]
        if (row["dev"], row["ino"], row["kind"]) != (device, inode, kind):
            return 0
        return int(row["object"]) if row["parent"] == parent or row["links"] > 1 else 0

    def row_of(self, number: int) -> Array | None:
        """The row of an object."""
        at = int(self._objects.searchsorted(np.uint64(number)))
        if at < len(self._objects) and self._objects[at] == number:
            row: Array = self.rows[self._by_object[at]]
            return row
        return None

    def check_of_names(self, folder: int) -> int:
        """The check of the names that a folder had; UNKNOWN if that is not known."""
        row = self.row_of(folder)
        return int(row["names"]) if row is not None else UNKNOWN

    def extras_of(self, owners: set[int]) -> set[int]:
        """The objects with extended attributes of these files."""
        return {int(number) for owner, number in self.extras.tolist() if owner in owners}


class Rows:
    """Rows as they come, packed; the last one of an object counts."""

    def __init__(self) -> None:
        self._packed = bytearray()

    def add(self, *values: int) -> None:
        try:
            self._packed += _PACKED.pack(*values)
        except struct.error:
            self._packed += _PACKED.pack(*_with_stored_times(values))

    def add_packed(self, rows: bytes) -> None:
        """Add rows that are packed already."""
        self._packed += rows

    def objects(self) -> set[int]:
        """Their objects."""
        return set(np.frombuffer(self._packed, ROW)["object"].tolist())

    def array(self) -> Array:
        rows = np.frombuffer(self._packed, ROW)
        objects = np.ascontiguousarray(rows["object"])
        # As objects are written in ascending order, mostly nothing is to be done: a million rows are 68 MB.
        if (objects[1:] > objects[:-1]).all():
            return rows
        order = np.argsort(objects, kind="stable")
        objects = objects[order]
        is_last = np.append(objects[1:] != objects[:-1], True) if len(rows) else np.empty(0, bool)
        found: Array = rows[order[is_last]]
        return found


def one_an_inode(rows: Array) -> Array:
    """The rows whose inode no other has; of a file that moved or got a second name meanwhile, no object is known."""
    order = np.lexsort((rows["ino"], rows["dev"]))
    inodes, devices = rows["ino"][order], rows["dev"][order]
    again = (inodes[1:] == inodes[:-1]) & (devices[1:] == devices[:-1])
    if again.any():
        order = order[~(np.append(again, False) | np.append(False, again))]
    found: Array = rows[order]
    return found


def load(path: Path, mark: dict[str, Any]) -> Previous | None:
    """Read a cache; None: there is none, or it is of another snapshot than `mark` says, or damaged."""
    try:
        with open(os.open(path, _READ), "rb") as source:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode) or source.readline(len(MAGIC)) != MAGIC:
                return None
            # A line of JSON says which snapshot the rows are of, and how many there are.
            head = json.loads(source.readline(1 << 16))
            root, count, extra = (int(head.pop(name)) for name in ("root", "rows", "extras"))
            # A cache of another snapshot would call changed files unchanged.
            if head != mark or min(root, count, extra) < 0:
                return None
            # Rows and extras are arrays behind it, to the byte.
            if count * ROW.itemsize + extra * EXTRA.itemsize != status.st_size - source.tell():
                return None
            rows = np.frombuffer(source.read(count * ROW.itemsize), ROW)
            extras = np.frombuffer(source.read(extra * EXTRA.itemsize), EXTRA)
            return Previous(rows, extras, root)
    # It is only a cache: without it, every file is read.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def save(path: Path, previous: Previous, mark: dict[str, Any]) -> None:
    """Write a cache in place of what is there; it may fail, as a capture without one makes it again."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    head = {**mark, "root": previous.root, "rows": len(previous.rows), "extras": len(previous.extras)}
    fresh.unlink(missing_ok=True)  # of a capture that was killed; or anything else
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as sink:
        sink.write(MAGIC + json.dumps(head).encode() + b"\n")
        for array in (previous.rows, previous.extras):
            sink.write(np.ascontiguousarray(array).view(np.uint8).data)
    fresh.replace(path)


def rows_of(values: Iterable[tuple[int, ...]]) -> Array:
    return np.array([_with_stored_times(row) for row in values], ROW)


def _stored_time(nanoseconds: int) -> int:
    """A time as rows have it, modulo 2^64 (so does _listing.c): years up to 1677 and from 2262 on do not fit."""
    return (nanoseconds + (1 << 63)) % (1 << 64) - (1 << 63)


def _with_stored_times(row: tuple[int, ...]) -> tuple[int, ...]:
    return *row[:3], _stored_time(row[3]), _stored_time(row[4]), *row[5:]
