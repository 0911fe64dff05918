"""What a live dataset became after random work the kernel takes, mounts, scrubs and writes on (P8)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from lab import LONG, RAW, Lab, Tree, assert_same
from sourcekit import create, same_records

TURNS = 12 if LONG else 3


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")
def test_a_live_dataset_becomes_one_of_the_kernel(lab: Lab) -> None:
    """Snapshots are taken while it is mounted; in some turns it is mounted again."""
    key = lab.key(RAW)
    create(lab, "v/live", key, "acltype=posix", "recordsize=16K")
    folder = lab.folder / "live"
    folder.mkdir()
    trees: list[Tree] = []
    for turn in range(TURNS):
        if turn % 3 == 0:
            lab.zkeep("mount", "v/live", str(folder))
        command = [sys.executable, str(lab.share / "work.py"), str(turn), "60" if turn == 0 else "25", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lab.zkeep("snapshot", f"v/live@s{turn}")
        trees.append(_tree(lab, str(folder)))
        if turn % 3 == 2 or turn == TURNS - 1:
            lab.zkeep("unmount", str(folder))
    last = TURNS - 1
    lab.send("live-full.zfs", "-w", "v/live@s0")
    lab.send("live-rest.zfs", "-w", "-I", "@s0", f"v/live@s{last}")
    lab.kernel_takes("live-full.zfs", "back/live")
    lab.kernel_takes("live-rest.zfs", "back/live")
    lab.kernel_opens("back/live", key)
    names = [f"back/live@s{turn}" for turn in range(TURNS)]
    for name, got, want in zip(names, lab.seen(names, "sha256"), trees, strict=True):
        assert_same(name, got, want)
    lab.kernel_sends("live-theirs.zfs", f"-w back/live@s{last}")
    lab.send("live-ours.zfs", "-w", f"v/live@s{last}")
    same_records(lab, "live-ours.zfs", "live-theirs.zfs")
    lab.guest.work(1, 40, "/back/live")
    lab.kernel_finds_no_fault()
    lab.guest.run('rm -rf /back/live/* && test -z "$(ls -A /back/live)"')
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "v/live")


def _tree(lab: Lab, folder: str) -> Tree:
    out = lab.folder / "listed-live.json"
    subprocess.run([sys.executable, str(lab.share / "tree.py"), str(out), "sha256", folder], check=True)
    found: list[Tree] = json.loads(out.read_text())
    return found[0]
