"""A sender's key records, each with ten million rounds of PBKDF2: the passphrase opens what it opened before."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.crypto.unwrap import MAX_ITERATIONS, MAX_WASTED, KeyFormat, MasterKeys, WrappedKeys, wrap
from zkeep.pool.datasets.begin import Opening, rewrapped
from zkeep.pool.datasets.keyrecords import by_work, distinct, of_dataset
from zkeep.pool.datasets.model import Pool

CHAIN = Path(__file__).parents[2] / "data" / "opened" / "chains"
NAME = "gcm128-zstd-16k"
FORGED = 30
Output = pytest.CaptureFixture[str]


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """v/d has s0 as it came, and forged snapshots after it; the location of its passphrase."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    with (CHAIN / f"{NAME}.full-s0.zfs").open("rb") as source:
        command = [sys.executable, "-m", "zkeep", "receive", "v/d"]
        assert subprocess.run(command, stdin=source, check=False).returncode == 0
    with Pool.open(tmp_path / "pool") as pool, pool.transaction() as t:
        dataset = next(d for d in pool.tree().by_id.values() if d.name.text.endswith("/d"))
        (first,) = pool.snapshots(dataset)
        opening = Opening.from_doc(pool.catalog.get("begin", first.key) or {})
        assert opening.crypt
        like = WrappedKeys.of(opening.crypt)
        for number in range(FORGED):
            keys = MasterKeys(like.suite, like.guid, 1, bytes(len(like.master)), bytes(64))
            forged = wrap(keys, os.urandom(32), KeyFormat.PASSPHRASE, MAX_ITERATIONS, number)
            doc = rewrapped(opening, replace(forged, suite=like.suite).fields()).doc()
            snapshot = replace(first, doc={**first.doc, "name": f"f{number}", "txg": first.txg + number + 1})
            t.put("snapshot", snapshot.key, snapshot.doc)
            t.put("begin", snapshot.key, doc)
    (tmp_path / "key").write_bytes(material())
    return f"file://{tmp_path}/key"


def material() -> bytes:
    manifest = json.loads(lzma.decompress((CHAIN / f"{NAME}.manifest.json.xz").read_bytes()))
    return bytes.fromhex(manifest["key"]["hex"])


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds that are done; those for forged records are only counted."""
    done: list[int] = []
    real = hashlib.pbkdf2_hmac

    def stretched(kind: str, line: bytes, salt: bytes, iterations: int, size: int) -> bytes:
        done.append(iterations)
        return real(kind, line, salt, iterations, size) if iterations < MAX_ITERATIONS else bytes(32)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", stretched)
    return done


@pytest.mark.parametrize(
    "words",
    [
        ["load-key", "-n", "v/d"],
        ["ls", "v/d@s0"],
        ["ls", f"v/d@f{FORGED - 1}"],
        ["verify", "v/d@s0"],
        ["diff", "v/d@s0", "@f3"],
        ["change-key", "-o", "pbkdf2iters=100000", "v/d"],
    ],
)
def test_p1_key_work_is_bounded_and_the_passphrase_opens(
    key: str, rounds: list[int], capfd: Output, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    (Path(key.removeprefix("file://")).with_name("new")).write_bytes(b"battery staple")
    new = ["-o", f"keylocation={key.removesuffix('key')}new"] if words[0] == "change-key" else []
    assert run([words[0], "-L", key, *new, *words[1:]]) == 0
    assert 0 < sum(rounds) <= MAX_WASTED
    assert rounds.count(min(rounds)) <= 2


def test_a_wrong_passphrase_ends_and_what_was_not_tried_is_said(
    key: str, rounds: list[int], capfd: Output, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_bytes(b"battery staple")
    capfd.readouterr()
    assert run(["load-key", "-L", f"file://{tmp_path}/wrong", "v/d"]) == 1
    assert "not tried" in capfd.readouterr().err
    assert sum(rounds) <= MAX_WASTED + 1_000_000


def test_the_newest_and_the_oldest_are_tried_before_the_many(key: str, tmp_path: Path) -> None:
    with Pool.open(tmp_path / "pool") as pool:
        dataset = next(d for d in pool.tree().by_id.values() if d.name.text.endswith("/d"))
        records = list(by_work(distinct(of_dataset(pool, dataset))))
    names = [record.snapshot.doc["name"] for record in records if record.snapshot]
    assert names[:2] == [f"f{FORGED - 1}", "s0"]
    assert len(names) == FORGED + 1
