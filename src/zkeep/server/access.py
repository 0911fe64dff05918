"""What one client may do, and where: its root dataset and its roles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zkeep.errors import Refused, WrongUsage
from zkeep.names import AnyName, DatasetName, parse_any, shown

ROLES = {
    "receive": "append: new datasets and snapshots; nothing that is there is changed or destroyed",
    "list": "list, get, holds",
    "send": "send snapshots back",
    "hold": "hold, release",
    "destroy": "destroy, rollback; receive -F may destroy what is newer",
    "snapshot": "bookmark; a snapshot needs the key, and none is ever used for a client",
    "admin": "all of these, and rename, promote, set, inherit",
}
DEFAULT = ("receive", "list")


class Denied(Refused):
    """The role does not allow it, or it is not the client's. Decided from the command line alone."""


@dataclass(frozen=True)
class Access:
    """`root`: the dataset that is the client's, with all below it."""

    root: DatasetName
    roles: frozenset[str] = frozenset(DEFAULT)

    def may(self, role: str) -> bool:
        return role in self.roles or "admin" in self.roles

    def require(self, role: str, cannot: str) -> None:
        """Raises Denied. `cannot`: the beginning of the message, with the name that it is about."""
        if not self.may(role):
            allowed = ", ".join(name for name in ROLES if name in self.roles)
            raise Denied(f"{cannot}: permission denied: this key may {allowed or 'do nothing'}")

    def owned(self, text: str) -> AnyName:
        """Parse a name that must lie in the root.

        Outside of it, the answer is the one for a name that does not exist, whether or not it does: the pool is not
        even looked at.

        Raises:
            Denied, BadName: it is not the client's, or no name.
        """
        name = parse_any(text)
        if not dataset_of(name).is_within(self.root):
            raise Denied(f"cannot open {shown_name(text)}: dataset does not exist")
        return name

    def visible(self, text: str) -> AnyName:
        """Parse a name as owned() does; also one above the root, as it is no secret that those datasets exist."""
        name = parse_any(text)
        if isinstance(name, DatasetName) and self.root.is_within(name):
            return name
        return self.owned(text)


def dataset_of(name: AnyName) -> DatasetName:
    return name if isinstance(name, DatasetName) else name.dataset


def shown_name(text: str) -> str:
    """A name, for a message in which it stands without quotes."""
    return shown(text, 300)[1:-1]


def parse_roles(texts: Iterable[str]) -> frozenset[str]:
    """`receive,list`; raises WrongUsage for one that does not exist."""
    found = {word for text in texts for word in text.split(",")}
    if unknown := sorted(found - ROLES.keys()):
        raise WrongUsage(f"there is no role {shown(unknown[0])}: roles are {', '.join(ROLES)}")
    return frozenset(found)
