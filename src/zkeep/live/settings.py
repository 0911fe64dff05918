"""The properties of a dataset that its mount acts on."""

from __future__ import annotations

from dataclasses import dataclass

from zkeep.snapshot.commit import NewSnapshot


@dataclass(frozen=True)
class Storage:
    """How what is written from now on is stored. `compression`: what the compression is called."""

    new: NewSnapshot
    compression: str
    recordsize: int

    def is_other(self, than: Storage | None) -> bool:
        """Whether it says something else."""
        return than is None or (self.compression, self.recordsize) != (than.compression, than.recordsize)


@dataclass(frozen=True)
class Settings:
    """What the properties say. `acls`: acltype is posix. `user_xattrs`: there are attributes that users name."""

    is_read_only: bool = False
    acls: bool = False
    atime: bool = False
    relatime: bool = True
    user_xattrs: bool = True
    snapdir: str = "hidden"
    flags: frozenset[str] | None = None
    "What the mount forbids, of nosuid, nodev and noexec; None: it stays as it is."
    storage: Storage | None = None
    "None: blocks are stored as before."


DEFAULTS = Settings()
