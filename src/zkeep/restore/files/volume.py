"""Extract a volume as a disk image: a sparse file in a folder."""

from __future__ import annotations

import os

from zkeep.errors import Refused
from zkeep.restore.files.existing import has_content
from zkeep.restore.files.staging import Staging
from zkeep.restore.files.target import InTheWay, TargetFolder
from zkeep.restore.files.writing import write_file
from zkeep.tree.volume import Volume


def extract_volume(volume: Volume, target: str, name: str, *, force: bool = False, place: str = "") -> str:
    """Write the disk image as a sparse file, at a place below the target; returns its path.

    If the same image is there already, it stays.
    """
    file = os.fsencode(name)
    try:
        with TargetFolder.top_below(target, os.fsencode(place)) as top:
            found = None if force else top.status(file)
            if found is None:
                _put_volume(volume, top, file, force=force)
            # The same image is there already: extracting again changes nothing.
            elif not has_content(top.fd, file, volume.extents(), volume.size):
                raise InTheWay(f"cannot extract {name}: {InTheWay()}")
            top.restore_mode()
    except OSError as error:
        raise Refused(f"cannot extract {name}: {error.strerror}") from None
    return os.path.join(target, place, name)


def _put_volume(volume: Volume, top: TargetFolder, name: bytes, *, force: bool) -> None:
    staging = Staging.within(top.fd)
    try:
        made = staging.new_name()
        os.close(write_file(staging.fd, made, volume.extents(), volume.size))
        try:
            top.put(staging, made, name, replace=force)
        except FileExistsError:
            raise InTheWay(f"cannot extract {os.fsdecode(name)}: {InTheWay()}") from None
    finally:
        staging.close()
