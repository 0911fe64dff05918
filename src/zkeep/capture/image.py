"""Make the next snapshot of a volume from a disk image or a block device: only the blocks that changed are stored.

Source: OpenZFS module/zfs/zvol.c zvol_create_cb() (the two objects of a volume).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from zkeep.capture.contents import SourceError, blocks_of, read_blocks
from zkeep.capture.scan import ReadProblem
from zkeep.crypto.unwrap import GetKey
from zkeep.errors import Refused
from zkeep.format.objtypes import ObjectType, ObjsetType
from zkeep.format.records import Feature
from zkeep.format.zap_writer import micro_block
from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.snapshot.changes import Block, ObjectChange
from zkeep.snapshot.commit import LARGE, NewSnapshot, commit, repeat
from zkeep.snapshot.compare import Comparison
from zkeep.snapshot.encrypted import is_zeros
from zkeep.snapshot.new_filesystem import new_salt
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.writer import SnapshotWriter
from zkeep.tree.volume import DATA, PROPERTIES, Volume

DEVICES = "/sys/dev/block"
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def shape_of(dataset: Dataset) -> tuple[int, int]:
    """A volume's size, in whole blocks, and the size of its blocks.

    Raises:
        Refused: it does not say, as it was received.
    """
    local = dataset.doc["local"]
    size, blksz = int(local.get("volsize") or 0), int(dataset.doc.get("volblocksize") or 0)
    if size <= 0 or blksz <= 0:
        raise Refused(f"cannot write to volume {dataset.name}: it has no volsize: set it, or create another")
    return -(-size // blksz) * blksz, blksz


def take_image(
    pool: Pool, new: NewSnapshot, source: str | None, get_key: GetKey, on_read: Callable[[int], None] = lambda n: None
) -> tuple[Snapshot, list[ReadProblem]]:
    """Store a disk image, or with None the state that is there, as the next snapshot.

    Raises:
        Refused: it cannot be read, is larger than the volume, or the volume takes no snapshot (see commit).
    """
    dataset = pool.dataset(new.name.dataset)
    size, blksz = shape_of(dataset)
    new = replace(for_volume(new, blksz), volsize=size)
    # Without a source the disk stays as it is: only its size may have changed.
    if source is None:
        same = repeat(pool, new)
        if same is None:
            same = commit(pool, new, get_key, lambda writer, base: _write(writer, base, size, blksz, None))
        return same, []
    problems: list[ReadProblem] = []
    fd, length = _open(new.name, source, size, blksz)
    try:
        # A large image is read once, while it is stored: if it changed meanwhile, that is reported afterwards.
        before = _signs_of_writing(fd)
        blocks = _counted(read_blocks(blocks_of(fd, length, blksz)), on_read)
        try:
            snapshot = commit(pool, new, get_key, lambda writer, base: _write(writer, base, size, blksz, blocks))
        except SourceError as error:
            raise Refused(f"cannot create snapshot {new.name}: {source}: {error.reason}") from None
        if _signs_of_writing(fd) != before:
            problems.append(
                ReadProblem(os.fsencode(source), "it changed while it was read, and is kept as it was read")
            )
    finally:
        os.close(fd)
    return snapshot, problems


def _signs_of_writing(fd: int) -> tuple[int | str, ...]:
    """What differs after the source was written to.

    A file tells by its size and times. A block device has none that say so; Linux counts what is written to it, for a
    partition, too. What still waits in the page cache of a mounted file system is not counted, and not read either.
    """
    status = os.fstat(fd)
    signs = status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    if not stat.S_ISBLK(status.st_mode):
        return signs
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    counts: list[str] = []
    with suppress(OSError):
        counts = Path(f"{DEVICES}/{device}/stat").read_text(encoding="ascii").split()
    # Writes and sectors written, then (since Linux 4.18) discards and sectors discarded.
    return status.st_rdev, os.lseek(fd, 0, os.SEEK_END), *counts[4:5], *counts[6:7], *counts[11:12], *counts[13:14]


def for_volume(new: NewSnapshot, blksz: int) -> NewSnapshot:
    """`new` as it is for a volume: its blocks have one size, whatever the recordsize is."""
    features = new.features & ~Feature.LARGE_BLOCKS
    features |= Feature.LARGE_BLOCKS if blksz > LARGE else 0
    return replace(new, features=features, objset_type=ObjsetType.VOLUME)


def _open(name: SnapshotName, source: str, size: int, blksz: int) -> tuple[int, int]:
    """A descriptor of the image, and how long it is."""
    where = f"cannot create snapshot {name}: {source}"
    try:
        fd = os.open(source, _READ)
    except (OSError, ValueError) as error:
        raise Refused(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    mode = os.fstat(fd).st_mode
    length = 0
    with suppress(OSError):
        # stat() gives 0 for a block device; the end of it is where seeking gets to.
        length = os.lseek(fd, 0, os.SEEK_END)
    why = ""
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        why = f"{name.dataset} is a volume: name a disk image or a block device"
    # A larger source than the volume would be cut off; a smaller one is filled up with a hole.
    elif length > size:
        whole = -(-length // blksz) * blksz
        why = f"it has {length} bytes, the volume {size}: zkeep set volsize={whole} {name.dataset}"
    if why:
        os.close(fd)
        raise Refused(f"{where}: {why}")
    return fd, length


def _counted(blocks: Iterator[Block], on_read: Callable[[int], None]) -> Iterator[Block]:
    for block in blocks:
        on_read(len(block.content or b""))
        yield block


def _write(
    writer: SnapshotWriter, base: OpenSnapshot | None, size: int, blksz: int, blocks: Iterator[Block] | None
) -> None:
    """Write both objects of the volume, as far as they change. `blocks`: None: the disk stays as it is."""
    last = size // blksz - 1
    # The first snapshot: every block that is not zeros, and the ZAP with the size.
    if base is None:
        found: Iterator[Block] = (block for block in blocks or () if not is_zeros(block.content or b""))
        writer.write(_disk(blksz, last, found, keep=False))
        writer.write(_properties(size, new_salt()))
        return
    # A later one: the blocks whose MACs differ from the last snapshot's, and the size if it changed.
    if blocks is not None:
        held = base.object(DATA)
        if held.dnode.blksz != blksz:
            raise Refused(f"{base.name}: its blocks have {held.dnode.blksz} bytes, not {blksz}")
        changed = Comparison(base, held, writer.compress).changed(blocks)
        writer.write(_disk(blksz, last, changed, keep=True))
    if Volume(base).size != size:
        salt = int.from_bytes(bytes(base.read_block(PROPERTIES, 0))[8:16], "little")
        writer.write(_properties(size, salt))


def _disk(blksz: int, last: int, blocks: Iterator[Block], *, keep: bool) -> ObjectChange:
    return ObjectChange(DATA, ObjectType.ZVOL, blksz, last, blocks, bonustype=0, keep=keep)


def _properties(size: int, salt: int) -> ObjectChange:
    content = micro_block({b"size": size}, salt)
    return ObjectChange(PROPERTIES, ObjectType.ZVOL_PROP, len(content), 0, [Block(0, content)], bonustype=0)
