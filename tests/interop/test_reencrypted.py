"""Plain streams of the kernel become encrypted in zkeep, and what zkeep sends of them raw the kernel takes (P8).

It loads the key, shows every snapshot as its source has it, writes on, scrubs clean, and sends again what came.
"""

from __future__ import annotations

import random

import pytest
from lab import LONG, RAW, Key, Lab
from test_source import records_of

TURNS = 6 if LONG else 3
FREES = ("FREE", "FREEOBJECTS")
CASES = [
    ("lz4", "128K", "legacy"),
    ("zstd", "1M", "auto"),
    ("off", "4K", "1k"),
    ("gzip-1", "16K", "legacy"),
    ("lzjb", "512", "auto"),
]


def make_parent(lab: Lab) -> Key:
    key = lab.key(RAW)
    options = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={key.outside}")
    lab.zkeep("create", *options, "v/enc")
    return key


def letters(chance: random.Random, *, large: bool) -> str:
    """Letters of a plain send; -L stays once it was given."""
    some = [letter for letter in "ec" if chance.random() < 0.5]
    return " ".join(f"-{letter}" for letter in [*some, *("L" if large else "")])


@pytest.mark.parametrize("case", CASES if LONG else CASES[:1], ids="-".join)
def test_a_plain_dataset_becomes_an_encrypted_one_of_the_kernel(lab: Lab, case: tuple[str, str, str]) -> None:
    compression, recordsize, dnodesize = case
    chance = random.Random(f"{case}")
    key, large = make_parent(lab), recordsize == "1M"
    options = f"-o compression={compression} -o recordsize={recordsize} -o dnodesize={dnodesize}"
    lab.guest.run(f"zfs create {options} -o xattr=sa -o acltype=posix tank/src")
    for turn in range(TURNS):
        lab.guest.work(len(compression) * 10 + turn, 60 if turn == 0 else 30, "/tank/src")
        lab.guest.run(f"zfs snapshot tank/src@s{turn}")
        source = f"-i @s{turn - 1} " if turn else ""
        lab.kernel_sends("plain.zfs", f"{letters(chance, large=large)} {source}tank/src@s{turn}")
        lab.receive("plain.zfs", "v/enc/src", "-x", "encryption")
        lab.zkeep("verify", f"v/enc/src@s{turn}")
    last = TURNS - 1

    # zkeep and the kernel show every snapshot as the source has it.
    source_names = [f"tank/src@s{turn}" for turn in range(TURNS)]
    lab.opens([f"v/enc/src@s{turn}" for turn in range(TURNS)], source_names, key)
    lab.send("full.zfs", "-w", "v/enc/src@s0")
    lab.send("rest.zfs", "-w", "-I", "@s0", f"v/enc/src@s{last}")
    lab.kernel_takes("full.zfs", "back/src")
    lab.kernel_takes("rest.zfs", "back/src")
    lab.kernel_opens("back/src", key)
    lab.same([f"back/src@s{turn}" for turn in range(TURNS)], source_names)

    # A full stream of a later snapshot is the same, record for record, from the kernel and from zkeep.
    lab.kernel_sends("theirs.zfs", f"-w back/src@s{last}")
    lab.send("ours.zfs", "-w", f"v/enc/src@s{last}")
    ours, theirs = records_of(lab.share / "ours.zfs"), records_of(lab.share / "theirs.zfs")
    assert [r for r in ours if r[0] not in FREES] == [r for r in theirs if r[0] not in FREES]

    # What is left after pruning is the same, too.
    lab.zkeep("destroy", "v/enc/src@s1")
    lab.send("pruned.zfs", "-w", f"v/enc/src@s{last}")
    lab.kernel_takes("pruned.zfs", "back/pruned")
    lab.kernel_opens("back/pruned", key)
    lab.same([f"back/pruned@s{last}"], source_names[-1:])

    # The kernel writes on every kind of object, finds no fault, and can remove all of it.
    lab.guest.work(1, 40, "/back/src")
    lab.kernel_finds_no_fault()
    lab.guest.run("rm -rf /back/src/* && test -z \"$(ls -A /back/src)\"")
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "v/enc")


def test_a_tree_with_a_clone_and_a_volume_is_replicated_in_clear_and_becomes_encrypted(lab: Lab) -> None:
    key = make_parent(lab)
    run = lab.guest.run
    run("zfs create tank/top && zfs create -o compression=zstd tank/top/a && zfs create -V 16M tank/top/vol")
    lab.guest.work(1, 30, "/tank/top/a")
    run(f"dd if=/dev/urandom of={lab.guest.device('tank/top/vol')} bs=64k count=20 conv=fsync status=none")
    run("zfs snapshot -r tank/top@s0 && zfs clone tank/top/a@s0 tank/top/clone")
    lab.guest.work(2, 20, "/tank/top/clone")
    run("zfs snapshot -r tank/top@s1")
    lab.kernel_sends("all.zfs", "-R tank/top@s1")
    lab.receive("all.zfs", "v/enc/top")
    lab.guest.work(3, 20, "/tank/top/a")
    run(f"dd if=/dev/urandom of={lab.guest.device('tank/top/vol')} bs=16k count=3 seek=5 conv=fsync status=none")
    run("zfs snapshot -r tank/top@s2")
    lab.kernel_sends("more.zfs", "-R -I @s1 tank/top@s2")
    lab.receive("more.zfs", "v/enc/top", "-F")
    lab.send("out.zfs", "-Rw", "v/enc/top@s2")
    lab.kernel_takes("out.zfs", "back/top")
    lab.kernel_opens("back/top", key)
    names = [f"top{child}@s{turn}" for child in ("", "/a", "/vol", "/clone") for turn in (1, 2)]
    lab.same([f"back/{name}" for name in names], [f"tank/{name}" for name in names])
    assert run("zfs get -H -o value origin back/top/clone") == "back/top/a@s0"
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "v/enc")


def test_what_a_redacted_stream_leaves_out_is_a_hole(lab: Lab) -> None:
    key = make_parent(lab)
    run = lab.guest.run
    run("zfs create -o recordsize=16K tank/all && head -c 200000 /dev/urandom > /tank/all/secret")
    run("echo public > /tank/all/public && head -c 100000 /dev/urandom > /tank/all/half && zfs snapshot tank/all@s0")
    run("zfs clone tank/all@s0 tank/some && rm /tank/some/secret")
    run("dd if=/dev/zero of=/tank/some/half bs=16K seek=2 count=2 conv=notrunc status=none && zfs snapshot tank/some@r")
    run("zfs redact tank/all@s0 book tank/some@r")
    lab.kernel_sends("plain.zfs", "--redact book tank/all@s0")
    lab.receive("plain.zfs", "v/enc/all", "-x", "encryption")
    lab.zkeep("verify", "v/enc/all@s0")
    lab.send("out.zfs", "-w", "v/enc/all@s0")
    lab.kernel_takes("out.zfs", "back/all")
    lab.kernel_opens("back/all", key)
    run("cmp -n 200000 /back/all/secret /dev/zero && test $(stat -c %s /back/all/secret) = 200000")
    run("cmp /back/all/public /tank/all/public && cmp -n 32768 /back/all/half /tank/all/half")
    run("cmp -i 65536 /back/all/half /tank/all/half && cmp -i 32768:0 -n 32768 /back/all/half /dev/zero")
    lab.kernel_finds_no_fault()
    # What was left out comes with the snapshot that it was left out for, from the bookmark.
    lab.kernel_sends("plain.zfs", "-i tank/all#book tank/some@r")
    lab.receive("plain.zfs", "v/enc/some", "-o", "origin=v/enc/all@s0")
    lab.opens(["v/enc/some@r"], ["tank/some@r"], key)
    lab.zkeep("unload-key", "v/enc")
