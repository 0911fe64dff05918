"""What a mount forbids (set-user-ID, devices, programs), changed while it stands: by root, as mount(8) does it."""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import suppress
from pathlib import Path

from zkeep.errors import Refused

MOUNTS = Path("/proc/self/mountinfo")
FLAGS = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "nosymfollow": 0x100}
"Flags of mount(2) that are lost when they are not said again; those about times of access stay."
OURS = frozenset({"nosuid", "nodev", "noexec"})
PROPERTIES = {"nosuid": "setuid", "nodev": "devices", "noexec": "exec"}
REMOUNT, BIND = 0x20, 0x1000


def _topmost(folder: str) -> tuple[str, frozenset[str]] | None:
    """Device and options of what is mounted on a folder; of several mounts, that which is seen there."""
    # 36 35 0:52 / /mnt/with\\040blank rw,nosuid - fuse.zkeep ...: its device is the third word, its folder the fifth.
    where = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % found[0][0], os.fsencode(folder))
    with suppress(OSError):
        lines = [line.split(b" ") for line in MOUNTS.read_bytes().splitlines()]
        found = [words for words in lines if len(words) > 5 and words[4] == where]
        if found:
            return found[-1][2].decode(), frozenset(found[-1][5].decode().split(","))
    return None


def device_of(folder: str) -> str | None:
    """The number of the device of what is mounted on a folder, as `major:minor`."""
    found = _topmost(folder)
    return found[0] if found else None


class MountFlags:
    """The flags of what was just mounted on a folder. Do not call it while the mount's lock is held."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._device = device_of(folder)

    def set(self, wanted: frozenset[str]) -> None:
        """Let the mount forbid this, and nothing more.

        Raises:
            Refused: it cannot be changed while it is mounted; what holds from the next mount on is named.
        """
        found = _topmost(self._folder)
        if found is None or found[0] != self._device:
            return  # it was moved, unmounted, or something else is mounted over it
        flags = found[1]
        # Where an ordinary user mounts, the system allows neither set-user-ID programs nor devices.
        fixed = frozenset[str]() if os.geteuid() == 0 else frozenset({"nosuid", "nodev"})
        wanted = wanted | fixed
        if flags & OURS == wanted:
            return
        number = REMOUNT | BIND | sum(FLAGS[flag] for flag in (flags - OURS | wanted) & FLAGS.keys())
        call = ctypes.CDLL(None, use_errno=True).mount
        if os.geteuid() or call(None, os.fsencode(self._folder), None, ctypes.c_ulong(number), None):
            why = os.strerror(ctypes.get_errno()) if not os.geteuid() else "only root can change it while it is mounted"
            named = " and ".join(sorted(PROPERTIES[flag] for flag in flags & OURS ^ wanted))
            raise Refused(f"{named} will hold from the next mount on: {why}")
