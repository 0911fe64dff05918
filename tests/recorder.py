"""Power loss, played: a disk that records what was asked of it, and replays any prefix with unsynced work lost.

The model is stricter than real file systems: what was not synced is kept or lost write by write, in any order, a
kept write perhaps only in part; a name (made, linked, renamed, removed) is sure only after its folder was synced.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zkeep.pool.store.disk import Disk, DiskEntry, DiskFolder
from zkeep.pool.store.port import Buffer


@dataclass
class Inode:
    """`durable` is what was there at the last sync; `pending` what was asked for since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for offset, content in self.pending:
            _apply(self.durable, offset, content)
        self.pending.clear()

    def survivor(self, chance: random.Random) -> bytes:
        content = bytearray(self.durable)
        for offset, written in self.pending:
            if chance.random() < 0.5:
                part = written if written is None else written[: chance.choice([len(written), len(written) // 2])]
                _apply(content, offset, part)
        return bytes(content)


def _apply(content: bytearray, offset: int, written: bytes | None) -> None:
    """None: truncate to `offset`."""
    if len(content) < offset + len(written or b""):
        content.extend(bytes(offset + len(written or b"") - len(content)))
    if written is None:
        del content[offset:]
    else:
        content[offset : offset + len(written)] = written


class Recorder(Disk):
    """Does everything for real below `root`, and notes it in `events`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[tuple[object, ...]] = []
        self._paths: dict[int, str] = {}

    def mark(self, what: object) -> None:
        """Note that the outside world was told something."""
        self.events.append(("mark", what))

    def _name(self, place: DiskEntry | DiskFolder) -> str:
        return os.path.relpath(place.path, self.root)

    def open(self, entry: DiskEntry, flags: int) -> int:
        fresh = not entry.exists()
        fd = super().open(entry, flags)
        self._paths[fd] = self._name(entry)
        if fresh:
            self.events.append(("create", self._name(entry)))
        return fd

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer]) -> int:
        content = b"".join(bytes(b) for b in buffers)
        self.events.append(("write", self._paths[fd], offset, content))
        return super().write(fd, offset, buffers)

    def truncate(self, fd: int, size: int) -> None:
        self.events.append(("write", self._paths[fd], size, None))
        super().truncate(fd, size)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.events.append(("sync", self._paths[fd]))

    def sync_folder(self, folder: DiskFolder) -> None:
        super().sync_folder(folder)
        self.events.append(("sync_folder", self._name(folder)))

    def link(self, source: DiskEntry, target: DiskEntry) -> None:
        super().link(source, target)
        self.events.append(("link", self._name(source), self._name(target)))

    def rename(self, source: DiskEntry, target: DiskEntry) -> None:
        super().rename(source, target)
        self.events.append(("rename", self._name(source), self._name(target)))

    def unlink(self, entry: DiskEntry) -> None:
        super().unlink(entry)
        self.events.append(("unlink", self._name(entry)))

    def mkdir(self, entry: DiskEntry) -> None:
        super().mkdir(entry)
        self.events.append(("mkdir", self._name(entry)))


class Crash:
    """The state of the disk after the first `count` events, when the power went."""

    def __init__(self, events: Sequence[tuple[object, ...]], count: int, seed: int) -> None:
        self.marks = [event[1] for event in events[:count] if event[0] == "mark"]
        self._chance = random.Random(seed)
        self._now: dict[str, Inode] = {}
        self._durable: dict[str, Inode] = {}
        self._pending: dict[str, list[tuple[str, Inode | None]]] = {}
        self._folders: set[str] = {"."}
        self._unsure_folders: set[str] = set()
        for event in events[:count]:
            getattr(self, f"_{event[0]}")(*event[1:])

    def _mark(self, what: object) -> None:
        pass

    def _enter(self, name: str, inode: Inode | None) -> None:
        self._pending.setdefault(os.path.dirname(name) or ".", []).append((name, inode))
        if inode:
            self._now[name] = inode
        else:
            self._now.pop(name, None)

    def _create(self, name: str) -> None:
        self._enter(name, Inode())

    def _write(self, name: str, offset: int, content: bytes | None) -> None:
        self._now[name].pending.append((offset, content))

    def _sync(self, name: str) -> None:
        self._now[name].sync()

    def _link(self, source: str, target: str) -> None:
        self._enter(target, self._now[source])

    def _unlink(self, name: str) -> None:
        self._enter(name, None)

    def _rename(self, source: str, target: str) -> None:
        self._enter(target, self._now[source])
        self._enter(source, None)

    def _mkdir(self, name: str) -> None:
        self._unsure_folders.add(name)

    def _sync_folder(self, folder: str) -> None:
        for name, inode in self._pending.pop(folder, []):
            self._settle(name, inode)
        sure = {f for f in self._unsure_folders if (os.path.dirname(f) or ".") == folder}
        self._unsure_folders -= sure
        self._folders |= sure

    def _settle(self, name: str, inode: Inode | None) -> None:
        if inode:
            self._durable[name] = inode
        else:
            self._durable.pop(name, None)

    def materialise(self, root: Path) -> None:
        """Write what survives below `root`."""
        for changes in self._pending.values():
            for name, inode in changes:
                if self._chance.random() < 0.5:
                    self._settle(name, inode)
        kept = {f for f in sorted(self._unsure_folders) if self._chance.random() < 0.5}
        folders = self._folders | kept
        for folder in sorted(folders):
            if (os.path.dirname(folder) or ".") in folders:
                (root / folder).mkdir(parents=True, exist_ok=True)
        for name, inode in self._durable.items():
            if (root / name).parent.is_dir():
                (root / name).write_bytes(inode.survivor(self._chance))
