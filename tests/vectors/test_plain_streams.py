"""Encrypted snapshots sent without -w: the stream is the kernel's own, and what it brings is what the key showed."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from forgeries import put_together, taken_apart
from histories import DATA, histories, new_pool, take
from manifests import Case, cases, differences, received, snapshots, told
from test_open_vectors import seen, shown_volume

from zkeep.crypto.unwrap import GetKey, first_that_opens
from zkeep.errors import NotAuthentic, Refused
from zkeep.format import kernel
from zkeep.format.records import End, Feature, ObjectRange, RecordType
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.transfer.send import SendRequest, send
from zkeep.restore.plain.send import PlainSender
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem
from zkeep.tree.volume import Volume

WHERE = os.environ.get("ZKEEP_VECTORS", "")
CASES = [case for case in cases() if "plain" not in case.name and "nonraw" not in case.name]
HEX = b"6695e0ec2ce692e3104b48a2ef15f6382a0d242df417877f3c1d87e70443c6d8"
PASSPHRASE = b"correct horse 251701"
LARGE_DIGEST = "d35d653c3e379b5187948ee1f20bf71075afef839cd8f9fe9fadf52b99f80649"
"Of what the kernel's send -Lec gave for gcm256-gzip-1m@s4."
LEC = {"large": True, "compressed": True}
FORMS = ({}, {"large": True}, {"compressed": True}, LEC)


def sent(pool: Pool, snapshot: Snapshot, key: GetKey, **asked: Any) -> bytes:
    sink = io.BytesIO()
    send(pool, SendRequest(snapshot=str(snapshot.name), decrypting=lambda: PlainSender(key), **asked), sink)
    return sink.getvalue()


@dataclass
class Twin:
    """Raw streams, and the SHA-256 of the kernel's plain stream of the snapshot that they lead to."""

    name: str
    raw: list[Path | bytes]
    digest: str
    key: GetKey
    asked: dict[str, bool] = field(default_factory=lambda: LEC)

    def __str__(self) -> str:
        return self.name


def _shipped() -> Iterator[Twin]:
    (history,) = [one for one in histories(DATA / "histories") if one.name == "ccm256-off-4k"]
    plain = lzma.decompress((DATA / "decrypted" / "ccm256-off-4k.plainLec-s4.zfs.xz").read_bytes())
    digest, key = hashlib.sha256(plain).hexdigest(), first_that_opens([HEX])
    yield Twin("full", [history.stream((None, 4))], digest, key)
    yield Twin("composed", [history.stream(pair) for pair in history.chain], digest, key)
    large = DATA / "decrypted" / "gcm256-gzip-1m.full-s4.zfs"
    yield Twin("large", [large], LARGE_DIGEST, first_that_opens([PASSPHRASE]))


def _of_vectors(folder: Path) -> Iterator[Twin]:
    for path in sorted(folder.glob("chains/*.plainLec-s4.zfs")):
        name, digest = path.name.partition(".")[0], hashlib.sha256(path.read_bytes()).hexdigest()
        for case in CASES:
            if case.name in (f"{name}-composed", f"{name}.full-s4"):
                yield Twin(case.name, list(case.streams), digest, case.key)
    plain = folder / "variants" / "B-pass-nonraw.zfs"
    for case in CASES:
        if case.name == "B-pass-I" and plain.exists():
            yield Twin("pass", list(case.streams), hashlib.sha256(plain.read_bytes()).hexdigest(), case.key, {})


@pytest.mark.parametrize("twin", [*_shipped(), *(_of_vectors(Path(WHERE)) if WHERE else [])], ids=str)
def test_the_bytes_are_those_of_the_kernel(twin: Twin, tmp_path: Path) -> None:
    with new_pool(tmp_path) as pool:
        for stream in twin.raw:
            take(pool, stream if isinstance(stream, bytes) else stream.read_bytes(), force=True)
        newest = pool.snapshots(pool.dataset(DatasetName("v/x")))[-1]
        stream = sent(pool, newest, twin.key, received_name=True, **twin.asked)
        assert hashlib.sha256(stream).hexdigest() == twin.digest


# What is not authentic


@pytest.mark.parametrize("rtype", [RecordType.WRITE, RecordType.SPILL, RecordType.OBJECT, RecordType.OBJECT_RANGE])
def test_p5_what_is_forged_does_not_leave(rtype: RecordType, tmp_path: Path) -> None:
    """A server that changes one record and makes every checksum right again: the stream breaks off before it."""
    (history,) = [one for one in histories(DATA / "histories") if one.name == "ccm256-off-4k"]
    records = taken_apart(history.stream((None, 4)))
    forged = [record for record in records if record.type == rtype][-1]
    header = forged.header
    if isinstance(header, ObjectRange):
        forged.put(replace(header, mac=bytes(16)))
    else:
        forged.put(header, bytes([forged.payload[0] ^ 1]) + forged.payload[1:])
    with new_pool(tmp_path) as pool:
        take(pool, put_together(records))
        newest = pool.snapshots(pool.dataset(DatasetName("v/x")))[-1]
        sink = io.BytesIO()
        request = SendRequest(snapshot=str(newest.name), decrypting=lambda: PlainSender(first_that_opens([HEX])))
        with pytest.raises(NotAuthentic):
            send(pool, request, sink)
    assert End.RTYPE not in _types(sink.getvalue())
    assert End.RTYPE in _types(history.stream((None, 4)))


def _types(stream: bytes) -> set[int]:
    """The types of all whole records."""
    found: set[int] = set()
    at = -1
    stop = 0
    while stop > at:  # a walk ends behind each BEGIN and END
        at = stop
        walk = kernel.walk(stream, at, len(stream), False)
        found, stop = found | set(walk.types.tolist()), walk.stop
    return found


def test_a_client_of_a_server_gets_no_plain_stream(tmp_path: Path) -> None:
    """Even where the key is loaded for others."""
    (history,) = [one for one in histories(DATA / "histories") if one.name == "ccm256-off-4k"]
    with new_pool(tmp_path) as pool:
        take(pool, history.stream((None, 4)))
        newest = pool.snapshots(pool.dataset(DatasetName("v/x")))[-1]
        pool.scope = DatasetName("v/x")
        with pytest.raises(Refused, match="send it raw, with -w"):
            sent(pool, newest, first_that_opens([HEX]))


# What it brings


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_snapshot_arrives_plain(case: Case, tmp_path: Path) -> None:
    """Full and incremental, in a form by turns: in a pool without keys each snapshot is what the kernel showed."""
    (tmp_path / "plain").mkdir()
    with received(case, tmp_path) as pool, new_pool(tmp_path / "plain") as other:
        for number, found in pool.all_snapshots().items():
            asked = FORMS[(number + len(case.name)) % len(FORMS)]
            before: Snapshot | None = None
            for snapshot in found:
                since = f"@{before.doc['name']}" if before else None
                take(other, sent(pool, snapshot, case.key, from_=since, **asked), f"v/{number}")
                before = snapshot
        expected = snapshots(other, case)
        assert len(expected) == len(snapshots(pool, case)) > 0
        for snapshot, want in expected:
            assert not Feature(snapshot.doc["features"]) & Feature.RAW
            with OpenSnapshot(other, snapshot) as opened:
                if opened.is_volume:
                    assert shown_volume(Volume(opened)) == (int(want["volsize"]), want["sha256"])
                else:
                    assert differences(seen(Filesystem(opened)), told(want["files"])) == []
