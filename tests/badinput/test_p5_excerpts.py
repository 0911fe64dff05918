"""P5: whatever a keeper of backups sends as parts of a snapshot, what is restored of it is what was backed up."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from badkit import Record, names_of, stamped

from backupkit import ZKEEP, Laptop
from zkeep.backup import fetch, parts
from zkeep.backup.peer import Peer
from zkeep.errors import BadStream, TryAgain
from zkeep.format.excerpt import EXCERPT_MAGIC, ExcerptReader, frame_head
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import HEADER, RecordType
from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool
from zkeep.restore.wanted import expect_paths
from zkeep.snapshot.partial import PartialSnapshot
from zkeep.tree.filesystem import Filesystem

DEST = "ssh://box/vault/me"
LIES = int(os.environ.get("ZKEEP_LIES", "1"))
"""How many forgeries of each kind are tried; a long run has 100."""
WANTED = ["a", "large", "below", "more names"]


def taken_apart(data: bytes) -> list[Record]:
    at, found = len(EXCERPT_MAGIC), []
    while at < len(data):
        count = int.from_bytes(data[at : at + 4], "little")
        lengths = np.frombuffer(data, "<u4", count, at + 4).tolist()
        at += 4 + 4 * count
        for length in lengths:
            found.append(Record(bytearray(data[at : at + HEADER]), data[at + HEADER : at + length]))
            at += length
    return found


def put_together(records: list[Record]) -> bytes:
    """An excerpt with every checksum right, as a forger would send it."""
    content = stamped(records)
    lengths = np.array([HEADER + len(record.payload) for record in records])
    parts_of = [lengths[:1], *np.split(lengths[1:-1], range(1000, len(lengths) - 2, 1000)), lengths[-1:]]
    out, at = [EXCERPT_MAGIC], 0
    for some in parts_of:
        if len(some):
            out += [frame_head(some), content[at : at + int(some.sum())]]
            at += int(some.sum())
    return b"".join(out)


def body(records: list[Record], rtype: RecordType | None = None) -> list[int]:
    return [at for at in range(1, len(records) - 1) if rtype is None or records[at].rtype == rtype]


def drop(chance: random.Random, records: list[Record], old: list[Record]) -> None:
    if there := body(records):
        del records[chance.choice(there)]


def drop_all_of_a_kind(chance: random.Random, records: list[Record], old: list[Record]) -> None:
    kind = chance.choice([RecordType.WRITE, RecordType.OBJECT, RecordType.OBJECT_RANGE, RecordType.SPILL])
    for at in reversed(body(records, kind)):
        del records[at]


def swap_contents(chance: random.Random, records: list[Record], old: list[Record]) -> None:
    there = body(records, chance.choice([RecordType.WRITE, RecordType.OBJECT, RecordType.SPILL]))
    if len(there) > 1:
        one, other = chance.sample(there, 2)
        records[one].payload, records[other].payload = records[other].payload, records[one].payload


def swap_numbers(chance: random.Random, records: list[Record], old: list[Record]) -> None:
    """Two blocks, with salts, IVs and MACs, change places."""
    there = body(records, RecordType.WRITE)
    if len(there) > 1:
        one, other = chance.sample(there, 2)
        for name in ("object", "offset"):
            values = [int(getattr(records[at].get(), name)) for at in (one, other)]
            records[one].put(name, values[1])
            records[other].put(name, values[0])


def flip_a_bit(chance: random.Random, records: list[Record], old: list[Record]) -> None:
    if there := [at for at in body(records) if records[at].payload]:
        record = records[chance.choice(there)]
        payload = bytearray(record.payload)
        payload[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
        record.payload = bytes(payload)


def change_a_field(chance: random.Random, records: list[Record], old: list[Record]) -> None:
    if there := body(records):
        record = records[chance.choice(there)]
        name = chance.choice(names_of(record.rtype))
        value = getattr(record.get(), name, None)
        if isinstance(value, int):
            record.put(name, value ^ (1 << chance.randrange(8)))
        elif isinstance(value, bytes) and value:
            record.put(name, bytes([value[0] ^ 1]) + value[1:])


def leave_payloads_out(chance: random.Random, records: list[Record], old: list[Record]) -> None:
    for at in body(records, RecordType.WRITE):
        if chance.random() < 0.5:
            records[at].payload = b""


def older_ones(chance: random.Random, records: list[Record], old: list[Record]) -> None:
    """What the snapshot before had in the same places: authentic once, and not now."""
    kinds = [r for r in (RecordType.WRITE, RecordType.OBJECT, RecordType.OBJECT_RANGE) if chance.random() < 0.6]
    by_place = {place(record): record for record in old[1:-1]}
    for at in body(records):
        found = by_place.get(place(records[at]))
        if found is not None and records[at].rtype in kinds:
            guid = records[at].get().toguid if hasattr(records[at].get(), "toguid") else None
            records[at] = Record(bytearray(found.header), found.payload)
            if guid is not None:
                records[at].put("toguid", int(guid))


def place(record: Record) -> tuple[object, ...]:
    fields = record.get()
    return record.rtype, *(getattr(fields, name, None) for name in ("object", "offset", "firstobj"))


KINDS: list[Callable[[random.Random, list[Record], list[Record]], None]] = [
    *(drop, drop_all_of_a_kind, swap_contents, swap_numbers, flip_a_bit, change_a_field, leave_payloads_out),
    older_ones,
]


class Keeper:
    """The server's answers, told apart by what was asked, and changed where a test says so."""

    def __init__(self, laptop: Laptop) -> None:
        self._laptop = laptop
        self._known: dict[tuple[str, str, str], bytes] = {}
        self.change: Callable[[list[Record], list[Record]], None] | None = None
        self.asked: list[str] = []
        names = laptop.serve("list", "-H", "-o", "name", "-t", "snapshot", "-s", "createtxg", "vault/me").out.split()
        self.older, self.newest = names

    def answer(self, option: str, text: str, name: str) -> bytes:
        key = option, text, name
        if key not in self._known:
            words = [*ZKEEP, "send", "-w", option, text, name]
            env = {**os.environ, "ZKEEP_HOME": str(self._laptop.server)}
            self._known[key] = subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE).stdout
        return self._known[key]

    def sent(self, option: str, text: str) -> bytes:
        data = self.answer(option, text, self.newest)
        if self.change is None:
            return data
        records = taken_apart(data)
        self.change(records, taken_apart(self.answer(option, text, self.older)))
        return put_together(records)


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Keeper:
    laptop = Laptop(tmp_path, monkeypatch, capfd, "receive,list,send")
    monkeypatch.setattr(fetch, "PAUSES", (0.0,))
    monkeypatch.setattr(fetch, "TRIES", 1)
    chance = random.Random(3)
    (laptop.source / "large").write_bytes(chance.randbytes(300_000))
    (laptop.source / "below").mkdir()
    for number in range(30):
        (laptop.source / "below" / f"n{number}").write_bytes(chance.randbytes(900))
    os.link(laptop.source / "a", laptop.source / "more names")
    assert laptop.backup().status == 0
    with (laptop.source / "large").open("r+b") as file:
        file.write(chance.randbytes(200_000))
    for number in range(0, 30, 3):
        (laptop.source / "below" / f"n{number}").write_bytes(chance.randbytes(900))
    assert laptop.backup().status == 0
    made = Keeper(laptop)

    def once(self: parts.Parts, option: str, text: str, bound: int, receive: Callable[..., object]) -> object:
        reader = ExcerptReader(io.BytesIO(made.sent(option, text)), bound)
        try:
            return receive(reader.events()), None
        except (BadStream, TryAgain) as error:
            return None, str(error)

    monkeypatch.setattr(parts.Parts, "_once", once)
    return made


def restored(keeper: Keeper) -> tuple[int, str, dict[str, bytes]]:
    laptop, into = keeper._laptop, keeper._laptop.folder / "out"
    shutil.rmtree(into, ignore_errors=True)
    done = laptop.run("restore", "-L", laptop.key.as_uri(), "-C", str(into), DEST, *WANTED)
    assert "Traceback" not in done.err
    assert "ZKEEP_DEBUG" not in done.err, done.err
    files = {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}
    return done.status, done.err, files


def test_p5_what_is_restored_of_forged_parts_is_what_was_backed_up(keeper: Keeper) -> None:
    source = keeper._laptop.source
    true = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert restored(keeper) == (0, "", true)
    noticed = 0
    for kind in KINDS:
        for seed in range(LIES):
            chance = random.Random(f"{kind.__name__} {seed}")
            # One of the answers is forged, or each may be.
            nth, count = chance.choice([0, 1, 2, 3, None]), [0]

            def change(records: list[Record], old: list[Record], kind=kind, chance=chance, nth=nth, count=count) -> None:  # type: ignore[no-untyped-def] # noqa: E501
                if nth is None or nth == count[0]:
                    kind(chance, records, old)
                count[0] += 1

            keeper.change = change
            status, said, files = restored(keeper)
            assert files.items() <= true.items(), (kind.__name__, seed)
            assert status != 0 or files == true, (kind.__name__, seed)
            assert status in (0, 3, 4, 5) or "what came is" in said, (kind.__name__, seed, status, said)
            noticed += status != 0
    assert noticed >= LIES * len(KINDS) // 4


def test_p5_a_recovered_backup_has_all_but_the_contents_of_files(keeper: Keeper) -> None:
    """A folder without its blocks would pass as one whose contents are elsewhere, and no next snapshot follow it."""
    laptop = keeper._laptop
    shutil.rmtree(laptop.folder / "home")
    words = ("backup", "--recover", "-L", laptop.key.as_uri(), str(laptop.source), DEST)
    seen, held = set[int](), list[int]()

    def hold_back(records: list[Record], old: list[Record]) -> None:
        kinds = {int(records[at].get().object): int(records[at].get().type) for at in body(records, RecordType.OBJECT)}
        for at in body(records, RecordType.WRITE):
            kind = kinds[int(records[at].get().object)]
            if records[at].payload and kind not in seen:
                held.append(kind)
            if held and kind == held[0]:
                records[at].payload = b""

    keeper.change = hold_back
    while True:
        held.clear()
        done = laptop.run(*words)
        if not held:
            break
        assert (done.status, done.err.count("\n")) == (4, 1), (held, done.err)
        assert "lacks blocks" in done.err
        assert laptop.run("list", "-H", "-o", "name", "-r", "local").out.split() == ["local"]
        seen.add(held[0])
    assert ObjectType.DIRECTORY in seen
    assert ObjectType.MASTER_NODE in seen
    assert done.status == 0, done.err


@pytest.mark.parametrize("first", ["expect", "path", "dnode"])
def test_p5_what_did_not_come_as_the_line_broke_is_asked_for_again(keeper: Keeper, first: str) -> None:
    """It is told as such, and never as something that the keeper withholds, or as a path that is not there."""
    laptop = keeper._laptop
    name, guid = laptop.serve("list", "-H", "-p", "-o", "name,guid", keeper.newest).out.split()
    listed = fetch.Listed(SnapshotName.parse(name), int(guid), 0, 0, 1 << 20)
    broken = [True]

    def fails(records: list[Record], old: list[Record]) -> None:
        if broken:
            raise TryAgain("the connection broke")

    with Pool.create(laptop.folder / "scratch", "vault", {"blind": "off"}) as pool:
        some = parts.Parts(Peer("zkeep", None), listed, pool)
        snapshot = some.index()
        keeper.change = fails
        with PartialSnapshot(pool, snapshot, lambda wrapped: laptop.key.read_bytes(), some.blocks) as opened:
            tree = Filesystem(opened)
            for _ in range(2):
                with pytest.raises(TryAgain, match="broke"):
                    {
                        "expect": lambda: opened.expect([1]),
                        "path": lambda: expect_paths(opened, tree, [b"below/n1"]),
                        "dnode": lambda: opened.dnode(1),
                    }[first]()
            broken.clear()
            assert tree.lookup(b"below/n1").size == 900
