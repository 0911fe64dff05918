"""Checks the words of lists that verbs take: properties, columns, sources."""

from __future__ import annotations

from collections.abc import Sequence

from zkeep.cli.common import usage
from zkeep.errors import WrongUsage
from zkeep.names import shown
from zkeep.pool.datasets import properties
from zkeep.pool.datasets.properties import Property


def find_property(name: str) -> Property:
    """Find a property by its name or short name; raises WrongUsage with a hint if there is none."""
    prop = properties.find(name)
    if not prop:
        near = usage.hint(name, properties.PROPERTIES)
        raise WrongUsage(f"bad property list: invalid property {shown(name)}{near}")
    return prop


def chosen_words(given: str | None, known: Sequence[str], default: str, what: str) -> Sequence[str]:
    """Split a list with commas; `all` stands for all known words. Raises WrongUsage for an unknown one."""
    words = (given or default).split(",")
    if words == ["all"]:
        return known
    for word in words:
        if word not in known:
            raise WrongUsage(f"invalid {what} {shown(word)}: must be one of {' '.join(known)}")
    return words
