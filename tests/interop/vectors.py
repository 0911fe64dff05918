"""Makes the vectors in tests/data/opened/kernel again, in the machine: faults that it found, kept small.

    python tests/interop/vectors.py [NAME...]       needs the machine of build.py; ZKEEP_ZFS names its series

Each is a function here: what happens at the source, and which streams zkeep gets. tests/vectors opens all of them, and
test_kernel_vectors.py says what else each one shows.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from build import machine
from found import ROOM, write_down
from lab import RAW, Lab
from machine import Guest

DATA = Path(__file__).parents[1] / "data" / "opened"


def roots(lab: Lab) -> None:
    """Two roots of encryption, one in the other, sent one by one: no stream tells a property.

    What zkeep sends of them with -R must have a keylocation for each: zfs receive aborts without it.
    """
    for name in ("tank/x", "tank/x/y"):
        lab.guest.run(f"zfs create -o encryption=on {lab.key(RAW).creating} {name}; echo {name} > /{name}/file")
    lab.guest.run("zfs snapshot -r tank/x@s0")
    for name in ("x", "x/y"):
        lab.kernel_sends("in.zfs", f"-w tank/{name}@s0")
        lab.receive("in.zfs", f"v/{name}")


def punched(lab: Lab) -> None:
    """A file of three levels, whose blocks were all punched out: its dnode has pointers, and nothing below them."""
    lab.guest.run(f"zfs create -o encryption=on {lab.key(RAW).creating} -o recordsize=512 tank/x")
    file = "/tank/x/file"
    lab.guest.run(f"dd if=/dev/urandom of={file} bs=4k count=1 seek=4096 status=none; zfs snapshot tank/x@s0")
    lab.guest.run(f"fallocate -p -o 0 -l $(stat -c %s {file}) {file}; zfs snapshot tank/x@s1")
    lab.kernel_sends("in.zfs", "-w tank/x@s1")
    lab.receive("in.zfs", "v/x")


def promoted(lab: Lab) -> None:
    """A clone, replicated as one, is promoted at the source: snapshots move from one dataset to the other."""
    lab.guest.run(f"zfs create -o encryption=on {lab.key(RAW).creating} -o recordsize=4K tank/x; zfs create tank/x/a")
    turns = [
        "echo one > /tank/x/a/one",
        "zfs clone tank/x/a@r0 tank/x/b; echo two > /tank/x/b/two; echo three > /tank/x/a/three",
        "zfs promote tank/x/b; echo four > /tank/x/b/four; rm /tank/x/a/one",
    ]
    _replicated(lab, turns)


def parted(lab: Lab) -> None:
    """A clone of something old is promoted before it was ever replicated. Its origin has a child and, of a later
    snapshot, another clone. zfs receive -F, by itself, loses the child or refuses.
    """
    lab.guest.run(f"zfs create -o encryption=on {lab.key(RAW).creating} -o recordsize=4K tank/x; zfs create tank/x/a")
    turns = [
        "zfs create tank/x/a/child; echo one > /tank/x/a/one; echo child > /tank/x/a/child/file",
        "echo two > /tank/x/a/two",
        "zfs clone tank/x/a@r1 tank/x/c; echo three > /tank/x/c/three",
        "zfs clone tank/x/a@r0 tank/x/b; zfs promote tank/x/b; echo four > /tank/x/b/four; rm /tank/x/a/one",
    ]
    _replicated(lab, turns)


def crossed(lab: Lab) -> None:
    """A clone comes first by its name, its origin lies below a dataset that does not. zfs receive needs that first."""
    lab.guest.run(f"zfs create -o encryption=on {lab.key(RAW).creating} -o recordsize=4K tank/x; zfs create tank/x/z")
    _replicated(lab, ["zfs create tank/x/z/k; echo one > /tank/x/z/k/one", "zfs clone tank/x/z/k@r0 tank/x/a"])


def _replicated(lab: Lab, turns: list[str]) -> None:
    """Each turn is followed by a snapshot of everything, and that by a replication."""
    for number, turn in enumerate(turns):
        lab.guest.run(f"{turn}; zfs snapshot -r tank/x@r{number}")
        since = f"-I @r{number - 1} " if number else ""
        lab.kernel_sends("in.zfs", f"-Rw {since}tank/x@r{number}")
        lab.receive("in.zfs", "v/x", "-F")


VECTORS: list[Callable[[Lab], None]] = [roots, punched, promoted, parted, crossed]


def make(guest: Guest, vector: Callable[[Lab], None]) -> None:
    """One vector, in place of what was there."""
    name = vector.__name__
    for old in (DATA / ROOM).glob(f"{name}.*"):
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="zkeep-vector-") as folder:
        lab = Lab(guest, Path(folder))
        try:
            vector(lab)
            path = write_down(lab, DATA, name, f"tests/interop/vectors.py {name}: {vector.__doc__}")
        finally:
            lab.clean()
    size = sum(stream.stat().st_size for stream in path.parent.glob(f"{name}.*"))
    print(f"{path.parent}/{name}.*: {len(lab.given)} streams, {size} bytes", flush=True)


def main(names: list[str]) -> int:
    chosen = [vector for vector in VECTORS if not names or vector.__name__ in names]
    with Guest(machine(os.environ.get("ZKEEP_ZFS", "2.3"))) as guest:
        guest.make_pools()
        for vector in chosen:
            make(guest, vector)
    return 0 if chosen else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
