"""Encrypted datasets leave zkeep as plain streams: the kernel takes them, into a pool without encryption and below
another encrypted parent, and its own plain streams of the source are the same bytes.
"""

from __future__ import annotations

from itertools import product

import pytest
from lab import RAW, Key, Lab, long

TOP, KEPT = "tank/p", "v/p"
NAMES = ("s0", "s1", "s2", "s3")
FORMS = ("", "-L", "-c", "-Lec")


@pytest.fixture
def key(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Key:
    """The key of an encrypted tree with large records, of which zkeep has four snapshots raw, and its key loaded."""
    monkeypatch.setenv("ZKEEP_AGENT", str(lab.folder / "agent"))
    run, key = lab.guest.run, lab.key(RAW)
    run(f"zfs create -o encryption=on {key.creating} -o recordsize=1M -o compression=lz4 {TOP}; zfs create {TOP}/a")
    for number, name in enumerate(NAMES):
        lab.guest.work(700 + number, 12, f"/{TOP}")
        lab.guest.work(800 + number, 12, f"/{TOP}/a")
        run(f"zfs snapshot -r {TOP}@{name}")
    lab.kernel_sends("in.zfs", f"-Rw {TOP}@s3")
    lab.receive("in.zfs", KEPT)
    lab.zkeep("set", "blind=off", "v")
    lab.zkeep("load-key", "-L", key.outside, KEPT)
    return key


def test_the_bytes_are_those_of_the_kernel(lab: Lab, key: Key) -> None:
    """Full, and from each snapshot to the next; what spans several may differ where FREE_RULES D says so."""
    for form, (number, name) in product(FORMS, enumerate(NAMES)):
        letters = form.split()
        legs = [[], *([["-i", f"@{NAMES[number - 1]}"]] if number else [])]
        for source in legs:
            words = " ".join([*letters, *source, f"{TOP}@{name}"])
            theirs = lab.kernel_sends("theirs.zfs", words).read_bytes()
            lab.send("ours.zfs", "--received-name", *letters, *source, f"{KEPT}@{name}")
            assert (lab.share / "ours.zfs").read_bytes() == theirs, words
    lab.zkeep("unload-key", "-a")


def test_the_kernel_takes_them(lab: Lab, key: Key) -> None:
    """A chain of increments in a form; in clear, and below another encrypted parent."""
    other = lab.key(RAW)
    lab.guest.run(f"zfs create -o encryption=on {other.creating} back/sealed")
    for form in ("", "-Lec"):
        for place in ("back", "back/sealed"):
            target = f"{place}/chain{len(form)}"
            for number, name in enumerate(NAMES):
                source = ["-i", f"@{NAMES[number - 1]}"] if number else []
                lab.send("out.zfs", *form.split(), *source, f"{KEPT}@{name}")
                lab.kernel_takes("out.zfs", f"-u {target}")
            _is_source(lab, target, "")
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "-a")


@long
def test_the_kernel_takes_a_replication(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """-R of a dataset and one below it, with all snapshots; in clear, and below another encrypted parent."""
    monkeypatch.setenv("ZKEEP_AGENT", str(lab.folder / "agent"))
    run, key, other = lab.guest.run, lab.key(RAW), lab.key(RAW)
    run(f"zfs create -o encryption=on {key.creating} -o recordsize=1M -o compression=lz4 {TOP}; zfs create {TOP}/a")
    for number, name in enumerate(NAMES):
        for at, folder in enumerate((f"/{TOP}", f"/{TOP}/a")):
            # A block of 1 MiB from the first snapshot on: see the test below for what happens without one.
            run(f"head -c 3000000 /dev/urandom > {folder}/large{number}")
            lab.guest.work(700 + 100 * at + number, 12, folder)
        run(f"zfs snapshot -r {TOP}@{name}")
    lab.kernel_sends("in.zfs", f"-Rw {TOP}@s3")
    lab.receive("in.zfs", KEPT)
    lab.zkeep("set", "blind=off", "v")
    lab.zkeep("load-key", "-L", key.outside, KEPT)
    run(f"zfs create -o encryption=on {other.creating} back/sealed")
    lab.send("out.zfs", "-R", "-Lec", f"{KEPT}@s3")
    for target in ("back/tree", "back/sealed/tree"):
        lab.kernel_takes("out.zfs", f"-u -x encryption {target}")
        for below in ("", "/a"):
            _is_source(lab, target, below)
    assert run("zfs get -H -o value encryption back/tree") == "off"
    assert run("zfs get -H -o value encryption back/sealed/tree") != "off"
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "-a")


@long
def test_a_large_file_that_was_always_a_hole_is_authentic_nowhere(lab: Lab) -> None:
    """The kernel sends its block size as 128 KiB, where no block above that was ever written in the dataset.

    The MAC of its block of dnodes covers the true one: neither the kernel nor zkeep can open what was sent.
    """
    key = lab.key(RAW)
    lab.guest.run(f"zfs create -o encryption=on {key.creating} -o recordsize=1M {TOP}")
    lab.guest.run(f"truncate -s 3M /{TOP}/hole; zfs snapshot {TOP}@s0")
    lab.kernel_sends("in.zfs", f"-w {TOP}@s0")
    opening = f"zfs load-key -L {key.inside} back/hole && zfs mount back/hole && stat /back/hole/hole"
    assert lab.kernel_receives("in.zfs", "-u back/hole").status or lab.guest.call(opening).status
    lab.receive("in.zfs", KEPT)
    answer = lab.call("verify", "-L", key.outside, f"{KEPT}@s0")
    assert answer.status == 4, answer.err


def _is_source(lab: Lab, target: str, below: str) -> None:
    lab.guest.run(f"zfs mount {target}{below} 2>/dev/null || zfs get -H -o value mounted {target}{below} | grep -q yes")
    lab.same([f"{target}{below}@{name}" for name in NAMES], [f"{TOP}{below}@{name}" for name in NAMES])
