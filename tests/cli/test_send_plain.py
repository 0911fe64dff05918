"""zkeep send without -w, of datasets whose keys are loaded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from commandkit import Command
from zkeep.cli.main import run
from zkeep.format.events import Batch, Event, Package, SubBegin, SubEnd
from zkeep.format.nvlist import NvList
from zkeep.format.reader import read_events
from zkeep.format.records import Feature, RecordType

STORY = Path(__file__).parent.parent / "data" / "opened" / "story"
KEY = f"file://{STORY}/jambon-zfs-key"
LAST = "v/jambon/blanc@work-of-the-day"


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """v/jambon: a root of encryption with four children, its key loaded."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    found = Command()
    found(f"pool create v {tmp_path / 'pool'}")
    found("receive v/jambon", (STORY / "full-Rw.zfs").read_bytes())
    found("receive v/jambon/blanc", (STORY / "inc-w.zfs").read_bytes())
    found("set blind=off v")
    found(f"load-key -L {KEY} v/jambon")
    yield found
    assert run(["unload-key", "-a"]) == 0


def events(stream: bytes) -> list[Event]:
    return list(read_events(io.BytesIO(stream)))


def records(event: Event) -> list[tuple[bytes, bytes]]:
    """Headers without their running checksums, and payloads."""
    if not isinstance(event, Batch):
        return []
    places = zip(event.offsets.tolist(), event.lengths.tolist(), strict=True)
    return [(bytes(event.buffer[at : at + 280]), bytes(event.buffer[at + 312 : at + size])) for at, size in places]


def begins(stream: bytes) -> list[SubBegin]:
    return [event for event in events(stream) if isinstance(event, SubBegin)]


def header(stream: bytes) -> NvList:
    first = events(stream)[0]
    assert isinstance(first, Package)
    return first.nvlist


def test_a_snapshot_leaves_decrypted(box: Command) -> None:
    stream = box(f"send {LAST}")
    (begin,) = begins(stream)
    assert begin.begin.features == Feature.SA_SPILL
    assert begin.payload == b""
    kinds = {RecordType(kind) for event in events(stream) if isinstance(event, Batch) for kind in event.types.tolist()}
    assert RecordType.OBJECT_RANGE not in kinds
    box("receive v/plain", stream)
    assert box("ls -lR v/plain@work-of-the-day") == box(f"ls -lR {LAST}")
    assert box("get -H -o value encryption v/plain") == b"off\n"
    assert box("diff v/plain@work-of-the-day " + LAST) == b""
    again = box("send v/plain@work-of-the-day")
    assert [records(event) for event in events(again)] == [records(event) for event in events(stream)]


def test_without_its_key_it_is_refused(box: Command) -> None:
    box("unload-key v/jambon")
    for words in (LAST, f"-nv {LAST}", "-R v/jambon@to-remote-server", f"-I @2018 {LAST}"):
        box.refuses(f"send {words}", "its key is not loaded", "zkeep load-key", "send it raw, with -w")
    assert begins(box(f"send -w {LAST}"))[0].begin.raw


def test_a_replication_keeps_properties_and_nothing_about_encryption(box: Command) -> None:
    stream = box("send -R v/jambon@to-remote-server", says="WARNING: sending v/jambon with its properties and without")
    said = header(stream)
    assert "raw" not in said
    entries = [entry for entry in said["fss"].values() if isinstance(entry, NvList)]  # type: ignore[union-attr]
    assert len(entries) == 5
    for entry in entries:
        assert "is_encroot" not in entry
        assert not {"encryption", "keyformat", "keylocation", "pbkdf2iters"} & set(entry["props"])  # type: ignore[arg-type]
    assert "mountpoint" in entries[0]["props"]  # type: ignore[operator]
    assert not any(begin.begin.raw for begin in begins(stream))
    box("receive v/plain", stream)
    names = box("list -H -r -t snapshot -o name v/plain").decode().split()
    assert len(names) == len(begins(stream)) > 5
    for name in names[::3]:
        assert box(f"ls -lR {name}") == box(f"ls -lR {name.replace('v/plain', 'v/jambon')}"), name


@pytest.mark.parametrize("letters", ["", "-Lec", "-Up"])
def test_increments_follow_in_any_form(box: Command, letters: str) -> None:
    box("bookmark v/jambon/blanc@2018 v/jambon/blanc#2018")
    box("receive v/plain", box(f"send {letters} v/jambon/blanc@2018"))
    for source, snapshot in (("#2018", "2019"), ("@2019", "2020"), ("@2020", "migration")):
        box("receive v/plain", box(f"send {letters} -i {source} v/jambon/blanc@{snapshot}"))
    box("receive v/plain", box(f"send {letters} -I @migration {LAST}"))
    for snapshot in ("2018", "2019", "2020", "work-of-the-day"):
        assert box(f"diff v/plain@{snapshot} v/jambon/blanc@{snapshot}") == b""


def test_an_interrupted_receive_goes_on(box: Command) -> None:
    stream = box(f"send -c {LAST}")
    for at in (30_000, len(stream) // 2):
        target = f"v/part{at}"
        assert box.run(f"receive -s {target}", stream[:at]).returncode == 5
        token = box(f"get -H -o value receive_resume_token {target}").decode().strip()
        box.refuses(f"send -t {token}", "the token asks for a stream without encryption", "allow it with -U")
        rest = box(f"send -U -t {token}")
        (begin,) = begins(rest)
        assert begin.begin.features & (Feature.RESUMING | Feature.RAW | Feature.COMPRESSED) == (
            Feature.RESUMING | Feature.COMPRESSED
        )
        box(f"receive -s {target}", rest)
        assert box(f"ls -lR {target}@work-of-the-day") == box(f"ls -lR {LAST}")


def test_sizes_are_those_of_the_form(box: Command) -> None:
    def size(letters: str) -> int:
        return int(box(f"send -nP {letters} {LAST}").split()[-1])

    assert size("") > size("-c")
    assert abs(size("") - len(box(f"send {LAST}"))) < 400 * 200
    assert b"full send of v/jambon/blanc@work-of-the-day estimated size is" in box(f"send -nv {LAST}")


def test_what_breaks_off_has_no_end(box: Command, tmp_path: Path) -> None:
    """A damaged block: what came before it is authentic, and a receiver sees that the stream broke off."""
    paths = sorted((tmp_path / "pool").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    whole = box(f"send {LAST}")
    for path in paths:
        if path.is_file() and "seg" in str(path.relative_to(tmp_path / "pool")):
            content = bytearray(path.read_bytes())
            for at in range(len(content) // 3, len(content) // 2, 64):
                content[at] ^= 1
            path.chmod(0o600)
            path.write_bytes(content)
    answer = box.run(f"send {LAST}")
    assert answer.returncode == 3
    assert answer.stderr.count(b"\n") == 1
    assert len(answer.stdout) < len(whole)
    assert not any(isinstance(event, SubEnd) for event in _until_it_breaks(answer.stdout))


def _until_it_breaks(stream: bytes) -> Iterator[Event]:
    found = read_events(io.BytesIO(stream))
    while True:
        try:
            yield next(found)
        except Exception:
            return
