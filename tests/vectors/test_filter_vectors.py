"""P5, verify as a filter: of a stream only what is authentic goes on, byte for byte."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from forgeries import Record, put_together, taken_apart
from manifests import DATA, Case, cases
from test_forgeries import FORGERIES, Forge, change_a_range, flip_a_bonus, full, increment

from zkeep.errors import BadStream, NotAuthentic, Refused, ZkeepError
from zkeep.format.events import Package, SubBegin
from zkeep.format.reader import read_events
from zkeep.format.records import RecordType
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.restore.filter.authenticate import AuthenticatingFilter
from zkeep.restore.filter.sanitize import Allowed
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot

STORY = DATA / "story" / "full-Rw.zfs"


def passed(path: Path, stream: bytes, case: Case, bases: Iterable[bytes] = ()) -> tuple[bytes, ZkeepError | None]:
    """What goes on, and the error that ended it."""
    out = io.BytesIO()
    with Pool.create(path / "pool", "v", {"blind": "off"}) as pool:
        for base in bases:
            receive(pool, io.BytesIO(base), "v/x", ReceiveOptions())

        def check(snapshot: Snapshot, sent: str) -> None:
            with OpenSnapshot(pool, snapshot, case.key) as opened:
                verify(opened)

        with tempfile.TemporaryFile() as aside:
            passing = AuthenticatingFilter(pool, out, cast(BinaryIO, aside), check, Allowed())
            try:
                passing.run(read_events(io.BytesIO(stream)), "v/x")
            except ZkeepError as error:
                return out.getvalue(), error
    return out.getvalue(), None


def chain(case: str) -> Case:
    return next(found for found in cases() if found.name == case)


@pytest.fixture(scope="module")
def case() -> Case:
    return chain("ccm192-lzjb-8k-composed")


@pytest.fixture(scope="module")
def story() -> Case:
    return next(found for found in cases() if found.name == "story")


def test_a_full_stream_and_its_increment_go_on_as_they_came(case: Case, tmp_path: Path) -> None:
    base, more = put_together(full()), put_together(increment())
    assert passed(tmp_path, base, case) == (base, None)
    (tmp_path / "2").mkdir()
    assert passed(tmp_path / "2", more, case, [base]) == (more, None)


def test_an_increment_without_its_base_is_refused_with_the_way_out(case: Case, tmp_path: Path) -> None:
    out, error = passed(tmp_path, put_together(increment()), case)
    assert (out, type(error)) == (b"", Refused)
    assert "--base" in str(error)


def test_what_the_base_has_already_is_refused(case: Case, tmp_path: Path) -> None:
    base = put_together(full())
    out, error = passed(tmp_path, base, case, [base])
    assert (out, type(error)) == (b"", Refused)


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_p5_nothing_of_a_forged_stream_goes_on(forge: Forge, case: Case, tmp_path: Path) -> None:
    out, error = passed(tmp_path, put_together(forge(full())), case)
    assert out == b""
    assert isinstance(error, NotAuthentic)


@pytest.mark.parametrize("forge", [flip_a_bonus, change_a_range], ids=lambda forge: forge.__name__)
def test_p5_nothing_of_a_forged_increment_goes_on(forge: Forge, case: Case, tmp_path: Path) -> None:
    out, error = passed(tmp_path, put_together(forge(increment())), case, [put_together(full())])
    assert out == b""
    assert isinstance(error, NotAuthentic)


@pytest.mark.parametrize("cut", [1, 312, 5000])
def test_nothing_of_what_is_cut_short_goes_on(cut: int, case: Case, tmp_path: Path) -> None:
    out, error = passed(tmp_path, put_together(full())[:-cut], case)
    assert (out, type(error)) == (b"", BadStream)


def test_what_follows_a_stream_speaks_against_all_of_it(case: Case, tmp_path: Path) -> None:
    out, error = passed(tmp_path, put_together(full()) + bytes(400), case)
    assert (out, type(error)) == (b"", BadStream)


def test_a_plain_stream_is_not_authentic(story: Case, tmp_path: Path) -> None:
    out, error = passed(tmp_path, (DATA / "story" / "plain-blanc-2018.zfs").read_bytes(), story)
    assert out == b""
    assert isinstance(error, NotAuthentic)


def _substreams(stream: bytes) -> list[int]:
    return [e.offset for e in read_events(io.BytesIO(stream)) if isinstance(e, SubBegin)]


def test_a_package_goes_on_with_another_outer_header_and_nothing_else_changed(story: Case, tmp_path: Path) -> None:
    stream = STORY.read_bytes()
    out, error = passed(tmp_path, stream, story)
    assert error is None
    assert out[_substreams(out)[0] :] == stream[_substreams(stream)[0] :]
    head = next(iter(read_events(io.BytesIO(out))))
    assert isinstance(head, Package)
    assert b"mountpoint" in stream[: _substreams(stream)[0]]
    assert b"mountpoint" not in head.raw


def _forged_in_package(stream: bytes, at: int) -> bytes:
    """One bit of one payload of the substream is another, and its checksums agree."""
    starts = [*_substreams(stream), len(stream) - 312]
    records = taken_apart(stream[starts[at] : starts[at + 1]])
    writes = [r for r in records if r.type == RecordType.WRITE]
    _flip(writes[-1])
    return stream[: starts[at]] + put_together(records) + stream[starts[at + 1] :]


def _flip(record: Record) -> None:
    record.content[-1] ^= 1


@pytest.mark.parametrize("at", [0, 1, 6])
def test_p5_a_package_goes_on_up_to_the_substream_that_is_forged(at: int, story: Case, tmp_path: Path) -> None:
    stream = STORY.read_bytes()
    starts = _substreams(stream)
    out, error = passed(tmp_path, _forged_in_package(stream, at), story)
    assert isinstance(error, NotAuthentic)
    if at == 0:
        assert out == b""
    else:
        assert out.endswith(stream[starts[0] : starts[at]])
        assert len(out) < starts[at]


def test_p5_a_package_that_is_cut_short_goes_on_up_to_its_last_whole_snapshot(story: Case, tmp_path: Path) -> None:
    stream = STORY.read_bytes()
    starts = _substreams(stream)
    out, error = passed(tmp_path, stream[: starts[3] + 1000], story)
    assert isinstance(error, BadStream)
    assert out.endswith(stream[starts[0] : starts[3]])
