"""What records of plain streams become: shapes of dnodes, blocks put together, what stays of the snapshot before."""

from __future__ import annotations

import lz4.block
import pytest

from reencryptkit import KEY, encrypted_pool, take
from zkeep.crypto.unwrap import first_that_opens
from zkeep.errors import Refused
from zkeep.format.nvlist import NvList, NvType, encode
from zkeep.format.records import Begin, Feature, Free, FreeObjects, Layout, Object, Spill, Write, WriteEmbedded
from zkeep.format.writer import Writer
from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot

FEATURES = (
    Feature.EMBED_DATA
    | Feature.COMPRESSED
    | Feature.LZ4
    | Feature.LARGE_BLOCKS
    | Feature.LARGE_DNODE
    | Feature.SA_SPILL
)
END = (1 << 64) - 1
Part = Layout | tuple[Layout, bytes]


def stream(
    number: int,
    *parts: Part,
    features: Feature = FEATURES,
    flags: int = 0xC,
    order: str = "little",
    toguid: int = 0,
    **lists: tuple[int, ...],
) -> bytes:
    """A plain stream of snapshot `number`, an increment from the one before; number 1 is full.

    `toguid`: its guid, if it is another one; `lists` of guids come in the BEGIN.
    """
    writer, nvlist, toguid = Writer(order), NvList(), toguid or number  # type: ignore[arg-type]
    for name, guids in lists.items():
        nvlist.set(name, guids, NvType.UINT64_ARRAY)
    nvlist.align = 8
    begin = Begin(
        versioninfo=1 | int(features) << 2,
        type=2,
        flags=flags,
        toguid=toguid,
        fromguid=number - 1,
        toname=b"t/a@s%d" % number,
        creation_time=1_600_000_000,
    )
    out = writer.begin(begin, encode(nvlist) if lists else b"")
    for part in parts:
        header, payload = part if isinstance(part, tuple) else (part, b"")
        object.__setattr__(header, "toguid", toguid)
        out += writer.record(header, payload)
    return out + writer.end()


def bonus_of(generation: int, size: int = 168) -> bytes:
    """System attributes behind a header of 8 bytes, as far as they matter here: their generation."""
    head = b"\x5a\x50\x2f\x00" + (2 | 1 << 10).to_bytes(2, "little") + bytes(2)
    return (head + bytes(16) + generation.to_bytes(8, "little")).ljust(size, b"\x11")


def obj(number: int, blocks: int = 1, blksz: int = 512, generation: int = 1, **fields: int) -> list[Part]:
    """An OBJECT of a file, and the FREE to the end behind it."""
    bonus = bonus_of(generation)
    made = {"type": 19, "bonustype": 44, "bonuslen": len(bonus), "dn_slots": 1} | fields
    if not made["bonuslen"]:
        bonus = b""
    head = Object(object=number, blksz=blksz, **made)
    return [(head, bonus), Free(object=number, offset=blocks * blksz, length=END)]


def write(number: int, offset: int, content: bytes) -> Part:
    return Write(object=number, type=19, offset=offset, logical_size=len(content)), content


def fill(letter: str, size: int = 512) -> bytes:
    return letter.encode() * size


def padded(content: bytes) -> bytes:
    return content.ljust(-(-len(content) // 8) * 8, b"\0")


NO_LZ4 = Write(object=2, offset=0, logical_size=512, type=19, compressiontype=15, compressed_size=512)
NO_DATA = WriteEmbedded(object=2, offset=0, length=512, compression=2, etype=1, lsize=8, psize=8)


class Look:
    """A snapshot, opened, and every MAC of it checked."""

    def __init__(self, pool: Pool, number: int) -> None:
        snapshot = pool.snapshot(SnapshotName.parse(f"v/enc/ds@s{number}"))
        with OpenSnapshot(pool, snapshot, first_that_opens([KEY])) as opened:
            verify(opened)
            self.numbers = [n for index in opened.numbers() for n in opened.dnodes(index)]
            self.objects = {n: opened.object(n) for n in self.numbers}
            self.spills = {n: opened.spill_of(n) for n in self.numbers}
            self.blocks = {n: {offset: bytes(c) for offset, c in opened.data(n, 0, 1 << 40)} for n in self.numbers}


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with encrypted_pool(tmp_path_factory.mktemp("pool") / "pool") as made:
        yield made


def test_a_dnode_gets_the_shape_that_its_object_must_have(pool: Pool) -> None:
    parts = [*obj(1, type=21, bonustype=0, bonuslen=0), *obj(2, blocks=3), *obj(3, blocks=1025)]
    take(pool, stream(1, *parts, *obj(4, blocks=3, type=23, bonustype=0, bonuslen=0)))
    found = Look(pool, 1).objects
    shapes = {n: (o.dnode.nblkptr, o.dnode.nlevels, o.dnode.maxblkid, o.dnode.indblkshift) for n, o in found.items()}
    assert shapes == {1: (3, 1, 0, 17), 2: (1, 2, 2, 17), 3: (1, 3, 1024, 17), 4: (3, 1, 2, 17)}


def test_blocks_that_were_cut_without_large_blocks_are_put_together(pool: Pool) -> None:
    """A file of one block of 200 KiB: two pieces, of which the second is shorter than 128 KiB."""
    size, whole = 128 << 10, b"".join(bytes([n % 251]) * 1024 for n in range(200))
    tail = Free(object=2, offset=len(whole), length=END)
    head = obj(2, blksz=size)[0]
    features = FEATURES & ~Feature.LARGE_BLOCKS
    take(pool, stream(1, head, tail, write(2, 0, whole[:size]), write(2, size, whole[size:]), features=features))
    found = Look(pool, 1)
    assert found.blocks[2] == {0: whole[:size], size: whole[size:].ljust(size, b"\0")}
    # The next snapshot has a hole in the middle of the second, and a piece of the first.
    again = [head, tail, write(2, 0, whole[:512]), Free(object=2, offset=size + 512, length=len(whole) - size - 512)]
    take(pool, stream(2, *again, features=features))
    want = whole[:size], whole[size : size + 512].ljust(size, b"\0")
    assert Look(pool, 2).blocks[2] == dict(zip((0, size), want, strict=True))


@pytest.mark.parametrize("step", [1 << 40, 1])
def test_blocks_that_the_stream_does_not_bring_stay(pool: Pool, step: int) -> None:
    many = 2100
    parts = [*obj(2, blocks=many), *(write(2, n * 512, fill("a")) for n in range(many))]
    take(pool, stream(1, *parts, *obj(3), write(3, 0, fill("x"))), step=max(step, 100 << 10) if step == 1 else step)
    changed = [write(2, 700 * 512, fill("b")), Free(object=2, offset=1000 * 512, length=1000 * 512)]
    take(pool, stream(2, *obj(2, blocks=2050, generation=1), *changed))
    found = Look(pool, 2)
    want = {n * 512: fill("a") for n in (*range(1000), *range(2000, 2050))} | {700 * 512: fill("b")}
    assert found.blocks == {2: want, 3: {0: fill("x")}}
    assert [s.doc["name"] for s in pool.snapshots(found_dataset(pool))] == ["s1", "s2"]


def found_dataset(pool: Pool):  # type: ignore[no-untyped-def]
    return pool.dataset(SnapshotName.parse("v/enc/ds@s1").dataset)


def test_a_number_that_has_a_new_object_keeps_nothing_of_the_old_one(pool: Pool) -> None:
    take(pool, stream(1, *obj(2, blocks=3), *(write(2, n * 512, fill("a")) for n in range(3))))
    # Another block size, a folder in place of a file, other slots: the old blocks are gone in each case.
    take(pool, stream(2, *obj(2, blocks=2, blksz=1024, generation=2), write(2, 1024, fill("b", 1024))))
    assert Look(pool, 2).blocks[2] == {1024: fill("b", 1024)}
    take(pool, stream(3, *obj(2, blocks=2, blksz=1024, type=20, generation=2), write(2, 0, fill("c", 1024))))
    assert Look(pool, 3).blocks[2] == {0: fill("c", 1024)}
    take(pool, stream(4, *obj(2, blocks=2, blksz=1024, type=20, dn_slots=2, generation=2)))
    assert Look(pool, 4).blocks[2] == {}


def test_a_larger_dnode_takes_the_slots_of_others(pool: Pool) -> None:
    take(pool, stream(1, *obj(2), *obj(3), *obj(4, dn_slots=2), write(4, 0, fill("a")), *obj(6)))
    take(pool, stream(2, *obj(2, dn_slots=2), FreeObjects(firstobj=4, numobjs=1), *obj(5), *obj(6)))
    found = Look(pool, 2)
    assert {n: o.dnode.slots for n, o in found.objects.items()} == {2: 2, 5: 1, 6: 1}
    assert found.blocks[5] == {}


def test_freed_objects_are_gone_and_others_stay(pool: Pool) -> None:
    first = [part for n in (*range(1, 60), 100, 200) for part in (*obj(n), write(n, 0, fill("a")))]
    take(pool, stream(1, *first))
    take(pool, stream(2, FreeObjects(firstobj=20, numobjs=40), FreeObjects(firstobj=100, numobjs=1 << 40)))
    assert Look(pool, 2).numbers == list(range(1, 20))


def test_streams_of_old_senders_have_all_objects_of_a_block_before_their_data(pool: Pool) -> None:
    objects = [part for n in range(2, 10) for part in obj(n)]
    data = [write(n, 0, fill(str(n))) for n in (3, 5, 9)]
    take(pool, stream(1, *objects, FreeObjects(firstobj=10, numobjs=3), *data, *obj(40)))
    found = Look(pool, 1)
    assert found.numbers == [*range(2, 10), 40]
    assert {n: b for n, b in found.blocks.items() if b} == {n: {0: fill(str(n))} for n in (3, 5, 9)}
    take(pool, stream(2, *objects, FreeObjects(firstobj=10, numobjs=100), write(4, 0, fill("z"))))
    found = Look(pool, 2)
    assert (found.numbers, found.blocks[4], found.blocks[5]) == ([*range(2, 10)], {0: fill("z")}, {0: fill("5")})


def test_embedded_blocks_are_expanded_and_compressed_ones_kept_as_they_are(pool: Pool) -> None:
    packed = lz4.block.compress(fill("e", 4096), store_size=False)
    packed = len(packed).to_bytes(4, "big") + packed
    embedded = WriteEmbedded(object=2, offset=0, length=4096, compression=15, lsize=4096, psize=len(packed))
    stored = packed.ljust(512, b"\0")
    whole = Write(object=2, type=19, offset=4096, logical_size=4096, compressiontype=15, compressed_size=512)
    take(pool, stream(1, *obj(2, blocks=2, blksz=4096), (embedded, padded(packed)), (whole, stored)))
    found = Look(pool, 1)
    assert found.blocks[2] == {0: fill("e", 4096), 4096: fill("e", 4096)}


def test_spill_blocks_come_stay_change_and_go(pool: Pool) -> None:
    with_spill = obj(2, flags=4)
    spill = (Spill(object=2, length=512, type=44), fill("s"))
    take(pool, stream(1, *with_spill, spill, *obj(3)))
    assert Look(pool, 1).spills == {2: fill("s"), 3: None}
    unmodified = (Spill(object=2, length=512, type=44, flags=4), fill("s"))
    take(pool, stream(2, *with_spill, unmodified, write(2, 0, fill("w"))))
    assert Look(pool, 2).spills[2] == fill("s")
    take(pool, stream(3, *with_spill, (Spill(object=2, length=1024, type=44), fill("t", 1024))))
    assert Look(pool, 3).spills[2] == fill("t", 1024)
    # A sender that puts it into a WRITE_EMBEDDED before the end of all offsets (openzfs/zfs#18239).
    packed = lz4.block.compress(fill("u"), store_size=False)
    packed = len(packed).to_bytes(4, "big") + packed
    odd = WriteEmbedded(object=2, offset=(1 << 64) - 512, length=512, compression=15, lsize=512, psize=len(packed))
    intake = take(pool, stream(4, *with_spill, (odd, padded(packed))))
    assert Look(pool, 4).spills[2] == fill("u")
    assert intake.mended == 1
    take(pool, stream(5, *obj(2)))
    assert Look(pool, 5).spills[2] is None


def test_files_keep_their_blocks_when_the_sender_begins_to_use_large_ones(pool: Pool) -> None:
    small, large = 128 << 10, 1 << 20
    features = FEATURES & ~Feature.LARGE_BLOCKS
    first = [write(2, n * small, fill(chr(97 + n), small)) for n in range(16)]
    take(pool, stream(1, *obj(2, blocks=16, blksz=small), *first, features=features))
    take(pool, stream(2, *obj(2, blocks=2, blksz=large), write(2, large, fill("z", large))))
    found = Look(pool, 2)
    assert found.objects[2].dnode.blksz == small
    assert found.blocks[2] == {n * small: fill("z" if n >= 8 else chr(97 + n), small) for n in range(16)}
    # A new file of that number has the sender's blocks.
    take(pool, stream(3, *obj(2, blocks=2, blksz=large, generation=2), write(2, 0, fill("y", large))))
    assert Look(pool, 3).blocks[2] == {0: fill("y", large)}


@pytest.mark.parametrize(
    ("before", "after", "large"),
    [(128 << 10, 512, False), (128 << 10, 4096, True), (1 << 20, 128 << 10, True), (1 << 20, 1024, True)],
)
def test_a_file_that_was_made_again_with_smaller_blocks_comes_whole(
    pool: Pool, before: int, after: int, large: bool
) -> None:
    """A folder's file that is emptied and written again keeps its generation; -L has nothing to do with it."""
    features = FEATURES if large else FEATURES & ~Feature.LARGE_BLOCKS
    old = [write(2, n * before, fill("a", before)) for n in range(3)]
    take(pool, stream(1, *obj(2, blocks=3, blksz=before), *old, features=features))
    take(pool, stream(2, *obj(2, blocks=2, blksz=after), write(2, after, fill("z", after)), features=features))
    found = Look(pool, 2)
    assert (found.objects[2].dnode.blksz, found.blocks[2]) == (after, {after: fill("z", after)})


def test_files_with_large_blocks_still_need_large_blocks(pool: Pool) -> None:
    """Without -L their blocks would only seem to be of 128 KiB, and what the stream does not bring be lost."""
    old = [write(2, n << 20, fill("a", 1 << 20)) for n in range(2)]
    take(pool, stream(1, *obj(2, blocks=2, blksz=1 << 20), *old))
    cut = [*obj(2, blocks=16, blksz=128 << 10), write(2, 0, fill("z", 128 << 10))]
    with pytest.raises(Refused, match="send with -L"):
        take(pool, stream(2, *cut, features=FEATURES & ~Feature.LARGE_BLOCKS))


@pytest.mark.parametrize("step", [1 << 40, 100 << 10])
def test_a_clone_has_the_blocks_and_the_keys_of_its_origin(pool: Pool, step: int) -> None:
    many = 900
    take(pool, stream(1, *obj(2, blocks=many), *(write(2, n * 512, fill("a")) for n in range(many))), "v/enc/origin")
    changed = [write(2, n * 512, fill("z")) for n in range(0, many, 2)]
    of_clone = stream(2, *obj(2, blocks=many), *changed, flags=0xD)
    with pytest.raises(Refused, match="its source, guid 0x1, is not in v/enc/ds"):
        take(pool, of_clone)
    take(pool, of_clone, step=step, set_properties={"origin": "v/enc/origin@s1"})
    assert Look(pool, 2).blocks[2] == {n * 512: fill("a" if n % 2 else "z") for n in range(many)}
    clone = found_dataset(pool)
    assert [s.doc["name"] for s in pool.snapshots(clone)] == ["s2"]
    origin = pool.dataset(SnapshotName.parse("v/enc/origin@s1").dataset)
    assert (clone.origin, clone.doc["encroot"]) == ((origin.id, pool.snapshots(origin)[0].txg), False)
    assert clone.doc["crypt"]["guid"] == origin.doc["crypt"]["guid"]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([obj(2)[0], write(2, 0, fill("a"))], "nothing says where object 2 ends"),
        ([*obj(2), write(2, 512, fill("a"))], "object 2 ends before offset 512"),
        ([*obj(2, flags=4), *obj(3)], "the spill block of object 2 is missing"),
        ([*obj(2), *obj(3), write(3, 0, fill("a")), write(2, 0, fill("a"))], "come after"),
        (obj(2, bonustype=17), "version 4 or older"),
        ([obj(2)[0], Free(object=2, offset=END, length=END)], "object 2 ends where no file can"),
        ([obj(2)[0], Free(object=2, offset=(1 << 63) + 1, length=END)], "object 2 ends where no file can"),
        ([*obj(2), (NO_LZ4, fill("a"))], "object 2: "),
        ([*obj(2), (NO_DATA, b"12345678")], "embedded type 1 holds no data"),
    ],
)
def test_p4_what_cannot_be_is_refused_and_nothing_is_kept(pool: Pool, parts: list[Part], why: str) -> None:
    before = sorted(path for path in pool.path.rglob("*.seg"))
    with pytest.raises(Refused, match=why) as refused:
        take(pool, stream(1, *parts))
    assert "\n" not in str(refused.value)
    assert pool.find(SnapshotName.parse("v/enc/ds@s1").dataset) is None
    assert sorted(path for path in pool.path.rglob("*.seg")) == before


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"order": "big"}, "big-endian")],
)
def test_streams_that_cannot_be_encrypted_are_refused_at_their_begin(
    pool: Pool, fields: dict[str, object], why: str
) -> None:
    with pytest.raises(Refused, match=why):
        take(pool, stream(1, *obj(2), **fields))  # type: ignore[arg-type]


