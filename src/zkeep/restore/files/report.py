"""Records what could not be restored: files that are missing, and attributes that others lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from zkeep.errors import Damaged, NotAuthentic, Refused, ZkeepError

USERS = b"user."
"Extended attributes with this prefix hold user data; all others belong to the system."
_OF_ONE_FILE = (Damaged, NotAuthentic, Refused)
"Errors that concern one file only, so that the others can go on."


class NotTaken(Refused):
    """The target cannot take a file, or one of its attributes."""


@dataclass
class RestoreReport:
    """Everything that is missing in a restored tree. If data is lost (`failed`, `lost`), the exit status is not 0."""

    counts: Counter[str] = field(default_factory=Counter)
    "How many things without data could not be made, by kind: owners, devices, ..."
    failed: list[tuple[bytes, ZkeepError]] = field(default_factory=list)
    "Paths of files that are missing, and why."
    lost: list[tuple[bytes, ZkeepError]] = field(default_factory=list)
    "Paths of files that lack an extended attribute of the user's, and why."
    notes: list[tuple[bytes, str]] | None = None
    "Path and kind of each that is counted; None: do not collect them, as there may be millions."

    def add(self, kind: str, path: bytes = b"") -> None:
        """Count something without data that could not be made."""
        self.counts[kind] += 1
        if self.notes is not None:
            self.notes.append((path, kind))

    def lacks(self, path: bytes, name: bytes, error: ZkeepError) -> None:
        """Record an extended attribute that could not be read, or that the target did not take."""
        if name.startswith(USERS) or not isinstance(error, NotTaken):
            self.lost.append((path, error))
        else:
            self.add("ACLs" if name.startswith(b"system.posix_acl") else "extended attributes", path)

    @contextmanager
    def spared(self, path: bytes) -> Iterator[None]:
        """Record an error inside the block as the failure of this path, and go on."""
        try:
            yield
        except _OF_ONE_FILE as error:
            self.failed.append((path, error))
        except OSError as error:
            self.failed.append((path, NotTaken(error.strerror or str(error))))

    def update(self, more: RestoreReport) -> None:
        self.counts.update(more.counts)
        self.failed += more.failed
        self.lost += more.lost
        if self.notes is not None:
            self.notes += more.notes or []

    def take(self) -> RestoreReport:
        """Return what was reported since the last call, and start again."""
        taken = RestoreReport(self.counts, self.failed, self.lost, self.notes)
        self.counts, self.failed, self.lost = Counter(), [], []
        self.notes = None if self.notes is None else []
        return taken

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
