"""What zkeep makes itself the kernel takes, mounts, scrubs and writes on (P8), and sends again record for record."""

from __future__ import annotations

import os
from hashlib import md5

import pytest
from lab import LONG, RAW, Lab, assert_same
from sourcekit import Folder, records_of

CASES = [
    ("aes-256-gcm", "lz4", "128K"),
    ("aes-128-ccm", "zstd", "16K"),
    ("aes-192-gcm", "off", "1M"),
    ("aes-256-ccm", "gzip-1", "512"),
    ("aes-128-gcm", "zle", "4K"),
]


@pytest.mark.parametrize("case", CASES if LONG else CASES[:1], ids="-".join)
def test_a_folder_becomes_a_dataset_of_the_kernel(lab: Lab, case: tuple[str, str, str]) -> None:
    suite, compression, recordsize = case
    key = lab.key(RAW)
    options = (f"encryption={suite}", "keyformat=raw", f"keylocation={key.outside}")
    options += (f"compression={compression}", f"recordsize={recordsize}")
    lab.zkeep("create", *(word for option in options for word in ("-o", option)), "v/src")
    folder = Folder(lab, seed=len(suite) + len(compression))
    for turn in range(6 if LONG else 3):
        folder.work(60 if turn == 0 else 25)
        folder.snapshot("v/src", "sha256")
    last = len(folder.trees) - 1

    # A full stream and increments: the kernel shows every snapshot as the folder was.
    lab.send("full.zfs", "-w", "v/src@s0")
    lab.send("rest.zfs", "-w", "-I", "@s0", f"v/src@s{last}")
    lab.kernel_takes("full.zfs", "back/src")
    lab.kernel_takes("rest.zfs", "back/src")
    lab.kernel_opens("back/src", key)
    names = [f"back/src@s{turn}" for turn in range(last + 1)]
    for name, got, want in zip(names, lab.seen(names, "sha256"), folder.trees, strict=True):
        assert_same(name, got, want)

    # A full stream of a later snapshot is the same, record for record, from the kernel and from zkeep.
    lab.kernel_sends("theirs.zfs", f"-w back/src@s{last}")
    lab.send("ours.zfs", "-w", f"v/src@s{last}")
    assert records_of(lab.share / "ours.zfs") == records_of(lab.share / "theirs.zfs")

    # The kernel writes on every kind of object, finds no fault, and can remove all of it.
    lab.guest.work(1, 40, "/back/src")
    lab.kernel_finds_no_fault()
    lab.guest.run('rm -rf /back/src/* && test -z "$(ls -A /back/src)"')
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "v/src")


def test_an_empty_dataset_and_its_child_are_mounted(lab: Lab) -> None:
    """A child inherits the encryption root: a master key of its own, wrapped by the root's key."""
    key = lab.key(RAW)
    options = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={key.outside}")
    lab.zkeep("create", *options, "v/top")
    lab.zkeep("create", "v/top/child")
    lab.zkeep("snapshot", "-r", "v/top@s0")
    assert lab.zkeep("get", "-H", "-o", "value", "encryptionroot", "v/top/child") == "v/top"
    lab.send("tree.zfs", "-Rw", "v/top@s0")
    lab.kernel_takes("tree.zfs", "back/top")
    assert lab.guest.run("zfs get -H -o value encryptionroot back/top/child") == "back/top"
    lab.kernel_opens("back/top", key)
    for place in ("/back/top", "/back/top/child"):
        lab.guest.work(3, 30, place)
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "v/top")


def test_a_disk_image_becomes_a_volume_of_the_kernel(lab: Lab) -> None:
    """Data, zeros and holes, changed over four snapshots."""
    key = lab.key(RAW)
    options = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={key.outside}")
    lab.zkeep("create", *options, "-V", "40M", "v/disk")
    image = lab.folder / "disk.img"
    with image.open("wb") as sink:
        sink.write(os.urandom(3 << 20) + bytes(1 << 20) + b"words " * 500_000)
        sink.truncate(40 << 20)
    want = []
    for turn in range(4):
        with image.open("r+b") as sink:
            sink.seek([0, 1 << 20, 2 << 20, 39 << 20][turn])
            sink.write([b"", b"changed", bytes(300_000), os.urandom(1 << 20)][turn])
        lab.zkeep("snapshot", "--from", str(image), f"v/disk@s{turn}")
        want.append(md5(image.read_bytes(), usedforsecurity=False).hexdigest())
    lab.send("full.zfs", "-w", "v/disk@s0")
    lab.send("rest.zfs", "-w", "-I", "@s0", "v/disk@s3")
    lab.kernel_takes("full.zfs", "back/disk")
    lab.kernel_takes("rest.zfs", "back/disk")
    lab.guest.run(f"zfs load-key -L {key.inside} back/disk && zfs set snapdev=visible back/disk")
    assert lab.guest.run("zfs get -Hp -o value volsize,volblocksize back/disk").split() == [str(40 << 20), "16384"]
    for turn, digest in enumerate(want):
        device = lab.guest.device(f"back/disk@s{turn}")
        assert lab.guest.run(f"md5sum < {device}").split()[0] == digest
    lab.kernel_sends("theirs.zfs", "-w back/disk@s3")
    lab.send("ours.zfs", "-w", "v/disk@s3")
    ours, theirs = records_of(lab.share / "ours.zfs"), records_of(lab.share / "theirs.zfs")
    frees = ("FREE", "FREEOBJECTS")
    assert [r for r in ours if r[0] not in frees] == [r for r in theirs if r[0] not in frees]

    # The kernel writes on it, everywhere, and finds no fault.
    device = lab.guest.device("back/disk")
    lab.guest.run(f"dd if=/dev/urandom of={device} bs=1M seek=1 count=30 conv=fsync,notrunc status=none")
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "v/disk")
