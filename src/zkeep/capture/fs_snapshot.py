"""Snapshots of the file system below, for the time in which a folder, an image or a device is read.

What is read then does not change meanwhile: btrfs (a read-only snapshot of the subvolume), LVM (of the logical volume,
mounted read-only), ZFS (below .zfs/snapshot). Paths within the folder and inodes are the same there. A snapshot is
removed whatever happens; one that could not be, because the machine stopped, is named by the next call.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from zkeep.errors import Refused
from zkeep.names import printable, shown

PREFIX = "zkeep-snapshot-"
"What names of our snapshots begin with; then come the process and random digits."
SUBVOLUME = 256
"The inode of the topmost folder of each btrfs subvolume."
ROOM = "20%ORIGIN"
"What an LVM snapshot without a thin pool can take of changes before it is lost."
Run = Callable[[Sequence[str]], str]
Warn = Callable[[str], None]


def run(words: Sequence[str]) -> str:
    """Run a program; returns what it prints. Raises Refused: it failed, or is not there."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        done = subprocess.run(  # noqa: S603
            list(words), env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise Refused(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        said = printable(" ".join(done.stderr.decode("utf-8", "replace").split()))[-300:]
        raise Refused(f"{words[0]} {words[1]}: {said or f'it ended with status {done.returncode}'}")
    return done.stdout.decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Mount:
    """A mounted file system. `point`: where; `kind`: as in mount -t; `source`: the device or dataset."""

    point: str
    kind: str
    source: str
    root: str = "/"
    "The folder of the file system that is seen at the point."


class Keeper(Protocol):
    """Makes and removes a snapshot of one kind."""

    def nested(self) -> list[str]:
        """Paths below the folder that are no part of the snapshot, beside other mounts."""
        ...

    def make(self, name: str) -> str:
        """Make a snapshot; returns the path of what is to be read."""
        ...

    def remove(self, name: str) -> None:
        """Remove it, and what make() has left of it when it failed. Raises Refused: it is still there."""
        ...

    def names(self) -> list[tuple[str, str]]:
        """Names that are there which may be ours, each with the command that removes it."""
        ...


@contextmanager
def snapshot_of(
    path: str,
    kind: str,
    *,
    one_file_system: bool,
    warn: Warn,
    run: Run = run,
    mounts: str = "/proc/self/mountinfo",
) -> Iterator[str]:
    """A path at which the same is found as at `path`, and does not change; or `path` itself, with a warning.

    Raises:
        Refused: a kind was named, and there can be no such snapshot.
    """
    if kind == "none":
        yield path
        return
    with ExitStack() as stack:
        try:
            # Find out which of btrfs, LVM and ZFS can make the snapshot, and whether it would have all of the folder.
            keeper = _keeper(path, kind, run, _mounts(mounts))
            _check_whole(path, keeper, _mounts(mounts), one_file_system)
            stack.enter_context(_hangup_is_an_end())
            there = stack.enter_context(_kept(keeper, warn))
        except Refused as error:
            # Asked for by name it must work; else files are read as they are, with a warning.
            if kind != "auto":
                raise Refused(f"no snapshot of the file system of {shown(path)}: {error}") from None
            warn(f"warning: no snapshot of the file system is taken, files are read as they are: {error}")
            there = path
        yield there


@contextmanager
def _kept(keeper: Keeper, warn: Warn) -> Iterator[str]:
    """Make a snapshot; remove it in the end, and do not let a second signal interrupt that."""
    # A snapshot that an earlier call left takes up disk space until somebody removes it.
    for left, way in keeper.names():
        if _is_leftover(left):
            warn(f"warning: {shown(left)} is a snapshot that an earlier call could not remove: {way}")
    name = f"{PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
    try:
        yield keeper.make(name)
    finally:
        with _undisturbed():
            try:
                keeper.remove(name)
            except Refused as error:
                warn(f"warning: the snapshot {name} of the file system could not be removed: {error}")


def _is_leftover(name: str) -> bool:
    """Whether the process that made a snapshot is gone."""
    found = re.search(re.escape(PREFIX) + r"(\d{1,9})-[0-9a-f]{8}$", name)
    if not found:
        return False
    try:
        # Signal 0 only asks whether the process is there; its number is in the name.
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, signals wait."""
    waiting = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _hangup_is_an_end() -> Iterator[None]:
    """Inside, a terminal that goes away ends the call as SIGTERM does, with what there is to clear up."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGHUP, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


# What there is


def _mounts(path: str) -> list[Mount]:
    """All that is mounted. Source: proc_pid_mountinfo(5)."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    for line in lines:
        # A line is: id, parent, major:minor, root, mount point, options ... - type, source, options.
        fields, _, more = line.partition(" - ")
        kind, source = more.split(" ")[:2]
        root, point = fields.split(" ")[3:5]
        found.append(Mount(_unescaped(point), kind, _unescaped(source), _unescaped(root)))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def _mount_of(path: str, mounts: Sequence[Mount]) -> Mount:
    """The mount that a path is in: the deepest, and of several at one place the last."""
    around = [mount for mount in mounts if _is_within(path, mount.point)]
    if not around:
        raise Refused("nothing is known of its file system")
    deepest = max(len(mount.point) for mount in around)
    return [mount for mount in around if len(mount.point) == deepest][-1]


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _keeper(path: str, kind: str, run: Run, mounts: Sequence[Mount]) -> Keeper:
    """What makes snapshots of what a path is on. Raises Refused: nothing does, or not of the wanted kind."""
    real = os.path.realpath(path)
    try:
        is_device = stat.S_ISBLK(os.stat(real).st_mode)
    except OSError as error:
        raise Refused(str(error.strerror)) from None
    mount = Mount(real, "", real) if is_device else _mount_of(real, mounts)
    maybe_lvm = mount.source.startswith("/dev/mapper/") or os.path.realpath(mount.source).startswith("/dev/dm-")
    found = mount.kind if mount.kind in ("btrfs", "zfs") else "lvm" if maybe_lvm else ""
    if not found or kind not in ("auto", found):
        on = f"it is on {printable(mount.kind or 'a device')} ({printable(mount.source)})"
        raise Refused(f"{on}, and not on {'btrfs, LVM or ZFS' if kind == 'auto' else kind}")
    if found == "btrfs":
        # Climb to the topmost folder of the subvolume: btrfs gives it one inode number, whichever it is.
        at = real if os.path.isdir(real) else os.path.dirname(real)
        while os.stat(at).st_ino != SUBVOLUME:
            if at in (mount.point, "/"):
                raise Refused(f"only a folder of its subvolume is mounted at {shown(mount.point)}")
            at = os.path.dirname(at)
        return _Btrfs(run, real, at)
    return _Zfs(run, real, mount) if found == "zfs" else _Lvm.of(run, real, mount)


def _check_whole(path: str, keeper: Keeper, mounts: Sequence[Mount], one_file_system: bool) -> None:
    """Raises Refused: other file systems below the folder would be missing in it."""
    if one_file_system:
        return
    real = os.path.realpath(path)
    others = [mount.point for mount in mounts if mount.point != real and _is_within(mount.point, real)]
    others += keeper.nested()
    if others:
        which = shown(min(others)) + (f" and {len(others) - 1} more" if len(others) > 1 else "")
        raise Refused(f"{which} is another file system: leave it out with --one-file-system, and back it up by itself")


# The kinds


@dataclass(frozen=True)
class _Btrfs:
    """Read-only snapshots, hidden in the subvolume itself. Source: btrfs-subvolume(8)."""

    run: Run
    path: str
    top: str

    def nested(self) -> list[str]:
        """Subvolumes in it are empty folders in its snapshot."""
        own = self.run(["btrfs", "subvolume", "show", self.top]).split("\n", 1)[0].strip("/ ")
        below = []
        for line in self.run(["btrfs", "subvolume", "list", "-o", self.top]).splitlines():
            # Paths are from the top of the file system; only what lies below the folder matters.
            path = line.partition(" path ")[2].removeprefix("<FS_TREE>/")
            inside = path[len(own) :].strip("/") if own else path
            full = os.path.join(self.top, inside)
            if not inside.startswith(f".{PREFIX}") and _is_within(full, self.path):
                below.append(full)
        return below

    def make(self, name: str) -> str:
        at = self._at(name)
        self.run(["btrfs", "subvolume", "snapshot", "-r", self.top, at])
        return os.path.join(at, os.path.relpath(self.path, self.top)) if self.path != self.top else at

    def remove(self, name: str) -> None:
        if os.path.lexists(self._at(name)):
            self.run(["btrfs", "subvolume", "delete", self._at(name)])

    def names(self) -> list[tuple[str, str]]:
        found = [self._at(name[1:]) for name in os.listdir(self.top) if name.startswith(f".{PREFIX}")]
        return [(path, f"btrfs subvolume delete {path}") for path in found]

    def _at(self, name: str) -> str:
        return os.path.join(self.top, f".{name}")


@dataclass(frozen=True)
class _Zfs:
    """Snapshots of the dataset. Source: zfs-snapshot(8), zfsprops(7) snapdir."""

    run: Run
    path: str
    mount: Mount

    def nested(self) -> list[str]:
        return []

    def make(self, name: str) -> str:
        self.run(["zfs", "snapshot", f"{self.mount.source}@{name}"])
        below = os.path.relpath(self.path, self.mount.point)
        there = os.path.normpath(os.path.join(self.mount.point, ".zfs", "snapshot", name, below))
        if not os.path.exists(there):
            raise Refused(f"{shown(there)} is not there")
        return there

    def remove(self, name: str) -> None:
        full = f"{self.mount.source}@{name}"
        if (full, f"zfs destroy {full}") in self.names():
            self.run(["zfs", "destroy", full])

    def names(self) -> list[tuple[str, str]]:
        listed = self.run(["zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-d", "1", self.mount.source])
        return [(name, f"zfs destroy {name}") for name in listed.split("\n") if f"@{PREFIX}" in name]


@dataclass(frozen=True)
class _Lvm:
    """Snapshots of the logical volume, mounted read-only where nobody else looks. Source: lvcreate(8), mount(8)."""

    run: Run
    path: str
    mount: Mount
    group: str
    volume: str
    is_thin: bool
    folder: str
    "Where the snapshot is mounted."

    @classmethod
    def of(cls, run: Run, path: str, mount: Mount) -> _Lvm:
        asked = ["lvs", "--noheadings", "--separator", ",", "-o", "vg_name,lv_name,segtype", mount.source]
        fields = run(asked).strip().split(",")
        if len(fields) != 3:
            raise Refused(f"{shown(mount.source)} is no logical volume of LVM")
        return cls(run, path, mount, fields[0], fields[1], fields[2] == "thin", os.path.realpath(tempfile.gettempdir()))

    def nested(self) -> list[str]:
        return []

    def make(self, name: str) -> str:
        room = ["-kn"] if self.is_thin else ["-l", ROOM]
        self.run(["lvcreate", "-s", *room, "-n", name, f"{self.group}/{self.volume}"])
        device = f"/dev/{self.group}/{name}"
        if not self.mount.kind:
            return device
        point = os.path.join(self.folder, name)
        os.mkdir(point, 0o700)
        options = "ro,nodev,nosuid" + (",nouuid" if self.mount.kind == "xfs" else "")
        self.run(["mount", "-t", self.mount.kind, "-o", options, device, point])
        below = os.path.join(self.mount.root, os.path.relpath(self.path, self.mount.point))
        return os.path.normpath(os.path.join(point, below.lstrip("/")))

    def remove(self, name: str) -> None:
        point = os.path.join(self.folder, name)
        if os.path.isdir(point):
            # In the reverse order of make(); each step only if the one before it was done.
            if os.path.ismount(point):
                self.run(["umount", point])
            with suppress(OSError):
                os.rmdir(point)
        if any(there == f"{self.group}/{name}" for there, _ in self.names()):
            self.run(["lvremove", "-f", f"{self.group}/{name}"])

    def names(self) -> list[tuple[str, str]]:
        listed = self.run(["lvs", "--noheadings", "-o", "lv_name", self.group]).split()
        return [(f"{self.group}/{name}", f"lvremove {self.group}/{name}") for name in listed if name.startswith(PREFIX)]
