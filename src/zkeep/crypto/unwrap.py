"""Wrapped keys: how a passphrase or a key file opens the keys of a dataset.

The wrapping key always has 32 bytes. It encrypts (wraps), with the dataset's own suite, two random keys: the master
key, from which every block's key derives, and the HMAC key. change-key changes the wrapping, never the keys inside.

    passphrase --PBKDF2--> wrapping key --unwrap--> master key --HKDF--> block keys
    or key file                                     HMAC key

Source: OpenZFS module/zfs/dsl_crypt.c dsl_crypto_populate_key_nvlist(); module/os/linux/zfs/zio_crypt.c
zio_crypt_key_unwrap(); lib/libzfs/libzfs_crypto.c derive_key().
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

from zkeep.crypto.pages import lock_pages
from zkeep.errors import Damaged, Refused
from zkeep.format.nvlist import NvList, NvType
from zkeep.names import MAX_UINT64

WRAPPING_KEY = 32
HMAC_KEY = 64
MAX_ITERATIONS = 10_000_000
"More rounds than this nobody chooses: the number comes from a stream, where nothing authenticates it."
MAX_WASTED = 3 * MAX_ITERATIONS
"Rounds spent on key records that a passphrase does not open: a sender can make any number of such records."
MIN_PASSPHRASE, MAX_PASSPHRASE = 8, 512


class KeyFormat(IntEnum):
    """zfs_keyformat."""

    NONE = 0
    RAW = 1
    HEX = 2
    PASSPHRASE = 3


@dataclass(frozen=True, slots=True)
class Suite:
    """An encryption suite: cipher, key size and mode."""

    name: str
    key_bytes: int
    ccm: bool

    def aead(self, key: bytes | bytearray) -> tuple[Any, type[Exception]]:
        """A cipher, and what it raises when a MAC does not match."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM

        return (AESCCM(key, tag_length=16) if self.ccm else AESGCM(key)), InvalidTag


SUITES = {
    3: Suite("aes-128-ccm", 16, True),
    4: Suite("aes-192-ccm", 24, True),
    5: Suite("aes-256-ccm", 32, True),
    6: Suite("aes-128-gcm", 16, False),
    7: Suite("aes-192-gcm", 24, False),
    8: Suite("aes-256-gcm", 32, False),
}


class WrongKey(Refused):
    """The key does not unwrap a key record, or the record was forged: nothing tells the two apart."""


class TooManyRounds(WrongKey):
    """The key was not tried, because that would take too long."""


@dataclass(frozen=True, slots=True)
class WrappedKeys:
    """The wrapped keys in a stream's key record, and how their wrapping key is made."""

    suite: int
    guid: int
    version: int
    master: bytes
    hmac: bytes
    iv: bytes
    mac: bytes
    keyformat: int
    iterations: int
    salt: int

    @classmethod
    def of(cls, crypt: NvList) -> WrappedKeys:
        """Read crypt_keydata.

        Raises:
            Damaged: something is missing or has another size; naming what.
        """
        suite = _number(crypt, "DSL_CRYPTO_SUITE")
        if suite not in SUITES:
            raise Damaged(f"the key record names suite {suite}, which there is not")
        version = _number(crypt, "DSL_CRYPTO_VERSION")
        if version != 1:
            raise Damaged(f"the key record is of version {version}")
        # The field of the master key always has 32 bytes; a suite with shorter keys uses the first of them.
        return cls(
            suite=suite,
            guid=_number(crypt, "DSL_CRYPTO_GUID"),
            version=version,
            master=_bytes(crypt, "DSL_CRYPTO_MASTER_KEY_1", 32)[: SUITES[suite].key_bytes],
            hmac=_bytes(crypt, "DSL_CRYPTO_HMAC_KEY_1", HMAC_KEY),
            iv=_bytes(crypt, "DSL_CRYPTO_IV", 12),
            mac=_bytes(crypt, "DSL_CRYPTO_MAC", 16),
            keyformat=_number(crypt, "keyformat"),
            iterations=_number(crypt, "pbkdf2iters"),
            salt=_number(crypt, "pbkdf2salt"),
        )


    def fields(self) -> NvList:
        """The fields as crypt_keydata has them; that of the master key always has 32 bytes."""
        numbers = {
            "DSL_CRYPTO_SUITE": self.suite,
            "DSL_CRYPTO_GUID": self.guid,
            "DSL_CRYPTO_VERSION": self.version,
            "keyformat": self.keyformat,
            "pbkdf2iters": self.iterations,
            "pbkdf2salt": self.salt,
        }
        contents = {
            "DSL_CRYPTO_MASTER_KEY_1": self.master.ljust(32, b"\0"),
            "DSL_CRYPTO_HMAC_KEY_1": self.hmac,
            "DSL_CRYPTO_IV": self.iv,
            "DSL_CRYPTO_MAC": self.mac,
        }
        fields = NvList()
        for name, value in numbers.items():
            fields.set(name, value, NvType.UINT64)
        for name, content in contents.items():
            fields.set(name, content, NvType.UINT8_ARRAY)
        return fields


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """The unwrapped keys. They stay in memory, and repr() does not show them."""

    suite: int
    guid: int
    version: int
    master: bytes = field(repr=False)
    hmac: bytes = field(repr=False)


def _number(crypt: NvList, name: str) -> int:
    value = crypt.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_UINT64:
        raise Damaged(f"the key record has no {name}")
    return value


def _bytes(crypt: NvList, name: str, size: int) -> bytes:
    value = crypt.get(name)
    if not isinstance(value, bytes) or len(value) != size:
        raise Damaged(f"the key record has no {name} of {size} bytes")
    return value


GetKey = Callable[[WrappedKeys], bytes]
"Given a key record, the 32 bytes that should open it."


def from_material(material: bytes, wrapped: WrappedKeys) -> bytes:
    """The wrapping key of this key record, from the content of a key file or from what a person typed.

    Raises:
        WrongKey: it does not have the form that the key record's keyformat asks for.
    """
    if wrapped.keyformat == KeyFormat.RAW:
        if len(material) != WRAPPING_KEY:
            raise WrongKey(f"a raw key has {WRAPPING_KEY} bytes, not {len(material)}")
        return material
    line = material.split(b"\n", 1)[0].removesuffix(b"\r")
    if wrapped.keyformat == KeyFormat.HEX:
        return _hex(line)
    if wrapped.keyformat == KeyFormat.PASSPHRASE:
        return _passphrase(line, wrapped)
    raise Damaged(f"the key record has keyformat {wrapped.keyformat}, which there is not")


def _hex(line: bytes) -> bytes:
    try:
        key = bytes.fromhex(line.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != WRAPPING_KEY or len(line) != 2 * WRAPPING_KEY:
        raise WrongKey(f"a hex key has {2 * WRAPPING_KEY} hexadecimal digits")
    return key


def _passphrase(line: bytes, wrapped: WrappedKeys) -> bytes:
    if not MIN_PASSPHRASE <= len(line) <= MAX_PASSPHRASE:
        raise WrongKey(f"a passphrase has {MIN_PASSPHRASE} to {MAX_PASSPHRASE} bytes")
    if not 0 < wrapped.iterations <= MAX_ITERATIONS:
        most = f"at most {MAX_ITERATIONS} are done"
        raise TooManyRounds(f"the key record asks for {wrapped.iterations} rounds of PBKDF2; {most}")
    # The salt travels as a number, and is hashed as its 8 bytes in little-endian order.
    salt = wrapped.salt.to_bytes(8, "little")
    return hashlib.pbkdf2_hmac("sha1", line, salt, wrapped.iterations, WRAPPING_KEY)


def unwrap(wrapped: WrappedKeys, wrapping_key: bytes | bytearray) -> MasterKeys:
    """Unwrap the keys of a key record.

    Raises:
        WrongKey: its MAC does not verify under this key.
    """
    # One AEAD call opens both keys: ciphertext = master key | HMAC key, authenticated with guid, suite and version.
    aad = b"".join(word.to_bytes(8, "little") for word in (wrapped.guid, wrapped.suite, wrapped.version))
    aead, invalid = SUITES[wrapped.suite].aead(wrapping_key)
    try:
        both = aead.decrypt(wrapped.iv, wrapped.master + wrapped.hmac + wrapped.mac, aad)
    except invalid:
        raise WrongKey(f"the key is not that of key guid {wrapped.guid:#x}") from None
    master, hmac = both[:-HMAC_KEY], both[-HMAC_KEY:]
    for secret in (both, master, hmac):
        lock_pages(secret)
    return MasterKeys(wrapped.suite, wrapped.guid, wrapped.version, master, hmac)


def wrap(keys: MasterKeys, wrapping_key: bytes, keyformat: int, iterations: int = 0, salt: int = 0) -> WrappedKeys:
    """Wrap a dataset's keys with a wrapping key of 32 bytes; the other arguments say how a person's key becomes it."""
    aad = b"".join(word.to_bytes(8, "little") for word in (keys.guid, keys.suite, keys.version))
    aead, _ = SUITES[keys.suite].aead(wrapping_key)
    iv = os.urandom(12)
    wrapped = aead.encrypt(iv, keys.master + keys.hmac, aad)
    size = len(keys.master)
    return WrappedKeys(
        suite=keys.suite,
        guid=keys.guid,
        version=keys.version,
        master=wrapped[:size],
        hmac=wrapped[size : size + HMAC_KEY],
        iv=iv,
        mac=wrapped[size + HMAC_KEY :],
        keyformat=keyformat,
        iterations=iterations,
        salt=salt,
    )


Key = TypeVar("Key", bytes, bytearray)


def key_that_opens(keys: Iterable[Key], wrapped: WrappedKeys) -> Key:
    """Find the wrapping key, of several of 32 bytes each, that unwraps a key record.

    Raises:
        WrongKey: none does.
    """
    for key in keys:
        try:
            unwrap(wrapped, key)
            return key
        except WrongKey:
            continue
    raise WrongKey("no key is here that opens it")


class Materials:
    """Key files and passphrases. A call with a key record returns the wrapping key that unwraps it.

    The rounds of PBKDF2 are the sender's choice. So PBKDF2 runs once for each passphrase, salt and number of rounds,
    and the rounds that did not lead to a key are bounded, for all records together.
    """

    def __init__(self, materials: Iterable[bytes]) -> None:
        self.materials = list(materials)
        self.wasted = 0
        "Rounds of PBKDF2 after which a key record did not open."
        self._stretched: dict[tuple[bytes, int, int], bytes] = {}
        self._known: dict[WrappedKeys, bytes] = {}

    def __call__(self, wrapped: WrappedKeys) -> bytes:
        """Raises WrongKey: none of the materials opens it."""
        last: WrongKey = WrongKey("no key is here")
        for material in self.materials if wrapped not in self._known else ():
            try:
                # The first that opens the record is remembered for it.
                self._known[wrapped] = self._key(material, wrapped)
                break
            except WrongKey as error:
                last = error
        if wrapped not in self._known:
            raise last
        return self._known[wrapped]

    def _key(self, material: bytes, wrapped: WrappedKeys) -> bytes:
        if wrapped.keyformat != KeyFormat.PASSPHRASE:
            return self._opening(from_material(material, wrapped), wrapped)
        # PBKDF2 with these inputs was done before.
        inputs = (material, wrapped.salt, wrapped.iterations)
        if inputs in self._stretched:
            return self._opening(self._stretched[inputs], wrapped)
        if self.wasted + wrapped.iterations > MAX_WASTED * len(self.materials):
            raise TooManyRounds("its key records ask for too many rounds of PBKDF2; those beyond were not tried")
        # Count the rounds as wasted until the key has unwrapped the record.
        self._stretched[inputs] = from_material(material, wrapped)
        self.wasted += wrapped.iterations
        key = self._opening(self._stretched[inputs], wrapped)
        self.wasted -= wrapped.iterations
        return key

    @staticmethod
    def _opening(key: bytes, wrapped: WrappedKeys) -> bytes:
        unwrap(wrapped, key)
        return key


def first_that_opens(materials: Iterable[bytes]) -> Materials:
    """Find, when called, the key file or passphrase that unwraps a key record; each is tried once for each record.

    Raises (when asked):
        WrongKey: none does.
    """
    return Materials(materials)
