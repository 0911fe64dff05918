"""Bad streams, and a pool that must not change when it is fed them through the real command line."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from zkeep.cli.main import run
from zkeep.format import kernel
from zkeep.format.checksum import fletcher4
from zkeep.format.events import Batch, SubBegin, SubEnd
from zkeep.format.nvlist import NvList, decode, encode
from zkeep.format.reader import read_events
from zkeep.format.records import HEADER, LAYOUTS, Begin, Layout, RecordType
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.maintenance.scrub import scrub

DATA = Path(__file__).parent.parent / "data"


@cache
def stream(history: str, name: str) -> bytes:
    """One stream of a packed history, as `stream("rs512b", "full-s0")`."""
    with tarfile.open(DATA / "histories" / f"{history}.tar.xz") as tar:
        held = tar.extractfile(f"{history}.{name}.zfs")
        assert held is not None
        return held.read()


# Streams as lists of records that can be changed


@dataclass
class Record:
    """One record; `header` without a checksum that means anything."""

    header: bytearray
    payload: bytes = b""

    @property
    def rtype(self) -> RecordType:
        return RecordType(int.from_bytes(self.header[:4], "little"))

    def get(self) -> Layout:
        return LAYOUTS[self.rtype].unpack(bytes(self.header), "little")

    def put(self, name: str, value: int | bytes) -> None:
        """Set a field."""
        offset, size = field(self.rtype, name)
        if isinstance(value, int):
            value = (value % (1 << (8 * size))).to_bytes(size, "little")
        self.header[offset : offset + size] = value.ljust(size, b"\0")


def field(rtype: RecordType, name: str) -> tuple[int, int]:
    fields = LAYOUTS[rtype].dtype("little").fields
    assert fields is not None
    return int(fields[name][1]), fields[name][0].itemsize


def names_of(rtype: RecordType) -> list[str]:
    return [n for n in LAYOUTS[rtype].dtype("little").names or () if n not in ("checksum", "rtype")]


def taken_apart(data: bytes) -> list[Record]:
    """A plain stream's records, BEGIN and END included."""
    found: list[Record] = []
    for event in read_events(io.BytesIO(data)):
        if isinstance(event, SubBegin):
            found.append(Record(bytearray(event.header), event.payload))
        elif isinstance(event, Batch):
            for at, length in zip(event.offsets.tolist(), event.lengths.tolist(), strict=True):
                whole = bytes(event.buffer[at : at + length])
                found.append(Record(bytearray(whole[:HEADER]), whole[HEADER:]))
        elif isinstance(event, SubEnd):
            found.append(Record(bytearray(event.header)))
    return found


def stamped(records: list[Record]) -> bytes:
    """The stream with every checksum right, as a forger would send it."""
    first, rest = records[0], records[1:]
    begin = bytes(first.header) + first.payload
    buffer = bytearray(b"".join(bytes(r.header) + r.payload for r in rest))
    lengths = np.array([HEADER + len(r.payload) for r in rest], np.int64)
    offsets = np.cumsum(lengths) - lengths
    array = np.frombuffer(buffer, np.uint8)
    _, sums = kernel.check(array, offsets, lengths, False)
    kernel.stamp(array, offsets, lengths, sums, False, np.array(fletcher4(begin), np.uint64))
    return begin + bytes(buffer)


def forged(data: bytes, change: Callable[[list[Record]], object]) -> bytes:
    """The stream after a change, with every checksum right."""
    records = taken_apart(data)
    change(records)
    return stamped(records)


def first(records: list[Record], rtype: RecordType) -> Record:
    return next(r for r in records if r.rtype == rtype)


def renamed(data: bytes, name: bytes) -> bytes:
    return forged(data, lambda records: records[0].put("toname", name))


def with_keys(data: bytes, change: Callable[[NvList, NvList], object]) -> bytes:
    """With another BEGIN payload: `change` is given it and its crypt_keydata."""

    return forged(data, lambda records: rekeyed(records[0], change))


def rekeyed(begin: Record, change: Callable[[NvList, NvList], object]) -> None:
    """The same of a BEGIN that is taken apart already."""
    nvlist = decode(begin.payload)
    crypt = nvlist["crypt_keydata"]
    assert isinstance(crypt, NvList)
    change(nvlist, crypt)
    begin.payload = encode(nvlist)
    begin.put("payloadlen", len(begin.payload))


def record_ends(data: bytes) -> list[int]:
    ends, at = [], 0
    for record in taken_apart(data):
        at += HEADER + len(record.payload)
        ends.append(at)
    return ends


def begin_of(data: bytes) -> Begin:
    return Begin.unpack(data[:HEADER], "little")


# The pool


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


class Box:
    """A pool `v`, worked by the command line."""

    def __init__(self, path: Path) -> None:
        self.path = path / "pool"
        Pool.create(self.path, "v").close()
        Registry(path / "home").add("v", self.path)
        os.environ["ZKEEP_HOME"] = str(path / "home")

    def zkeep(self, *arguments: str, stdin: bytes = b"") -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with _standard_input(stdin), redirect_stdout(out), redirect_stderr(err):
            status = run(list(arguments))
        return Answer(status, out.getvalue(), err.getvalue())

    def receive(self, data: bytes, *arguments: str) -> Answer:
        return self.zkeep("receive", *arguments, stdin=data)

    def takes(self, data: bytes, *arguments: str) -> None:
        answer = self.receive(data, *arguments)
        assert answer.status == 0, answer

    def refuses(self, data: bytes, *arguments: str, status: int = 1, why: str = "") -> Answer:
        """One line, the right status, and nothing changed."""
        before = self.state()
        answer = self.receive(data, *arguments)
        assert answer.status == status, answer
        one_line(answer)
        assert why in answer.err
        assert self.state() == before
        return answer

    def compose_always(self) -> None:
        """Nothing is sent back as it came: everything is put together."""
        with Pool.open(self.path, "v") as pool, pool.transaction() as t:
            for key, doc in t.scan("run"):
                t.put("run", key, doc | {"whole": False})

    def newest(self, dataset: str) -> str:
        return self.zkeep("list", "-H", "-d", "1", "-t", "snapshot", "-o", "name", dataset).out.split()[-1]

    def keep(self) -> None:
        """From here on restore() leads back to this state."""
        shutil.copytree(self.path, self.path.with_name("kept"))

    def restore(self) -> None:
        shutil.rmtree(self.path)
        shutil.copytree(self.path.with_name("kept"), self.path)

    def state(self) -> tuple[Any, ...]:
        """All that anybody can see: documents, files, and whether scrub is content."""
        with Pool.open(self.path, "v") as pool:
            kinds = ("dataset", "snapshot", "bookmark", "begin", "run", "receive", "compact")
            documents = {kind: dict(pool.catalog.scan(kind)) for kind in kinds}
            assert scrub(pool).clean
        files = {
            str(p.relative_to(self.path)): p.stat().st_size
            for folder in ("segments", "partial")
            for p in (self.path / folder).rglob("*")
            if p.is_file()
        }
        return documents, files


def one_line(answer: Answer) -> None:
    assert answer.err.startswith("zkeep: "), answer
    assert answer.err.count("\n") == 1, answer
    assert answer.err.isprintable() or answer.err[:-1].isprintable(), answer
    assert "Traceback" not in answer.err
    assert "unexpected" not in answer.err, answer


@contextmanager
def _standard_input(data: bytes) -> Iterator[None]:
    saved = os.dup(0)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        os.dup2(file.fileno(), 0)
        try:
            yield
        finally:
            os.dup2(saved, 0)
            os.close(saved)
