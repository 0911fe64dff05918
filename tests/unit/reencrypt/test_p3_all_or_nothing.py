"""P3 and P4 for plain streams that become encrypted: whatever breaks off leaves nothing half and nothing in clear.

The streams are real ones, cut and mutated.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reencryptkit import KEY, Intake, Keys, encrypted_pool, take
from zkeep.crypto.unwrap import first_that_opens
from zkeep.errors import Interrupted, Refused, ZkeepError
from zkeep.format.nvlist import NvList, encode
from zkeep.format.records import Feature, RecordType
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.token import Token
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot

sys.path += [str(Path(__file__).parents[2] / "fuzz"), str(Path(__file__).parents[2] / "badinput")]
from badkit import stamped, taken_apart
from fuzz_reader import mutate

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
FULL, NEXT = ((STORY / f"plain-blanc-{year}.zfs").read_bytes() for year in (2018, 2019))
HERE = DatasetName.parse("v/enc/ds")
STEP = 4 << 10
MARKS = (b"jambons", b"ledger.csv", b"scan.raw")
"Names in the folders of the streams."


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with encrypted_pool(tmp_path / "pool") as made:
        yield made


def state(pool: Pool) -> dict[str, list[str]]:
    """Snapshots by dataset."""
    every = {d.name.text: d for d in pool.tree().by_id.values()}
    return {name: [str(s.doc["name"]) for s in pool.snapshots(d)] for name, d in every.items()}


def segments(pool: Pool) -> list[str]:
    named = {s for _, doc in pool.catalog.scan("run") for s in doc["segments"]}
    files = [n for n in pool.store.names("segments") if n.rpartition("/")[2].removesuffix(".seg") not in named]
    return files + pool.store.drafts() + os.listdir(pool.path / "tmp")


def in_clear(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file() and any(mark in path.read_bytes() for mark in MARKS)]
    return [path for path in found if path.name != "stream"]


def test_the_marks_are_in_the_stream_and_not_in_the_pool(pool: Pool) -> None:
    assert all(mark in FULL for mark in MARKS[:2])
    take(pool, FULL, step=STEP)
    assert not in_clear(pool.path)


@pytest.mark.parametrize("step", [1 << 40, STEP])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.98])
def test_p3_a_stream_that_breaks_off_leaves_nothing(pool: Pool, part: float, step: int) -> None:
    empty = state(pool)
    with pytest.raises(ZkeepError):
        take(pool, FULL[: int(len(FULL) * part)], step=step)
    assert (state(pool), segments(pool), in_clear(pool.path)) == (empty, [], [])
    take(pool, FULL, step=step)
    full = state(pool)
    assert full["v/enc/ds"] == ["2018"]
    with pytest.raises(ZkeepError):
        take(pool, NEXT[: int(len(NEXT) * part)], step=step)
    assert (state(pool), segments(pool)) == (full, [])
    take(pool, NEXT, step=step)
    assert state(pool)["v/enc/ds"] == ["2018", "2019"]


class Killed:
    """Kills the process when so many bytes were read."""

    def __init__(self, content: bytes, limit: int) -> None:
        self.content, self.limit, self.at = content, limit, 0

    def readinto(self, buffer: memoryview) -> int:
        if self.at >= self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        size = min(len(buffer), 4096, len(self.content) - self.at)
        buffer[:size] = self.content[self.at : self.at + size]
        self.at += size
        return size


@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
def test_p3_a_receive_that_was_killed_leaves_nothing_in_clear_and_the_next_one_does_it(pool: Pool, part: float) -> None:
    for content, want in ((FULL, ["2018"]), (NEXT, ["2018", "2019"])):
        child = os.fork()
        if not child:
            with Pool.open(pool.path) as mine:
                options = ReceiveOptions(intake=Intake(Keys(), STEP))
                receive(mine, Killed(content, int(len(content) * part)), HERE.text, options)  # type: ignore[arg-type]
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert not in_clear(pool.path)
        with Pool.open(pool.path) as again:
            take(again, content, step=STEP)
            assert state(again)["v/enc/ds"] == want
            compact(again)
            for snapshot in again.snapshots(again.dataset(HERE)):
                with OpenSnapshot(again, snapshot, first_that_opens([KEY])) as opened:
                    verify(opened)


@pytest.mark.parametrize("seed", range(60))
def test_p4_a_mutated_stream_is_refused_in_one_line_or_becomes_authentic(pool: Pool, seed: int) -> None:
    """Full ones, and increments onto the real full one."""
    dice = random.Random(seed)
    content = FULL
    if seed % 2:
        take(pool, FULL)
        content = NEXT
    before = state(pool)
    why = ""
    try:
        take(pool, mutate(content, dice), step=STEP if seed % 3 == 0 else 1 << 40)
    except ZkeepError as error:
        why = str(error)
    assert "\n" not in why
    if why and state(pool) == before:
        assert segments(pool) == []
        return
    # Its END was verified before the rest of the package turned out to be broken, or all of it is legal.
    for dataset in pool.tree().within(pool.dataset(DatasetName.parse("v/enc"))):
        for snapshot in pool.snapshots(dataset):
            assert "step" not in snapshot.doc
            with OpenSnapshot(pool, snapshot, first_that_opens([KEY])) as opened:
                verify(opened)




def substream(content: bytes) -> bytes:
    """The one substream of a package, as a stream of its own."""
    records = taken_apart(content)
    first = 2 if records[1].rtype == RecordType.END else 0
    last = next(i for i, record in enumerate(records) if i > first and record.rtype == RecordType.END)
    return stamped(records[first : last + 1])


def rest_of(content: bytes, pool: Pool) -> bytes:
    """What `zfs send -t` sends: from the OBJECT on in which the receive stopped, without its blocks before that."""
    dataset = pool.dataset(HERE)
    token = Token.decode(str(View(pool).get(dataset, "receive_resume_token").value))
    records = taken_apart(content)
    begin = records[0]
    features = int(begin.get().versioninfo) >> 2 | int(Feature.RESUMING)  # type: ignore[attr-defined]
    begin.put("versioninfo", 1 | features << 2)
    nvlist = NvList()
    nvlist.set("resume_object", token.object)
    nvlist.set("resume_offset", token.offset)
    begin.payload = encode(nvlist)
    begin.put("payloadlen", len(begin.payload))
    kept, number = [begin], 0
    for record in records[1:]:
        fields = record.get()
        number = getattr(fields, "object", number) or getattr(fields, "firstobj", number)
        before = record.rtype in (RecordType.WRITE, RecordType.FREE) and fields.offset < token.offset  # type: ignore[attr-defined]
        if record.rtype != RecordType.END and (number < token.object or (number == token.object and before)):
            continue
        kept.append(record)
    return stamped(kept)


@pytest.mark.parametrize("step", [1 << 40, STEP])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.8, 0.97])
def test_p3_a_resumable_receive_goes_on_where_it_was(pool: Pool, part: float, step: int) -> None:
    full, following = substream(FULL), substream(NEXT)
    for content, names in ((full, ["2018"]), (following, ["2018", "2019"])):
        with pytest.raises(Interrupted, match="cannot receive") as interrupted:
            take(pool, content[: int(len(content) * part)], step=step, resumable=True)
        assert any("zfs send -t 1-" in line for line in interrupted.value.advice)
        assert not in_clear(pool.path)
        # Another stream is refused, and so is the same one without -s.
        with pytest.raises(Refused, match="partially-complete state"):
            take(pool, content, step=step)
        take(pool, rest_of(content, pool), step=step)
        assert state(pool)["v/enc/ds"] == names
        assert View(pool).get(pool.dataset(HERE), "receive_resume_token").value is None
        with encrypted_pool(pool.path.parent / f"other-{len(names)}") as other:
            for each in (full, following)[: len(names)]:
                take(other, each)
            assert contents(pool) == contents(other)


def contents(pool: Pool) -> dict[int, tuple[bytes, bytes | None, list[tuple[int, bytes]]]]:
    """Bonus, spill and blocks of all objects of the newest snapshot, whose MACs are verified."""
    snapshot = pool.snapshots(pool.dataset(HERE))[-1]
    with OpenSnapshot(pool, snapshot, first_that_opens([KEY])) as opened:
        verify(opened)
        numbers = [number for index in opened.numbers() for number in opened.dnodes(index)]
        return {
            number: (
                opened.bonus(number).content,
                opened.spill_of(number),
                [(offset, bytes(content)) for offset, content in opened.data(number, 0, 1 << 40)],
            )
            for number in numbers
        }


def test_p3_what_is_kept_is_given_up_or_replaced_by_the_same_stream(pool: Pool) -> None:
    full = substream(FULL)
    for _ in range(2):
        with pytest.raises(Interrupted):
            take(pool, full[: len(full) // 2], resumable=True)
    intake = Intake(Keys())
    assert intake.gives_up(pool, HERE)
    assert pool.find(HERE) is None
    assert segments(pool) == []
    with pytest.raises(Interrupted):
        take(pool, full[: len(full) // 2], resumable=True)
    take(pool, full, resumable=True)
    assert state(pool)["v/enc/ds"] == ["2018"]
