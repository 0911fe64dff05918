"""Pools that encrypt plain streams, without the command line and its agent."""

from __future__ import annotations

import io
import os
from pathlib import Path

from zkeep.crypto.unwrap import SUITES, GetKey, MasterKeys, first_that_opens, wrap
from zkeep.names import DatasetName
from zkeep.pool.datasets import keyrecords
from zkeep.pool.datasets.model import Dataset, Pool, new_guid
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.send import SendRequest, send
from zkeep.reencrypt.receive import ReceiveKeys, Reencryption

KEY = bytes(range(32))
GCM = 8


class Keys:
    """One wrapping key for all datasets. `loaded`: whether it is there."""

    makes_root = False

    def __init__(self, suite: int = GCM) -> None:
        self.suite = suite
        self.get_key: GetKey = first_that_opens([KEY])

    def for_new(self, pool: Pool, name: DatasetName, *, top: bool) -> ReceiveKeys:
        keys = new_keys(self.suite)
        return ReceiveKeys(wrap(keys, KEY, 1), keys, {"crypt": crypt_of(keys), "encroot": False})

    def made(self, pool: Pool, dataset: Dataset) -> None:
        """Nothing: the key is loaded already."""


class Intake(Reencryption):
    """Encrypts whatever is plain and goes below an encrypted dataset."""

    refuses_raw = None


def new_keys(suite: int = GCM) -> MasterKeys:
    return MasterKeys(suite, new_guid(), 1, os.urandom(SUITES[suite].key_bytes), os.urandom(64))


def crypt_of(keys: MasterKeys) -> dict[str, int]:
    return {"suite": keys.suite, "guid": keys.guid, "version": 1, "keyformat": 1, "pbkdf2iters": 0}


def encrypted_pool(path: Path, suite: int = GCM, **local: str) -> Pool:
    """A pool `v` with an encrypted dataset v/enc, as zkeep create -o encryption makes it."""
    pool = Pool.create(path, "v")
    keys = new_keys(suite)
    with pool.transaction() as t:
        fields = {"crypt": crypt_of(keys), "encroot": True, "local": local}
        dataset = pool.create_dataset(t, DatasetName.parse("v/enc"), **fields)
        keyrecords.add(pool, t, dataset, wrap(keys, KEY, 1).fields())
    return pool


def take(pool: Pool, content: bytes, target: str = "v/enc/ds", step: int = 1 << 40, **options: object) -> Intake:
    """Receive a stream; what is plain becomes encrypted."""
    suite = pool.dataset(DatasetName.parse("v/enc")).doc["crypt"]["suite"]
    intake = Intake(Keys(suite), step)
    receive(pool, io.BytesIO(content), target, ReceiveOptions(intake=intake, **options))  # type: ignore[arg-type]
    return intake


def raw_stream(pool: Pool, snapshot: str, source: str | None = None) -> bytes:
    """What `zkeep send -w [-i SOURCE] SNAPSHOT` gives."""
    sink = io.BytesIO()
    send(pool, SendRequest(snapshot, raw=True, from_=source), sink)
    return sink.getvalue()
