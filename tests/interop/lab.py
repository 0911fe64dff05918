"""Two ends of a line: datasets of the real kernel, in the machine, and a blind pool of zkeep, outside.

Streams lie in the folder that both share; each end is used as a person uses it, through its command line.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from machine import Answer, Guest

LONG = os.environ.get("ZKEEP_INTEROP") == "long"
"Whether the whole matrix is asked for."
long = pytest.mark.skipif(not LONG, reason="a part of the long matrix: python tests/interop --long")
Tree = dict[str, Any]
RAW, HEX, PASSPHRASE = "raw", "hex", "passphrase"
QUICK = "data"
"The digest of contents that are compared, see guest/tree.py: emulated, gigabytes of holes would take an hour."
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
        self.given: list[tuple[Path, str]] = []
        "Copies of the streams that went into zkeep, in their order, and where to."
        self._keys = 0
        self._seen: dict[tuple[str, str], Tree] = {}
        self.zkeep("pool", "create", "v", str(folder / "v"))

    def clean(self) -> None:
        """Nothing of it stays in the machine."""
        for pool in ("tank", "back"):
            for name in self.guest.run(f"zfs list -H -o name -d 1 {pool}").splitlines()[1:]:
                self.guest.call(f"zfs destroy -R {name}")
        for path in self.share.glob("*.zfs"):
            path.unlink()

    # zkeep

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "ZKEEP_HOME": str(self.folder / "home")}

    def call(self, *words: str, given: Path | None = None, to: Path | None = None) -> Answer:
        """zkeep WORDS, in a process of its own."""
        with open(given or os.devnull, "rb") as source, open(to or os.devnull, "wb") as sink:
            out = sink if to else subprocess.PIPE
            done = subprocess.run(
                [sys.executable, "-m", "zkeep", *words], check=False, stdin=source, stdout=out, stderr=subprocess.PIPE,
                env=self._environment,
            )  # fmt: skip
        text = (done.stdout or b"").decode(errors="surrogateescape")
        return Answer(done.returncode, text, done.stderr.decode(errors="replace"))

    def zkeep(self, *words: str, given: Path | None = None, to: Path | None = None) -> str:
        answer = self.call(*words, given=given, to=to)
        assert answer.status == 0, f"zkeep {' '.join(words)}: {answer.status}: {answer.err}"
        return answer.out.strip()

    def through(self, first: Sequence[str], second: Sequence[str], stream: str) -> None:
        """zkeep FIRST | zkeep SECOND > STREAM; both must succeed."""
        command = [sys.executable, "-m", "zkeep"]
        with (self.share / stream).open("wb") as sink:
            one = subprocess.Popen([*command, *first], stdout=subprocess.PIPE, env=self._environment)
            two = subprocess.Popen([*command, *second], stdin=one.stdout, stdout=sink, env=self._environment)
            assert one.stdout
            one.stdout.close()
            assert (one.wait(), two.wait()) == (0, 0)

    def receive(self, stream: str, dataset: str, *flags: str) -> None:
        self.zkeep("receive", *flags, dataset, given=self._noted(stream, dataset))

    def _noted(self, stream: str, dataset: str) -> Path:
        copy = self.folder / f"given{len(self.given)}.zfs"
        shutil.copy(self.share / stream, copy)
        self.given.append((copy, dataset))
        return copy

    def receive_cut(self, stream: str, at: int, dataset: str) -> bool:
        """Receive a stream that breaks off there; the kernel goes on from our token.

        False: nothing of it was kept, so there was no token, and all of it came again.
        """
        self._noted(stream, dataset)
        answer = self.call("receive", "-s", dataset, given=self.share / self.cut(stream, at))
        assert answer.status != 0
        asked = ["get", "-H", "-o", "value", "receive_resume_token", dataset]
        token = self.zkeep(*asked) if dataset in self.kept() else "-"
        rest = stream if token == "-" else "rest.zfs"
        if token != "-":
            self.kernel_sends(rest, f"-t {token}")
        self.zkeep("receive", "-s", dataset, given=self.share / rest)
        return token != "-"

    def kept(self) -> list[str]:
        """The datasets of zkeep's pool."""
        return self.zkeep("list", "-H", "-o", "name", "-r", "v").splitlines()

    def send(self, stream: str, *words: str) -> None:
        self.zkeep("send", *words, to=self.share / stream)

    def cut(self, stream: str, at: int) -> str:
        """The first bytes of a stream, as another; its name."""
        with (self.share / stream).open("rb") as whole, (self.share / "part.zfs").open("wb") as part:
            part.write(whole.read(at))
        return "part.zfs"

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

    def key_contents(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("key-*"))]

    @property
    def openzfs(self) -> str:
        """The version of the kernel's module."""
        return self.guest.run("cat /sys/module/zfs/version")

    def kernel_sends(self, stream: str, words: str) -> Path:
        self.guest.run(f"zfs send {words} > /mnt/{stream}")
        return self.share / stream

    def kernel_receives(self, stream: str, words: str) -> Answer:
        return self.guest.call(f"zfs receive {words} < /mnt/{stream}")

    def kernel_takes(self, stream: str, words: str) -> None:
        answer = self.kernel_receives(stream, words)
        assert answer.status == 0, f"zfs receive {words}: {answer.err}"

    def kernel_opens(self, top: str, *keys: Key) -> None:
        """Load each root of encryption below with the key that fits, and mount all."""
        roots = set(self.guest.run(f"zfs get -H -o value -r -t filesystem,volume encryptionroot {top}").splitlines())
        for root in sorted(roots):
            answers = [self.guest.call(f"zfs load-key -L {key.inside} {root}") for key in keys]
            assert any(answer.status == 0 for answer in answers), f"no key opens {root}: {answers}"
        self.guest.run(f"for d in $(zfs list -H -o name -r -t filesystem {top}); do zfs mount $d || exit 1; done")

    def kernel_finds_no_fault(self, pool: str = "back") -> None:
        self.guest.run(f"zpool scrub -w {pool}")
        status = self.guest.run(f"zpool status -v {pool}")
        assert "errors: No known data errors" in status, status

    # What snapshots hold

    def seen(self, snapshots: Sequence[str], digest: str = QUICK) -> list[Tree]:
        """Snapshots as the kernel shows them: of mounted filesystems their files, of volumes what they hold.

        A snapshot of the source is looked at once: it does not change. Who has its guid elsewhere is looked at.
        """
        told = self._reply(snapshots)
        guids = {name: (told[name]["guid"], digest) for name in snapshots}
        found = {name: self._seen[guid] for name, guid in guids.items() if _at_source(name) and guid in self._seen}
        new = [name for name in guids if name not in found]
        places = [self._place(name, told) for name in new]
        for name, tree in zip(new, self.guest.trees(places, digest), strict=True):
            found[name] = tree
            if _at_source(name):
                self._seen[guids[name]] = tree
        return [found[name] for name in snapshots]

    def _reply(self, snapshots: Sequence[str]) -> dict[str, dict[str, str]]:
        """guid, type and mountpoint of snapshots and their datasets, by name."""
        names = [*snapshots, *sorted({name.split("@")[0] for name in snapshots})]
        told: dict[str, dict[str, str]] = {}
        lines = self.guest.run(f"zfs get -H -p -o name,property,value guid,type,mountpoint {shlex.join(names)}")
        for name, prop, value in (line.split("\t") for line in lines.splitlines()):
            told.setdefault(name, {})[prop] = value
        return told

    def _place(self, snapshot: str, told: dict[str, dict[str, str]]) -> str:
        dataset, name = snapshot.split("@")
        if told[dataset]["type"] == "filesystem":
            return f"{told[dataset]['mountpoint']}/.zfs/snapshot/{name}"
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
        subprocess.run([sys.executable, str(self.share / "tree.py"), str(out), QUICK, str(place)], check=True)
        (found,) = json.loads(out.read_text())
        shutil.rmtree(target)
        return cast(Tree, found)

    def same(self, one: Sequence[str], other: Sequence[str]) -> None:
        """The kernel shows the same in each two snapshots."""
        found = self.seen([*one, *other])
        for name, got, want in zip(one, found[: len(one)], found[len(one) :], strict=True):
            assert_same(name, got, want)

    def opens(self, kept: Sequence[str], source: Sequence[str], *keys: Key) -> None:
        """zkeep gives back what the kernel shows."""
        for name, want in zip(kept, self.seen(source), strict=True):
            assert_same(name, self.extracted(name, *keys), want)


def _at_source(name: str) -> bool:
    return name.startswith("tank/")


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
