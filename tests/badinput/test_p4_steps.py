"""P4: a package may call its snapshots steps; who may only add destroys nothing by that."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from badkit import Box, forged, stream
from packagekit import Entry, package

from zkeep.errors import TryAgain
from zkeep.format.events import Event, SubEnd
from zkeep.format.reader import read_events
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive_events
from zkeep.pool.transfer.steps import RECEIVED_STEP

FULL, NEXT, AFTER = (stream("rs512b", name) for name in ("full-s0", "inc-s0-s1", "inc-s1-s2"))
OTHER = stream("rs1k", "full-s0")
CLIENT = ["--append-only"]


def made(data: bytes, name: str, guid: int) -> bytes:
    """The same stream as a snapshot of another name and guid."""

    def change(records: list) -> None:  # type: ignore[type-arg]
        records[0].put("toname", name.encode())
        for record in records:
            record.put("toguid", guid)

    return forged(data, change)


def step(data: bytes, guid: int, top: str = "t") -> bytes:
    """A package of one step."""
    name = f"step-{guid:016x}"
    return package(f"{top}@{name}", [Entry(top, {name: guid})], [made(data, f"{top}@{name}", guid)])


def names(box: Box, dataset: str) -> list[str]:
    return box.zkeep("list", "-H", "-o", "name", "-r", "-t", "all", dataset).out.split()


@pytest.fixture
def history(box: Box) -> Box:
    """v/c is a client's folder, with nothing of its own in it; v/c/data is what must not be lost."""
    assert box.zkeep("create", "v/c").status == 0
    box.takes(FULL, *CLIENT, "v/c/data@s0")
    box.takes(NEXT, *CLIENT, "v/c/data@s1")
    return box


def test_p4_what_lies_below_a_folder_outlives_steps_in_it(history: Box) -> None:
    box, below = history, ["v/c/data", "v/c/data@s0", "v/c/data@s1"]
    box.takes(step(OTHER, 0xAB), *CLIENT, "-F", "v/c")
    there = ["v/c", "v/c@step-00000000000000ab", *below]
    assert names(box, "v/c") == there
    # Streams that are refused, or bad, change nothing, with whichever letters.
    for letters in ([], ["-F"], ["-s"], ["-sF"]):
        box.refuses(AFTER, *CLIENT, *letters, "v/c@x")
    box.refuses(made(OTHER, "t@full", 0xCD), *CLIENT, "v/c@full", why="must specify -F")
    box.refuses(OTHER[: len(OTHER) // 2], *CLIENT, "-F", "v/c@full")
    # One that is whole replaces the step, and nothing else.
    box.takes(made(OTHER, "t@full", 0xCD), *CLIENT, "-F", "v/c@full")
    assert names(box, "v/c") == ["v/c", "v/c@full", *below]


def test_p4_what_was_received_below_a_dataset_of_steps_outlives_them(box: Box) -> None:
    box.takes(step(OTHER, 0xAB), *CLIENT, "v/c")
    box.takes(FULL, *CLIENT, "v/c/data@s0")
    assert box.zkeep("set", "quota=1G", "v/c").status == 0
    box.refuses(AFTER, *CLIENT, "v/c@x")
    # The dataset was made for the steps, so no -F is needed; what was set there stays.
    box.takes(made(OTHER, "t@full", 0xCD), *CLIENT, "v/c@full")
    assert names(box, "v/c") == ["v/c", "v/c@full", "v/c/data", "v/c/data@s0"]
    assert box.zkeep("get", "-H", "-o", "value", "quota", "v/c").out == "1G\n"
    with Pool.open(box.path, "v") as pool:
        assert RECEIVED_STEP not in pool.snapshots(pool.dataset(DatasetName("v/c")))[-1].doc


@pytest.mark.parametrize("letters", [[], ["-s"]], ids=["", "-s"])
def test_p4_a_step_goes_when_the_snapshot_in_its_place_is_there(box: Box, letters: list[str]) -> None:
    box.takes(FULL, *CLIENT, "v/d@s0")
    box.takes(step(NEXT, 0xAB), *CLIENT, "v/d")
    whole = made(NEXT, "t@s1", 0xCD)
    there = ["v/d", "v/d@s0", "v/d@step-00000000000000ab"]
    assert names(box, "v/d") == there
    broken = box.receive(whole[: len(whole) // 2], *CLIENT, *letters, "v/d@s1")
    assert broken.status == 1 if not letters else 5
    assert names(box, "v/d") == there
    box.takes(whole, *CLIENT, *letters, "v/d@s1")
    assert names(box, "v/d") == ["v/d", "v/d@s0", "v/d@s1"]
    assert box.state()


def test_p4_what_is_held_or_is_no_step_is_in_the_way(box: Box) -> None:
    box.takes(FULL, *CLIENT, "v/d@s0")
    box.takes(NEXT, *CLIENT, "v/d@s1")
    box.takes(step(made(AFTER, "t@s2", 0xAA), 0xAB), *CLIENT, "v/d")
    # A stream that goes back to before a snapshot that is none.
    box.refuses(made(NEXT, "t@x", 0xCD), *CLIENT, "-F", "v/d@x", why="@s1): permission denied")
    box.refuses(made(NEXT, "t@x", 0xCD), "v/d@x", why="roll back with -F")
    assert box.zkeep("hold", "keep", "v/d@step-00000000000000ab").status == 0
    box.refuses(made(AFTER, "t@s2", 0xCD), *CLIENT, "v/d@s2", why="is held (keep)")
    assert box.zkeep("release", "keep", "v/d@step-00000000000000ab").status == 0
    box.takes(made(AFTER, "t@s2", 0xCD), *CLIENT, "v/d@s2")
    assert names(box, "v/d") == ["v/d", "v/d@s0", "v/d@s1", "v/d@s2"]


def test_p4_what_is_made_behind_a_step_meanwhile_stays(box: Box) -> None:
    box.takes(FULL, *CLIENT, "v/d@s0")
    box.takes(step(NEXT, 0xAB), *CLIENT, "v/d")

    def events(other: Pool) -> Iterator[Event]:
        for event in read_events(io.BytesIO(made(NEXT, "t@s1", 0xCD))):
            if isinstance(event, SubEnd):
                dataset = other.dataset(DatasetName("v/d"))
                with other.transaction() as t:
                    other.add_snapshot(t, dataset, "mine", t.next_txg(), 0xEF)
            yield event

    with Pool.open(box.path, "v") as pool, Pool.open(box.path, "v") as other:
        with pytest.raises(TryAgain, match="v/d@mine was made meanwhile"):
            receive_events(pool, events(other), "v/d@s1", ReceiveOptions(append_only=True))
        assert names(box, "v/d") == ["v/d", "v/d@s0", "v/d@step-00000000000000ab", "v/d@mine"]
