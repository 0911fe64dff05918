"""A dataset's keys, from a person's key: any key record of the dataset that the key unwraps will do.

Changing the wrapping key leaves the keys inside as they are. So an old key opens new snapshots as long as an old
key record is there, and a new key opens old ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from zkeep.crypto.unwrap import GetKey, MasterKeys, WrappedKeys, WrongKey, unwrap
from zkeep.errors import Damaged
from zkeep.pool.datasets import keyrecords
from zkeep.pool.datasets.keyrecords import KeyRecord
from zkeep.pool.datasets.model import Pool, Snapshot

_OPENED: WeakKeyDictionary[GetKey, dict[int, MasterKeys]] = WeakKeyDictionary()
"Unwrapped keys by their guid: the next snapshot needs no search."


def master_keys(pool: Pool, snapshot: Snapshot, get_key: GetKey) -> MasterKeys:
    """The keys of a snapshot, by its own key record or another one of the same keys.

    Raises:
        WrongKey: the key opens none of them.
        Damaged: the snapshot's own key record makes no sense.
    """
    own = _own(pool, snapshot)
    opened = _OPENED.setdefault(get_key, {})
    try:
        opened[own.guid] = own_keys(pool, snapshot, get_key)
    except WrongKey as error:
        if own.guid in opened:
            return opened[own.guid]
        # The snapshot's own record first; else any record of the same keys, likely ones first (by_work).
        others = keyrecords.distinct(keyrecords.of_dataset(pool, snapshot.dataset))
        found = first_opened((r for r in keyrecords.by_work(others) if r.mark != own.mark), get_key, own.guid)
        if found is None:
            raise error
        opened[own.guid] = found
    return opened[own.guid]


def own_keys(pool: Pool, snapshot: Snapshot, get_key: GetKey) -> MasterKeys:
    """The keys of a snapshot by its own key record alone: what a host that receives it will have.

    Raises:
        WrongKey: the key does not open it.
        Damaged: it makes no sense.
    """
    wrapped = WrappedKeys.of(_own(pool, snapshot).fields)
    return unwrap(wrapped, get_key(wrapped))


def _own(pool: Pool, snapshot: Snapshot) -> KeyRecord:
    own = keyrecords.of_snapshot(pool, snapshot)
    if own is None:
        raise Damaged(f"{snapshot.name}: the stream is raw and brought no keys")
    return own


def first_opened(records: Iterable[KeyRecord], get_key: GetKey, guid: int) -> MasterKeys | None:
    """The keys in the first record of this guid that the key unwraps; None if there is none."""
    for record in records:
        if record.guid != guid:
            continue
        try:
            wrapped = WrappedKeys.of(record.fields)
            return unwrap(wrapped, get_key(wrapped))
        except (WrongKey, Damaged):
            continue
    return None
