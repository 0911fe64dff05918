"""Clone a snapshot: a new dataset whose past is the snapshot's, and which shares its keys.

Only a document is made. What is written to the clone later is a run like any other, after those of its origin.

Source: OpenZFS module/zfs/dmu_objset.c dmu_objset_clone_check(), module/zfs/dsl_crypt.c dsl_dir_crypto_key_clone().
"""

from __future__ import annotations

from collections.abc import Mapping

from zkeep.errors import Refused
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Dataset, Exists, Pool
from zkeep.pool.datasets.namespace import Ancestor, check_settings, make_parents

SHAPE = ("volblocksize", "naming")
"Fields of a document that its clones have as well: what was chosen once, when it was created."


def clone(
    pool: Pool,
    source: SnapshotName,
    name: DatasetName,
    settings: Mapping[str, str],
    *,
    parents: bool = False,
    ancestor: Ancestor | None = None,
) -> Dataset:
    """Make a dataset that holds what a snapshot holds.

    `parents`: make missing ones, by `ancestor` or as empty places, and let be what is there already.

    Raises:
        Refused: with the reason.
    """
    where = f"cannot create '{name}'"
    if name.pool != source.dataset.pool:
        raise Refused(f"{where}: source and target are not in the same pool")
    with pool.transaction() as t:
        snapshot = pool.snapshot(source)
        found = pool.find(name)
        if found is not None and parents:
            return found
        if found is not None:
            raise Exists(f"{where}: dataset already exists")
        if snapshot.doc.get(STEP):
            raise Refused(f"{where}: {source} is what an interrupted call left")
        if parents:
            make_parents(pool, t, name, ancestor)
        origin = snapshot.dataset
        local = check_settings(settings, "v" if origin.is_volume else "f")
        size = {name: origin.doc["local"][name] for name in ("volsize",) if origin.doc["local"].get(name)}
        # It has its origin's keys, and so its encryption root, wherever it lies.
        fields = {key: origin.doc[key] for key in (*SHAPE, "crypt", "raw") if key in origin.doc}
        place = {"dataset": origin.id, "txg": snapshot.txg}
        kind = str(origin.doc["type"])
        # `live`: what is written to it stays, as its head, also where a snapshot of that is destroyed.
        return pool.create_dataset(
            *(t, name, kind), origin=place, local={**size, **local}, encroot=False, live=not origin.is_volume, **fields
        )
