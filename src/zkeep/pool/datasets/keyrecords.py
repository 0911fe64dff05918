"""Key records: sealed keys of datasets, as they came with each snapshot, and as change-key made them here.

A pool never opens one. Those that came lie in the BEGINs, one for each snapshot; those made here are documents `key`,
`ID/NUMBER`, with the same fields. They stand side by side: whichever one somebody has the key of opens the dataset, and
what comes in later takes nothing away.

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
from zkeep.pool.datasets.begin import Opening, number, resealed
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.types import Doc

MASTER = "DSL_CRYPTO_MASTER_KEY_1"
NUMBERS = ("DSL_CRYPTO_SUITE", "DSL_CRYPTO_GUID", "DSL_CRYPTO_VERSION", "keyformat", "pbkdf2iters", "pbkdf2salt")
SEALED = (MASTER, "DSL_CRYPTO_HMAC_KEY_1", "DSL_CRYPTO_IV", "DSL_CRYPTO_MAC")


@dataclass(frozen=True)
class KeyRecord:
    """One sealing of a dataset's keys. `snapshot`: with which it came; None: it was made here."""

    fields: NvList
    snapshot: Snapshot | None

    @property
    def guid(self) -> int:
        """Of the keys inside, which a change of the wrapping leaves as they are."""
        return number(self.fields, "DSL_CRYPTO_GUID")

    @property
    def keyformat(self) -> int:
        """zfs_keyformat."""
        return number(self.fields, "keyformat")

    @property
    def iterations(self) -> int:
        """Rounds of PBKDF2 that a passphrase takes."""
        return number(self.fields, "pbkdf2iters")

    @property
    def mark(self) -> str:
        """Eight digits that tell one sealing from another."""
        sealed = b"".join(_bytes(self.fields, name) for name in SEALED)
        return blake2b(sealed, digest_size=4).hexdigest()


def _bytes(fields: NvList, name: str) -> bytes:
    value = fields.get(name)
    return value if isinstance(value, bytes) else b""


def of_snapshot(pool: Pool, snapshot: Snapshot) -> KeyRecord | None:
    """The one that came with a snapshot; None where it is not encrypted."""
    doc = pool.catalog.get("begin", snapshot.key)
    crypt = Opening.from_doc(doc).crypt if doc else None
    return KeyRecord(crypt, snapshot) if crypt is not None else None


def of_dataset(pool: Pool, dataset: Dataset) -> Iterator[KeyRecord]:
    """All that open a dataset, the newest first: made here, then those of its snapshots, then its origin's."""
    yield from _beside(pool, dataset)
    for origin, _ in pool.origins(dataset):
        yield from _beside(pool, origin)


def _beside(pool: Pool, dataset: Dataset) -> Iterator[KeyRecord]:
    """Without its origin's."""
    yield from local(pool, dataset)
    for snapshot in reversed(pool.snapshots(dataset)):
        found = of_snapshot(pool, snapshot)
        if found:
            yield found


def distinct(records: Iterator[KeyRecord]) -> Iterator[KeyRecord]:
    """Each sealing once."""
    seen = set()
    for record in records:
        if record.mark not in seen:
            seen.add(record.mark)
            yield record


def by_work(records: Iterator[KeyRecord]) -> Iterator[KeyRecord]:
    """In the order in which keys are tried on them: likely ones first, then those that take the least work.

    The sender chooses how much work a record takes, and how many there are. The newest, those that were made here, and
    the oldest, which came before anybody could take the sender over, are among the first whatever else came.
    """
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
        for name in SEALED:
            fields.set(name, base64.b64decode(doc[name]), NvType.UINT8_ARRAY)
    except (KeyError, TypeError, ValueError):
        raise Damaged(f"catalog: key {key} is not a key record") from None
    return fields


def add(pool: Pool, t: Transaction, dataset: Dataset, fields: NvList) -> None:
    """Put one beside the others, and let the dataset's properties tell of it."""
    doc: Doc = {name: number(fields, name) for name in NUMBERS}
    doc |= {name: base64.b64encode(_bytes(fields, name)).decode() for name in SEALED}
    last = [int(key.rpartition("/")[2]) for key in pool.catalog.keys("key", dataset.key + "/")]
    t.put("key", f"{dataset.key}/{max(last, default=0) + 1:06}", doc)
    shown = {**dataset.doc["crypt"], "keyformat": doc["keyformat"], "pbkdf2iters": doc["pbkdf2iters"]}
    pool.update_dataset(t, dataset, crypt=shown)


def newest(pool: Pool, dataset: Dataset, guid: int) -> KeyRecord | None:
    """The newest sealing of the keys of this guid."""
    return next((record for record in of_dataset(pool, dataset) if record.guid == guid), None)


def with_newest(pool: Pool, snapshot: Snapshot, opening: Opening) -> Opening:
    """A snapshot's BEGIN with the newest sealing of its keys, as a kernel sends old snapshots."""
    own = KeyRecord(opening.crypt, snapshot) if opening.crypt is not None else None
    record = newest(pool, snapshot.dataset, own.guid) if own else None
    return opening if record is None else resealed(opening, _sealing(record))


def _sealing(record: KeyRecord) -> NvList:
    """Only what a change of the wrapping key changes."""
    sealing = NvList()
    for pair in record.fields.pairs:
        if pair.name in (*SEALED, "keyformat", "pbkdf2iters", "pbkdf2salt"):
            sealing.set(pair.name, pair.value, pair.type)
    return sealing


@dataclass(frozen=True)
class Forgetting:
    """What forget() would do with one dataset."""

    dataset: Dataset
    kept: KeyRecord
    dropped: list[str]
    "Marks of the sealings that go."


def plan_forget(pool: Pool, datasets: list[Dataset]) -> list[Forgetting]:
    """The newest sealing of each dataset stays, and of their clones, wherever they are: those have the same keys.

    A clone that has nothing newer than what goes is given what its origin keeps. Keys of another guid are of another
    life of the dataset, and stay.
    """
    plans: list[Forgetting] = []
    keeps: dict[int, Forgetting] = {}
    for dataset in [*datasets, *_clones(pool, datasets)]:
        records = list(distinct(_own(pool, dataset)))
        if not records:
            continue
        kept = records[0]
        first = keeps.get(kept.guid)
        if first and kept.mark in first.dropped:
            kept = first.kept
        old = [record.mark for record in records if record.guid == kept.guid and record.mark != kept.mark]
        plan = Forgetting(dataset, kept, old)
        keeps.setdefault(kept.guid, plan)
        plans += [plan] if old else []
    return plans


def _clones(pool: Pool, datasets: list[Dataset]) -> list[Dataset]:
    """Clones of these datasets, clones of those, and so on; without what is among them."""
    tree = pool.tree()
    found = {dataset.id: dataset for dataset in datasets}
    todo = list(datasets)
    while todo:
        new = [clone for clone in tree.clones(todo.pop()) if clone.id not in found]
        found.update((clone.id, clone) for clone in new)
        todo += new
    return list(found.values())[len(datasets) :]


def still_opened(pool: Pool, plans: list[Forgetting]) -> list[tuple[Dataset, str]]:
    """Other datasets with the same keys that keep a sealing which goes here, each with the mark of one."""
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
    """Give every snapshot the kept sealing; drop the others that were made here.

    The catalog's past still has them: Catalog.renew() after the transaction.
    """
    dataset = plan.dataset
    for snapshot in pool.snapshots(dataset):
        doc = pool.catalog.get("begin", snapshot.key)
        record = of_snapshot(pool, snapshot)
        if doc and record and record.guid == plan.kept.guid and record.mark != plan.kept.mark:
            t.put("begin", snapshot.key, {**doc, **resealed(Opening.from_doc(doc), _sealing(plan.kept)).doc()})
    for key, doc in pool.catalog.scan("key", dataset.key + "/"):
        if KeyRecord(_fields(key, doc), None).mark != plan.kept.mark:
            t.delete("key", key)
    pool.update_dataset(t, dataset, encroot=dataset.has_own_key, own_key=None)
