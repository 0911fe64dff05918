"""What a mount shows equals the manifest in every field."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from manifests import Case, Files, cases, differences, received, snapshots
from test_extract_vectors import looked_at

from mountkit import lazy, mounted, needs_fuse

pytestmark = [needs_fuse, pytest.mark.skipif(os.geteuid() != 0, reason="only root sees all attributes")]


def without_blocks(files: Files) -> Files:
    return {path: {k: v for k, v in entry.items() if k != "blocks512"} for path, entry in files.items()}


def with_numbers(files: Files, top: Path, want: Files) -> Files:
    """With the inode numbers, which an extracted copy does not keep and a mount does, where the manifest tells them."""
    told = {path for path in files if "ino" in want.get(path, {})}
    return {**files, **{path: {**files[path], "ino": os.lstat(top / path).st_ino} for path in told}}


def but_the_roots(files: Files) -> Files:
    """The kernel numbers the root of a snapshot's mount by the mount."""
    return {**files, ".": {**files["."], "ino": 0}}


@pytest.mark.parametrize("case", cases(), ids=str)
def test_what_is_mounted_is_what_the_kernel_showed(case: Case, tmp_path: Path) -> None:
    with received(case, tmp_path) as pool:
        for number, (snapshot, want) in enumerate(snapshots(pool, case)):
            folder = tmp_path / str(number)
            with mounted(folder, lazy(pool.path, snapshot, case.key)) as log:
                if "files" in want:
                    seen = with_numbers(looked_at(folder), folder, want["files"])
                    assert differences(but_the_roots(seen), but_the_roots(without_blocks(want["files"]))) == []
                else:
                    (image,) = folder.iterdir()
                    with image.open("rb") as source:
                        assert hashlib.file_digest(source, "sha256").hexdigest() == want["sha256"]
                assert log.read_text() == ""
