"""Fetches one snapshot from where it is kept into a pool of its own: as a raw stream, however often the line breaks.

Whatever comes is hostile until it is checked: the listing here, the stream by the receive, its contents by the key.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

from zkeep.backup.patience import Patient
from zkeep.backup.peer import Done, Peer, clean, rows
from zkeep.errors import BadStream, NotAuthentic, Refused, TryAgain
from zkeep.names import MAX_UINT64, DatasetName, SnapshotName, parse_any, printable, shown, whole_number
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.view import View
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.token import Token

TRIES = 5
"How often in a row a line may break before anything new has come."
MOST_TRIES = 10_000
PAUSES = (0.0, 1.0, 3.0, 10.0, 30.0)
"Seconds before each further try."
_COLUMNS = ("name", "guid", "createtxg", "creation", "refer")


@dataclass(frozen=True)
class Listed:
    """A snapshot as its keeper lists it: nothing of it is proved. `creation`: seconds since 1970; `size`: bytes."""

    name: SnapshotName
    guid: int
    createtxg: int
    creation: int
    size: int = 0


def list_snapshots(peer: Peer, dataset: DatasetName, *, recursive: bool) -> dict[DatasetName, list[Listed]]:
    """The snapshots of a dataset, oldest first, and with `recursive` those of all datasets below it.

    Without, the datasets right below it are listed as having none.

    Raises:
        TryAgain, Refused: the peer does not say, or nothing that can be believed.
    """
    depth = ["-r"] if recursive else ["-d", "1"]
    kinds = ["-t", "filesystem,volume,snapshot", "-o", ",".join(_COLUMNS), "-s", "createtxg"]
    done, answer = peer.ask("list", "-H", "-p", *depth, *kinds, dataset.text)
    peer.check(done, f"cannot list {dataset}")
    return parse_snapshots(answer, dataset, str(peer))


def parse_snapshots(answer: bytes, top: DatasetName, who: str) -> dict[DatasetName, list[Listed]]:
    """Check the rows of a listing; datasets in the order of their names.

    Raises:
        Refused: they are not what was asked for.
    """
    found: dict[DatasetName, list[Listed]] = {top: []}
    try:
        for name, *numbers in rows(answer, len(_COLUMNS)):
            parsed = parse_any(name)
            dataset = parsed.dataset if isinstance(parsed, SnapshotName) else parsed
            if not isinstance(dataset, DatasetName) or not dataset.is_within(top):
                raise ValueError(name)
            of = found.setdefault(dataset, [])
            if isinstance(parsed, SnapshotName):
                of.append(_listed(parsed, numbers))
    except (ValueError, Refused) as error:
        raise Refused(f"{who} lists what is no snapshot of {top}: {clean(shown(str(error)))}") from None
    for dataset, snapshots in found.items():
        for what, values in (("guid", {s.guid for s in snapshots}), ("name", {s.name for s in snapshots})):
            if len(values) != len(snapshots):
                raise Refused(f"{who} lists two snapshots of {dataset} with the same {what}")
        snapshots.sort(key=lambda snapshot: snapshot.createtxg)
    return dict(sorted(found.items(), key=lambda item: item[0].text.split("/")))


def _listed(name: SnapshotName, numbers: Sequence[str]) -> Listed:
    if len(numbers) != len(_COLUMNS) - 1:
        raise ValueError(str(name))
    guid, createtxg, creation, size = (whole_number(text, MAX_UINT64) for text in numbers)
    return Listed(name, guid, createtxg, creation, size)


def choose(listed: Sequence[Listed], where: str, name: str | None = None, at: float | None = None) -> Listed:
    """The snapshot of a name; else the newest that was made at a time or before; else the newest.

    Raises:
        Refused: there is none.
    """
    if name is not None:
        found = [snapshot for snapshot in listed if snapshot.name.name == name]
        missing = f"it has no snapshot {shown(name)}"
    else:
        found = [snapshot for snapshot in listed if at is None or snapshot.creation <= at]
        missing = "it has no snapshot" + (_oldest(listed[0]) if listed else "")
    if not found:
        raise Refused(f"cannot restore {where}: {missing}")
    return found[-1]


def _oldest(oldest: Listed) -> str:
    """What to say where all snapshots are younger than was asked for."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(oldest.creation))
    return f" that is as old; the oldest is @{printable(oldest.name.name)}, of {when}"


# The stream


def fetch(
    peer: Peer,
    wanted: Listed,
    pool: Pool,
    *,
    raw: bool = True,
    on_progress: Callable[[str, int], None] | None = None,
    on_retry: Callable[[str], None] = lambda why: None,
    pause: Callable[[float], None] = time.sleep,
) -> Snapshot:
    """Receive a snapshot into a pool, under the same name; continues what an earlier call left.

    `raw`: whether what is not encrypted is refused.

    Raises:
        TryAgain: the line breaks again and again; what came is kept in the pool.
        Refused: the peer or the receive refuses it.
        NotAuthentic: it is not the snapshot that was asked for.
    """
    here = name_here(wanted)
    if here.dataset.parent is not None and pool.find(here.dataset.parent) is None:
        namespace.create(pool, here.dataset.parent, {}, True)
    options = ReceiveOptions(resumable=True, on_progress=on_progress)
    failed, why = 0, None
    for _ in range(MOST_TRIES):
        # 1. Try until the snapshot is here; each attempt continues where the last one stopped.
        if found := pool.find_snapshot(here):
            return checked(pool, found, wanted, raw=raw)
        before = _arrived(pool, here.dataset)
        why = _attempt(peer, wanted, pool, options)
        if why is None:
            continue
        # 2. Count failures in a row only: an attempt that brought bytes starts the count again.
        failed = 0 if _arrived(pool, here.dataset) > before else failed + 1
        if failed == TRIES:
            break
        on_retry(why)
        pause(PAUSES[min(failed, len(PAUSES) - 1)])
    raise TryAgain(why or f"cannot fetch {wanted.name}")


def name_here(wanted: Listed) -> SnapshotName:
    """Under the same name; the top dataset of a pool, which is not received into, one deeper."""
    dataset = wanted.name.dataset
    here = dataset if dataset.parent is not None else dataset.child(dataset.pool)
    return here.snapshot(wanted.name.name)


def _attempt(peer: Peer, wanted: Listed, pool: Pool, options: ReceiveOptions) -> str | None:
    """Receive the whole stream, or the rest of it; returns why it broke off, if another try may help."""
    here = name_here(wanted)
    token = _token(pool, here.dataset)
    words = ["send", "-t", token] if token else ["send", "-w", str(wanted.name)]
    with peer.running(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as run:
        assert run.process.stdout is not None
        try:
            receive(pool, cast(BinaryIO, Patient(run.process.stdout)), str(here), options)
            return None
        except (BadStream, TryAgain) as error:
            run.process.stdout.close()
            return why_broken(peer, run.end(30), error, wanted)


def why_broken(peer: Peer, done: Done, error: BadStream | TryAgain, wanted: Listed) -> str:
    """Why a stream broke off: what the peer says counts more than that the stream is short.

    Raises:
        Refused: the peer said no, or what it sends is no stream.
    """
    try:
        peer.check(done, f"cannot fetch {wanted.name}")
    except TryAgain as broken:
        return str(broken)
    except Refused as refused:
        if "permission denied" in done.said:
            way = "its administrator prints the line for one that may with zkeep server --allow list,send"
            raise Refused(f"{refused}; {way}") from None
        if done.said:
            raise
    return str(error)


def _token(pool: Pool, dataset: DatasetName) -> str | None:
    found = pool.find(dataset)
    token = View(pool).get(found, "receive_resume_token").value if found else None
    return str(token) if token not in (None, "-", "") else None


def _arrived(pool: Pool, dataset: DatasetName) -> int:
    """Bytes of an unfinished receive that are kept."""
    token = _token(pool, dataset)
    return Token.decode(token).bytes if token else 0


def checked(pool: Pool, snapshot: Snapshot, wanted: Listed, *, raw: bool) -> Snapshot:
    if snapshot.guid != wanted.guid:
        was = f"guid {snapshot.guid:#x} came, and {wanted.guid:#x} was listed"
        raise NotAuthentic(f"{wanted.name}: it is another snapshot than was asked for: {was}")
    doc = pool.catalog.get("begin", snapshot.key)
    if raw and (doc is None or not Opening.from_doc(doc).begin.raw):
        raise NotAuthentic(f"{wanted.name}: it is not encrypted: nothing in it can be authenticated")
    return snapshot
