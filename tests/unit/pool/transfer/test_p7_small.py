"""P7: small snapshots of a package, with records, are received many in one transaction; what they promise stays."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from zkeep.errors import BadStream, Refused, TryAgain, ZkeepError
from zkeep.format.records import HEADER, Begin, Feature, HeaderType
from zkeep.format.writer import Writer
from zkeep.names import DatasetName
from zkeep.pool.datasets.destroy import lock_name
from zkeep.pool.datasets.history import history_of
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.store.disk import Disk
from zkeep.pool.store.journal import Journal, JournalPlace, Operation
from zkeep.pool.transfer import at_once
from zkeep.pool.transfer.receive import Arrival, ReceiveOptions, receive
from zkeep.pool.transfer.reserve import Charges
from zkeep.pool.transfer.send import SendRequest, send

sys.path.insert(0, str(Path(__file__).parents[4] / "bench"))
import scaling

DATA = DatasetName("b/data")
COUNT = 5


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "pool"
    with Pool.create(folder, "b") as pool:
        take(pool, scaling.small(0))
    return folder


@pytest.fixture
def pool(filled: Path, tmp_path: Path) -> Iterator[Pool]:
    with Pool.open(shutil.copytree(filled, tmp_path / "pool")) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, all that may go together does."""
    monkeypatch.setattr(at_once, "LONG", 60.0)


def take(pool: Pool, data: bytes, *, resumable: bool = False) -> None:
    receive(pool, io.BytesIO(data), "b/data", ReceiveOptions(resumable=resumable))


def names(pool: Pool) -> list[str]:
    return [str(s.doc["name"]) for s in pool.snapshots(pool.dataset(DATA))]


def upto(number: int) -> list[str]:
    return [f"s{n}" for n in range(number + 1)]


def sent(pool: Pool, number: int) -> bytes:
    """The stream that brought a snapshot, as it is sent again."""
    sink = io.BytesIO()
    from_ = f"@s{number - 1}" if number else None
    send(pool, SendRequest(f"b/data@s{number}", raw=True, from_=from_, received_name=True), sink)
    return sink.getvalue()


def parts(pool: Pool) -> list[str]:
    """The snapshots that partial receives keep, and the keys of what is reserved."""
    kept = [str(doc["snapshot"]) for _, doc in pool.catalog.scan("receive")]
    return kept + [key for key, _ in pool.catalog.scan("reserve")]


def files(pool: Pool) -> set[str]:
    return {name.rpartition("/")[2].removesuffix(".seg") for name in pool.store.names("segments")}


def named(pool: Pool) -> set[str]:
    return {each for run in history_of(pool, pool.dataset(DATA)).runs for each in run.segments}


def is_sound(pool: Pool) -> None:
    """Nothing is damaged, registered or left over."""
    assert parts(pool) == []
    assert files(pool) == named(pool)
    assert pool.store.drafts() == []
    assert scrub(pool).clean


@pytest.mark.parametrize("resumable", [True, False])
def test_p7_many_take_one_transaction(resumable: bool, pool: Pool) -> None:
    before = Journal(pool.store).end().number
    take(pool, scaling.many_small(1, COUNT), resumable=resumable)
    assert Journal(pool.store).end().number == before + 2  # the first allots txgs
    assert names(pool) == upto(COUNT)
    assert all(sent(pool, n) == scaling.small(n) for n in range(COUNT + 1))
    is_sound(pool)


def test_each_is_durable_when_it_is_told(pool: Pool, tmp_path: Path) -> None:
    """At each arrival the journal and the segments alone, in a copy, have the snapshot."""
    seen: list[list[str]] = []

    def look(arrival: Arrival) -> None:
        if arrival.bytes is None:
            return
        copy = shutil.copytree(tmp_path / "pool", tmp_path / f"copy{len(seen)}")
        for file in copy.glob("catalog.sqlite*"):
            file.unlink()
        with Pool.open(copy) as there:
            seen.append(names(there))
            assert files(there) == named(there)

    receive(pool, io.BytesIO(scaling.many_small(1, 3)), "b/data", ReceiveOptions(on_snapshot=look))
    assert seen == [upto(3), upto(3), upto(3)]


def test_a_line_that_breaks_keeps_the_whole_ones_and_the_part(pool: Pool) -> None:
    data = scaling.many_small(1, COUNT)
    with pytest.raises(ZkeepError):
        take(pool, data[: -2 * HEADER - 600], resumable=True)
    assert names(pool) == upto(COUNT - 1)
    assert f"s{COUNT}" in parts(pool)
    take(pool, data, resumable=True)
    assert names(pool) == upto(COUNT)
    is_sound(pool)


def test_a_record_that_is_damaged_is_refused_and_all_before_it_kept(pool: Pool) -> None:
    data = bytearray(scaling.many_small(1, COUNT))
    data[-2 * HEADER - 100] ^= 1
    with pytest.raises(BadStream):
        take(pool, bytes(data))
    assert names(pool) == upto(COUNT - 1)
    is_sound(pool)


def test_quota_is_checked_before_a_byte_is_written(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(DATA), local={"quota": "40000"})
    before, written = files(pool), 0
    really = Disk.write

    def counted(self: Disk, fd: int, offset: int, buffers: Sequence[bytes]) -> int:
        nonlocal written
        done = really(self, fd, offset, buffers)
        if "journal" not in os.readlink(f"/proc/self/fd/{fd}"):
            written += done
        return done

    monkeypatch.setattr(Disk, "write", counted)
    with pytest.raises(Refused, match="the quota is used up"):
        take(pool, scaling.many_small(1, COUNT))
    kept = len(names(pool)) - 1
    assert 0 < kept < COUNT
    assert len(files(pool) - before) == kept
    assert written < (kept + 1) * len(scaling.small(1))
    is_sound(pool)


@pytest.mark.parametrize("after", range(1, 8))
@pytest.mark.parametrize("at", ["open", "write", "sync", "link", "sync_folder"])
def test_a_disk_that_fails_once_leaves_nothing_behind(
    at: str, after: int, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, left = getattr(Disk, at), [after]
    take(pool, scaling.many_small(1, 1))

    def failing(self: Disk, *arguments: object) -> object:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.EIO, "the disk")
        return really(self, *arguments)

    monkeypatch.setattr(Disk, at, failing)
    with suppress(ZkeepError, OSError):
        take(pool, scaling.many_small(1, COUNT))  # mostly, another way does it
    assert names(pool) == upto(len(names(pool)) - 1)
    take(pool, scaling.many_small(1, COUNT))
    assert names(pool) == upto(COUNT)
    is_sound(pool)


def test_no_file_has_a_name_that_was_there_before(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between their files and their line in the journal: the next get other txgs, the files are swept."""
    append, left = Journal.append, [2]

    def killed(self: Journal, place: JournalPlace, operations: list[Operation]) -> JournalPlace:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return append(self, place, operations)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            take(pool, scaling.many_small(1, COUNT))
    orphans = files(pool) - named(pool)
    assert len(orphans) == COUNT
    take(pool, scaling.many_small(1, COUNT))
    assert not orphans & named(pool)
    compact(pool)
    assert names(pool) == upto(COUNT)
    is_sound(pool)


def test_a_txg_that_another_process_overtook_is_not_used(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two snapshots another process gets a txg: runs stay in the order of their txgs."""
    take_txg = Charges.take_txg

    def overtaken(self: Charges, t: Transaction) -> int | None:
        t.next_txg()
        return take_txg(self, t)

    monkeypatch.setattr(Charges, "take_txg", overtaken)
    take(pool, scaling.many_small(1, COUNT))
    txgs = [run.txg for run in history_of(pool, pool.dataset(DATA)).runs]
    assert txgs == sorted(set(txgs))
    assert names(pool) == upto(COUNT)
    is_sound(pool)


def test_a_txg_of_a_transaction_that_was_undone_is_nobodys(pool: Pool) -> None:
    charges = Charges(pool)

    def undone() -> None:
        with pool.transaction() as t:
            charges.allot_in(t)
            raise TryAgain("undone")

    with pytest.raises(TryAgain):
        undone()
    with pool.transaction() as t:
        t.next_txg()  # another process gets the same number
    with pool.transaction() as t:
        assert charges.take_txg(t) is None


# Several in one transaction


def listed(pool: Pool) -> list[tuple[object, ...]]:
    """What zkeep says of the snapshots, but for the time of receipt."""
    view, dataset = View(pool), pool.dataset(DATA)
    asked = ("used", "referenced", "written", "guid", "creation", "name")
    figures = [tuple(view.get(s, name).value for name in asked) for s in pool.snapshots(dataset)]
    return [*figures, (view.charged(dataset),)]


def packed(*numbers: int) -> bytes:
    """A package of the increments of these numbers."""
    whole = scaling.many_small(1, 1)
    start = whole.index(scaling.small(1))
    return b"".join([whole[:start], *map(scaling.small, numbers), whole[-HEADER:]])


@pytest.mark.parametrize("most", [1, 2, 3, 64])
@pytest.mark.parametrize("long", [0.0, 60.0])
def test_however_many_go_together_it_is_the_same(
    most: int, long: float, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool.open(shutil.copytree(tmp_path / "pool", tmp_path / "alone")) as alone:
        for number in range(1, COUNT + 1):
            take(alone, scaling.small(number))
        monkeypatch.setattr("zkeep.pool.transfer.receive.MOST", most)
        monkeypatch.setattr(at_once, "LONG", long)
        take(pool, scaling.many_small(1, COUNT))
        assert listed(pool) == listed(alone)
    assert all(sent(pool, n) == scaling.small(n) for n in range(COUNT + 1))
    is_sound(pool)


@pytest.mark.parametrize("bad", ["refused", "repeated", "damaged", "cut"])
def test_one_that_is_bad_leaves_those_before_it(bad: str, pool: Pool) -> None:
    data = {
        "refused": packed(1, 2, 3, 5, 6),
        "repeated": packed(1, 2, 3, 2, 3),
        "damaged": bytes(scaling.many_small(1, COUNT)).replace(scaling.small(4)[-900:-700], bytes(200)),
        "cut": packed(1, 2, 3, 4)[: -HEADER - 500],
    }[bad]
    told: list[str] = []

    def note(arrival: Arrival) -> None:
        if arrival.bytes is not None:
            told.append(arrival.kept)

    with pytest.raises((Refused, BadStream)) if bad != "repeated" else nullcontext():
        receive(pool, io.BytesIO(data), "b/data", ReceiveOptions(on_snapshot=note))
    assert names(pool) == upto(3)
    assert told == [f"b/data@s{number}" for number in (1, 2, 3)]
    is_sound(pool)


def test_what_is_there_is_passed_over_and_the_rest_received(pool: Pool) -> None:
    take(pool, scaling.many_small(1, 2))
    take(pool, scaling.many_small(1, COUNT))
    assert names(pool) == upto(COUNT)
    is_sound(pool)


def test_while_another_process_receives_into_it_nothing_is(pool: Pool, tmp_path: Path) -> None:
    dataset = pool.dataset(DATA)
    with Pool.open(tmp_path / "pool") as other, other.store.lock(lock_name(dataset)), pytest.raises(TryAgain):
        take(pool, scaling.many_small(1, COUNT))
    assert names(pool) == upto(0)
    is_sound(pool)


def test_p4_a_plain_snapshot_among_them_is_refused(pool: Pool) -> None:
    """Each BEGIN is judged, also where others go with it."""

    def plain(data: bytes) -> bytes:
        begin = Begin.unpack(data[:HEADER], "little")
        features = begin.features & ~Feature.RAW
        made = replace(begin, versioninfo=HeaderType.SUBSTREAM | int(features) << 2, payloadlen=0)
        writer = Writer()
        return writer.begin(made) + writer.end()

    whole = packed(1, 2, 3)
    with pytest.raises(Refused, match="blind=on"):
        take(pool, whole[:-HEADER] + plain(scaling.small(4)) + whole[-HEADER:])
    assert names(pool) == upto(3)
    is_sound(pool)
