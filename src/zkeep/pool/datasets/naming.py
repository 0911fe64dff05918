"""Which names a filesystem takes: casesensitivity, normalization and utf8only, chosen once, when it is created.

What is not given comes from the dataset above. A filesystem says it in its master node as well, which has the last
word; before the first snapshot there is none.

Source: OpenZFS module/zfs/zfs_ioctl.c zfs_fill_zplprops_impl(); lib/libzfs/libzfs_dataset.c zfs_valid_proplist().
"""

from __future__ import annotations

from collections.abc import Mapping

from zkeep.errors import WrongUsage
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.properties import PROPERTIES

NAMES = ("utf8only", "normalization", "casesensitivity")
FIELD = "naming"
"Of a dataset's document: the three by name, as numbers."


def split(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Tell which of them are given, and the other settings."""
    asked = {name: text for name, text in settings.items() if name in NAMES}
    return asked, {name: text for name, text in settings.items() if name not in NAMES}


def chosen(pool: Pool, name: DatasetName, asked: Mapping[str, str]) -> dict[str, int]:
    """Choose for a new filesystem: what is asked for, else what the one above has.

    Raises:
        WrongUsage: a value is none, or two contradict one another.
    """
    codes = {each: _code(each, text) for each, text in asked.items()}
    if codes.get("normalization") and codes.get("utf8only") == 0:
        raise WrongUsage(f"cannot create '{name}': 'utf8only' must be set 'on' if normalization chosen")
    # Who wants names that are not UTF-8 wants none of them normalized.
    if codes.get("utf8only") == 0:
        codes.setdefault("normalization", 0)
    above = pool.find(name.parent) if name.parent is not None else None
    inherited = above.doc.get(FIELD, {}) if above is not None and above.doc["received_name"] is None else {}
    found = {each: codes.get(each, int(inherited.get(each, 0))) for each in NAMES}
    if found["normalization"]:
        found["utf8only"] = 1
    return found


def refuse(name: DatasetName, asked: Mapping[str, str], kind: str) -> None:
    """Refuse them where a dataset has no names. `kind`: filesystem or volume.

    Raises:
        WrongUsage: one of them is asked for.
    """
    for each, text in asked.items():
        _code(each, text)
        if kind == "volume":
            raise WrongUsage(f"cannot create '{name}': '{each}' does not apply to datasets of this type")
        raise WrongUsage(f"cannot create '{name}': '{each}' is for files that are stored here: add -o encryption=on")


def _code(name: str, text: str) -> int:
    codes = PROPERTIES[name].codes
    if text not in codes:
        raise WrongUsage(f"bad value {shown(text)} for property {name}: must be one of {' '.join(codes)}")
    return codes[text]
