"""Encryption of blocks: the key of each, AEAD with its MAC, and the HMAC of blocks whose type is not encrypted.

    block key = HKDF-SHA512(master key, info = the block's salt)
    ciphertext and MAC = AES-GCM or AES-CCM (the dataset's suite) with the block key and the block's IV

Blocks are encrypted after compression. Those of a type that is not encrypted are authenticated: HMAC-SHA512 with the
dataset's HMAC key, cut to 16 bytes.

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
    """A MAC does not match. Callers know which block it was, and turn it into an error that says so."""


def expand(master: bytes, salt: bytes) -> bytes:
    """A block's key, as long as the master key: HKDF-SHA512 with the block's salt as info (and no HKDF salt)."""
    # HKDF: extract with a salt of zeros, then one round of expand, which gives 64 bytes.
    prk = hmac.digest(bytes(64), master, "sha512")
    return hmac.digest(prk, salt + b"\x01", "sha512")[: len(master)]


class BlockKeys:
    """Encrypts and decrypts the blocks of one dataset. May be used by several threads."""

    def __init__(self, keys: MasterKeys) -> None:
        self.guid = keys.guid
        self._suite = SUITES[keys.suite]
        self._master = keys.master
        self._hmac = hmac.new(keys.hmac, digestmod="sha512")
        self._aeads: Cache[bytes, Any] = Cache(CACHED_KEYS)
        self._invalid: type[Exception] = Exception
        self._lock = Lock()
        self._newest: tuple[bytes, Any] = b"", None
        "The salt that was asked for last, and its cipher: mostly it is asked for again."

    def aead(self, salt: bytes) -> Any:
        """The cipher of all blocks with this salt."""
        newest = self._newest
        if newest[0] == salt:
            return newest[1]
        # Deriving the key happens outside the lock: two threads may do it at once, with the same result.
        with self._lock:
            found = self._aeads.get(salt)
        if found is None:
            found, self._invalid = self._suite.aead(expand(self._master, salt))
            with self._lock:
                self._aeads.put(salt, found)
        self._newest = salt, found
        return found

    def decrypt(self, salt: bytes, iv: bytes, mac: bytes, ciphertext: Buffer, aad: bytes | None = None) -> bytes:
        """Decrypt one block; no byte of it is returned before its MAC verified.

        The result is still compressed and as long as the ciphertext.

        Raises:
            Forged: the MAC does not match.
        """
        aead = self.aead(salt)
        try:
            plain: bytes = aead.decrypt(iv, b"".join((ciphertext, mac)), aad)
        except (self._invalid, ValueError, OverflowError):
            raise Forged from None
        return plain

    def decrypt_into(self, salt: bytes, iv: bytes, ciphertext_and_mac: Buffer, out: Buffer) -> None:
        """Decrypt from one buffer, which ends with the MAC, into another. `out` must not be used unless this returns.

        Raises:
            Forged: the MAC does not match.
        """
        aead = self.aead(salt)
        try:
            aead.decrypt_into(iv, ciphertext_and_mac, None, out)
        except (self._invalid, ValueError, OverflowError):
            raise Forged from None

    def encrypt(self, salt: bytes, iv: bytes, plain: Buffer, aad: bytes | None = None) -> bytes:
        """Encrypt one block: the ciphertext, as long as `plain`, and the MAC behind it.

        `iv`: 12 random bytes, never used twice with one salt.
        """
        made: bytes = self.aead(salt).encrypt(iv, plain, aad)
        return made

    def encrypt_into(self, salt: bytes, iv: bytes, plain: Buffer, out: Buffer) -> None:
        """Encrypt into a buffer that has room for the MAC behind the ciphertext."""
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
