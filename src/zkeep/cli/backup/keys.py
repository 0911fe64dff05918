"""The key of a first backup: made, shown on the recovery sheet, confirmed by its owner, and written to a file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from zkeep.backup.local import Job
from zkeep.cli.common.open_snapshot import read_key
from zkeep.cli.common.pools import registry
from zkeep.cli.keys.encryption import NewKeys, own_keys
from zkeep.errors import Refused, WrongUsage
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets.model import new_guid
from zkeep.pool.store.disk import make_folder, sync_folder

RAW = 32
"Bytes of a raw key."
_HEX = re.compile(rb"[0-9a-fA-F]{64}\s*")


TRIES = 3
"How often a group may be typed wrong."


@dataclass(frozen=True)
class NewKey:
    """The key of a dataset that is to be made.

    `material`: what the file has, or gets; `is_there`: it has it already; `guid`: the dataset's.
    """

    path: Path
    material: bytes
    is_there: bool
    keys: NewKeys
    guid: int

    def write(self) -> None:
        """Make the file, for its owner alone, and wait until it is on the disk."""
        from zkeep.cli.keys.sheet import write_new

        if self.is_there:
            # A call that was killed, or failed, may have made it just now, before its name was on the disk.
            sync_folder(self.path.parent)
            return
        make_folder(self.path.parent, 0o700)
        try:
            write_new(self.path, self.material)
        except FileExistsError:
            raise Refused(f"cannot write the key: {shown(str(self.path))} is there meanwhile: call again") from None


def prepare(
    job: Job,
    dataset: DatasetName,
    key_file: str | None,
    *,
    yes: bool,
    as_json: bool = False,
    ssh: Sequence[str] = (),
) -> NewKey:
    """The key for a first backup, which its owner has confirmed to have elsewhere, too; nothing is written yet.

    `ssh`: words for ssh, by which the sheet says where the destination is.

    Raises:
        Refused, WrongUsage: there is nobody to ask, or the owner did not confirm.
    """
    if yes and key_file is None:
        raise WrongUsage("--yes goes with --key-file: say where the key is kept")
    if not yes and (as_json or not has_terminal()):
        where = "without -j" if as_json else "there"
        raise Refused(
            f"cannot back up {job.source}: this is the first time, and the new key has to be confirmed on a terminal; "
            f"run it {where} once, or say --yes --key-file FILE and keep a copy of FILE elsewhere"
        )
    key = _found(key_file, dataset)
    if not yes:
        confirm(job, dataset, key, ssh)
    return key


def has_terminal() -> bool:
    """Whether there is somebody to ask, and the sheet with the key is printed for them, not into a file or a log."""
    return sys.stdin.isatty() and sys.stderr.isatty() and sys.stdout.isatty()


def _found(key_file: str | None, dataset: DatasetName) -> NewKey:
    """The key in a file that is there already, or a new one."""
    path = file_of(key_file, dataset)
    if not os.path.lexists(path):
        return _new(path, os.urandom(RAW), is_there=False)
    material = read_key(path.as_uri())
    if len(material) != RAW and not _HEX.fullmatch(material):
        raise Refused(f"{shown(str(path))} is no key: 32 bytes, or 64 hex digits; one that is not there is made")
    return _new(path, material, is_there=True)


def file_of(key_file: str | None, dataset: DatasetName) -> Path:
    """Where the key is, or is to be."""
    if key_file is not None:
        return Path(os.path.abspath(os.path.expanduser(key_file)))
    return registry().home / "keys" / f"{dataset.text.replace('/', '-')}.key"


def _new(path: Path, material: bytes, *, is_there: bool) -> NewKey:
    keyformat = "raw" if len(material) == RAW else "hex"
    return NewKey(path, material, is_there, own_keys(material, keyformat, path.as_uri()), new_guid())


def confirm(job: Job, dataset: DatasetName, key: NewKey, ssh: Sequence[str] = ()) -> None:
    """Print the recovery sheet, and let a group of it be typed back.

    Raises:
        Refused: it was not.
    """
    from zkeep.cli.keys import sheet as page
    from zkeep.crypto.groups import Secret

    wrapped = key.keys.wrapped
    secret = Secret.of(key.material, wrapped.keyformat)
    to = page.destination_of(str(job.destination), ssh)
    fields = (wrapped.suite, wrapped.guid, wrapped.keyformat, to.text)
    sheet = page.Sheet(dataset.text, key.guid, *fields, secret=secret, alias=to.alias, ssh=to.ssh)
    page.show(sheet)
    click.echo("\nPrint this, or write the lines down, and keep it where this machine is not.", err=True)
    for attempt in range(TRIES):
        try:
            page.ask_back(secret)
            return
        except Refused as error:
            if attempt == TRIES - 1:
                raise Refused(f"{error}; nothing was made") from None
            click.echo(str(error), err=True)
