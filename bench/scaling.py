"""What each verb costs beside how many snapshots, datasets, bookmarks, holds or files there are already.

    python bench/scaling.py --folder FOLDER [--counts 10,1000,10000] [--only snapshots] [--rounds 3]

Prints a table for each kind of thing: CPU seconds of the whole process (median), and the last column's ratio to the
first. Verbs that are about all of them (`list -t all`, `send -I`, receive of as many) show milliseconds for each thing
beyond those of the first column, and how these grow. What a pool is filled with is put into its catalog at once; the
verbs see no difference.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from makestream import Shape, full, guid, increment

from zkeep.format.events import SubBegin
from zkeep.format.nvlist import NvList, encode
from zkeep.format.reader import Reader
from zkeep.format.records import Begin, HeaderType
from zkeep.format.writer import Writer
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Dataset, Pool, dataset_key, new_guid, txg_key
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.transfer.receive import ReceiveOptions, receive

ZKEEP = [sys.executable, "-c", "from zkeep.cli.main import main; main()"]
SHAPE = Shape(64, 512, 8)
KINDS = ("run", "begin", "snapshot")
Doc = dict[str, Any]


# Filling pools


def stream(number: int, shape: Shape = SHAPE, changed: int = 4) -> bytes:
    """The full stream of snapshot 0; or the increment to a later one, of so many `changed` records."""
    made = io.BytesIO()
    if number:
        increment(shape, made, number, changed)
    else:
        full(shape, made)
    return made.getvalue()


def new_pool(home: Path, folder: Path) -> Pool:
    """A pool `b` with `b/data`, which has one snapshot."""
    pool = Pool.create(folder, "b")
    Registry(home).add("b", folder)
    receive(pool, io.BytesIO(stream(0)), "b/data", ReceiveOptions())
    return pool


def add_snapshots(pool: Pool, count: int, name: str = "b/data") -> None:
    """Make as many increments that changed nothing, called @n1, @n2, ..."""
    dataset = pool.dataset(DatasetName(name))
    last = pool.snapshots(dataset)[-1]
    docs = {kind: pool.catalog.get(kind, last.key) or {} for kind in KINDS}
    with pool.transaction() as t:
        before = last.doc
        for number in range(1, count + 1):
            before = _put_snapshot(t, dataset, docs, number, before)


def _put_snapshot(t: Transaction, dataset: Dataset, docs: dict[str, Doc], number: int, before: Doc) -> Doc:
    txg = t.next_txg()
    empty = {"segments": [], "bytes": 0, "logical": 0, "records": 0, "file_bytes": 0, "dead": {}}
    key = txg_key(dataset.id, txg)
    snapshot = {
        **docs["snapshot"],
        **{"name": f"n{number}", "guid": guid(number), "ivset_guid": guid(number) + 1},
        **{"txg": txg, "createtxg": txg, "creation": 1_700_000_000 + number},
    }
    run = {**docs["run"], **empty, "txg": txg, "from_txg": before["txg"], "fromguid": before["guid"]}
    t.put("run", key, run)
    t.put("begin", key, docs["begin"])
    t.put("snapshot", key, snapshot)
    return snapshot


def add_datasets(pool: Pool, count: int) -> None:
    """Make as many datasets below b/many, which has, like each of them, a snapshot @s0."""
    dataset = pool.dataset(DatasetName("b/data"))
    last = pool.snapshots(dataset)[-1]
    docs = {kind: pool.catalog.get(kind, last.key) or {} for kind in KINDS}
    with pool.transaction() as t:
        for number in range(count + 1):
            one, txg = t.next_id(), t.next_txg()
            name = f"many/d{number}" if number else "many"
            fields = {"id": one, "guid": new_guid(), "name": name, "createtxg": txg}
            t.put("dataset", dataset_key(one), {**dataset.doc, **fields})
            empty = {"segments": [], "bytes": 0, "logical": 0, "records": 0, "file_bytes": 0, "dead": {}}
            t.put("run", txg_key(one, txg), {**docs["run"], **empty, "txg": txg})
            t.put("begin", txg_key(one, txg), docs["begin"])
            t.put("snapshot", txg_key(one, txg), {**docs["snapshot"], "txg": txg, "guid": new_guid(), "name": "s0"})


def add_bookmarks(pool: Pool, count: int) -> None:
    snapshot = pool.snapshots(pool.dataset(DatasetName("b/data")))[-1]
    with pool.transaction() as t:
        for number in range(1, count + 1):
            pool.add_bookmark(t, snapshot, f"m{number}")


def add_holds(pool: Pool, count: int) -> None:
    snapshot = pool.snapshots(pool.dataset(DatasetName("b/data")))[-1]
    with pool.transaction() as t:
        pool.update_snapshot(t, snapshot, holds={f"tag{number}": number for number in range(1, count + 1)})


def add_retention(pool: Pool, count: int) -> None:
    """Make as many snapshots, one received each hour, and a policy by which the oldest one goes."""
    add_snapshots(pool, count)
    dataset, now = pool.dataset(DatasetName("b/data")), int(time.time())
    with pool.transaction() as t:
        pool.update_dataset(t, dataset, local={"retention": f"hourly={count}"})
        for at, snapshot in enumerate(pool.snapshots(dataset)):
            pool.update_snapshot(t, snapshot, received_at=now - (count - at) * 3600)


FILL: dict[str, Callable[[Pool, int], None]] = {
    "snapshots": add_snapshots,
    "datasets": add_datasets,
    "bookmarks": add_bookmarks,
    "holds": add_holds,
    "retention": add_retention,
}


def many_increments(count: int) -> bytes:
    """A package, as of send -I, of as many increments to snapshot s0 that change nothing."""
    template = next(e for e in Reader().feed(stream(0)) if isinstance(e, SubBegin))
    writer, parts = Writer(), []
    header = Begin(versioninfo=HeaderType.COMPOUND, toname=f"bench/data@n{count}".encode())
    parts.append(writer.package(header, NvList()))
    for number in range(1, count + 1):
        nvlist = template.nvlist
        assert nvlist is not None
        crypt = nvlist["crypt_keydata"]
        assert isinstance(crypt, NvList)
        crypt.set("from_ivset_guid", guid(number - 1) + 1)
        crypt.set("to_ivset_guid", guid(number) + 1)
        fields = {"toguid": guid(number), "fromguid": guid(number - 1), "payloadlen": 0}
        begin = replace(template.begin, toname=f"bench/data@n{number}".encode(), **fields)
        parts += [writer.begin(begin, encode(nvlist)), writer.end()]
    return b"".join([*parts, writer.package_end()])


SMALL = Shape(8, 1024, 1)
"A dataset of eight small files; an increment of one record is 9 KB, as after an hour in which one file changed."


def small(number: int) -> bytes:
    """The full stream of snapshot 0 of SMALL; or the increment to a later one, of one changed record."""
    return stream(number, SMALL, 1)


def many_small(first: int, last: int) -> bytes:
    """A package, as of send -I, of increments that each changed one small file: @s(first) to @s(last)."""
    writer = Writer()
    header = Begin(versioninfo=HeaderType.COMPOUND, toname=f"bench/data@s{last}".encode())
    parts = [writer.package(header, NvList()), *map(small, range(first, last + 1)), writer.package_end()]
    return b"".join(parts)


# Measuring


@dataclass(frozen=True)
class Verb:
    """`words`: {n} stands for how many things there are. `each`: it is about all of them."""

    words: str
    stdin: str = ""
    each: bool = False
    changes: bool = False


VERBS = {
    "snapshots": [
        Verb("get -H used b/data@n{n}"),
        Verb("get -H guid b/data@n{n}"),
        Verb("list -H b"),
        Verb("list -H b/data@n{n}"),
        Verb("holds -H b/data@n{n}"),
        Verb("pool status b"),
        Verb("hold tag b/data@n{n}", changes=True),
        Verb("rename b/data@n{n} @other", changes=True),
        Verb("bookmark b/data@n{n} #mark", changes=True),
        Verb("destroy b/data@n{n}", changes=True),
        Verb("destroy b/data@n2%n5", changes=True),
        Verb("receive b/data", "increment", changes=True),
        Verb("send -w b/data@n{n}"),
        Verb("send -w -i @n5 b/data@n6"),
        Verb("list -H -r -t all b", each=True),
        Verb("get -H -r all b/data", each=True),
        Verb("send -w -I @n1 b/data@n{n}", each=True),
        Verb("receive b/data", "again", each=True),
        Verb("receive b/new", "package", each=True, changes=True),
        Verb("receive b/new", "small changes", each=True, changes=True),
        Verb("destroy b/data@%n{n}", each=True, changes=True),
    ],
    "datasets": [
        Verb("get -H used b/many/d{n}"),
        Verb("get -H guid b/many/d{n}"),
        Verb("list -H b/data"),
        Verb("pool status b"),
        Verb("create b/many/more", changes=True),
        Verb("hold tag b/many/d{n}@s0", changes=True),
        Verb("receive b/data", "increment", changes=True),
        Verb("list -H -r b", each=True),
        Verb("get -H -r all b", each=True),
        Verb("send -w -R b/many@s0", each=True),
        Verb("hold -r tag b/many@s0", each=True, changes=True),
        Verb("receive b/new", "tree", each=True, changes=True),
        Verb("rename b/many b/few", each=True, changes=True),
        Verb("destroy -r b/many", each=True, changes=True),
    ],
    "bookmarks": [
        Verb("get -H creation b/data#m{n}"),
        Verb("bookmark b/data@s0 #more", changes=True),
        Verb("destroy b/data#m{n}", changes=True),
        Verb("receive b/data", "increment", changes=True),
        Verb("list -H -t bookmark b/data", each=True),
    ],
    "holds": [
        Verb("hold more b/data@s0", changes=True),
        Verb("release tag{n} b/data@s0", changes=True),
        Verb("list -H -t all b/data"),
        Verb("holds -H b/data@s0", each=True),
    ],
    "retention": [
        Verb("prune -nv b/data"),
        Verb("prune b/data", changes=True),
        Verb("health b"),
    ],
}


def cpu(words: list[str], stdin: bytes, environment: dict[str, str]) -> float:
    """CPU seconds of one call, its wall seconds too if it fails to end well."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    run = subprocess.run([*ZKEEP, *words], input=stdin, capture_output=True, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        seconds = time.monotonic() - started
        raise SystemExit(f"zkeep {' '.join(words)}: status {run.returncode} after {seconds:.1f} s: {run.stderr!r}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(folder: Path, kind: str, count: int, rounds: int, verbs: list[Verb]) -> list[float]:
    """CPU seconds of each verb. What changes the pool has a copy of its own each time."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        home, filled = Path(place, "home"), Path(place, "pool")
        with new_pool(home, filled) as pool:
            FILL[kind](pool, count)
        kept = Path(place, "kept")
        shutil.copytree(filled, kept)
        environment = {**os.environ, "ZKEEP_HOME": str(home), "XDG_RUNTIME_DIR": place}
        found = []
        for verb in verbs:
            stdin = _input(verb, kind, count, environment)
            words = verb.words.format(n=count).split()
            if verb.stdin in ("package", "small changes"):
                cpu(["receive", "b/new"], (stream if verb.stdin == "package" else small)(0), environment)
            times = []
            for _ in range(1 if verb.each else rounds):
                times.append(cpu(words, stdin, environment))
                if verb.changes:
                    shutil.rmtree(filled)
                    shutil.copytree(kept, filled)
            found.append(median(times))
        return found


def _input(verb: Verb, kind: str, count: int, environment: dict[str, str]) -> bytes:
    if verb.stdin == "tree":
        words = [*ZKEEP, "send", "-w", "-R", "b/many@s0"]
        return subprocess.run(words, capture_output=True, env=environment, check=True).stdout
    if verb.stdin == "increment":
        return stream(count + 1 if kind == "snapshots" else 1)
    if verb.stdin == "small changes":
        return many_small(1, count)
    return many_increments(count) if verb.stdin in ("again", "package") else b""


def table(folder: Path, kind: str, counts: list[int], rounds: int) -> str:
    verbs = VERBS[kind]
    columns = [measure(folder, kind, count, rounds, verbs) for count in counts]
    lines = [f"| {kind} | " + " | ".join(f"{n:,}" for n in counts) + " | ratio |"]
    lines.append("| --- " * (len(counts) + 2) + "|")
    for i, verb in enumerate(verbs):
        cells, ratio = _cells(verb, counts, [column[i] for column in columns])
        words = f"`zkeep {verb.words}`".replace("{n}", "N")
        lines.append(f"| {words} {verb.stdin} | " + " | ".join(cells) + f" | {ratio:.1f} |")
    return "\n".join(lines)


def _cells(verb: Verb, counts: list[int], times: list[float]) -> tuple[list[str], float]:
    """A verb that is about all: what each more than in the first column costs, and how that grows."""
    if not verb.each:
        return [f"{t:.2f} s" for t in times], times[-1] / times[0]
    more = [1000 * (t - times[0]) / (n - counts[0]) for t, n in zip(times[1:], counts[1:], strict=True)]
    return [f"{times[0]:.2f} s", *(f"{ms:.2f} ms each" for ms in more)], more[-1] / max(more[0], 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--counts", default="10,1000,10000")
    parser.add_argument("--only", default=",".join(VERBS))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    counts = [int(text) for text in given.counts.split(",")]
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for kind in given.only.split(","):
            print(table(Path(folder), kind, counts, given.rounds), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
