"""Key records: wrapped keys of datasets, as they came with each snapshot, and as change-key made them here.

A pool never unwraps one. Received records lie in the BEGINs, one for each snapshot; those made here are documents
`key`, `ID/NUMBER`, with the same fields. All stay valid side by side: any wrapping key that fits one of them opens the
dataset, and what is received later removes none.

Source of the fields: OpenZFS module/zfs/dsl_crypt.c dsl_crypto_populate_key_nvlist().
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from zkeep.errors import Damaged
from zkeep.format.nvlist import NvList, NvType
from zkeep.pool.datasets.begin import Opening, number, rewrapped
from zkeep.pool.datasets.model import HEAD, Dataset, Pool, Snapshot
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.types import Doc

MASTER = "DSL_CRYPTO_MASTER_KEY_1"
NUMBERS = ("DSL_CRYPTO_SUITE", "DSL_CRYPTO_GUID", "DSL_CRYPTO_VERSION", "keyformat", "pbkdf2iters", "pbkdf2salt")
WRAPPED = (MASTER, "DSL_CRYPTO_HMAC_KEY_1", "DSL_CRYPTO_IV", "DSL_CRYPTO_MAC")


WRAP = (*WRAPPED, "keyformat", "pbkdf2iters", "pbkdf2salt")
"The fields that a change of the wrapping key changes."


@dataclass(frozen=True)
class KeyRecord:
    """A dataset's keys, wrapped. `snapshot`: the one that it came with; None: change-key made it here."""

    # What a key record says (nvlist, from BEGIN or a document `key`):
    #
    # DSL_CRYPTO_SUITE, _GUID, _VERSION      which cipher, and which keys are inside; the same in every wrap of them
    # DSL_CRYPTO_MASTER_KEY_1  (32 bytes)    the master key, encrypted with the wrapping key
    # DSL_CRYPTO_HMAC_KEY_1    (64 bytes)    the HMAC key, likewise
    # DSL_CRYPTO_IV, DSL_CRYPTO_MAC          of that encryption (12 and 16 bytes)
    # keyformat, pbkdf2iters, pbkdf2salt     how the wrapping key comes from what a user types
    fields: NvList
    snapshot: Snapshot | None

    @property
    def guid(self) -> int:
        """The guid of the keys inside, which a change of the wrapping key keeps."""
        return number(self.fields, "DSL_CRYPTO_GUID")

    @property
    def keyformat(self) -> int:
        """The code of the property keyformat (zfs_keyformat)."""
        return number(self.fields, "keyformat")

    @property
    def iterations(self) -> int:
        """Rounds of PBKDF2 that a passphrase takes."""
        return number(self.fields, "pbkdf2iters")

    @property
    def mark(self) -> str:
        """Eight hex digits that identify this wrap."""
        wrapped = b"".join(_bytes(self.fields, name) for name in WRAPPED)
        return blake2b(wrapped, digest_size=4).hexdigest()


def _bytes(fields: NvList, name: str) -> bytes:
    value = fields.get(name)
    return value if isinstance(value, bytes) else b""


def of_snapshot(pool: Pool, snapshot: Snapshot) -> KeyRecord | None:
    """The key record that came with a snapshot; None if it is not encrypted."""
    doc = pool.catalog.get("begin", snapshot.key)
    crypt = Opening.from_doc(doc).crypt if doc else None
    return KeyRecord(crypt, snapshot) if crypt is not None else None


def of_dataset(pool: Pool, dataset: Dataset) -> Iterator[KeyRecord]:
    """All key records of a dataset, newest first: made here, then its snapshots', then its origin's."""
    yield from _beside(pool, dataset)
    for origin, _ in pool.origins(dataset):
        yield from _beside(pool, origin)


def _beside(pool: Pool, dataset: Dataset) -> Iterator[KeyRecord]:
    """The key records of a dataset without its origin's."""
    yield from local(pool, dataset)
    for snapshot in reversed(_states(pool, dataset)):
        found = of_snapshot(pool, snapshot)
        if found:
            yield found


def _states(pool: Pool, dataset: Dataset) -> list[Snapshot]:
    """All states that have a BEGIN: the snapshots, and behind them the head if no snapshot names it."""
    head = pool.catalog.get(HEAD, dataset.key)
    return pool.snapshots(dataset) + ([Snapshot(dataset, head)] if head else [])


def distinct(records: Iterator[KeyRecord]) -> Iterator[KeyRecord]:
    """Each wrap once."""
    seen = set()
    for record in records:
        if record.mark not in seen:
            seen.add(record.mark)
            yield record


def by_work(records: Iterator[KeyRecord]) -> Iterator[KeyRecord]:
    """Sort records into the order in which keys are tried: likely ones first, then those that take the least work.

    The sender chooses how much work a record takes, and how many there are. The newest, those that were made here, and
    the oldest, which came before the sender could have been compromised, are always among the first.
    """
    # 1. The newest. 2. Those made here. 3. The oldest that came. 4. The others, the least work first.
    yield from islice(records, 1)
    rest = list(records)
    yield from (record for record in rest if record.snapshot is None)
    came = [record for record in rest if record.snapshot is not None]
    yield from came[-1:]
    yield from sorted(came[:-1], key=lambda record: record.iterations)


def local(pool: Pool, dataset: Dataset) -> Iterator[KeyRecord]:
    for key, doc in reversed(pool.catalog.scan("key", dataset.key + "/")):
        yield KeyRecord(_fields(key, doc), None)


def _fields(key: str, doc: Doc) -> NvList:
    fields = NvList()
    try:
        for name in NUMBERS:
            fields.set(name, int(doc[name]), NvType.UINT64)
        for name in WRAPPED:
            fields.set(name, base64.b64decode(doc[name]), NvType.UINT8_ARRAY)
    except (KeyError, TypeError, ValueError):
        raise Damaged(f"catalog: key {key} is not a key record") from None
    return fields


def add(pool: Pool, t: Transaction, dataset: Dataset, fields: NvList) -> None:
    """Add a record beside the others, and let the dataset's properties show it."""
    doc: Doc = {name: number(fields, name) for name in NUMBERS}
    doc |= {name: base64.b64encode(_bytes(fields, name)).decode() for name in WRAPPED}
    last = [int(key.rpartition("/")[2]) for key in pool.catalog.keys("key", dataset.key + "/")]
    t.put("key", f"{dataset.key}/{max(last, default=0) + 1:06}", doc)
    shown = {**dataset.doc["crypt"], "keyformat": doc["keyformat"], "pbkdf2iters": doc["pbkdf2iters"]}
    pool.update_dataset(t, dataset, crypt=shown)


def newest(pool: Pool, dataset: Dataset, guid: int) -> KeyRecord | None:
    """The newest wrap of the keys with this guid."""
    return next((record for record in of_dataset(pool, dataset) if record.guid == guid), None)


def with_newest(pool: Pool, snapshot: Snapshot, opening: Opening) -> Opening:
    """A snapshot's BEGIN with the newest wrap of its keys, as a kernel sends old snapshots."""
    own = KeyRecord(opening.crypt, snapshot) if opening.crypt is not None else None
    record = newest(pool, snapshot.dataset, own.guid) if own else None
    return opening if record is None else rewrapped(opening, wrap_fields(record.fields))


def wrap_fields(fields: NvList) -> NvList:
    """The fields of a wrap alone."""
    wrap = NvList()
    for pair in fields.pairs:
        if pair.name in WRAP:
            wrap.set(pair.name, pair.value, pair.type)
    return wrap


@dataclass(frozen=True)
class Forgetting:
    """What forget() would do with one dataset."""

    dataset: Dataset
    kept: KeyRecord
    dropped: list[str]
    "The marks of the wraps that are dropped."


def plan_forget(pool: Pool, datasets: list[Dataset]) -> list[Forgetting]:
    """Plan to keep only the newest wrap of each dataset, and of its clones anywhere: those have the same keys.

    A clone whose newest wrap is to be dropped gets the one that its origin keeps. Keys with another guid belong to an
    earlier dataset of this name, and stay.
    """
    plans: list[Forgetting] = []
    keeps: dict[int, Forgetting] = {}
    for dataset in [*datasets, *_clones(pool, datasets)]:
        records = list(distinct(_own(pool, dataset)))
        if not records:
            continue
        kept = records[0]
        # A clone has its origin's keys: if its newest wrap is dropped there, it gets the one that is kept there.
        first = keeps.get(kept.guid)
        if first and kept.mark in first.dropped:
            kept = first.kept
        old = [record.mark for record in records if record.guid == kept.guid and record.mark != kept.mark]
        plan = Forgetting(dataset, kept, old)
        keeps.setdefault(kept.guid, plan)
        plans += [plan] if old else []
    return plans


def heirs_of(pool: Pool, dataset: Dataset) -> list[Dataset]:
    """The datasets that may inherit a key from one: itself, all below it, clones of these, all below those, and so on.
    """
    tree = pool.tree()
    found: dict[int, Dataset] = {}
    todo = [dataset]
    while todo:
        new = [each for each in tree.within(todo.pop()) if each.id not in found]
        found.update((each.id, each) for each in new)
        todo += [clone for each in new for clone in tree.clones(each) if clone.id not in found]
    return list(found.values())


def _clones(pool: Pool, datasets: list[Dataset]) -> list[Dataset]:
    """Clones of these datasets, clones of those, and so on; without the given ones."""
    tree = pool.tree()
    found = {dataset.id: dataset for dataset in datasets}
    todo = list(datasets)
    while todo:
        new = [clone for clone in tree.clones(todo.pop()) if clone.id not in found]
        found.update((clone.id, clone) for clone in new)
        todo += new
    return list(found.values())[len(datasets) :]


def still_wrapped(pool: Pool, plans: list[Forgetting]) -> list[tuple[Dataset, str]]:
    """Other datasets with the same keys that keep a wrap which is dropped here, each with the mark of one."""
    gone = {(plan.kept.guid, mark) for plan in plans for mark in plan.dropped}
    guids, planned = {guid for guid, _ in gone}, {plan.dataset.id for plan in plans}
    others = [d for d in pool.tree().by_id.values() if d.id not in planned and d.doc.get("crypt")]
    return [
        (dataset, record.mark)
        for dataset in others
        if dataset.doc["crypt"].get("guid") in guids
        for record in islice((r for r in distinct(_own(pool, dataset)) if (r.guid, r.mark) in gone), 1)
    ]


def _own(pool: Pool, dataset: Dataset) -> Iterator[KeyRecord]:
    return (r for r in of_dataset(pool, dataset) if r.snapshot is None or r.snapshot.dataset == dataset)


def forget(pool: Pool, t: Transaction, plan: Forgetting) -> None:
    """Give every snapshot the kept wrap, and drop the others that were made here.

    The plan is made within the same transaction: a wrap that came after it would be dropped for an older one.
    The catalog's files still have them: call Catalog.renew() after the transaction.
    """
    dataset = plan.dataset
    # Wraps lie in two places: in the BEGINs of snapshots, and in documents of their own.
    for snapshot in _states(pool, dataset):
        doc = pool.catalog.get("begin", snapshot.key)
        record = of_snapshot(pool, snapshot)
        if doc and record and record.guid == plan.kept.guid and record.mark != plan.kept.mark:
            opening = rewrapped(Opening.from_doc(doc), wrap_fields(plan.kept.fields))
            t.put("begin", snapshot.key, {**doc, **opening.doc()})
    for key, doc in pool.catalog.scan("key", dataset.key + "/"):
        if KeyRecord(_fields(key, doc), None).mark != plan.kept.mark:
            t.delete("key", key)
    pool.update_dataset(t, dataset, encroot=dataset.has_own_key, own_key=None)
