"""P7: a small snapshot of a package, with records, costs one transaction; what it promises stays as it is."""

from __future__ import annotations

import errno
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.errors import BadStream, Refused, TryAgain, ZkeepError
from zkeep.format.records import HEADER
from zkeep.names import DatasetName
from zkeep.pool.datasets.history import history_of
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.store.files import LocalDraft
from zkeep.pool.store.journal import Journal
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
def test_p7_each_takes_one_transaction(resumable: bool, pool: Pool) -> None:
    before = Journal(pool.store).end().number
    take(pool, scaling.many_small(1, COUNT), resumable=resumable)
    assert Journal(pool.store).end().number == before + COUNT + 1  # the first gets its txg before
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
    assert seen == [upto(1), upto(2), upto(3)]


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
    really = LocalDraft.write

    def counted(self: LocalDraft, *buffers: bytes, soon: bool = False) -> None:
        nonlocal written
        written += sum(len(memoryview(each).cast("B")) for each in buffers)
        really(self, *buffers, soon=soon)

    monkeypatch.setattr(LocalDraft, "write", counted)
    with pytest.raises(Refused, match="the quota is used up"):
        take(pool, scaling.many_small(1, COUNT))
    kept = len(names(pool)) - 1
    assert 0 < kept < COUNT
    assert len(files(pool) - before) == kept
    assert written < (kept + 1) * len(scaling.small(1))
    is_sound(pool)


@pytest.mark.parametrize("at", ["publish", "write"])
def test_a_disk_that_fails_once_leaves_nothing_behind(at: str, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    really, left = getattr(LocalDraft, at), [4]

    def failing(self: LocalDraft, *arguments: object, **named: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.EIO, "the disk")
        really(self, *arguments, **named)

    monkeypatch.setattr(LocalDraft, at, failing)
    take(pool, scaling.many_small(1, COUNT))  # the usual way does it
    assert names(pool) == upto(COUNT)
    is_sound(pool)


def test_no_file_has_a_name_that_was_there_before(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its file and its line in the journal: the next one gets another txg, the file is swept."""
    record, left = Transaction.put, [2]

    def killed(self: Transaction, kind: str, key: str, document: dict[str, object]) -> None:
        if kind == "run":
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
        record(self, kind, key, document)

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            take(pool, scaling.many_small(1, COUNT))
    (orphan,) = files(pool) - named(pool)
    take(pool, scaling.many_small(1, COUNT))
    assert orphan not in named(pool)
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
