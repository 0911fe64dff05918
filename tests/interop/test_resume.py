"""A receive is cut anywhere; a real `zfs send -t` goes on from zkeep's token, and all is as if it had not been cut."""

from __future__ import annotations

import random
import shutil

import pytest
from lab import LONG, PASSPHRASE, RAW, Key, Lab

CUTS = 12 if LONG else 3


def source(lab: Lab, key: Key) -> None:
    lab.guest.run(f"zfs create -o encryption=on {key.creating} -o recordsize=16K tank/d")
    for number in range(2):
        lab.guest.work(70 + number, 60, "/tank/d")
        lab.guest.run(f"zfs snapshot tank/d@s{number}")


@pytest.mark.parametrize("words", ["-w tank/d@s0", "-w -i @s0 tank/d@s1"], ids=["full", "increment"])
def test_the_kernel_goes_on_from_our_token(lab: Lab, report: object, words: str) -> None:
    key = lab.key(PASSPHRASE)
    source(lab, key)
    name = words[-2:]
    size = lab.kernel_sends("whole.zfs", words).stat().st_size
    chance = random.Random(size)
    resumed = 0
    for number in range(CUTS):
        target = f"v/d{number}"
        if name == "s1":
            lab.kernel_sends("base.zfs", "-w tank/d@s0")
            lab.receive("base.zfs", target)
        cut = lab.receive_cut("whole.zfs", chance.randrange(size // 8, size), target)
        source_words = ["-i", "@s0"] if name == "s1" else []
        lab.send("out.zfs", "-w", "--received-name", *source_words, f"{target}@{name}")
        assert (lab.share / "out.zfs").read_bytes() == (lab.share / "whole.zfs").read_bytes()
        resumed += cut
    assert resumed, "no cut left a token"
    lab.opens([f"{target}@{name}"], [f"tank/d@{name}"], key)
    report.add(f"zfs send {words}: {resumed} of {CUTS} cuts resumed with zfs send -t, equal to the whole")  # type: ignore[attr-defined]


def test_zkeep_goes_on_from_the_kernels_token(lab: Lab, report: object) -> None:
    """The other way: the kernel's receive is cut, and zkeep send -t goes on."""
    key = lab.key(RAW)
    source(lab, key)
    size = lab.kernel_sends("whole.zfs", "-w tank/d@s0").stat().st_size
    lab.receive("whole.zfs", "v/d")
    answer = lab.kernel_receives(lab.cut("whole.zfs", size * 2 // 3), "-s -u back/d")
    assert answer.status != 0
    token = lab.guest.run("zfs get -H -o value receive_resume_token back/d")
    lab.send("rest.zfs", "-t", token)
    lab.kernel_takes("rest.zfs", "-s -u back/d")
    lab.kernel_opens("back/d", key)
    lab.same(["back/d@s0"], ["tank/d@s0"])
    lab.kernel_finds_no_fault()
    report.add("zkeep send -t continues the kernel's interrupted receive")  # type: ignore[attr-defined]


def test_forged_tokens_are_refused(lab: Lab, report: object) -> None:
    """A token with another guid, or with a digit changed, sends nothing."""
    key = lab.key(RAW)
    source(lab, key)
    lab.kernel_sends("whole.zfs", "-w tank/d@s0")
    lab.receive("whole.zfs", "v/d")
    lab.kernel_receives(lab.cut("whole.zfs", 60_000), "-s -u back/d")
    token = lab.guest.run("zfs get -H -o value receive_resume_token back/d")
    shutil.copy(lab.share / "whole.zfs", lab.folder)
    for at in range(2, len(token), 17):
        digit = "0" if token[at] != "0" else "1"
        forged = token[:at] + digit + token[at + 1 :]
        out = lab.folder / "forged.zfs"
        answer = lab.call("send", "-t", forged, to=out)
        assert answer.status in (1, 2)
        assert answer.err.startswith("zkeep: ")
        assert answer.err.count("\n") == 1
        assert out.stat().st_size == 0
    report.add("forged tokens are refused")  # type: ignore[attr-defined]
