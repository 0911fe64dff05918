"""P1: what a plain stream has in clear is nowhere below the pool's folder, whatever way it goes in, and however it
ends: whole, mutated, cut, resumed, killed at any moment.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from badkit import DATA, stamped, taken_apart
from packagekit import Entry, package

from reencryptkit import Intake, Keys, encrypted_pool
from zkeep.errors import Refused, ZkeepError
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import RecordType
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.reencrypt.outgoing import StepSender

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
from fuzz_reader import mutate

MARK = b"\xfbin clear, alas\xfb"
MARKED = (RecordType.WRITE, RecordType.SPILL, RecordType.OBJECT)
STEP = 4 << 10
HERE = "v/enc/ds"


def marked(year: str) -> bytes:
    """A stream with the mark in every block, spill block and bonus buffer; a package becomes its one substream."""
    records = taken_apart((DATA / "opened" / "story" / f"plain-blanc-{year}.zfs").read_bytes())
    records = records[2:-1] if records[1].rtype == RecordType.END else records
    for record in records:
        # OpenZFS encrypts all but the master node, which has the numbers of objects.
        kind = getattr(record.get(), "type", 0)
        if record.rtype in MARKED and len(record.payload) > 96 and kind != ObjectType.MASTER_NODE:
            at = len(record.payload) - 64
            record.payload = record.payload[:at] + MARK + record.payload[at + len(MARK) :]
    return stamped(records)


FULL, NEXT = marked("2018"), marked("2019")


def found(pool: Pool) -> list[Path]:
    """Files with the mark, drafts, spool and index among them; an open file that has no name any more is none."""
    return [path for path in pool.path.rglob("*") if path.is_file() and MARK in path.read_bytes()]


class Root(Keys):
    makes_root = True


Way = Callable[[Pool, io.BytesIO], None]


def inherits(pool: Pool, source: io.BytesIO) -> None:
    receive(pool, source, HERE, ReceiveOptions(intake=Intake(Keys(), STEP)))


def has_a_key_of_its_own(pool: Pool, source: io.BytesIO) -> None:
    receive(pool, source, "v/root", ReceiveOptions(intake=Intake(Root(), STEP)))


def can_be_resumed(pool: Pool, source: io.BytesIO) -> None:
    receive(pool, source, HERE, ReceiveOptions(intake=Intake(Keys(), STEP), resumable=True))


def is_a_dry_run(pool: Pool, source: io.BytesIO) -> None:
    receive(pool, source, HERE, ReceiveOptions(intake=Intake(Keys(), STEP), dry_run=True))


def leaves_in_steps(pool: Pool, source: io.BytesIO) -> None:
    """A stream as zkeep encrypt sends it: what leaves has no mark either."""
    out = io.BytesIO()
    sender = StepSender(out.write, lambda: True, lambda: False)
    try:
        receive(pool, source, HERE, ReceiveOptions(intake=Intake(Keys(), STEP, sender)))
    finally:
        assert MARK not in out.getvalue()


WAYS: list[Way] = [inherits, has_a_key_of_its_own, can_be_resumed, is_a_dry_run, leaves_in_steps]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with encrypted_pool(tmp_path / "pool") as made:
        yield made


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_p1_the_mark_is_nowhere(pool: Pool, way: Way) -> None:
    assert FULL.count(MARK) >= 15
    for content in (FULL, NEXT):
        if way is not is_a_dry_run or content is FULL:
            way(pool, io.BytesIO(content))
        assert not found(pool)


@pytest.mark.parametrize("seed", range(16))
def test_p1_the_mark_of_a_mutated_stream_is_nowhere(pool: Pool, seed: int) -> None:
    """One line, and the dataset is what it was, or has a snapshot more."""
    dice = random.Random(seed)
    way = WAYS[seed % len(WAYS)]
    content = FULL
    if dice.random() < 0.5 and way is not is_a_dry_run:
        way(pool, io.BytesIO(FULL))
        content = NEXT
    damaged, why = mutate(content, dice), ""
    try:
        way(pool, io.BytesIO(damaged[: dice.choice([len(damaged), dice.randrange(len(damaged))])]))
    except ZkeepError as error:
        why = str(error)
    assert "\n" not in why
    assert not found(pool)


class Killed(io.BytesIO):
    """Kills the process that reads it when it has read so many bytes."""

    limit = 0

    def readinto(self, buffer: object) -> int:
        if self.tell() >= self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().readinto(memoryview(buffer)[:2048])  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_p1_the_mark_is_nowhere_after_a_kill(pool: Pool, seed: int) -> None:
    dice = random.Random(seed)
    way = (inherits, can_be_resumed, leaves_in_steps)[seed % 3]
    if seed >= 3:
        way(pool, io.BytesIO(FULL))
    child = os.fork()
    if not child:
        with Pool.open(pool.path) as mine, suppress(BaseException):
            source = Killed(NEXT if seed >= 3 else FULL)
            source.limit = dice.randrange(4096, len(NEXT))
            way(mine, source)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not found(pool)
    with Pool.open(pool.path) as again:
        way(again, io.BytesIO(NEXT if seed >= 3 else FULL))
        assert not found(again)
        snapshots = again.snapshots(again.dataset(DatasetName.parse(HERE)))
        assert [s.doc["name"] for s in snapshots] == (["2018", "2019"] if seed >= 3 else ["2018"])


def test_p1_a_raw_increment_does_not_follow_a_plain_stream_in_its_package(pool: Pool) -> None:
    raw = taken_apart((DATA / "streams" / "inc-w.zfs").read_bytes())
    full = taken_apart(FULL)
    full[0].put("toname", b"t/a@2018")
    guid = int(full[0].get().toguid)  # type: ignore[attr-defined]
    raw[0].put("fromguid", guid)
    raw[0].put("toname", b"t/a@z")
    entries = [Entry("t/a", {"2018": guid, "z": 78})]
    stream = package("t/a@z", entries, [stamped(full), stamped(raw)])
    with pytest.raises(Refused) as refused:
        receive(pool, io.BytesIO(stream), HERE, ReceiveOptions(intake=Intake(Keys(), STEP)))
    assert "\n" not in str(refused.value)
    assert not found(pool)


@pytest.mark.parametrize("name", ["step-0000000000000000", "2018"])
def test_p1_a_snapshot_that_calls_itself_a_step_is_none(pool: Pool, name: str) -> None:
    """Only one whose name has its guid, in a package, goes when the next is there; a plain stream has none."""
    records = taken_apart(FULL)
    records[0].put("toname", f"t/a@{name}".encode())
    guid = int(records[0].get().toguid)  # type: ignore[attr-defined]
    for content in (stamped(records), NEXT):
        inherits(pool, io.BytesIO(content))
    snapshots = pool.snapshots(pool.dataset(DatasetName.parse(HERE)))
    assert [s.doc["name"] for s in snapshots] == [name, "2019"]
    assert snapshots[0].guid == guid


@pytest.mark.parametrize("field", ["type", "bonustype"])
@pytest.mark.parametrize("kind", [2, 21, 36, 0x83, 0xC4])
def test_p1_types_that_are_not_encrypted_bring_nothing_in_clear(pool: Pool, field: str, kind: int) -> None:
    """A file that says it is of a type that OpenZFS only authenticates. (A master node may be so.)"""
    records = taken_apart(FULL)
    for record in records:
        if record.rtype == RecordType.OBJECT and record.get().type == ObjectType.PLAIN_FILE:  # type: ignore[attr-defined]
            record.put(field, kind)
    with pytest.raises(ZkeepError) as refused:
        inherits(pool, io.BytesIO(stamped(records)))
    assert "\n" not in str(refused.value)
    assert not found(pool)
