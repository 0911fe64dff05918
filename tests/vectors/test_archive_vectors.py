"""A tar archive holds what the kernel showed, and tar makes the same files of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from manifests import Case, cases, differences, received, snapshots, told
from test_extract_vectors import looked_at

from zkeep.restore.files.tar import write_tar
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make owners and devices"),
    pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not here"),
]
TAR = ["tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "--same-owner", "--numeric-owner", "-C"]


@pytest.mark.parametrize("case", [case for case in cases() if "plain" not in case.name], ids=str)
def test_tar_makes_of_it_what_the_kernel_showed(case: Case, tmp_path: Path) -> None:
    with received(case, tmp_path) as pool:
        for number, (snapshot, want) in enumerate(snapshots(pool, case)):
            small = sum(entry.get("size", 0) for entry in want.get("files", {}).values()) < 256 << 20
            if "files" not in want or not small:
                continue
            target = tmp_path / str(number)
            target.mkdir()
            with OpenSnapshot(pool, snapshot, case.key) as opened, (tmp_path / "tar").open("wb") as sink:
                report = write_tar(Filesystem(opened), [b""], sink)
            with (tmp_path / "tar").open("rb") as source:
                done = subprocess.run([*TAR, target], check=False, stdin=source, capture_output=True, text=True)
            long = {path for path in want["files"] if any(len(os.fsencode(part)) > 255 for part in path.split("/"))}
            assert long or not done.returncode, done.stderr
            sockets = {path for path, entry in want["files"].items() if entry["type"] == "socket"}
            assert report.counts["sockets"] == len(sockets)
            kept = {path: entry for path, entry in told(want["files"]).items() if path not in long | sockets}
            assert differences(looked_at(target), kept) == []
