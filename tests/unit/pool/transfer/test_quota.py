"""P4: everything durable that a stream causes counts against quotas, and is reserved before it is written."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Semaphore, Thread

import pytest

from badinput.badkit import with_keys
from receivekit import cut, kept, partial, stream, take, take_chain
from zkeep.errors import Interrupted, Refused
from zkeep.format.events import Event, SubEnd
from zkeep.format.nvlist import NvType
from zkeep.format.reader import read_events
from zkeep.format.records import HEADER
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.transfer.receive import ReceiveOptions, receive_events
from zkeep.pool.transfer.reserve import remove_leftovers
from zkeep.pool.transfer.send import SendRequest, send

FULL = stream("full-s0")
TOP = DatasetName.parse("p")
SPENT = "the quota is used up"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", "p") as pool:
        yield pool


def quota(pool: Pool, size: int | str, name: str = "quota") -> None:
    namespace.set_properties(pool, [TOP], {name: str(size)})


def room(pool: Pool) -> int:
    left = View(pool).quota_room(pool.dataset(TOP))
    assert left is not None
    return left


def files(pool: Pool) -> int:
    """Bytes of segments and drafts."""
    paths = [path for name in ("segments", "partial") for path in (pool.path / name).rglob("*")]
    return sum(path.stat().st_size for path in paths if path.is_file())


class Beside:
    """A receive in a thread of its own, which takes one event of its stream at each step."""

    def __init__(self, path: Path, content: bytes, target: str, **options: bool) -> None:
        self.error: BaseException | None = None
        self._go, self._stopped, self._done = Semaphore(0), Semaphore(0), False
        wanted = ReceiveOptions(**options)  # type: ignore[arg-type]
        Thread(target=self._run, args=(path, content, target, wanted), daemon=True).start()

    def _run(self, path: Path, content: bytes, target: str, options: ReceiveOptions) -> None:
        self._go.acquire()
        try:
            with Pool.open(path) as pool:
                receive_events(pool, self._one_by_one(read_events(io.BytesIO(content))), target, options)
        except BaseException as error:
            self.error = error
        self._done = True
        self._stopped.release()

    def _one_by_one(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            yield event
            self._stopped.release()
            self._go.acquire()

    def step(self) -> bool:
        self._go.release()
        self._stopped.acquire()
        return not self._done


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_p4_twelve_at_once_share_one_quota(pool: Pool, *, resumable: bool, broken: bool) -> None:
    limit = len(FULL) * 2
    quota(pool, limit)
    content = FULL[:-400] if broken else FULL
    some = [Beside(pool.path, content, f"p/d{n}", resumable=resumable) for n in range(12)]
    waiting = list(some)
    while waiting:
        waiting = [one for one in waiting if one.step()]
        assert sum(path.stat().st_size for path in (pool.path / "segments").rglob("*.seg")) < limit * 1.3
    assert files(pool) < limit * 1.3
    assert room(pool) >= 0
    whole = sum(len(names) for names in kept(pool).values())
    assert whole <= 2
    if not broken and not resumable:
        assert whole >= 1
        assert pool.catalog.keys("reserve") == []


def test_two_that_fit_together_both_land(pool: Pool) -> None:
    quota(pool, len(FULL) * 2)
    some = [Beside(pool.path, FULL, f"p/d{n}", resumable=bool(n)) for n in range(2)]
    waiting = list(some)
    while waiting:
        waiting = [one for one in waiting if one.step()]
    assert kept(pool) == {"p/d0": ["s0"], "p/d1": ["s0"]}
    assert pool.catalog.keys("reserve") == []


@pytest.mark.parametrize("resumable", [False, True])
def test_whoever_sends_n_bytes_needs_no_more_room(pool: Pool, *, resumable: bool) -> None:
    for name, content in (("d", FULL), ("e", package(pool, 3000))):
        quota(pool, len(content) + (0 if name == "d" else used(pool)))
        take(pool, content, f"p/{name}", resumable=resumable)
        assert room(pool) >= 0


def used(pool: Pool) -> int:
    return View(pool).charged(pool.dataset(TOP))


def package(pool: Pool, size: int) -> bytes:
    """A stream with properties of about this size."""
    with Pool.create(pool.path.parent / f"q{size}", "q") as source:
        take(source, FULL, "q/a")
        texts = {f"u:x{n}": "A" * min(8000, size) for n in range(-(-size // 8000))}
        namespace.set_properties(source, [DatasetName.parse("q/a")], texts)
        namespace.hold(source, "t" * 200, [source.snapshots(source.dataset(DatasetName.parse("q/a")))[0].name])
        sink = io.BytesIO()
        send(source, SendRequest("q/a@s0", raw=True, props=True, holds=True), sink)
        return sink.getvalue()


def heavy(size: int) -> bytes:
    """A stream whose BEGIN brings so many bytes more."""
    return with_keys(FULL, lambda nvlist, _: nvlist.set("junk", os.urandom(size), NvType.BYTE_ARRAY))


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("what", ["begin", "properties"])
def test_p4_what_comes_beside_records_counts(pool: Pool, what: str, *, resumable: bool) -> None:
    content = heavy(200_000) if what == "begin" else package(pool, 200_000)
    quota(pool, len(FULL) + 100_000)
    with pytest.raises(Refused, match=SPENT):
        take(pool, content, "p/d", resumable=resumable)
    if not resumable:
        assert (kept(pool), pool.catalog.keys("receive"), pool.catalog.keys("reserve")) == ({}, [], [])
    quota(pool, "none")
    take(pool, content, "p/e")
    assert used(pool) > len(FULL) + 190_000 - 3000
    quota(pool, len(content) + 400_000)
    left = room(pool)
    if what == "properties":
        namespace.release(pool, "t" * 200, [SnapshotName.parse("p/e@s0")])
    destroy.execute(
        pool, destroy.plan_dataset(View(pool), DatasetName.parse("p/e"), destroy.DestroyOptions(recursive=True))
    )
    assert room(pool) > left + 190_000


def test_records_that_leave_no_row_count(pool: Pool) -> None:
    take_chain(pool)
    runs = [run for _, run in pool.catalog.scan("run")]
    bodies = sum(run["bytes"] + run["extra"] for run in runs)
    events = [e for n in ("full-s0", "inc-s0-s1", "inc-s1-s2") for e in read_events(io.BytesIO(stream(n)))]
    sent = sum(len(event.buffer) for event in events if hasattr(event, "buffer"))
    assert bodies == sent
    assert sum(run["extra"] for run in runs) >= HEADER


def half(content: bytes) -> Iterator[Event]:
    """The events of a stream, until the process dies."""
    for event in read_events(io.BytesIO(content)):
        if isinstance(event, SubEnd):
            os._exit(0)
        yield event


@pytest.mark.parametrize("resumable", [False, True])
def test_p4_what_a_killed_receive_reserved_counts_until_its_files_are_gone(pool: Pool, *, resumable: bool) -> None:
    quota(pool, len(FULL) + 2000)
    pid = os.fork()
    if not pid:
        with suppress(BaseException), Pool.open(pool.path) as mine:
            receive_events(mine, half(FULL), "p/dead", ReceiveOptions(resumable=resumable))
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert pool.store.drafts() != []
    assert room(pool) < 3000
    take(pool, FULL, "p/alive")
    assert kept(pool).keys() - {"p/dead"} == {"p/alive"}
    assert files(pool) < len(FULL) * 1.3
    assert pool.store.drafts() == []
    assert room(pool) >= 0
    assert not remove_leftovers(pool)


def test_one_that_lives_is_left_alone(pool: Pool) -> None:
    quota(pool, len(FULL) + 2000)
    alive = Beside(pool.path, FULL, "p/a")
    for _ in range(3):
        alive.step()
    with pytest.raises(Refused, match=SPENT):
        take(pool, FULL, "p/b")
    while alive.step():
        pass
    assert kept(pool) == {"p/a": ["s0"]}


def test_a_quota_that_ends_a_resumable_receive_says_that_what_came_is_kept(pool: Pool) -> None:
    cut(pool, FULL, len(FULL) // 2)
    quota(pool, used(pool) + View(pool).reserved(pool.dataset(TOP)) + 1000)
    with pytest.raises(Interrupted, match=SPENT) as caught:
        take(pool, FULL, resumable=True)
    assert caught.value.status == 5
    assert partial(pool)
    assert "zkeep receive -s p/a " in caught.value.advice[3]
    quota(pool, "none")
    take(pool, FULL, resumable=True)
    assert kept(pool) == {"p/a": ["s0"]}
    assert pool.catalog.keys("reserve") == []


def test_a_partial_receive_takes_just_what_it_keeps(pool: Pool) -> None:
    quota(pool, 10 << 20)
    before = room(pool)
    cut(pool, FULL, len(FULL) // 2)
    taken = before - room(pool)
    assert len(FULL) // 2 - 20_000 < taken <= len(FULL) // 2
    take(pool, b"", abort=True)
    assert room(pool) == before


def test_refquota_bounds_what_a_snapshot_refers_to(pool: Pool) -> None:
    take_chain(pool, target="p/free")
    space = View(pool).figures(pool.dataset(DatasetName.parse("p/free"))).snapshots
    most = max(one.referenced.stored for one in space.values())
    for name in ("full-s0", "inc-s0-s1", "inc-s1-s2"):
        take(pool, stream(name), "p/lim", set_properties={"refquota": str(most)})
    with pytest.raises(Refused, match=SPENT):
        take(pool, FULL, "p/low", set_properties={"refquota": str(most // 2)})
    assert kept(pool) == {"p/free": ["s0", "s1", "s2"], "p/lim": ["s0", "s1", "s2"]}


@pytest.mark.parametrize("lacking", [0, 1])
def test_the_snapshots_of_a_package_fill_a_quota_to_the_byte(pool: Pool, *, lacking: int) -> None:
    take_chain(pool, target="p/free")
    sink = io.BytesIO()
    send(pool, SendRequest("p/free@s2", raw=True, from_all="@s0"), sink)
    size = used(pool)
    take(pool, FULL, "p/b")
    quota(pool, 2 * size - lacking)
    if lacking:
        with pytest.raises(Refused, match=SPENT):
            take(pool, sink.getvalue(), "p/b")
        assert kept(pool)["p/b"] == ["s0", "s1"]
    else:
        take(pool, sink.getvalue(), "p/b")
        assert kept(pool)["p/b"] == ["s0", "s1", "s2"]
        assert room(pool) == 0


def test_what_another_process_commits_meanwhile_counts(pool: Pool) -> None:
    take_chain(pool, target="p/free")
    sink = io.BytesIO()
    send(pool, SendRequest("p/free@s2", raw=True, from_all="@s0"), sink)
    take(pool, FULL, "p/b")
    quota(pool, 2 * used(pool))
    slow = Beside(pool.path, sink.getvalue(), "p/b")
    for _ in range(4):
        slow.step()
    with Pool.open(pool.path) as other, suppress(Refused):
        for number in range(8):
            take(other, FULL, f"p/x{number}")
    while slow.step():
        pass
    assert isinstance(slow.error, Refused | None)
    assert room(pool) >= 0
