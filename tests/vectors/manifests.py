"""Streams with a key, and what the real kernel's mount showed of them.

A case is a chain of streams to receive, in order, and what each snapshot must then hold, by guid. ZKEEP_VECTORS names
a folder of such streams; a small set lies in tests/data/opened.
"""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zkeep.crypto.unwrap import GetKey, first_that_opens
from zkeep.format.events import SubBegin
from zkeep.format.reader import read_events
from zkeep.format.records import Feature
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.transfer.receive import ReceiveOptions, receive

DATA = Path(__file__).parent.parent / "data" / "opened"
WHERE = os.environ.get("ZKEEP_VECTORS", "")
Files = dict[str, dict[str, Any]]

UNTOLD = {"ino", "blocks512"}
"What of the kernel's view is of its own disk."


@dataclass
class Case:
    name: str
    streams: list[Path]
    key: GetKey
    snapshots: dict[int, dict[str, Any]] = field(default_factory=dict)
    """`files` of a filesystem, `sha256` and `volsize` of a volume, by guid."""
    into: dict[str, str] = field(default_factory=dict)
    """By a stream's name, below which dataset it is received; at the top where it is not told."""

    def __str__(self) -> str:
        return self.name


def _materials(folder: Path, *known: dict[str, Any] | None) -> GetKey:
    files = [path.read_bytes() for path in sorted(folder.glob("keys/*"))]
    given = [bytes.fromhex(key["hex"]) for key in known if key]
    return first_that_opens([*given, *files])


def _load(path: Path) -> dict[str, Any]:
    content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    manifest: dict[str, Any] = json.loads(content)
    return manifest


def _by_guid(datasets: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {int(s["guid"]): s for dataset in datasets.values() for s in dataset["snapshots"].values()}


def _single(folder: Path) -> Iterator[Case]:
    """NAME.zfs beside NAME.zfs.json.xz; `base` names what goes before, `into` where to, `keys` opens it."""
    for path in sorted(folder.glob("*/*.zfs.json.xz")):
        manifest = _load(path)
        if "stream" not in manifest or any(part in path.name for part in ("resume-2", "redacted", "from-origin")):
            continue
        bases = [path.parent / name for name in manifest.get("base", "").split(",") if name]
        streams = [*bases, path.parent / manifest["stream"]]
        key = _materials(folder, *({"hex": content} for content in manifest.get("keys", [])))
        name, expected = path.name.removesuffix(".zfs.json.xz"), _by_guid(manifest["datasets"])
        yield Case(name, streams, key, expected, manifest.get("into", {}))


def _chains(folder: Path) -> Iterator[Case]:
    """SET.manifest.json.xz with its full streams and increments."""
    for path in sorted(folder.glob("*/*.manifest.json.xz")):
        manifest, name = _load(path), path.name.removesuffix(".manifest.json.xz")
        key = _materials(folder, manifest["key"])
        expected = _by_guid({"": manifest})
        last = len(manifest["snapshots"]) - 1
        chain = [path.parent / f"{name}.full-s0.zfs"]
        chain += [path.parent / f"{name}.inc-s{n}-s{n + 1}.zfs" for n in range(last)]
        yield Case(f"{name}-composed", chain, key, expected)
        for full in [path.parent / f"{name}.full-s{n}.zfs" for n in range(1, last + 1)]:
            if full.exists():
                yield Case(full.stem, [full], key, expected)
        plain = path.parent / f"{name}.plainLec-s{last}.zfs"
        if plain.exists():
            yield Case(plain.stem, [plain], key, expected)


def _story(folder: Path) -> Iterator[Case]:
    for path in folder.glob("story/manifest.json*"):
        key = first_that_opens([(path.parent / "jambon-zfs-key").read_bytes()])
        yield Case("story", [path.parent / "full-Rw.zfs"], key, _by_guid(_load(path)))
        plain = [path.parent / f"plain-blanc-{year}.zfs" for year in ("2018", "2019", "2020", "migration")]
        yield Case("story-plain", plain, key, _by_guid(_load(path)))


def cases() -> list[Case]:
    folders = [DATA, *([Path(WHERE)] if WHERE else [])]
    found = [case for folder in folders for kind in (_single, _chains, _story) for case in kind(folder)]
    return list({case.name: case for case in found}.values())


def is_plain(case: Case) -> bool:
    """Whether all its streams can be encrypted on arrival."""
    begins = [begin.begin for path in case.streams for begin in _begins(path)]
    return not any(begin.raw or begin.features & Feature.REDACTED for begin in begins)


def _begins(path: Path) -> list[SubBegin]:
    with path.open("rb") as source:
        return [event for event in read_events(source) if isinstance(event, SubBegin)]


def received(case: Case, path: Path) -> Pool:
    """A pool with all that the case's streams hold."""
    pool = Pool.create(path / "pool", "v", {"blind": "off"})
    for stream in case.streams:
        with stream.open("rb") as source:
            receive(pool, source, case.into.get(stream.name, "v/x"), ReceiveOptions(force=True))
    return pool


def snapshots(pool: Pool, case: Case) -> list[tuple[Snapshot, dict[str, Any]]]:
    """The snapshots that the case names."""
    every = [s for found in pool.all_snapshots().values() for s in found]
    return [(s, case.snapshots[s.guid]) for s in every if s.guid in case.snapshots]


def told(files: Files) -> Files:
    """The fields of a manifest that an extracted copy must show."""
    return {path: {k: v for k, v in entry.items() if k not in UNTOLD} for path, entry in files.items()}


def differences(got: Files, want: Files) -> list[str]:
    """A line for each path that differs."""
    lines = []
    for path in sorted(got.keys() | want.keys()):
        mine, theirs = got.get(path), want.get(path)
        if mine != theirs:
            fields = sorted(
                k for k in (mine or {}).keys() | (theirs or {}).keys() if (mine or {}).get(k) != (theirs or {}).get(k)
            )
            shown = [(k, str((mine or {}).get(k))[:60], str((theirs or {}).get(k))[:60]) for k in fields]
            lines.append(f"{path!a}: {shown}")
    return lines
