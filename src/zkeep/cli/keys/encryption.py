"""Options of zkeep create that make a dataset encrypted: what is asked for, its key, its master key.

Source: OpenZFS lib/libzfs/libzfs_crypto.c zfs_crypto_create(), proplist_has_encryption_props();
module/zfs/dsl_crypt.c dmu_objset_create_crypt_check().
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zkeep.agent import client
from zkeep.cli.common.open_snapshot import piped, read_key, typed
from zkeep.errors import Refused, WrongUsage
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets import keyrecords, naming
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.model import Dataset, Pool, new_guid
from zkeep.pool.datasets.view import View
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.types import Doc

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import MasterKeys, WrappedKeys

SUITES = {
    "on": 8,
    "aes-128-ccm": 3,
    "aes-192-ccm": 4,
    "aes-256-ccm": 5,
    "aes-128-gcm": 6,
    "aes-192-gcm": 7,
    "aes-256-gcm": 8,
}
FORMATS = {"raw": 1, "hex": 2, "passphrase": 3}
OPTIONS = ("encryption", "keyformat", "keylocation", "pbkdf2iters")
DEFAULT_ITERATIONS, MIN_ITERATIONS, MAX_ITERATIONS = 350_000, 100_000, 10_000_000


@dataclass(frozen=True)
class NewKeys:
    """A new dataset's wrapped master key, and what its document says of it."""

    wrapped: WrappedKeys
    fields: Doc
    wrapping_key: bytes
    is_root: bool

    def put(self, pool: Pool, t: Transaction, dataset: Dataset) -> None:
        """Add the key record to a dataset that is being created in this transaction."""
        keyrecords.add(pool, t, dataset, self.wrapped.fields())


def split(options: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The options that concern encryption, and the others."""
    asked = {name: text for name, text in options.items() if name in OPTIONS}
    return asked, {name: text for name, text in options.items() if name not in OPTIONS}


def new_keys(pool: Pool, name: DatasetName, asked: dict[str, str]) -> NewKeys | None:
    """Make a master key for a new dataset and wrap it; None: it is not encrypted.

    Raises:
        Refused, WrongUsage: the options contradict one another or the parent, or the key is not to be had.
    """
    where = f"cannot create '{name}'"
    root = _root_above(pool, name)
    encryption = asked.get("encryption")
    if encryption is not None and encryption not in {"off", *SUITES}:
        raise Refused(f"{where}: 'encryption' must be one of 'on | off | {' | '.join(list(SUITES)[1:])}'")
    if root is not None and root.doc["received_name"] is not None and asked in ({}, {"encryption": "off"}):
        # Below what was received, and whose key may never be here, it is a place to receive into, as any other.
        return None
    # Below an encrypted dataset all is encrypted.
    if encryption == "off" and root is not None:
        raise Refused(f"{where}: Invalid encryption value. Dataset must be encrypted.")
    others = [option for option in OPTIONS[1:] if option in asked]
    # Nothing asks for encryption: other options of it would be forgotten silently.
    if encryption in (None, "off") and root is None:
        if others:
            raise Refused(f"{where}: encryption must be on to set {others[0]}: add -o encryption=on")
        return None
    # The cipher: the one that is named, else the parent's.
    suite = SUITES[encryption or "on"] if encryption or root is None else _suite_of(root)
    if "keyformat" not in asked:
        if root is None:
            raise Refused(f"{where}: Keyformat required for new encryption root: add -o keyformat=raw|hex|passphrase")
        if others:
            raise Refused(f"{where}: Keyformat required for new encryption root, to set {others[0]}")
        return _inherited(pool, root, suite, where)
    return _own(asked, suite, name)


def ancestor_of(pool: Pool) -> Callable[[Transaction, DatasetName], None]:
    """What makes a missing ancestor: below an encrypted dataset that was made here, an encrypted dataset as well.

    Elsewhere it is an empty place, which nothing but datasets can lie in.
    """

    def make(t: Transaction, name: DatasetName) -> None:
        keys = new_keys(pool, name, {})
        fields = {**keys.fields, naming.FIELD: naming.chosen(pool, name, {})} if keys else {}
        made = pool.create_dataset(t, name, **fields)
        if keys is not None:
            keys.put(pool, t, made)

    return make


def keys_below(pool: Pool, name: DatasetName, asked: dict[str, str], known: Sequence[bytes]) -> NewKeys:
    """The keys of a dataset that is received in clear and must be encrypted: it inherits unless it gets its own.

    `known`: wrapping keys that need not be loaded.

    Raises:
        Refused, WrongUsage: the options contradict one another or the dataset above, or its key is not to be had.
    """
    where = f"cannot receive {name}"
    encryption = asked.get("encryption", "on")
    if encryption not in SUITES:
        raise Refused(f"{where}: 'encryption' must be one of 'on | {' | '.join(list(SUITES)[1:])}'")
    # With a key format of its own it becomes an encryption root.
    if "keyformat" in asked:
        return _own({"keylocation": "prompt", **asked}, SUITES[encryption], name)
    # Otherwise it inherits its parent's wrapping key.
    root = _root_above(pool, name)
    if root is None:
        raise Refused(f"{where}: Keyformat required for new encryption root: add -o keyformat=raw|hex|passphrase")
    if others := [option for option in OPTIONS[1:] if option in asked]:
        raise Refused(f"{where}: Keyformat required for new encryption root, to set {others[0]}")
    suite = SUITES[encryption] if "encryption" in asked else _suite_of(root)
    return _inherited(pool, root, suite, where, known)


def loaded_key_of(pool: Pool, dataset: Dataset, where: str) -> bytes:
    """The wrapping key of an encrypted dataset. Raises Refused: it is not loaded."""
    from zkeep.crypto.unwrap import WrappedKeys

    for record in keyrecords.distinct(keyrecords.of_dataset(pool, dataset)):
        found = _loaded_key(WrappedKeys.of(record.fields), ())
        if found is not None:
            return found
    root = encryption_root(View(pool), dataset) or dataset
    raise Refused(f"{where}: the key of '{root.name}' is not loaded: zkeep load-key {root.name}")


def _root_above(pool: Pool, name: DatasetName) -> Dataset | None:
    """The encryption root of the nearest dataset above that is encrypted."""
    above = name.parent
    while above is not None:
        found = pool.find(above)
        if found is not None and (root := encryption_root(View(pool), found)) is not None:
            return root
        above = above.parent
    return None


def _suite_of(root: Dataset) -> int:
    return int(root.doc["crypt"]["suite"])


def _own(asked: dict[str, str], suite: int, name: DatasetName) -> NewKeys:
    """A key of its own: the dataset becomes an encryption root."""
    keyformat = asked["keyformat"]
    if keyformat not in FORMATS:
        raise WrongUsage(f"keyformat is raw, hex or passphrase, not {shown(keyformat)}")
    iterations = asked.get("pbkdf2iters")
    if iterations is not None and keyformat != "passphrase":
        raise WrongUsage("Cannot specify pbkdf2iters with a non-passphrase keyformat.")
    rounds = _iterations(iterations) if keyformat == "passphrase" else 0
    location = asked.get("keylocation", "prompt")
    return own_keys(_material(location, keyformat, FORMATS[keyformat], name), keyformat, location, suite, rounds)


def own_keys(material: bytes, keyformat: str, location: str, suite: int = SUITES["on"], rounds: int = 0) -> NewKeys:
    """A fresh master key, wrapped by the key that `material` is (of a key file, or typed)."""
    from zkeep.crypto.unwrap import WrappedKeys, from_material, wrap

    code, salt = FORMATS[keyformat], new_guid() if keyformat == "passphrase" else 0
    keys = _fresh(suite)
    shape = WrappedKeys(suite, keys.guid, 1, b"", b"", b"", b"", code, rounds, salt)
    key = from_material(material, shape)
    wrapped = wrap(keys, key, code, rounds, salt)
    return NewKeys(wrapped, {"crypt": _crypt(wrapped), "encroot": True, "local": {"keylocation": location}}, key, True)


def _inherited(pool: Pool, root: Dataset, suite: int, where: str, known: Sequence[bytes] = ()) -> NewKeys:
    """A master key of its own, wrapped by the encryption root's wrapping key."""
    from zkeep.crypto.unwrap import WrappedKeys, wrap

    for record in keyrecords.distinct(keyrecords.of_dataset(pool, root)):
        like = WrappedKeys.of(record.fields)
        found = _loaded_key(like, known)
        if found is not None:
            key = found
            wrapped = wrap(_fresh(suite), key, like.keyformat, like.iterations, like.salt)
            return NewKeys(wrapped, {"crypt": _crypt(wrapped), "encroot": False}, key, False)
    raise Refused(f"{where}: the key of '{root.name}', which it inherits, is not loaded: zkeep load-key {root.name}")


def _loaded_key(wrapped: WrappedKeys, known: Sequence[bytes]) -> bytes | None:
    """The wrapping key that opens a key record: one of these, or a loaded one."""
    from zkeep.crypto.unwrap import WrongKey, key_that_opens

    with suppress(WrongKey):
        return key_that_opens(known, wrapped)
    try:
        with client.borrowed() as loaded:
            return bytes(key_that_opens(loaded, wrapped))
    except WrongKey:
        return None


def _fresh(suite: int) -> MasterKeys:
    from zkeep.crypto.unwrap import SUITES as CIPHERS
    from zkeep.crypto.unwrap import MasterKeys

    return MasterKeys(suite, new_guid(), 1, os.urandom(CIPHERS[suite].key_bytes), os.urandom(64))


def _crypt(wrapped: WrappedKeys) -> Doc:
    return {
        "suite": wrapped.suite,
        "guid": wrapped.guid,
        "version": wrapped.version,
        "keyformat": wrapped.keyformat,
        "pbkdf2iters": wrapped.iterations,
    }


def _iterations(text: str | None) -> int:
    if text is None:
        return DEFAULT_ITERATIONS
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not MIN_ITERATIONS <= int(text) <= MAX_ITERATIONS:
        raise WrongUsage(f"pbkdf2iters is a number from {MIN_ITERATIONS} to {MAX_ITERATIONS}, not {shown(text)}")
    return int(text)


def _material(location: str, keyformat: str, code: int, name: DatasetName) -> bytes:
    if location != "prompt":
        return read_key(location)
    if not sys.stdin.isatty():
        return piped(code)
    if keyformat == "raw":
        raise Refused("a raw key cannot be typed: name a file with -o keylocation=file:///path")
    return typed(code, name.text, again=True)
