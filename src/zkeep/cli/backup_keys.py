"""The key of a first backup: made, shown on the recovery sheet, confirmed by its owner, and written to a file."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from zkeep.backup.local import Job
from zkeep.cli.home import registry
from zkeep.cli.open_snapshot import read_key
from zkeep.errors import Refused, WrongUsage
from zkeep.names import DatasetName, shown
from zkeep.pool.store.disk import open_folder

RAW, HEX = 32, 64
"Bytes of a key file."


@dataclass(frozen=True)
class NewKey:
    """The key of a dataset that is to be made. `material`: what the file has; `is_there`: it has it already."""

    path: Path
    material: bytes
    is_there: bool

    @property
    def location(self) -> str:
        return self.path.as_uri()

    @property
    def keyformat(self) -> str:
        return "raw" if len(self.material) == RAW else "hex"

    @property
    def key(self) -> bytes:
        """The 32 bytes."""
        return self.material if len(self.material) == RAW else bytes.fromhex(self.material.decode())

    def write(self) -> None:
        """Make the file, for its owner alone, and wait until it is on the disk."""
        if self.is_there:
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise Refused(f"cannot write the key: {shown(str(self.path))} is there meanwhile: call again") from None
        with open(fd, "wb") as file:
            file.write(self.material)
            file.flush()
            os.fsync(file.fileno())
        with open_folder(self.path.parent, ()) as folder:
            os.fsync(folder.fd)


def prepare(job: Job, dataset: DatasetName, key_file: str | None, *, yes: bool) -> NewKey:
    """The key for a first backup, which its owner has confirmed to have elsewhere, too; nothing is written yet.

    Raises:
        Refused, WrongUsage: there is nobody to ask, or the owner did not confirm.
    """
    if yes and key_file is None:
        raise WrongUsage("--yes goes with --key-file: say where the key is kept")
    if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Refused(
            f"cannot back up {job.source}: this is the first time, and the new key has to be confirmed on a terminal; "
            "run it there once, or say --yes --key-file FILE and keep a copy of FILE elsewhere"
        )
    key = _found(key_file, dataset)
    if not yes:
        confirm(job, dataset, key)
    return key


def _found(key_file: str | None, dataset: DatasetName) -> NewKey:
    """The key in a file that is there already, or a new one."""
    default = registry().home / "keys" / f"{dataset.text.replace('/', '-')}.key"
    path = Path(os.path.abspath(os.path.expanduser(key_file))) if key_file is not None else default
    if not os.path.lexists(path):
        return NewKey(path, os.urandom(RAW), is_there=False)
    material = read_key(path.as_uri())
    text = material.strip()
    if len(material) != RAW and len(text) == HEX and all(byte in b"0123456789abcdefABCDEF" for byte in text):
        material = text
    if len(material) not in (RAW, HEX):
        raise Refused(f"{shown(str(path))} is no key: 32 bytes, or 64 hex digits; one that is not there is made")
    return NewKey(path, material, is_there=True)


def confirm(job: Job, dataset: DatasetName, key: NewKey) -> None:
    """Print the recovery sheet, and let a group of the key be typed back.

    Raises:
        Refused: it was not.
    """
    groups = _groups(key.key)
    click.echo(_sheet(job, dataset, key, groups), err=True)
    number = os.urandom(1)[0] % len(groups)
    for _ in range(3):
        typed = click.prompt(f"Group {number + 1} of the key, from your copy", err=True)
        if typed.strip().replace(" ", "").lower() == groups[number]:
            return
        click.echo("That is not it.", err=True)
    raise Refused("the key was not confirmed, and nothing was made: call again when you have written it down")


def _groups(key: bytes) -> list[str]:
    text = key.hex()
    return [text[at : at + 8] for at in range(0, len(text), 8)]


def _sheet(job: Job, dataset: DatasetName, key: NewKey, groups: list[str]) -> str:
    rows = ["   ".join(f"{at + 1}: {groups[at]}" for at in range(row, row + 4)) for row in (0, 4)]
    return "\n".join(
        [
            "",
            "RECOVERY SHEET: write this down or print it, and keep it where this machine is not.",
            "Without the key nobody can read the backup, and you cannot either.",
            "",
            f"  backup of    {job.source}",
            f"  lies at      {job.destination}",
            f"  key file     {key.path}",
            "  key          " + rows[0],
            "               " + rows[1],
            "",
        ]
    )
