"""Promotions in a chain of clones, which `zfs receive` of a package, the kernel's own too, follows or not: its
recv_incremental_replication() finds each of its datasets in the package by the oldest snapshot, promotes it by a list
that is out of date after the first promotion, and takes them in the order of its own directory, which is random. What
two promotions undo of each other, it does again, for ever.

The way out that zkeep's warning names is tried wherever that happens.
"""

from __future__ import annotations

from collections import Counter

import pytest
from lab import LONG, RAW, Lab, long

ROUNDS = 50 if LONG else 2
TOP, KEPT, BACK = "tank/h", "v/h", "back/h"
ENDLESS = 20
"Promotions of one receive; it needs two."

OUTCOMES = {
    1: {"status 0, not followed"},
    2: {"status 0", "endless, not followed"},
}
"""By promotions at the source."""

RECEIVES = r"""
promotions() { zpool history -i back | grep -c ' promote '; }
before=$(promotions)
zfs receive -u -F BACK < /mnt/STREAM 2> /tmp/said & receiver=$!
while kill -0 $receiver 2> /dev/null; do
  [ $(($(promotions) - before)) -lt ENDLESS ] || { kill $receiver; wait $receiver 2> /dev/null; echo endless; exit; }
  sleep 0.5
done
wait $receiver; echo "status $? $(cat /tmp/said)"
"""


class Chain:
    """a, a clone b of it, and a clone c of b, replicated into zkeep as @r2; c is promoted, and all comes as @r3."""

    def __init__(self, lab: Lab, promotions: int) -> None:
        self.lab, self.run = lab, lab.guest.run
        self.promotions = promotions
        key = lab.key(RAW)
        self.run(f"zfs create -o encryption=on {key.creating} {TOP}; zfs create {TOP}/a; echo a > /{TOP}/a/file")
        self.run(f"zfs snapshot -r {TOP}@r0; zfs clone {TOP}/a@r0 {TOP}/b; zfs snapshot -r {TOP}@r1")
        self.run(f"zfs clone {TOP}/b@r1 {TOP}/c")
        self._comes("r2", "")
        self.run(f"zfs promote {TOP}/c;" * promotions)
        self._comes("r3", "r2")
        self._comes("r4", "r3")

    def _comes(self, name: str, since: str) -> None:
        """From the kernel to zkeep, and from both as a stream of its own."""
        self.run(f"zfs snapshot -r {TOP}@{name}")
        self.lab.kernel_sends(f"kernel-{name}.zfs", f"-Rw {f'-I @{since}' if since else ''} {TOP}@{name}")
        self.lab.receive(f"kernel-{name}.zfs", KEPT, *(["-F"] if since else []))
        self.lab.send(f"zkeep-{name}.zfs", "-R", "-w", *(["-I", f"@{since}"] if since else []), f"{KEPT}@{name}")

    def origins(self, top: str) -> str:
        return self.run(f"zfs list -H -o name,origin -r {top}").replace(top, "")

    def origin(self, dataset: str) -> str:
        return self.run(f"zfs get -H -o value origin {dataset}").replace(BACK, TOP)

    def snapshots(self, top: str) -> set[str]:
        return {line.partition("@")[2] for line in self.run(f"zfs list -H -o name -t snapshot -r {top}").splitlines()}

    def received(self, stream: str) -> str:
        """What came of it: endless, or its status and what it said."""
        script = RECEIVES.replace("BACK", BACK).replace("STREAM", stream).replace("ENDLESS", str(ENDLESS))
        return self.run(script).strip()

    def taken(self, sender: str) -> str:
        """By a pool that is as at @r2, with the way out where it is needed; then what comes next."""
        self.run(f"zfs destroy -R {BACK} 2> /dev/null; zfs receive -u {BACK} < /mnt/{sender}-r2.zfs")
        found = self.received(f"{sender}-r3.zfs")
        if self.origins(BACK) != self.origins(TOP):
            found += ", not followed"
            while self.origin(f"{BACK}/c") != self.origin(f"{TOP}/c"):
                self.run(f"zfs promote {BACK}/c")
            assert self.received(f"{sender}-r3.zfs") == "status 0"
        assert self.received(f"{sender}-r4.zfs") == "status 0"
        assert self.origins(BACK) == self.origins(TOP)
        assert self.snapshots(BACK) == {"r0", "r1", "r2", "r3", "r4"}
        return found


@pytest.mark.parametrize("promotions", [1, pytest.param(2, marks=long)])
def test_what_zfs_receive_does_not_follow_has_a_way_out(lab: Lab, report: object, promotions: int) -> None:
    chain = Chain(lab, promotions)
    said = lab.call("send", "-n", "-R", "-w", "-I", "@r2", f"{KEPT}@r3").err
    assert "v/h/c was promoted in a chain of clones since @r2" in said
    for sender in ("kernel", "zkeep"):
        found = Counter(chain.taken(sender) for _ in range(ROUNDS))
        assert set(found) <= OUTCOMES[promotions]
        times = ", ".join(f"{outcome} {count} times" for outcome, count in sorted(found.items()))
        report.add(f"c of a chain of clones promoted {promotions} times, {sender}'s package: {times}")  # type: ignore[attr-defined]
