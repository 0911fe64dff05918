"""zkeep send | zkeep verify | zfs receive: what the filter passes on, the kernel takes, and it gives all files."""

from __future__ import annotations

import pytest
from forgeries import put_together, taken_apart
from lab import RAW, Key, Lab
from test_controls import broken_mac

TOP, KEPT, BACK = "tank/f", "v/f", "back/f"
HARMFUL = "-o setuid=off -o exec=off -o mountpoint=/elsewhere -o checksum=off -o compression=gzip-3"


class Filtered:
    """A tree whose properties a host does not want to be told, in zkeep, with an increment."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.run = lab, lab.guest.run
        self.key: Key = lab.key(RAW)
        self.run(f"zfs create -o encryption=on {self.key.creating} -o recordsize=16K {TOP}")
        self.run(f"dd if=/dev/urandom of=/{TOP}/blocks bs=16k count=4 status=none")
        self.run(f"zfs create {HARMFUL} {TOP}/child; zfs set mountpoint=/{TOP}/child {TOP}/child")
        for number in range(3):
            for at, dataset in enumerate((TOP, f"{TOP}/child")):
                lab.guest.work(800 + 10 * number + at, 12, f"/{dataset}")
            self.run(f"zfs snapshot -r {TOP}@s{number}")
        lab.kernel_sends("in.zfs", f"-Rw {TOP}@s2")
        lab.receive("in.zfs", KEPT)

    def passed(self, *words: str, bases: tuple[str, ...] = ()) -> str:
        """What zkeep send gives, through the filter; the name of the stream."""
        given = [word for base in bases for word in ("--base", base)]
        self.lab.through(["send", "-w", *words], ["verify", "-L", self.key.outside, *given], "passed.zfs")
        return "passed.zfs"

    def equal(self, count: int) -> None:
        names = self.run(f"zfs list -H -o name -t snapshot -r {BACK}").splitlines()
        assert len(names) == count
        self.lab.kernel_opens(BACK, self.key)
        self.lab.same(names, [TOP + name.removeprefix(BACK) for name in names])
        self.lab.kernel_finds_no_fault()


@pytest.fixture
def tree(lab: Lab) -> Filtered:
    return Filtered(lab)


def test_a_full_stream_and_its_increment(tree: Filtered, report: object) -> None:
    tree.lab.kernel_takes(tree.passed(f"{KEPT}@s0"), f"-u {BACK}")
    tree.lab.kernel_takes(tree.passed("-i", "@s0", f"{KEPT}@s2", bases=(f"{KEPT}@s0",)), f"-u {BACK}")
    tree.equal(2)
    report.add("zkeep send | zkeep verify | zfs receive: a full stream, and -i with --base: equal")  # type: ignore[attr-defined]


def test_all_increments_between(tree: Filtered, report: object) -> None:
    tree.lab.kernel_takes(tree.passed(f"{KEPT}@s0"), f"-u {BACK}")
    tree.lab.kernel_takes(tree.passed("-I", "@s0", f"{KEPT}@s2", bases=(f"{KEPT}@s0",)), f"-u {BACK}")
    tree.equal(3)
    report.add("zkeep send -I | zkeep verify | zfs receive: equal")  # type: ignore[attr-defined]


def test_a_tree_comes_without_what_its_header_asked_for(tree: Filtered, report: object) -> None:
    tree.lab.kernel_takes(tree.passed("-R", f"{KEPT}@s2"), f"-u {BACK}")
    lines = tree.run(f"zfs get -H -r -t filesystem -o property -s received,local all {BACK}").splitlines()
    assert set(lines) <= {"atime", "compression", "dnodesize", "recordsize", "keylocation"}
    assert tree.run(f"zfs get -H -o value compression {BACK}/child") == "gzip-3"
    tree.equal(6)
    report.add("zkeep send -R | zkeep verify | zfs receive: equal, harmless properties only")  # type: ignore[attr-defined]


def test_of_what_is_forged_the_kernel_gets_nothing(tree: Filtered, report: object) -> None:
    lab = tree.lab
    lab.send("good.zfs", "-w", f"{KEPT}@s0")
    records = taken_apart((lab.share / "good.zfs").read_bytes())
    broken_mac(records, [])
    (lab.share / "forged.zfs").write_bytes(put_together(records))
    passed = lab.share / "passed.zfs"
    answer = lab.call("verify", "-L", tree.key.outside, given=lab.share / "forged.zfs", to=passed)
    assert (answer.status, passed.stat().st_size) == (4, 0)
    assert lab.kernel_receives("passed.zfs", f"-u {BACK}").status != 0
    assert lab.guest.call(f"zfs list {BACK}").status != 0
    report.add(f"of a forged stream the filter passes nothing: {answer.err.strip()}")  # type: ignore[attr-defined]
