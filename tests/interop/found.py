"""Writes down what went into zkeep and what the kernel shows of it, as a vector: it is replayed without the machine.

A vector is a folder that `ZKEEP_VECTORS=FOLDER pytest tests/vectors` reads: streams in their order, and for the last
of them a manifest (see tests/vectors/manifests.py): `base` names the others, `into` where each is received, `keys`
opens them, `datasets` says what every snapshot holds, `made` how it came to be.
"""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

from lab import Lab, Tree
from machine import GuestError

ROOM = "kernel"
"The folder of the streams in a vector, and in tests/data/opened."


def write_down(lab: Lab, folder: Path, name: str, made: str) -> Path:
    """All that the lab's zkeep was given so far; the manifest's path. What the kernel cannot show is left out."""
    room = folder / ROOM
    room.mkdir(parents=True, exist_ok=True)
    streams, into = [], {}
    for number, (path, dataset) in enumerate(lab.given):
        stream = f"{name}.zfs" if path == lab.given[-1][0] else f"{name}.{number}.zfs"
        shutil.copy(path, room / stream)
        streams.append(stream)
        into[stream] = dataset
    manifest = {
        "made": made,
        "openzfs": lab.openzfs,
        "keys": [key.hex() for key in lab.key_contents()],
        "base": ",".join(streams[:-1]),
        "stream": streams[-1],
        "into": into,
        "datasets": _datasets(lab),
    }
    path = room / f"{name}.zfs.json.xz"
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    path.write_bytes(lzma.compress(text.encode(), preset=9))
    return path


def _datasets(lab: Lab) -> dict[str, Any]:
    """What every snapshot of the source holds, by dataset and name."""
    found: dict[str, Any] = {}
    for line in lab.guest.run("zfs list -H -p -o name,guid -t snapshot -r tank").splitlines():
        full, guid = line.split("\t")
        dataset, name = full.split("@")
        snapshots = found.setdefault(dataset, {"snapshots": {}})["snapshots"]
        try:
            snapshots[name] = {"guid": guid, **_held(lab, full)}
        except GuestError:
            continue
    return found


def _held(lab: Lab, snapshot: str) -> dict[str, Any]:
    dataset = snapshot.partition("@")[0]
    (tree,) = lab.seen([snapshot], "sha256")
    kind, size = lab.guest.run(f"zfs get -H -p -o value type,volsize {dataset}").splitlines()
    if kind == "volume":
        return {"volsize": size, **tree}
    return {"files": {path: _entry(entry) for path, entry in tree.items()}}


def _entry(entry: Tree) -> Tree:
    return {name: value for name, value in entry.items() if name != "xattrs" or value}
