"""That the judge sees: streams that are wrong inside, with every checksum right, are turned away by the kernel.

Without these, a pass of the other tests would mean little. zkeep verify must see the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from forgeries import Record, put_together, taken_apart
from lab import RAW, Lab

from zkeep.format.nvlist import decode, encode
from zkeep.format.records import RecordType, Write

KEY = b"portable_mac"


def big_writes(records: list[Record]) -> list[Record]:
    """Blocks of the file that has most of them."""
    writes = [r for r in records if r.type == RecordType.WRITE and isinstance(r.header, Write) and r.header.type == 19]
    numbers = [r.object for r in writes]
    most = max(numbers, key=numbers.count)
    return [r for r in writes if r.object == most]


def broken_mac(records: list[Record]) -> None:
    record = big_writes(records)[1]
    header = record.header
    assert isinstance(header, Write)
    record.put(replace(header, mac=bytes([header.mac[0] ^ 1]) + header.mac[1:]))


def swapped_blocks(records: list[Record]) -> None:
    """Each is authentic, with its own salt, IV and MAC; only their places are exchanged."""
    one, two = big_writes(records)[1:3]
    first, second = one.header, two.header
    assert isinstance(first, Write)
    assert isinstance(second, Write)
    payloads = one.payload, two.payload
    one.put(replace(second, offset=first.offset), payloads[1])
    two.put(replace(first, offset=second.offset), payloads[0])


def wrong_portable_mac(records: list[Record]) -> None:
    begin = records[0]
    nvlist = decode(begin.payload)
    mac = nvlist["crypt_keydata"]["portable_mac"]  # type: ignore[index, call-overload]
    changed = begin.payload.replace(mac, bytes([mac[0] ^ 1]) + mac[1:])
    assert changed != begin.payload
    assert len(encode(nvlist)) > 0
    begin.put(begin.header, changed)


FORGERIES = [broken_mac, swapped_blocks, wrong_portable_mac]


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_the_kernel_sees_it(lab: Lab, report: object, forge: Callable[[list[Record]], None]) -> None:
    key = lab.key(RAW)
    lab.guest.run(f"zfs create -o encryption=on {key.creating} -o compression=off tank/d")
    lab.guest.run("dd if=/dev/urandom of=/tank/d/file bs=128k count=6 status=none; zfs snapshot tank/d@s0")
    lab.kernel_sends("in.zfs", "-w tank/d@s0")
    lab.receive("in.zfs", "v/d")
    lab.send("out.zfs", "-w", "v/d@s0")
    lab.kernel_takes("out.zfs", "-u back/good")
    lab.kernel_opens("back/good", key)
    lab.guest.run("cat /back/good/file > /dev/null")

    records = taken_apart((lab.share / "out.zfs").read_bytes())
    forge(records)
    (lab.share / "forged.zfs").write_bytes(put_together(records))
    said = _turned_away(lab, key.inside)
    lab.guest.run("zfs destroy -r back/forged; zpool scrub -w back; zpool scrub -w back; zpool clear back")
    assert said
    lab.receive("forged.zfs", "v/forged")
    answer = lab.call("verify", "-L", key.outside, "v/forged@s0")
    assert answer.status == 4, answer.err
    report.add(f"{forge.__name__}: the kernel says: {said}; zkeep: {answer.err.strip()}")  # type: ignore[attr-defined]


def _turned_away(lab: Lab, keylocation: str) -> str:
    """What the kernel says where it first refuses: on receive, with the key, at the mount, or when the file is read."""
    steps = [
        "zfs receive -u back/forged < /mnt/forged.zfs",
        f"zfs load-key -L {keylocation} back/forged",
        "zfs mount back/forged",
        "cat /back/forged/file > /dev/null",
    ]
    for step in steps:
        answer = lab.guest.call(step)
        if answer.status:
            return answer.err.strip().splitlines()[-1]
    return ""
