"""zkeep restore from and to the kernel's ZFS: `python tests/interop --long -k restore_kernel`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from lab import QUICK, RAW, Lab, Tree, assert_same, long
from test_backup_kernel import backup, relayed

pytestmark = long


def restore(lab: Lab, folder: Path, *words: str) -> str:
    """`zkeep restore`, which must succeed; what it says."""
    env = {**os.environ, "ZKEEP_HOME": str(lab.folder / "home"), "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "zkeep", "restore", *words]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def found(lab: Lab, place: Path) -> Tree:
    """A folder here, as lab.seen() describes one of the kernel's."""
    out = lab.folder / "restored.json"
    subprocess.run([sys.executable, str(lab.share / "tree.py"), str(out), QUICK, str(place)], check=True)
    (tree,) = json.loads(out.read_text())
    return dict(tree)


def test_files_and_datasets_come_from_a_host_of_zfs(lab: Lab, tmp_path: Path) -> None:
    """Without a backup between: the host is the keeper. A tree goes from there into another pool, too."""
    key = lab.key(RAW)
    run = lab.guest.run
    run(f"zfs create -o encryption=on {key.creating} tank/home && zfs create tank/home/sub")
    run("zfs create tank/home/sub/late")
    lab.guest.work(1, 30, "/tank/home")
    lab.guest.work(2, 20, "/tank/home/sub")
    run("zfs snapshot tank/home@s && zfs snapshot tank/home/sub@s && zfs snapshot tank/home/sub/late@other")
    with relayed(lab, tmp_path):
        into = lab.folder / "all"
        said = restore(lab, tmp_path, "-r", "zfs:tank/home", "-L", key.outside, "-C", str(into))
        assert "not included: tank/home/sub/late: they have no @s" in said
        (want,) = lab.seen(["tank/home/sub@s"])
        assert_same("tank/home/sub@s", found(lab, into / "sub"), want)
        restore(lab, tmp_path, "-r", "zfs:tank/home", "-L", key.outside, "--to", "zfs:back/home")
    lab.kernel_opens("back/home", key)
    lab.same(["back/home@s", "back/home/sub@s"], ["tank/home@s", "tank/home/sub@s"])
    lab.kernel_finds_no_fault()


def test_a_tree_that_was_backed_up_goes_back_to_the_kernel(lab: Lab, tmp_path: Path) -> None:
    """From a pool of zkeep: the newest of several, then an older one, authenticated before the kernel sees a byte."""
    key = lab.key(RAW)
    run = lab.guest.run
    run(f"zfs create -o encryption=on {key.creating} tank/home && zfs create -V 8M tank/home/disk")
    with relayed(lab, tmp_path) as relay:
        for turn in range(3):  # what is older than the first backup is not in it
            lab.guest.work(turn, 30, "/tank/home")
            run(f"zfs snapshot -r tank/home@mine{turn}")
            backup(lab, tmp_path, "-r", "zfs:tank/home", "v/home")
        restore(lab, tmp_path, "-r", "v/home", "-L", key.outside, "--snapshot", "mine2", "--to", "zfs:back/new")
        restore(lab, tmp_path, "v/home", "-L", key.outside, "--snapshot", "mine1", "--to", "zfs:back/old")
        assert not [call for call in relay.calls if call.startswith("destroy") and "back/" in call]
    for top in ("back/new", "back/old"):
        lab.kernel_opens(top, key)
    lab.same(["back/new@mine2", "back/new/disk@mine2"], ["tank/home@mine2", "tank/home/disk@mine2"])
    lab.same(["back/old@mine1"], ["tank/home@mine1"])
    lab.kernel_finds_no_fault()


def test_a_folder_comes_back_from_the_kernel_with_its_own_key(lab: Lab, tmp_path: Path) -> None:
    """A host of ZFS keeps what a machine without it sent; the key is found where the backup made it."""
    docs, key = tmp_path / "docs", tmp_path / "key"
    docs.mkdir()
    with relayed(lab, tmp_path):
        for turn in range(2):
            (docs / f"file{turn}").write_bytes(os.urandom(300_000))
            backup(lab, tmp_path, "--yes", "--key-file", str(key), str(docs), "zfs:back/docs")
        restore(lab, tmp_path, "zfs:back/docs", "file1", "-C", str(tmp_path / "one"))
        restore(lab, tmp_path, "zfs:back/docs", "-C", str(tmp_path / "all"))
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["file1"]
    for path in docs.iterdir():
        digest = sha256((tmp_path / "all" / path.name).read_bytes()).hexdigest()
        assert digest == sha256(path.read_bytes()).hexdigest()
