"""P4: a server that lies to zkeep backup and restore: one clean line, and nothing here is lost or written."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from backupkit import Done, Laptop
from zkeep.backup import fetch
from zkeep.format.records import Feature
from zkeep.pool.transfer.token import Token

RUNS = int(os.environ.get("ZKEEP_RUNS", "6"))
"How many lies are told; a long run has 300."
DEST = "ssh://box/vault/me"
ANSWER = """case "$line" in *" list "*|*" send "*) cat {folder}/lie; exit {status} ;; esac
"""
NAMES = ("vault/me", "vault/me@x", "vault/me#b", "vault/you@x", "vault/me/../x", "\x1b[2J", "")
KINDS = ("filesystem", "volume", "snapshot", "bookmark", "pool", "\x1b]0;x\x07")


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Laptop:
    """A machine with two backups on a server."""
    made = Laptop(tmp_path, monkeypatch, capfd, "receive,list,send")
    monkeypatch.setattr(fetch, "PAUSES", (0.0,))
    monkeypatch.setattr(fetch, "TRIES", 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for content in (b"one", b"two"):
        (made.source / "a").write_bytes(content)
        assert made.backup().status == 0
    return made


def lie(chance: random.Random, guids: list[int]) -> bytes:
    """A listing as nobody should believe it: of the backup's five columns, or of anything."""
    numbers = [*map(str, [*guids, 0, -1, 1 << 64, 1 << 9000, chance.getrandbits(64)]), "\u0663", "1e3", ""]
    rows = []
    for _ in range(chance.choice([0, 1, 3, 3, 2000])):
        cells = [chance.choice(NAMES), chance.choice(numbers), chance.choice(numbers), chance.choice(KINDS)]
        cells.append(chance.choice(["-", "", token(chance, guids), "1-0-0-" + "f" * 99]))
        rows.append("\t".join(cells[: chance.choice([5, 5, 5, 4])]))
    whole = "\n".join([f"vault/me\t7\t1\tfilesystem\t{token(chance, guids)}", *rows]).encode("utf-8", "surrogateescape")
    return whole + chance.choice([b"", b"\n", b"\xff", chance.randbytes(400), b"\0" * 5000])


def token(chance: random.Random, guids: list[int]) -> str:
    """One that is well made, and asks for what it should not."""
    numbers = [chance.choice([0, 1, 1 << 63, chance.getrandbits(64)]) for _ in range(3)]
    features = chance.choice([Feature.RAW, Feature(0), Feature.RAW | Feature.COMPRESSED])
    made = Token("vault/me@x", chance.choice([*guids, 5]), *numbers, chance.choice([*guids, 0, 5]), features)
    return replace(made, toname=chance.choice(["vault/me@x", "-oProxyCommand=x", "a/b@\x1b[2J"])).encode()


def test_p4_lies_get_one_clean_line(laptop: Laptop) -> None:
    guids = [int(guid) for guid in laptop.snapshots()]
    look = ("list", "-H", "-p", "-r", "-t", "all", "-o", "name,guid", "local")
    here = laptop.run(*look).out
    (laptop.source / "a").write_bytes(b"three")
    for seed in range(RUNS):
        chance = random.Random(seed)
        (laptop.folder / "lie").write_bytes(lie(chance, guids))
        status = chance.choice([0, 0, 0, 1, 5, 255])
        (laptop.folder / "answer").write_text(ANSWER.format(folder=laptop.folder, status=status))
        for words in ((), ("-n",)):
            refused(laptop.backup(*words), seed)
        refused(laptop.run("restore", DEST, "-L", f"file://{laptop.key}", "-C", "new"), seed)
        assert not list(Path("new").rglob("*"))
    # What the next increment needs is still here, and once the server is honest it goes on.
    assert set(here.splitlines()) <= set(laptop.run(*look).out.splitlines())
    (laptop.folder / "answer").unlink()
    assert laptop.backup().status == 0
    assert laptop.files() == {"a": b"three"}


def refused(done: Done, seed: int) -> None:
    """Not done, in lines that steer no terminal, and for a reason that was thought of."""
    assert done.status in (1, 4, 5), (seed, done)
    assert "unexpected" not in done.err, seed
    assert all(line.isprintable() and len(line) < 1500 for line in done.err.splitlines()), (seed, done.err)
