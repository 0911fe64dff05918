"""Apply -o and -x of a receive to the properties of one dataset. Pure.

Source: OpenZFS lib/libzfs/libzfs_sendrecv.c zfs_setup_cmdline_props(); module/zfs/zfs_ioctl.c zfs_ioc_recv_impl().
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from zkeep.errors import Refused
from zkeep.pool.datasets import properties
from zkeep.pool.datasets.properties import Property

_ENCRYPTION = ("encryption", "keyformat", "pbkdf2iters", "pbkdf2salt")


class Wishes(Protocol):
    """`set_properties`: -o, checked, and the pretended property `origin`; `exclude`: -x."""

    @property
    def set_properties(self) -> Mapping[str, str]: ...

    @property
    def exclude(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Where:
    """The dataset: its type's letter, whether the stream is raw and recursive, whether it is the topmost of it."""

    kind: str
    raw: bool
    top: bool
    recursive: bool


def override(
    wishes: Wishes, where: Where, local: Mapping[str, str | None], received: dict[str, str]
) -> dict[str, str | None]:
    """The values that become local, over the `local` ones that are there; None hides a received value.

    What is excluded and cannot be inherited is taken out of `received`.

    Raises:
        Refused: a property does not fit the dataset or the stream.
    """
    # -x: an inherited property keeps what it inherits here; another one is as if it had not been sent.
    made: dict[str, str | None] = {}
    for name in wishes.exclude:
        prop = _known(name, where)
        if not _inherits(prop):
            received.pop(name, None)
        elif name not in local:
            made[name] = None
    # -o: the topmost dataset gets the value, those below inherit it.
    for name, text in wishes.set_properties.items():
        # Of a plain stream that is encrypted here, the new key's place is set with it.
        if name == "origin" or (name == "keylocation" and not where.raw):
            continue
        prop = _known(name, where)
        if not properties.is_user(prop) and where.kind not in prop.applies:
            if not where.recursive:
                raise Refused(f"property '{name}' does not apply to datasets of this type")
        elif where.top:
            made[name] = text
        elif _inherits(prop):
            made[name] = None
    return made


def _known(name: str, where: Where) -> Property:
    if where.raw and name in _ENCRYPTION:
        raise Refused(f"encryption property '{name}' cannot be set or excluded for raw streams")
    prop = properties.find(name)
    if prop is None:
        raise Refused(f"there is no property '{name}'")
    return prop


def _inherits(prop: Property) -> bool:
    return prop.how == "inherit" or properties.is_user(prop)
