"""Made tests/data/resumed, on a throw-away machine with a real kernel module, as root.

resumed.py make FOLDER            a pool on DISK, two snapshots of a raw and of a plain dataset, and their streams
resumed.py resume FOLDER TOKENS   TOKENS has lines `NAME TOKEN`, of receives by zkeep that were cut short:
                                  what the kernel sends for each, as FOLDER/NAME
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

DISK = os.environ.get("DISK", "/dev/vda1")
ENCRYPTED = "-o encryption=on -o keyformat=raw -o keylocation=file:///root/k"


def sh(command: str) -> None:
    subprocess.run(["/bin/bash", "-c", command], check=True)


def change(root: Path, dice: random.Random) -> None:
    """One small change below a mounted dataset."""
    files = sorted(p for p in root.iterdir() if p.is_file())
    if not files or dice.random() < 0.3:
        (root / f"f{dice.randrange(1 << 20):05x}").write_bytes(dice.randbytes(dice.randrange(12_000)))
        return
    path = dice.choice(files)
    match dice.randrange(5):
        case 0:
            path.unlink()
        case 1:
            os.truncate(path, dice.randrange(8 << 20))
        case 2:
            os.setxattr(path, "user.x", dice.randbytes(dice.choice([5, 300, 3000])))
        case _:
            with path.open("r+b") as file:
                file.seek(dice.randrange(8 << 20))
                file.write(dice.randbytes(dice.randrange(1, 12_000)))


def make(folder: str) -> None:
    Path("/root/k").write_bytes(b"k" * 32)
    sh(f"zpool create -f -O atime=off -O xattr=sa rp {DISK}")
    for name, options, flags in (("res1", f"{ENCRYPTED} -o recordsize=4K", "-w"), ("res3", "-o recordsize=8K", "-Lec")):
        sh(f"zfs create {options} rp/{name}")
        dice = random.Random(name)
        for number in range(2):
            for _ in range(20):
                change(Path("/rp", name), dice)
            sh(f"zfs snapshot rp/{name}@s{number}")
            sh(f"zfs send {flags} rp/{name}@s{number} > {folder}/{name}.full-s{number}.zfs")
        sh(f"zfs send {flags} -i @s0 rp/{name}@s1 > {folder}/{name}.inc-s0-s1.zfs")
    sh("zpool export rp")


def resume(folder: str, tokens: str) -> None:
    sh("zpool import -f -d /dev rp; zfs load-key -a || true")
    for line in Path(tokens).read_text().splitlines():
        name, token = line.split()
        sh(f"zfs send -t {token} > {folder}/{name}")
    sh("zpool export rp")


if __name__ == "__main__":
    {"make": make, "resume": resume}[sys.argv[1]](*sys.argv[2:])
