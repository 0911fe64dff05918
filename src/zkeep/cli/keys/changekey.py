"""zkeep change-key: re-wrap the keys of datasets with another wrapping key, a new one or their parent's.

As with zfs, an encryption root gets a new key, a dataset that inherits becomes a root of its own, and with -i a root
inherits again. The master keys inside do not change, and earlier wraps stay.

Source: OpenZFS lib/libzfs/libzfs_crypto.c zfs_crypto_rewrap(); module/zfs/dsl_crypt.c spa_keystore_change_key_check().
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from zkeep.agent import client
from zkeep.cli.common.open_snapshot import piped, read_key, typed
from zkeep.cli.common.pools import opened, settings
from zkeep.cli.keys.root_key import key_location, opening_key, records_of
from zkeep.errors import Refused, WrongUsage, ZkeepError
from zkeep.names import DatasetName, shown, whole_number
from zkeep.pool.datasets import keyrecords
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.properties import PROPERTIES, check
from zkeep.pool.datasets.view import View

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import MasterKeys
    from zkeep.pool.datasets.keyrecords import KeyRecord

MIN_ITERATIONS = 100_000
"OpenZFS include/sys/fs/zfs.h, MIN_PBKDF2_ITERATIONS."
DEFAULT_ITERATIONS = 350_000
MAX_ITERATIONS = 10_000_000
"The number that zkeep itself uses: see crypto.unwrap."
OF_KEYS = ("keyformat", "keylocation", "pbkdf2iters")
CODES = PROPERTIES["keyformat"].codes


@click.command("change-key")
@click.option("-l", "load_first", is_flag=True, help="Load the present key first.")
@click.option("-i", "inherit", is_flag=True, help="Inherit the parent's key.")
@click.option("-o", "options", multiple=True, metavar="P=V", help="keyformat, keylocation, pbkdf2iters of the new key.")
@click.option("-L", "locations", multiple=True, metavar="KEYLOCATION", help="A key needed that is not loaded.")
@click.argument("name", metavar="DATASET")
def change_key_verb(
    *, load_first: bool, inherit: bool, options: Sequence[str], locations: Sequence[str], name: str
) -> None:
    """Re-wrap the keys of a dataset, and of what inherits from it, with a new key, or with -i with its parent's.

    The new wrap is added to those that came with snapshots: their keys still open them, and what is received later
    takes nothing away. 'zkeep forget-keys' drops the old ones. Recovery sheets from before are void: print a new one
    with 'zkeep key sheet'.

    \b
        zkeep change-key -o keyformat=raw -o keylocation=file:///media/usb/new vault/home
        zkeep change-key -i vault/home/mail
    """
    dataset_name = DatasetName.parse(name)
    wanted = _checked(settings(options), inherit)
    with opened(dataset_name) as pool:
        dataset, root = _changeable(pool, dataset_name)
        present = _Present(pool, locations, load_first)
        if inherit:
            _inherit(pool, dataset, root, present, wanted)
        else:
            _renew(pool, dataset, root, present, wanted)
    if sys.stderr.isatty():
        way = f"zkeep key sheet {dataset_name}"
        click.echo(f"recovery sheets from before are void; print a new one: {way}", err=True)


def _checked(wanted: dict[str, str], inherit: bool) -> dict[str, str]:
    """Check the properties, and return their values as they are stored."""
    for name in wanted:
        if inherit and ":" not in name:
            raise WrongUsage("Only user properties may be set with 'zkeep change-key -i'")
        if name not in OF_KEYS and ":" not in name:
            raise WrongUsage(f"change-key sets {', '.join(OF_KEYS)} and user properties, not {shown(name)}")
    return {name: text if name in OF_KEYS else check(name, text)[1] for name, text in wanted.items()}


def _changeable(pool: Pool, name: DatasetName) -> tuple[Dataset, Dataset]:
    """Find a dataset whose keys can be re-wrapped, and its encryption root."""
    dataset = pool.dataset(name)
    root = encryption_root(View(pool), dataset)
    if root is None:
        raise Refused(f"Key change error: '{name}' is not encrypted.")
    if dataset.origin:
        raise Refused(f"Key change error: '{name}' is a clone, which uses its origin's key.")
    return dataset, root


@dataclass
class _Present:
    """Finds the present wrapping keys."""

    pool: Pool
    locations: Sequence[str]
    load_first: bool

    def key(self, root: Dataset) -> bytes:
        """Find the key of an encryption root: named with -L, loaded, or loaded first with -l."""
        wrong: Refused | None = None
        # What was given with -L goes first, as it is meant for this call.
        for location in self.locations:
            try:
                return opening_key(self.pool, root, location)
            except Refused as error:
                wrong = error
        if (loaded := _loaded_key(self.pool, root)) is not None:
            return loaded
        if wrong is not None:
            raise wrong
        # As zfs does, ask for a key only with -l.
        if not self.load_first:
            way = "zkeep load-key it, or say -l, or -L file:///path"
            raise Refused(f"Key change error: Key of '{root.name}' must be loaded: {way}.")
        key = opening_key(self.pool, root, None)
        client.load(self.pool.doc["guid"], root.id, key)
        return key


def _loaded_key(pool: Pool, root: Dataset) -> bytes | None:
    from zkeep.crypto.unwrap import WrappedKeys, WrongKey, key_that_opens

    with client.borrowed() as loaded:
        for record in records_of(pool, root) if loaded else ():
            with suppress(WrongKey):
                return bytes(key_that_opens(loaded, WrappedKeys.of(record.fields)))
    return None


@dataclass(frozen=True)
class _Wrapping:
    """A wrapping key (32 bytes), and how a user's key becomes it."""

    key: bytes
    keyformat: int
    iterations: int
    salt: int


def _renew(pool: Pool, dataset: Dataset, root: Dataset, present: _Present, wanted: dict[str, str]) -> None:
    """Re-wrap with a new key of the dataset's own."""
    new = _NewKey.of(dataset, wanted, is_root=dataset == root)
    members = _unwrapped(pool, dataset, root, present.key(root))
    wrapping = new.wrapping(records_of(pool, root)[0])
    user = {name: text for name, text in wanted.items() if ":" in name}
    guid = pool.doc["guid"]
    _rewrap(pool, dataset, members, wrapping, {"keylocation": new.location, **user}, own=True)
    with _afterwards(pool, f"the key of {dataset.name} is changed, but the new one is not loaded"):
        if root.id in client.roots(guid):
            client.load(guid, dataset.id, wrapping.key)


def _inherit(pool: Pool, dataset: Dataset, root: Dataset, present: _Present, wanted: dict[str, str]) -> None:
    """Re-wrap with the parent's key. Both keys are needed: one to unwrap, one to wrap."""
    if dataset != root:
        raise Refused(f"Key change error: '{dataset.name}' inherits from '{root.name}' as it is.")
    # The key of the nearest encryption root above is the one to wrap with.
    above = dataset.name.parent and pool.dataset(dataset.name.parent)
    above_root = encryption_root(View(pool), above) if above else None
    if above_root is None:
        raise Refused(f"Key change error: the parent of '{dataset.name}' is not encrypted.")
    # Unwrap with the old key first: a wrong one must fail before anything is changed.
    members = _unwrapped(pool, dataset, root, present.key(root))
    wrapping = _wrapping_of(pool, above_root, present.key(above_root))
    guid = pool.doc["guid"]
    _rewrap(pool, dataset, members, wrapping, wanted, own=False)
    with _afterwards(pool, f"{dataset.name} inherits its parent's key, but its old one stays loaded"):
        # The old key opens nothing any more: let the agent forget it.
        client.unload(guid, dataset.id)


@contextmanager
def _afterwards(pool: Pool, done: str) -> Iterator[None]:
    """The keys are changed: what fails inside is only a warning."""
    try:
        yield
    except (ZkeepError, OSError) as error:
        pool.warn(f"{done}: {error}")


def _wrapping_of(pool: Pool, root: Dataset, key: bytes) -> _Wrapping:
    """Find the wrapping parameters of a root, given the key that opens it."""
    from zkeep.crypto.unwrap import WrappedKeys, WrongKey, unwrap

    for record in records_of(pool, root):
        try:
            wrapped = WrappedKeys.of(record.fields)
            unwrap(wrapped, key)
            return _Wrapping(key, wrapped.keyformat, wrapped.iterations, wrapped.salt)
        except WrongKey:
            continue
    raise Refused(f"Key change error: the key does not open '{root.name}'.")


Member = tuple[Dataset, "MasterKeys | None"]


def _unwrapped(pool: Pool, dataset: Dataset, root: Dataset, key: bytes) -> list[Member]:
    """Unwrap the keys of a dataset, and of those below it and clones of them with the same encryption root."""
    view = View(pool)
    every = [d for d in keyrecords.heirs_of(pool, dataset) if d.doc.get("crypt") and encryption_root(view, d) == root]
    return [(each, _opened_keys(pool, each, key)) for each in every]


def _opened_keys(pool: Pool, dataset: Dataset, key: bytes) -> MasterKeys | None:
    """Unwrap the newest keys of a dataset; None if it has no key record yet."""
    from zkeep.snapshot.keys import first_opened

    records = list(keyrecords.distinct(keyrecords.of_dataset(pool, dataset)))
    if not records:
        return None
    found = first_opened(records, lambda _: key, records[0].guid)
    if found is None:
        raise Refused(f"Key change error: the key of the root does not open '{dataset.name}'.")
    return found


def _rewrap(
    pool: Pool, dataset: Dataset, members: list[Member], wrapping: _Wrapping, local: dict[str, str], *, own: bool
) -> None:
    """Put the new key records, and what the dataset's document then says, in one transaction."""
    from zkeep.crypto.unwrap import wrap

    with pool.transaction() as t:
        for member, keys in members:
            if keys is not None:
                wrapped = wrap(keys, wrapping.key, wrapping.keyformat, wrapping.iterations, wrapping.salt)
                keyrecords.add(pool, t, member, wrapped.fields())
        fresh = pool.dataset(dataset.name)
        before = {name: text for name, text in fresh.doc["local"].items() if name != "keylocation"}
        pool.update_dataset(t, fresh, local={**before, **local}, own_key=own)


@dataclass(frozen=True)
class _NewKey:
    """What the user asked for the new key to be."""

    keyformat: str
    location: str
    iterations: int
    dataset: str

    @classmethod
    def of(cls, dataset: Dataset, wanted: dict[str, str], *, is_root: bool) -> _NewKey:
        """A root keeps what is not given; a dataset that becomes one must give its keyformat."""
        # A root keeps its format where none is given.
        now = next((text for text, code in CODES.items() if code == dataset.doc["crypt"]["keyformat"]), "none")
        keyformat = wanted.get("keyformat", now if is_root else "")
        if not keyformat:
            raise Refused("Key change error: Keyformat required for new encryption root.")
        if keyformat not in ("raw", "hex", "passphrase"):
            raise WrongUsage(f"keyformat is raw, hex or passphrase, not {shown(keyformat)}")
        iterations = wanted.get("pbkdf2iters", str(DEFAULT_ITERATIONS))
        if "pbkdf2iters" in wanted and keyformat != "passphrase":
            raise WrongUsage("Cannot specify pbkdf2iters with a non-passphrase keyformat.")
        try:
            # Too few rounds make a passphrase easy to guess, too many keep the owner out.
            rounds = whole_number(iterations, MAX_ITERATIONS, least=MIN_ITERATIONS)
        except ValueError:
            most = f"from {MIN_ITERATIONS} to {MAX_ITERATIONS}"
            raise WrongUsage(f"pbkdf2iters is a number {most}, not {shown(iterations)}") from None
        location = wanted.get("keylocation") or (key_location(dataset) if is_root else "prompt")
        return cls(keyformat, location, rounds, dataset.name.text)

    def wrapping(self, record: KeyRecord) -> _Wrapping:
        """Ask for the key, and build its wrapping. `record`: a key record of the same dataset."""
        from zkeep.crypto.unwrap import WrappedKeys, from_material

        is_passphrase = self.keyformat == "passphrase"
        salt = int.from_bytes(os.urandom(8), "little") if is_passphrase else 0
        iterations = self.iterations if is_passphrase else 0
        code = CODES[self.keyformat]
        like = replace(WrappedKeys.of(record.fields), keyformat=code, iterations=iterations, salt=salt)
        return _Wrapping(from_material(self._material(code), like), code, iterations, salt)

    def _material(self, code: int) -> bytes:
        if self.location != "prompt":
            return read_key(self.location)
        if not sys.stdin.isatty():
            return piped(code)
        if self.keyformat == "raw":
            raise Refused("a raw key cannot be typed: name a file with -o keylocation=file:///path")
        return typed(code, self.dataset, again=True)
