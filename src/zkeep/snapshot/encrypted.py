"""Blocks as they are stored, compressed and encrypted; of large files also before the commit that stores them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from zkeep.crypto.block import MAC, BlockKeys
from zkeep.crypto.unwrap import MasterKeys
from zkeep.format.compress_writer import Compress

SALTED = 1 << 16
"Blocks after which another salt is taken, so that none has many IVs."
Buffer = bytes | bytearray | memoryview


class StoredBlock(NamedTuple):
    """What a WRITE record has of a block, and what the pointer to it has."""

    compression: int
    salt: bytes
    iv: bytes
    ciphertext: Buffer
    mac: bytes


Early = Future[StoredBlock | None]
"A block that is being encrypted; None: it holds zeros only, and becomes a hole."
BeginEarly = Callable[[Buffer], Early]


def encrypt(keys: BlockKeys, salt: bytes, compression: int, content: Buffer) -> StoredBlock:
    """Encrypt a block that was compressed so."""
    # IVs are random, and each block that is stored gets a new one: none is ever used twice under a salt.
    iv = os.urandom(12)
    made = bytearray(len(content) + MAC)
    keys.encrypt_into(salt, iv, content, made)
    return StoredBlock(compression, salt, iv, memoryview(made)[:-MAC], bytes(made[-MAC:]))


def is_zeros(content: Buffer) -> bool:
    view = memoryview(content)
    # Most blocks are known not to be zeros by their first bytes.
    if view[:64] != bytes(len(view[:64])):
        return False
    return not np.frombuffer(view, np.uint8).any()


class EarlyEncryption:
    """Encrypts blocks of files in a thread, while others are still being written."""

    def __init__(self, keys: MasterKeys, compress: Compress) -> None:
        self._keys = BlockKeys(keys)
        self.compress = compress
        self._salt = os.urandom(8)
        self._begun = 0
        # One thread: the other processors have the writer, and the kernel that copies what it writes.
        self._thread = ThreadPoolExecutor(1)

    def begin(self, content: Buffer) -> Early:
        """Begin to encrypt a block. If it is changed before the result is used, the result is of no use."""
        self._begun += 1
        if not self._begun % SALTED:
            self._salt = os.urandom(8)
        return self._thread.submit(partial(self._stored, self._salt, content))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _stored(self, salt: bytes, content: Buffer) -> StoredBlock | None:
        if is_zeros(content):
            return None
        packed, compression = self.compress(content)
        return encrypt(self._keys, salt, compression, packed)
