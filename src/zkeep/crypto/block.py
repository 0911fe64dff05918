"""Opening blocks: the key of each, its seal, and the HMAC of those that lie open.

Source: OpenZFS module/os/linux/zfs/zio_crypt.c zio_do_crypt_data(), zio_crypt_do_hmac(); module/icp/algs/.
"""

from __future__ import annotations

import hmac
from threading import Lock
from typing import TYPE_CHECKING, Any

from zkeep.cache import Cache
from zkeep.crypto.unwrap import SUITES, MasterKeys

if TYPE_CHECKING:
    from hmac import HMAC

Buffer = bytes | bytearray | memoryview
MAC = 16
CACHED_KEYS = 1024
"Salts change every 400 million blocks, and with deduplication with every block."


class Forged(Exception):
    """A MAC does not match. Whoever knows which block it was tells the person."""


def expand(master: bytes, salt: bytes) -> bytes:
    """HKDF-SHA512 without a salt of its own, a block's salt as info, for a key as long as the master key."""
    prk = hmac.digest(bytes(64), master, "sha512")
    return hmac.digest(prk, salt + b"\x01", "sha512")[: len(master)]


class BlockKeys:
    """Opens the blocks of one dataset. May be used by several threads."""

    def __init__(self, keys: MasterKeys) -> None:
        self.guid = keys.guid
        self._suite = SUITES[keys.suite]
        self._master = keys.master
        self._hmac = hmac.new(keys.hmac, digestmod="sha512")
        self._aeads: Cache[bytes, Any] = Cache(CACHED_KEYS)
        self._invalid: type[Exception] = Exception
        self._lock = Lock()

    def aead(self, salt: bytes) -> Any:
        """The cipher of all blocks with this salt."""
        with self._lock:
            found = self._aeads.get(salt)
        if found is None:
            found, self._invalid = self._suite.aead(expand(self._master, salt))
            with self._lock:
                self._aeads.put(salt, found)
        return found

    def open(self, salt: bytes, iv: bytes, mac: bytes, sealed: Buffer, aad: bytes | None = None) -> bytes:
        """Decrypt one block; no byte of it is released before its MAC verified.

        The result is still compressed and as long as the ciphertext.

        Raises:
            Forged: the MAC does not match.
        """
        aead = self.aead(salt)
        try:
            opened: bytes = aead.decrypt(iv, b"".join((sealed, mac)), aad)
        except (self._invalid, ValueError, OverflowError):
            raise Forged from None
        return opened

    def open_into(self, salt: bytes, iv: bytes, sealed_and_mac: Buffer, out: Buffer) -> None:
        """The same from one buffer, that ends with the MAC, to another, which is void unless this returns."""
        aead = self.aead(salt)
        try:
            aead.decrypt_into(iv, sealed_and_mac, None, out)
        except (self._invalid, ValueError, OverflowError):
            raise Forged from None

    def encrypt(self, salt: bytes, iv: bytes, plain: Buffer, aad: bytes | None = None) -> bytes:
        """Encrypt one block: the ciphertext, as long as `plain`, and the MAC behind it.

        `iv`: 12 random bytes, never used twice with one salt.
        """
        made: bytes = self.aead(salt).encrypt(iv, plain, aad)
        return made

    def encrypt_into(self, salt: bytes, iv: bytes, plain: Buffer, out: Buffer) -> None:
        """The same to a buffer that has room for the MAC behind the ciphertext."""
        self.aead(salt).encrypt_into(iv, plain, None, out)

    def authenticate(self, mac: bytes, content: Buffer) -> None:
        """Check a block of a type that is not encrypted, as it is stored.

        Raises:
            Forged: its HMAC does not match.
        """
        if not hmac.compare_digest(self.digest(content)[:MAC], mac):
            raise Forged

    def digest(self, *parts: Buffer) -> bytes:
        """HMAC-SHA512 with the dataset's key."""
        state: HMAC = self._hmac.copy()
        for part in parts:
            state.update(part)
        return state.digest()
