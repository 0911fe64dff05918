"""From what a user gives as a key to the wrapping key of an encryption root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkeep.cli.common.open_snapshot import prompted, read_key
from zkeep.errors import Damaged, Refused
from zkeep.pool.datasets import keyrecords
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.keyrecords import KeyRecord
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.view import View

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey


def family(pool: Pool, root: Dataset) -> list[Dataset]:
    """The datasets whose keys the root's key wraps: the root, those below it that inherit, and clones of them."""
    view = View(pool)
    return [d for d in keyrecords.heirs_of(pool, root) if d.doc.get("crypt") and encryption_root(view, d) == root]


def records_of(pool: Pool, root: Dataset) -> list[KeyRecord]:
    """The key records to try the root's key on, in this order: its own, or its children's if it has none."""
    for dataset in family(pool, root):
        if found := list(keyrecords.by_work(keyrecords.distinct(keyrecords.of_dataset(pool, dataset)))):
            return found
    raise Refused(f"cannot open '{root.name}': it holds no snapshot, and so no key record")


def opening_key(pool: Pool, root: Dataset, location: str | None) -> bytes:
    """Find the wrapping key (32 bytes) of a root, at its keylocation or at `location`.

    Raises:
        Refused: the key is wrong.
        Damaged: the key opens other snapshots of the same root, so the newest key record must be damaged.
    """
    return opened_by(pool, root, _material(root, records_of(pool, root)[0], location or key_location(root)))


def opening_material(pool: Pool, root: Dataset, location: str | None) -> bytes:
    """What a user gives as the key of a root, after it was tried as the present key. Raises as opening_key() does."""
    material = _material(root, records_of(pool, root)[0], location or key_location(root))
    check_present(pool, root, material)
    return material


def check_present(pool: Pool, root: Dataset, material: bytes) -> None:
    """Check that a key is the root's present one: that it opens the newest wrap, not only those before change-key.

    Raises:
        Refused: it is not.
    """
    from zkeep.crypto.unwrap import Materials, WrappedKeys, WrongKey

    opened_by(pool, root, material)
    try:
        Materials([material])(WrappedKeys.of(records_of(pool, root)[0].fields))
    except WrongKey:
        way = f"print a new sheet: zkeep key sheet {root.name}"
        raise Refused(f"the key of '{root.name}' is another now; this is one from before change-key; {way}") from None


def opened_by(pool: Pool, root: Dataset, material: bytes) -> bytes:
    """The wrapping key of a root, from the content of a key file or a passphrase. Raises as opening_key() does."""
    from zkeep.crypto.unwrap import Materials, TooManyRounds, WrappedKeys, WrongKey

    records = records_of(pool, root)
    key_of = Materials([material])
    reasons: list[Refused | Damaged] = []
    # The newest wrap first. A damaged record does not end the search: another one may open.
    for record in records:
        try:
            return key_of(WrappedKeys.of(record.fields))
        except (WrongKey, Damaged) as error:
            reasons.append(error)
    # Damage of the newest record is worth more than "incorrect key".
    if isinstance(reasons[0], Damaged):
        raise reasons[0]
    _tell_damage(pool, root, key_of)
    # A passphrase of too many rounds was never tried, so it may well be the right one.
    untried = next((reason for reason in reasons if isinstance(reason, TooManyRounds)), None)
    why = untried or ("" if "not that of key guid" in str(reasons[0]) else reasons[0])
    raise Refused(f"Incorrect key provided for '{root.name}'." + (f" ({why})" if why else ""))


def _tell_damage(pool: Pool, root: Dataset, key_of: GetKey) -> None:
    """Raise Damaged if the key opens a child that inherits from the root: then the root's own key record is damaged."""
    from zkeep.snapshot.keys import first_opened

    for dataset in family(pool, root)[1:]:
        records = list(keyrecords.by_work(keyrecords.distinct(keyrecords.of_dataset(pool, dataset))))
        if records and first_opened(records, key_of, records[0].guid):
            raise Damaged(f"the key record of '{root.name}' is damaged: its key opens '{dataset.name}', but not itself")


def key_location(root: Dataset) -> str:
    """The keylocation that was set here. One that a stream brought is shown, but never opened."""
    return str(root.doc["local"].get("keylocation") or "prompt")


def _material(root: Dataset, record: KeyRecord, location: str) -> bytes:
    return prompted(record.keyformat, root.name.text) if location == "prompt" else read_key(location)
