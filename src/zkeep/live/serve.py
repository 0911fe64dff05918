"""Mounting a dataset read-write on a folder, and serving it until it is unmounted."""

from __future__ import annotations

from zkeep.errors import Refused
from zkeep.live.device import Device, mount
from zkeep.live.fuse import Operations
from zkeep.live.mount_flags import MountFlags


def serve(operations: Operations, folder: str, name: str, options: list[str]) -> None:
    """Mount on a folder, and serve until it is unmounted or a signal ends it.

    Raises:
        Refused: it cannot be mounted.
    """
    words = [f"fsname={name}".replace(",", "\\,"), "subtype=zkeep", "default_permissions", *options]
    try:
        fd = mount(folder, words)
    except Refused as error:
        raise Refused(f"cannot mount {name}: {error}") from None
    operations.cache.device = fd
    operations.flags = MountFlags(folder)
    try:
        Device(fd, folder).serve(operations.answer)
    finally:
        operations.end()
