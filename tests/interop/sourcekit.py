"""Folders of the host that become datasets of the kernel, and what both ends send of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lab import QUICK, Key, Lab, Tree

from zkeep.format.events import Batch
from zkeep.format.reader import read_events
from zkeep.format.records import CHECKSUM, LAYOUTS, RecordType

FREES = ("FREE", "FREEOBJECTS")
"Records in which a stream from zkeep may differ (docs/FREE_RULES.md)."


class Folder:
    """A folder of the host that is changed at random and stored, snapshot by snapshot."""

    def __init__(self, lab: Lab, seed: int, name: str = "source", place: Path | None = None) -> None:
        self.lab, self.seed = lab, seed
        self.path = place or lab.folder / name
        self.path.mkdir()
        self.trees: list[Tree] = []

    def work(self, count: int) -> None:
        command = [sys.executable, str(self.lab.share / "work.py"), str(self.seed + len(self.trees)), str(count)]
        subprocess.run([*command, str(self.path)], check=True, stdout=subprocess.DEVNULL)

    def snapshot(self, dataset: str, digest: str = QUICK) -> None:
        self.lab.zkeep("snapshot", "--from", str(self.path), f"{dataset}@s{len(self.trees)}")
        out = self.lab.folder / "listed.json"
        script = str(self.lab.share / "tree.py")
        subprocess.run([sys.executable, script, str(out), digest, str(self.path)], check=True)
        (found,) = json.loads(out.read_text())
        self.trees.append(found)


def records_of(path: Path) -> list[tuple[str, bytes]]:
    """Type and bytes of the records, without their running checksums and what only the sender's disk knows."""
    found = []
    with path.open("rb") as source:
        for event in read_events(source):
            if not isinstance(event, Batch):
                continue
            for i, rtype in enumerate(event.types.tolist()):
                start, length = int(event.offsets[i]), int(event.lengths[i])
                record = bytearray(event.buffer[start : start + length])
                record[CHECKSUM : CHECKSUM + 32] = bytes(32)
                if rtype == RecordType.WRITE:
                    fields = LAYOUTS[RecordType.WRITE].dtype().fields
                    assert fields is not None
                    for name, size in (("key_checksum", 32), ("key_prop", 8)):
                        at = int(fields[name][1])
                        record[at : at + size] = bytes(size)
                found.append((RecordType(rtype).name, bytes(record)))
    return found


def create(lab: Lab, name: str, key: Key, *options: str) -> None:
    """Make an encrypted dataset of zkeep's. `options`: further ones, as property=value."""
    every = ("keyformat=raw", f"keylocation={key.outside}", *options)
    every = every if any(option.startswith("encryption=") for option in every) else ("encryption=on", *every)
    lab.zkeep("create", *(word for option in every for word in ("-o", option)), name)


def same_records(lab: Lab, ours: str, theirs: str, *, frees: bool = True) -> None:
    """What zkeep and the kernel sent, as files of the share, is the same. `frees`: records that free count, too."""
    found = [
        [record for record in records_of(lab.share / name) if frees or record[0] not in FREES]
        for name in (ours, theirs)
    ]  # fmt: skip
    assert [kind for kind, _ in found[0]] == [kind for kind, _ in found[1]]
    assert found[0] == found[1]
