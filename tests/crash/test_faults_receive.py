"""P3: what `receive -s` keeps is whole, at whichever moment it is interrupted, killed, or its disk fails.

Each time the rest of the stream follows, by the resume token. Then the snapshot is, byte by byte, what was sent.
ZKEEP_FAULTS says how many moments are tried (see faultkit).
"""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from crashkit import leftovers, sent
from faultkit import MANY

from receivekit import kept, partial, stream, take
from zkeep.errors import ZkeepError
from zkeep.format.reader import read_events
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store import staging
from zkeep.pool.timeline import segment as seg
from zkeep.pool.transfer.receive import ReceiveOptions, receive_events
from zkeep.pool.transfer.send import SendRequest, send

BUFFER = 20_000
"Bytes of a stream that are read at once: several batches, and so several writes."
TRACED = ("zkeep/pool/transfer/", "zkeep/pool/timeline/ingest.py", "zkeep/pool/timeline/rows.py", "zkeep/pool/store/")
Act = Callable[[], object]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pools: one with p/a@s0, and the sender's."""
    top = tmp_path_factory.mktemp("template")
    for name, streams in (("pool", ["full-s0", "inc-s0-s1"]), ("sender", ["full-s0", "inc-s0-s1", "inc-s1-s2"])):
        with Pool.create(top / name, "p") as pool:
            for each in streams:
                take(pool, stream(each))
    return top


@pytest.fixture
def pool(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a pool into which p/a@s2 comes in small segments, written in small pieces."""
    monkeypatch.setattr(seg, "TARGET", 60_000)
    monkeypatch.setattr(staging, "STAGE", 1 << 14)
    return tmp_path / "pool"


def fresh(template: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template / "pool", place)


def receive_once(place: Path) -> None:
    with Pool.open(place) as pool:
        events = read_events(io.BytesIO(stream("inc-s1-s2")), BUFFER)
        receive_events(pool, events, "p/a@s2", ReceiveOptions(resumable=True))


def rest(template: Path, token: str) -> bytes:
    """zfs send -t at the sender."""
    sink = io.BytesIO()
    with Pool.open(template / "sender") as sender:
        send(sender, SendRequest(token=token, received_name=True), sink)
    return sink.getvalue()


def wrong_after(template: Path, place: Path) -> str | None:
    """What is not as it was sent, once the receive that broke off was gone on with."""
    with Pool.open(place) as pool:
        if faults := pool.catalog.verify():
            return faults[0]
        if "s2" not in kept(pool)["p/a"]:
            if partial(pool):
                doc = pool.catalog.get("receive", pool.dataset(DatasetName("p/a")).key)
                assert doc is not None
                take(pool, rest(template, doc["token"]), "p/a@s2", resumable=True)
            else:
                take(pool, stream("inc-s1-s2"), "p/a@s2", resumable=True)
        report = scrub(pool)
        if not report.clean:
            return str(report.errors[0])
        if sent(pool, "p/a@s2") != sent_by(template):
            return "other bytes"
        compact(pool)
        if left := leftovers(pool):
            return f"left: {left}"
        return None if sent(pool, "p/a@s2") == sent_by(template) else "other bytes once compacted"


@cache
def sent_by(template: Path) -> bytes:
    with Pool.open(template / "sender") as sender:
        return sent(sender, "p/a@s2")


def tried(moments: Sequence[int]) -> list[int]:
    if MANY in ("all", "every"):
        return list(moments)
    return sorted(random.Random(len(moments)).sample(moments, min(int(MANY), len(moments))))


class _Writes:
    """Counts what is written to drafts; the `first` fails, and with `on` all after it."""

    def __init__(self, first: int, number: int, *, on: bool, part: bool) -> None:
        self.count = 0
        self._first, self._number, self._on, self._part = first, number, on, part

    def __call__(self, fd: int, buffers: Sequence[Any], offset: int, *flags: int) -> int:
        at, self.count = self.count, self.count + 1
        if at == self._first or (self._on and at > self._first >= 0):
            if self._part and at == self._first:
                _pwritev(fd, [memoryview(buffers[0])[: len(buffers[0]) // 2]], offset, *flags)
            raise OSError(self._number, os.strerror(self._number))
        return _pwritev(fd, buffers, offset, *flags)


_pwritev = os.pwritev


def test_p3_a_write_that_fails_costs_no_more_than_its_segment(template: Path, pool: Path) -> None:
    counting, wrong = _Writes(-1, 0, on=False, part=False), []
    fresh(template, pool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", counting)
        receive_once(pool)
    assert counting.count > 20
    for first in tried(range(counting.count)):
        for number, on in ((errno.EIO, False), (errno.ENOSPC, True)):
            fresh(template, pool)
            with pytest.MonkeyPatch.context() as patch, suppress(ZkeepError, OSError):
                patch.setattr(os, "pwritev", _Writes(first, number, on=on, part=first % 2 == 0))
                receive_once(pool)
            if what := wrong_after(template, pool):
                wrong.append(f"write {first}, {errno.errorcode[number]}, on={on}: {what}")
    assert not wrong, "\n".join(wrong)


@contextmanager
def at_line(moment: int, act: Act) -> Iterator[list[str]]:
    """Act before the line of TRACED that is the `moment`-th to be run by this thread; yields all lines so far."""
    lines: list[str] = []

    def local(frame: Any, event: str, _: object) -> Any:
        if event == "line":
            lines.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}")
            if len(lines) - 1 == moment:
                act()
        return local

    def called(frame: Any, event: str, _: object) -> Any:
        return local if any(part in frame.f_code.co_filename for part in TRACED) else None

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield lines
    finally:
        sys.settrace(before)


def interrupt() -> None:
    raise KeyboardInterrupt


def lines_of(template: Path, place: Path) -> list[str]:
    fresh(template, place)
    with at_line(-1, interrupt) as lines:
        receive_once(place)
    return lines


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("act", [interrupt, kill])
def test_p3_an_end_at_any_line_costs_no_more_than_a_segment(template: Path, pool: Path, act: Act) -> None:
    lines, wrong = lines_of(template, pool), []
    within = [at for at, line in enumerate(lines) if line.startswith(("ingest", "rows"))]  # in the middle of a batch
    for moment in sorted({*tried(range(len(lines))), *tried(within)}):
        fresh(template, pool)
        if (child := os.fork()) == 0:  # what it has locked and opened goes with it
            with suppress(BaseException), at_line(moment, act):
                receive_once(pool)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == (signal.SIGKILL if act is kill else 0)
        if what := wrong_after(template, pool):
            wrong.append(f"line {moment}, {lines[moment]}: {what}")
    assert not wrong, "\n".join(wrong)
