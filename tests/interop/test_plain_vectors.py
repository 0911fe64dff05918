"""Plain streams with a manifest, of kernels elsewhere, become encrypted here; the kernel mounts what leaves raw (P8).

Every snapshot then holds what the mount at its source showed. ZKEEP_VECTORS names a folder with more such streams.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from lab import QUICK as DATA
from lab import Lab, Tree, assert_same
from manifests import Case, cases, is_plain, told
from test_reencrypted import make_parent

sys.path.append(str(Path(__file__).parent / "guest"))
from tree import data_digest

SHA256 = "sha256"
"The digest that manifests tell."


def plain_cases() -> list[Case]:
    """All that are not the beginning of another one."""
    every = [case for case in cases() if is_plain(case)]
    begun = [case.streams[:count] for case in every for count in range(1, len(case.streams))]
    return [case for case in every if case.streams not in begun]


@pytest.mark.parametrize("case", plain_cases(), ids=str)
def test_the_kernel_mounts_what_became_of_a_plain_stream(lab: Lab, case: Case) -> None:
    key = make_parent(lab)
    for stream in case.streams:
        shutil.copy(stream, lab.share / "plain.zfs")
        lab.receive("plain.zfs", "v/enc/ds", "-x", "encryption", "-F")
    lines = lab.zkeep("list", "-H", "-p", "-t", "snapshot", "-o", "name,guid", "v/enc/ds").splitlines()
    guids = {name: int(guid) for name, guid in (line.split("\t") for line in lines)}
    assert set(guids.values()) <= set(case.snapshots)

    # It leaves raw: a full stream of the first snapshot, and the others as increments.
    names = list(guids)
    lab.send("full.zfs", "-w", names[0])
    lab.kernel_takes("full.zfs", "back/ds")
    if len(names) > 1:
        lab.send("rest.zfs", "-w", "-I", names[0], names[-1])
        lab.kernel_takes("rest.zfs", "back/ds")
    lab.kernel_opens("back/ds", key)
    copies = [name.replace("v/enc/", "back/") for name in names]
    for name, copy, got in zip(names, copies, lab.seen(copies, SHA256), strict=True):
        want = as_listed(case.snapshots[guids[name]])
        for path in (path for path, entry in got.items() if DATA in entry and path in want):
            del want[path][SHA256]
            want[path][DATA] = digest_of_extracted(lab, name, path)
        assert_same(copy, got, want)

    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "v/enc")


def as_listed(manifest: dict[str, Any]) -> Tree:
    """What guest/tree.py must show of a snapshot: of a filesystem its files, of a volume its digest."""
    if "files" not in manifest:
        return {SHA256: manifest[SHA256]}
    return {path: {"xattrs": {}, **entry} for path, entry in told(manifest["files"]).items()}


def digest_of_extracted(lab: Lab, snapshot: str, path: str) -> str:
    """What zkeep reads of a large file. That this is what the manifest says is found in tests/vectors."""
    target = lab.folder / "large"
    lab.call("extract", "-C", str(target), snapshot, path)  # 1: the disk here takes no large extended attribute
    found = data_digest(target / path)
    shutil.rmtree(target)
    return found
