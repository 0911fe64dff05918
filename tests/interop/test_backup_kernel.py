"""zkeep backup from and to the kernel's ZFS: `python tests/interop --long -k backup`.

A program `zfs` on this machine hands its words to the kernel's own zfs in the machine, streams included.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from lab import RAW, Lab, long

pytestmark = long
GIVEN, TAKEN = "relay-in.zfs", "relay-out.zfs"
PROGRAM = """#!{python}
import json, shutil, socket, sys
words, share = sys.argv[1:], {share!r}
if words[0] == "receive":
    with open(share + "/{given}", "wb") as sink:
        shutil.copyfileobj(sys.stdin.buffer, sink)
with socket.socket(socket.AF_UNIX) as door:
    door.connect({door!r})
    door.sendall(json.dumps(words).encode() + b"\\n")
    answer = json.loads(door.makefile().readline())
if words[0] == "send" and answer["status"] == 0:
    with open(share + "/{taken}", "rb") as source:
        shutil.copyfileobj(source, sys.stdout.buffer)
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["status"])
"""


class Relay:
    """Runs the words that a socket receives as zfs in the machine, one after the other."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.calls = lab, list[str]()
        door = str(folder / "door")
        program = folder / "zfs"
        names = {"python": sys.executable, "share": str(lab.share), "door": door, "given": GIVEN, "taken": TAKEN}
        program.write_text(PROGRAM.format(**names))
        program.chmod(0o755)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(door)
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                words = json.loads(connection.makefile().readline())
                self.calls.append(" ".join(words))
                files = {"send": f" > /mnt/{TAKEN}", "receive": f" < /mnt/{GIVEN}"}.get(words[0], "")
                answer = self.lab.guest.call(shlex.join(["zfs", *words]) + files)
                found = {"status": answer.status, "out": answer.out, "err": answer.err}
                connection.sendall(json.dumps(found).encode() + b"\n")

    def close(self) -> None:
        self._socket.close()


@contextmanager
def relayed(lab: Lab, folder: Path) -> Iterator[Relay]:
    relay = Relay(lab, folder)
    try:
        yield relay
    finally:
        relay.close()


def backup(lab: Lab, folder: Path, *words: str) -> list[str]:
    """`zkeep backup`, which must succeed; the names of what was sent."""
    env = {**os.environ, "ZKEEP_HOME": str(lab.folder / "home"), "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "zkeep", "backup", "-j", *words]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [event["to"]["name"] for event in events if event["what"] == "sent"]


def snapshots(lab: Lab, name: str) -> list[str]:
    return lab.guest.run(f"zfs list -H -o name -t snapshot -s createtxg -d 1 {name}").split()


def test_an_encrypted_tree_raw_to_zkeep_and_from_there_to_the_kernel(lab: Lab, tmp_path: Path) -> None:
    key = lab.key(RAW)
    run = lab.guest.run
    run(f"zfs create -o encryption=on {key.creating} tank/home && zfs create tank/home/sub")
    with relayed(lab, tmp_path) as relay:
        for turn in range(3):
            lab.guest.work(turn, 30, "/tank/home")
            lab.guest.work(turn + 10, 20, "/tank/home/sub")
            run(f"zfs snapshot -r tank/home@mine{turn}")
            sent = backup(lab, tmp_path, "-r", "zfs:tank/home", "v/home")
            assert len(sent) == (2 if turn == 0 else 4)
        # Of its own there is one snapshot, held, and one bookmark; what is the user's is untouched.
        for name in ("tank/home", "tank/home/sub"):
            kept = [text.partition("@")[2][:7] for text in snapshots(lab, name)]
            assert kept == ["mine0", "mine1", "mine2", "backup-"]
            marks = run(f"zfs list -H -o name -t bookmark -d 1 {name}").split()
            assert [mark.partition("#")[2][:7] for mark in marks] == ["backup-"]
        # The last snapshot is destroyed behind its back: the bookmark is as good.
        last = snapshots(lab, "tank/home")[-1]
        tag = run(f"zfs holds -H {last}").split()[1]
        run(f"zfs release -r {tag} {last} && zfs destroy -r {last}")
        lab.guest.work(99, 20, "/tank/home")
        backup(lab, tmp_path, "-r", "zfs:tank/home", "v/home")
        # And back into the kernel, as it was.
        backup(lab, tmp_path, "v/home", "zfs:back/home")
        assert not [call for call in relay.calls if call.split()[0] in ("rollback", "rename")]
    lab.kernel_opens("back/home", key)
    newest = snapshots(lab, "back/home")[-1].partition("@")[2]
    lab.same([f"back/home@{newest}"], [f"tank/home@{newest}"])
    lab.kernel_finds_no_fault()


def test_a_plain_dataset_becomes_encrypted_on_its_way_to_the_kernel(lab: Lab, tmp_path: Path) -> None:
    lab.guest.run("zfs create -o recordsize=1M tank/plain")
    key = tmp_path / "key"
    first = ("--yes", "--key-file", str(key))
    with relayed(lab, tmp_path):
        for turn in range(3):
            lab.guest.work(turn, 40, "/tank/plain")
            assert len(backup(lab, tmp_path, *first, "zfs:tank/plain", "zfs:back/plain")) == 1
        newest = snapshots(lab, "tank/plain")[-1].partition("@")[2]
    assert lab.guest.run("zfs get -H -o value encryption back/plain") == "aes-256-gcm"
    (lab.share / "plain.key").write_bytes(key.read_bytes())
    lab.guest.run("zfs load-key -L file:///mnt/plain.key back/plain && zfs mount back/plain")
    lab.same([f"back/plain@{newest}"], [f"tank/plain@{newest}"])
    lab.kernel_finds_no_fault()


def test_a_folder_goes_to_the_kernel(lab: Lab, tmp_path: Path) -> None:
    docs, key = tmp_path / "docs", tmp_path / "key"
    docs.mkdir()
    with relayed(lab, tmp_path):
        for turn in range(2):
            (docs / f"file{turn}").write_bytes(os.urandom(300_000))
            backup(lab, tmp_path, "--yes", "--key-file", str(key), str(docs), "zfs:back/docs")
    (lab.share / "docs.key").write_bytes(key.read_bytes())
    lab.guest.run("zfs load-key -L file:///mnt/docs.key back/docs && zfs mount back/docs")
    for path in docs.iterdir():
        digest = lab.guest.run(f"sha256sum < /back/docs/{path.name}").split()[0]
        assert digest == sha256(path.read_bytes()).hexdigest()
    lab.kernel_finds_no_fault()
