"""SRC and DEST of a backup, parsed once: a path, a zkeep dataset, a ZFS dataset, here or on a host behind ssh."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import unquote

from zkeep.errors import Refused, WrongUsage
from zkeep.names import DatasetName, printable, shown, whole_number

_HOST = re.compile(r"[A-Za-z0-9_.:%][A-Za-z0-9_.:%-]*")
"A host's name, an address of IPv4 or IPv6, or a Host of ssh_config; never an option of ssh."
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]*")
SSH, ZFS = "ssh://", "zfs:"


@dataclass(frozen=True)
class Host:
    """A machine behind ssh."""

    name: str
    user: str = ""
    port: int = 0
    "0: what ssh_config says."

    def __str__(self) -> str:
        at = f"{self.user}@" if self.user else ""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{at}{name}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True)
class Path:
    """A folder, a disk image or a device of this machine, by its absolute path."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Place:
    """A dataset. `program`: whose it is, zkeep's or zfs's; `host`: None for this machine."""

    dataset: DatasetName
    program: str = "zkeep"
    host: Host | None = None

    def __str__(self) -> str:
        name = f"{ZFS}{self.dataset}" if self.program == "zfs" else str(self.dataset)
        return f"{SSH}{self.host}/{name}" if self.host else name

    def typed(self, verb: str) -> str:
        """A command line that does something with the dataset, typed on this machine."""
        line = f"{self.program} {verb} {shlex.quote(self.dataset.text)}"
        if self.host is None:
            return line
        to = f"{self.host.user}@{self.host.name}" if self.host.user else self.host.name
        port = f"-p {self.host.port} " if self.host.port else ""
        return f"ssh {port}{to} {shlex.quote(line)}"

    def child(self, relative: str) -> Place:
        return Place(self.dataset.child(relative), self.program, self.host)


def parse_destination(text: str) -> Place:
    """Parse `pool/ds`, `zfs:pool/ds`, `ssh://[user@]host[:port]/pool/ds` or `ssh://host/zfs:pool/ds`.

    Raises:
        Refused, WrongUsage: it is none of these, or the top dataset of a pool, which is not received into.
    """
    place = _dataset(text)
    if place.dataset.parent is None:
        way = f"{str(place).rstrip('/')}/NAME"
        raise WrongUsage(f"{shown(text)} is a whole pool: name a dataset in it, like {printable(way)}")
    return place


def parse_source(text: str, pools: Collection[str]) -> Path | Place:
    """Parse a path, or what parse_destination() takes. `pools`: those that are known on this machine.

    Raises:
        Refused, WrongUsage: it is neither, or could be both.
    """
    if not text:
        raise WrongUsage("SRC is empty")
    if text.startswith((SSH, ZFS)):
        return _dataset(text)
    is_path = text.startswith(("/", "./", "../", "~")) or text in (".", "..")
    named = not is_path and text.partition("/")[0] in pools
    if named and os.path.lexists(text):
        raise Refused(f"{shown(text)} is a dataset and also a file here: name the file as {shown('./' + text)}")
    if named:
        return Place(DatasetName.parse(text))
    return Path(os.path.abspath(os.path.expanduser(text)))


def _dataset(text: str) -> Place:
    if not text.startswith(SSH):
        program, name = _program(text)
        return Place(DatasetName.parse(name), program)
    authority, slash, path = text[len(SSH) :].partition("/")
    if not slash or not path:
        raise WrongUsage(f"{shown(text)} names no dataset: ssh://[user@]host[:port]/pool/dataset")
    program, name = _program(unquote(path))
    return Place(DatasetName.parse(name), program, parse_host(authority, text))


def _program(text: str) -> tuple[str, str]:
    return ("zfs", text[len(ZFS) :]) if text.startswith(ZFS) else ("zkeep", text)


def parse_host(authority: str, text: str = "") -> Host:
    """Parse `[user@]host[:port]`. `text`: what it stands in, for the message.

    Raises:
        WrongUsage: it is none.
    """
    text = text or authority
    user, at, rest = authority.rpartition("@")
    if rest.startswith("["):
        name, bracket, port = rest[1:].partition("]")
        good = bool(bracket) and (not port or port.startswith(":"))
        port = port[1:]
    else:
        name, colon, port = rest.partition(":")
        good = bool(port) or not colon
    if not good or not _HOST.fullmatch(name) or (at and not _USER.fullmatch(user)):
        raise WrongUsage(f"{shown(text)} names no host: ssh://[user@]host[:port]/pool/dataset")
    try:
        number = whole_number(port, 65535, 1) if port else 0
    except ValueError:
        raise WrongUsage(f"{shown(text)}: the port is a number from 1 to 65535") from None
    return Host(name, user, number)
