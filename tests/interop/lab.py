"""Two ends of a line: datasets of the real kernel, in the machine, and a blind pool of zkeep, outside.

Streams lie in the folder that both share; each end is used as a person uses it, through its command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from machine import Answer, Guest

Tree = dict[str, Any]
RAW, HEX, PASSPHRASE = "raw", "hex", "passphrase"
ITERATIONS = 100_000
"The fewest that ZFS allows: the machine is slow."


@dataclass(frozen=True)
class Key:
    """A wrapping key as a file, at both ends."""

    keyformat: str
    inside: str
    outside: str

    @property
    def creating(self) -> str:
        """Options of zfs create and change-key."""
        rounds = f" -o pbkdf2iters={ITERATIONS}" if self.keyformat == PASSPHRASE else ""
        return f"-o keyformat={self.keyformat} -o keylocation={self.inside}{rounds}"


class Lab:
    """The machine's pools are tank and back, zkeep's is v."""

    def __init__(self, guest: Guest, folder: Path) -> None:
        self.guest = guest
        self.folder = folder
        self.share = guest.share
        self._keys = 0
        self.zkeep("pool", "create", "v", str(folder / "v"))

    def clean(self) -> None:
        """Nothing of it stays in the machine."""
        for pool in ("tank", "back"):
            for name in self.guest.run(f"zfs list -H -o name -d 1 {pool}").splitlines()[1:]:
                self.guest.call(f"zfs destroy -R {name}")
        for path in self.share.glob("*.zfs"):
            path.unlink()

    # zkeep

    def call(self, *words: str, given: Path | None = None, to: Path | None = None) -> Answer:
        """zkeep WORDS, in a process of its own."""
        environment = {**os.environ, "ZKEEP_HOME": str(self.folder / "home")}
        with open(given or os.devnull, "rb") as source, open(to or os.devnull, "wb") as sink:
            out = sink if to else subprocess.PIPE
            done = subprocess.run(
                [sys.executable, "-m", "zkeep", *words], check=False, stdin=source, stdout=out, stderr=subprocess.PIPE,
                env=environment,
            )  # fmt: skip
        text = (done.stdout or b"").decode(errors="surrogateescape")
        return Answer(done.returncode, text, done.stderr.decode(errors="replace"))

    def zkeep(self, *words: str, given: Path | None = None, to: Path | None = None) -> str:
        answer = self.call(*words, given=given, to=to)
        assert answer.status == 0, f"zkeep {' '.join(words)}: {answer.status}: {answer.err}"
        return answer.out.strip()

    def receive(self, stream: str, dataset: str, *flags: str) -> None:
        self.zkeep("receive", *flags, dataset, given=self.share / stream)

    def send(self, stream: str, *words: str) -> None:
        self.zkeep("send", *words, to=self.share / stream)

    # The kernel

    def key(self, keyformat: str = RAW) -> Key:
        """A new key."""
        self._keys += 1
        name = f"key-{self.folder.name}-{self._keys}"
        random = os.urandom(32)
        content = {RAW: random, HEX: random.hex().encode(), PASSPHRASE: b"correct horse"}[keyformat]
        path = self.folder / name
        path.write_bytes(content)
        (self.share / name).write_bytes(content)
        self.guest.run(f"mv /mnt/{name} /root/keys/{name}")
        return Key(keyformat, f"file:///root/keys/{name}", f"file://{path}")

    def kernel_sends(self, stream: str, words: str) -> Path:
        self.guest.run(f"zfs send {words} > /mnt/{stream}")
        return self.share / stream

    def kernel_receives(self, stream: str, words: str) -> Answer:
        return self.guest.call(f"zfs receive {words} < /mnt/{stream}")

    def kernel_takes(self, stream: str, words: str) -> None:
        answer = self.kernel_receives(stream, words)
        assert answer.status == 0, f"zfs receive {words}: {answer.err}"

    def kernel_opens(self, dataset: str, key: Key) -> None:
        """Load the key of a received tree and mount it."""
        self.guest.run(f"zfs load-key -L {key.inside} {dataset}")
        self.guest.run(f"for d in $(zfs list -H -o name -r -t filesystem {dataset}); do zfs mount $d || exit 1; done")

    def kernel_finds_no_fault(self, pool: str = "back") -> None:
        self.guest.run(f"zpool scrub -w {pool}")
        status = self.guest.run(f"zpool status -v {pool}")
        assert "errors: No known data errors" in status, status

    # What snapshots hold

    def seen(self, snapshots: Sequence[str]) -> list[Tree]:
        """Snapshots as the kernel shows them: of mounted filesystems their files, of volumes what they hold."""
        return self.guest.trees([self._place(name) for name in snapshots])

    def _place(self, snapshot: str) -> str:
        dataset, name = snapshot.split("@")
        kind, place = self.guest.run(f"zfs get -H -o value type,mountpoint {dataset}").splitlines()
        if kind == "filesystem":
            return f"{place}/.zfs/snapshot/{name}"
        self.guest.run(f"zfs set snapdev=visible {dataset}")
        return self.guest.device(snapshot)

    def extracted(self, snapshot: str, *keys: Key) -> Tree:
        """The same, as zkeep gives it back with the key."""
        target = self.folder / "tree"
        located = [word for key in keys for word in ("-L", key.outside)]
        self.zkeep("extract", "-C", str(target), *located, snapshot)
        kind = self.zkeep("get", "-H", "-o", "value", "type", snapshot.partition("@")[0])
        place = next(target.iterdir()) if kind == "volume" else target
        out = self.folder / "tree.json"
        subprocess.run([sys.executable, str(self.share / "tree.py"), str(out), str(place)], check=True)
        (found,) = json.loads(out.read_text())
        shutil.rmtree(target)
        return cast(Tree, found)

    def same(self, one: Sequence[str], other: Sequence[str]) -> None:
        """The kernel shows the same in each two snapshots."""
        for name, got, want in zip(one, self.seen(one), self.seen(other), strict=True):
            assert_same(name, got, want)

    def opens(self, kept: Sequence[str], source: Sequence[str], *keys: Key) -> None:
        """zkeep gives back what the kernel shows."""
        for name, want in zip(kept, self.seen(source), strict=True):
            assert_same(name, self.extracted(name, *keys), want)


def assert_same(name: str, got: Tree, want: Tree) -> None:
    found = differences(got, want)
    assert not found, f"{name}: {len(found)} differ: {'; '.join(found[:3])}"


def differences(got: Tree, want: Tree) -> list[str]:
    """A line for each path that differs."""
    return [
        f"{path!a}: {str(got.get(path))[:400]} instead of {str(want.get(path))[:400]}"
        for path in sorted(got.keys() | want.keys())
        if got.get(path) != want.get(path)
    ]
