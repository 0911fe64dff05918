"""The properties of pools, as `zkeep pool list` and `zkeep pool get` print them.

Names, order and columns are zpool's (2.3). A pool here is a folder, so that what zpool says of devices has one value
for ever; `path` is ours. A feature is `active` where every pool uses it, `enabled` where what was received may use it,
`disabled` where it is about devices or about how a pool is written.

Source: OpenZFS module/zcommon/zpool_prop.c zpool_prop_init(); lib/libzfs/libzfs_pool.c zpool_get_prop(),
zpool_prop_get_feature(); cmd/zpool/zpool_main.c get_callback().
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zkeep.cli.common import text, usage
from zkeep.errors import WrongUsage
from zkeep.names import is_user_property, shown
from zkeep.pool.datasets.lifecycle import Status
from zkeep.pool.datasets.model import FORMAT

Cell = Callable[[Status, bool], str]
"A property's text for a pool that can be read; the second argument asks for exact numbers."


@dataclass(frozen=True)
class PoolProperty:
    name: str
    column: str
    cell: Cell
    source: str = "-"
    right: bool = False
    "Whether its column is flush right."
    always: bool = False
    "Whether it has a value for a pool that cannot be read, too."

    def of(self, pool: Status, exact: bool) -> str:
        readable = pool.allocated is not None and pool.free is not None
        return self.cell(pool, exact) if readable or self.always else "-"


def _size(figure: Callable[[Status], int]) -> Cell:
    return lambda pool, exact: str(figure(pool)) if exact else text.nice_bytes(figure(pool))


def _total(pool: Status) -> int:
    return (pool.allocated or 0) + (pool.free or 0)


def _capacity(pool: Status, exact: bool) -> str:
    return f"{(pool.allocated or 0) * 100 // max(_total(pool), 1)}" + ("" if exact else "%")


def _always(value: str, exactly: str | None = None) -> Cell:
    return lambda pool, exact: value if exactly is None or not exact else exactly


def _readonly(pool: Status, exact: bool) -> str:
    return "off" if pool.shared or os.access(pool.path, os.W_OK) else "on"


_TABLE = [
    PoolProperty("name", "NAME", lambda pool, exact: pool.name, always=True),
    PoolProperty("size", "SIZE", _size(_total), right=True),
    PoolProperty("capacity", "CAP", _capacity, right=True),
    PoolProperty("altroot", "ALTROOT", _always("-"), "default"),
    PoolProperty("health", "HEALTH", lambda pool, exact: pool.health, always=True),
    PoolProperty("guid", "GUID", lambda pool, exact: str(pool.guid), right=True),
    PoolProperty("version", "VERSION", _always(str(FORMAT)), "default", right=True),
    PoolProperty("bootfs", "BOOTFS", _always("-"), "default"),
    PoolProperty("delegation", "DELEGATION", lambda pool, exact: "on" if pool.shared else "off", "default"),
    PoolProperty("autoreplace", "REPLACE", _always("off"), "default"),
    PoolProperty("cachefile", "CACHEFILE", _always("-"), "default"),
    PoolProperty("failmode", "FAILMODE", _always("continue"), "default"),
    PoolProperty("listsnapshots", "LISTSNAPS", _always("off"), "default"),
    PoolProperty("autoexpand", "EXPAND", _always("on"), "default"),
    PoolProperty("dedupratio", "DEDUP", _always("1.00x", "1.00"), right=True),
    PoolProperty("free", "FREE", _size(lambda pool: pool.free or 0), right=True),
    PoolProperty("allocated", "ALLOC", _size(lambda pool: pool.allocated or 0), right=True),
    PoolProperty("readonly", "RDONLY", _readonly),
    PoolProperty("ashift", "ASHIFT", _always("0"), "default", right=True),
    PoolProperty("comment", "COMMENT", _always("-"), "default"),
    PoolProperty("expandsize", "EXPANDSZ", _always("-"), right=True),
    PoolProperty("freeing", "FREEING", _always("0"), right=True),
    PoolProperty("fragmentation", "FRAG", _always("0%", "0"), right=True),
    PoolProperty("leaked", "LEAKED", _always("0"), right=True),
    PoolProperty("multihost", "MULTIHOST", _always("off"), "default"),
    PoolProperty("checkpoint", "CKPOINT", _always("-"), right=True),
    PoolProperty("load_guid", "LOAD_GUID", lambda pool, exact: str(pool.guid), right=True),
    PoolProperty("autotrim", "AUTOTRIM", _always("off"), "default"),
    PoolProperty("compatibility", "COMPATIBILITY", _always("off"), "default"),
    PoolProperty("path", "PATH", lambda pool, exact: text.safe(str(pool.path)), always=True),
]
PROPERTIES = {p.name: p for p in _TABLE}
_SHORT = {p.column.lower(): p.name for p in _TABLE} | {"dedup": "dedupratio", "frag": "fragmentation"}

_ACTIVE = "enabled_txg extensible_dataset hole_birth"
_ENABLED = (
    "lz4_compress embedded_data bookmarks large_blocks large_dnode sha512 skein edonr userobj_accounting encryption "
    "project_quota bookmark_v2 redaction_bookmarks redacted_datasets bookmark_written zstd_compress blake3 longname "
    "large_microzap filesystem_limits zilsaxattr"
)
_DISABLED = (
    "async_destroy empty_bpobj multi_vdev_crash_dump spacemap_histogram device_removal obsolete_counts "
    "zpool_checkpoint spacemap_v2 allocation_classes resilver_defer log_spacemap livelist device_rebuild draid "
    "head_errlog block_cloning vdev_zaps_v2 redaction_list_spill raidz_expansion fast_dedup"
)
FEATURES = {
    f"feature@{name}": state
    for state, names in (("active", _ACTIVE), ("enabled", _ENABLED), ("disabled", _DISABLED))
    for name in names.split()
}


def find(word: str) -> PoolProperty:
    """By name, by a column's heading in lower case, or a feature or user property.

    Raises:
        WrongUsage: there is none of this name.
    """
    if known := PROPERTIES.get(_SHORT.get(word, word)):
        return known
    if word in FEATURES:
        return PoolProperty(word, word.upper(), _always(FEATURES[word]), "local")
    if is_user_property(word):
        return PoolProperty(word, word.upper(), _always("-"))
    raise WrongUsage(f"bad property list: invalid property {shown(word)}{usage.hint(word, [*PROPERTIES, *FEATURES])}")


def chosen(words: str) -> Sequence[PoolProperty]:
    """Find the properties of a list with commas; `all` stands for all but the name, which zpool get does not have."""
    names = words.split(",")
    if names == ["all"]:
        names = [*(name for name in PROPERTIES if name != "name"), *FEATURES]
    return [find(name) for name in names]
