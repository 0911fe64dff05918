"""That the judge sees: streams that are wrong inside, with every checksum right, are turned away by the kernel.

Without these, a pass of the others would mean little. zkeep verify must see the same, and what some kernels do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from forgeries import Record, put_together, taken_apart
from lab import RAW, Key, Lab

from zkeep.format.nvlist import NvList, decode
from zkeep.format.records import Begin, RecordType, Write

Forge = Callable[[list[Record], list[Record]], None]
"""Changes the records of a snapshot; it may take those of an older one."""
DNODES = 32
"In a block of the metadnode, 16 KiB."


def big_writes(records: list[Record]) -> list[Record]:
    """Blocks of the file that has most of them."""
    writes = [r for r in records if r.type == RecordType.WRITE and isinstance(r.header, Write) and r.header.type == 19]
    numbers = [r.object for r in writes]
    most = max(numbers, key=numbers.count)
    return [r for r in writes if r.object == most]


def broken_mac(records: list[Record], older: list[Record]) -> None:
    record = big_writes(records)[1]
    header = record.header
    assert isinstance(header, Write)
    record.put(replace(header, mac=bytes([header.mac[0] ^ 1]) + header.mac[1:]))


def swapped_blocks(records: list[Record], older: list[Record]) -> None:
    """Each is authentic, with its own salt, IV and MAC; only their places are exchanged."""
    one, two = big_writes(records)[1:3]
    first, second = one.header, two.header
    assert isinstance(first, Write)
    assert isinstance(second, Write)
    payloads = one.payload, two.payload
    one.put(replace(second, offset=first.offset), payloads[1])
    two.put(replace(first, offset=second.offset), payloads[0])


def wrong_portable_mac(records: list[Record], older: list[Record]) -> None:
    begin = records[0]
    keydata = decode(begin.payload)["crypt_keydata"]
    assert isinstance(keydata, NvList)
    mac = keydata["portable_mac"]
    assert isinstance(mac, bytes)
    assert begin.payload.count(mac) == 1
    begin.put(begin.header, begin.payload.replace(mac, bytes([mac[0] ^ 1]) + mac[1:]))


def old_among_new(records: list[Record], older: list[Record]) -> None:
    """A file as in an older snapshot: all MACs up to its block of dnodes are right, only the portable one is not."""
    first = big_writes(records)[0].object // DNODES * DNODES
    start, end = _range(records, first)
    begin, stop = _range(older, first)
    assert [record.content for record in records[start:end]] != [record.content for record in older[begin:stop]]
    for record in older[begin:stop]:
        record.put(replace(cast(Any, record.header), toguid=cast(Begin, records[0].header).toguid))
    records[start:end] = older[begin:stop]


def _range(records: list[Record], first: int) -> tuple[int, int]:
    """Where the records of a block of dnodes lie, from its OBJECT_RANGE to the next."""
    starts = [at for at, record in enumerate(records) if record.type == RecordType.OBJECT_RANGE]
    begin = next(at for at in starts if records[at].object == first)
    return begin, next((at for at in starts if at > begin), len(records))


FORGERIES = [broken_mac, swapped_blocks, wrong_portable_mac, old_among_new]
BY_PORTABLE_MAC = [wrong_portable_mac, old_among_new]
"What nothing else shows."


def takes_any_portable_mac(version: str) -> bool:
    """Whether a kernel of this version mounts a received dataset whose portable MAC is wrong: 2.1.7 to 2.3.1 do.

    spa_do_crypt_objset_mac_abd() (OpenZFS module/zfs/dsl_crypt.c) computes both MACs of an object set. From 2.1.7
    (commit fa7d572a8a; in 2.2.0 as 2163cde450) until 2.3.2 (f145371660, openzfs/zfs#17122), it goes on if *either*
    differs, provided that the local one comes out as zero. It does for every received dataset until it is first
    mounted, as nothing is accounted (dsl_crypto_recv_raw_objset_sync(), zio_crypt_do_objset_hmacs()); then new MACs are
    written over both.
    """
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    return (2, 1, 7) <= number < (2, 3, 2)


@pytest.fixture
def key(lab: Lab) -> Key:
    """The key of tank/d, which has a file in two states; zkeep has both, and what it sends is good."""
    key = lab.key(RAW)
    write = "dd if=/dev/urandom of=/tank/d/file bs=128k count=6 conv=notrunc status=none"
    lab.guest.run(f"zfs create -o encryption=on {key.creating} -o compression=off tank/d")
    for number, words in enumerate(("-w tank/d@s0", "-w -i @s0 tank/d@s1")):
        lab.guest.run(f"{write}; zfs snapshot tank/d@s{number}")
        lab.kernel_sends("in.zfs", words)
        lab.receive("in.zfs", "v/d")
        lab.send(f"out{number}.zfs", "-w", f"v/d@s{number}")
    lab.kernel_takes("out1.zfs", "-u back/good")
    lab.kernel_opens("back/good", key)
    lab.same(["back/good@s1"], ["tank/d@s1"])
    return key


def test_the_kernel_sees_them(lab: Lab, report: object, key: Key) -> None:
    for forge in FORGERIES:
        older, records = (taken_apart((lab.share / f"out{number}.zfs").read_bytes()) for number in range(2))
        forge(records, older)
        (lab.share / "forged.zfs").write_bytes(put_together(records))
        said = _turned_away(lab, key.inside)
        lab.guest.run("zfs destroy -r back/forged; zpool scrub -w back; zpool scrub -w back; zpool clear back")
        unseen = forge in BY_PORTABLE_MAC and takes_any_portable_mac(lab.openzfs)
        assert bool(said) != unseen, (forge, said)
        lab.receive("forged.zfs", "v/forged")
        answer = lab.call("verify", "-L", key.outside, "v/forged@s1")
        assert answer.status == 4, answer.err
        lab.zkeep("destroy", "-r", "v/forged")
        judged = f"the kernel ({lab.openzfs}) {'does not see it' if unseen else f'says: {said}'}"
        report.add(f"{forge.__name__}: {judged}; zkeep: {answer.err.strip()}")  # type: ignore[attr-defined]


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
