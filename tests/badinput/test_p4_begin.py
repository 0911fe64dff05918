"""P4: every BEGIN is judged whole: what no kernel would take back, and what does not go on with what was begun."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from badkit import Box, Record, begin_of, forged, names_of, rekeyed, stream, taken_apart
from packagekit import plain

from zkeep.format.nvlist import NvList, NvType, Pair
from zkeep.format.reader import read_events
from zkeep.format.records import Begin, BeginFlag, End, Feature
from zkeep.format.writer import Writer
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.begin_rules import INHERITED, KEYDATA, KeydataRule
from zkeep.pool.transfer.send import SendRequest, send

FULL = stream("rs512b", "full-s0")
NEXT = stream("rs512b", "inc-s0-s1")
PLAIN = plain()
Change = Callable[[list[Record]], object]


def keyed(change: Callable[[NvList], object]) -> Change:
    return lambda records: rekeyed(records[0], lambda _, crypt: change(crypt))


def field(name: str, value: int | bytes) -> Change:
    """A field of crypt_keydata."""
    return keyed(lambda crypt: crypt.set(name, value))


def put(name: str, value: int) -> Change:
    """A field of the BEGIN."""
    return lambda records: records[0].put(name, value)


# What a kernel would not take back


@pytest.mark.parametrize("rule", KEYDATA, ids=lambda rule: rule.field)
def test_p4_keys_that_no_kernel_takes_are_refused(box: Box, rule: KeydataRule) -> None:
    is_bytes = rule.type == NvType.UINT8_ARRAY
    box.refuses(forged(FULL, keyed(lambda crypt: crypt.remove(rule.field))), "v/x", why=rule.field)
    other_type = NvType.STRING if is_bytes else NvType.UINT32
    retyped = keyed(lambda crypt: crypt.set(rule.field, "x" * 32 if is_bytes else 3, other_type))
    box.refuses(forged(FULL, retyped), "v/x", why=rule.field)
    values = [b"", bytes(33)] if is_bytes else [0, 2, 9, 18, 513, 1 << 63]
    for value in [value for value in values if not rule.legal(value, False)]:
        box.refuses(forged(FULL, field(rule.field, value)), "v/x", why=rule.field)


def test_p4_a_passphrase_without_rounds_or_salt_is_refused(box: Box) -> None:
    def change(crypt: NvList, iterations: int, salt: int) -> None:
        for name, value in (("keyformat", 3), ("pbkdf2iters", iterations), ("pbkdf2salt", salt)):
            crypt.set(name, value)

    box.refuses(forged(FULL, keyed(lambda crypt: change(crypt, 0, 5))), "v/x", why="pbkdf2iters")
    box.refuses(forged(FULL, keyed(lambda crypt: change(crypt, 350000, 0))), "v/x", why="pbkdf2salt")
    box.takes(forged(FULL, keyed(lambda crypt: change(crypt, 350000, 5))), "v/x")


@pytest.mark.parametrize("flags", [0, 1])
def test_p4_a_field_given_twice_is_refused(box: Box, flags: int) -> None:
    def change(crypt: NvList) -> None:
        crypt.flags, crypt.head = flags, b""
        crypt.pairs.append(Pair("DSL_CRYPTO_GUID", NvType.UINT64, 7))
        crypt.set("DSL_CRYPTO_VERSION", 1)  # now the list is packed again

    box.refuses(forged(FULL, keyed(change)), "v/x")


def names_may_repeat(nvlist: NvList) -> None:
    nvlist.flags, nvlist.head = 0, b""
    nvlist.set(*next((pair.name, pair.value, pair.type) for pair in nvlist.pairs))  # now it is packed again


def test_p4_a_list_in_which_no_kernel_finds_anything_is_refused(box: Box) -> None:
    box.refuses(forged(FULL, keyed(names_may_repeat)), "v/x", why="need not be unique")
    whole = lambda records: rekeyed(records[0], lambda nvlist, _: names_may_repeat(nvlist))  # noqa: E731
    box.refuses(forged(FULL, whole), "v/x")


@pytest.mark.parametrize("name", ["to_ivset_guid", "from_ivset_guid"])
@pytest.mark.parametrize("kind", [NvType.INT64, NvType.UINT32, NvType.BOOLEAN_VALUE])
def test_p4_an_optional_field_has_its_type(box: Box, name: str, kind: NvType) -> None:
    box.refuses(forged(FULL, keyed(lambda crypt: crypt.set(name, 1, kind))), "v/x", why=name)


@pytest.mark.parametrize("name", ["redact_snaps", "redact_from_snaps", "resume_object"])
def test_p4_a_field_beside_the_keys_has_its_type(box: Box, name: str) -> None:
    change = lambda records: rekeyed(records[0], lambda nvlist, _: nvlist.set(name, (1, 2), NvType.INT64_ARRAY))  # noqa: E731
    box.refuses(forged(FULL, change), "v/x", why=name)


def redacted(data: bytes) -> bytes:
    features = begin_of(data).versioninfo | int(Feature.REDACTED) << 2
    return forged(data, put("versioninfo", features))


@pytest.mark.parametrize("name", ["full-s0", "inc-s0-s1"])
def test_p4_what_is_redacted_says_for_what(kept: Box, name: str) -> None:
    """A kernel that is given such a stream stops the machine."""
    data, target = stream("rs512b", name), "v/new" if name == "full-s0" else "v/x"
    kept.refuses(redacted(data), target, why="redact_snaps")
    change = lambda records: rekeyed(records[0], lambda nvlist, _: nvlist.set("redact_snaps", (7,)))  # noqa: E731
    kept.takes(forged(redacted(data), change), target)


def test_p4_a_plain_stream_that_is_redacted_says_for_what(box: Box) -> None:
    assert box.zkeep("set", "blind=off", "v").status == 0
    box.refuses(redacted(PLAIN), "v/x", why="redact_snaps")


@pytest.mark.parametrize("kind", [0, 1, 4, 5])
def test_p4_what_is_no_dataset_is_refused(box: Box, kind: int) -> None:
    box.refuses(forged(FULL, put("type", kind)), "v/x", why="neither a filesystem")
    assert box.zkeep("set", "blind=off", "v").status == 0
    box.refuses(forged(PLAIN, put("type", kind)), "v/x", why="neither a filesystem")


@pytest.mark.parametrize("name", ["full-s0", "inc-s0-s1"])
def test_p4_a_snapshot_without_a_guid_is_refused(kept: Box, name: str) -> None:
    """An increment from guid 0 would be a full stream."""

    def change(records: list[Record]) -> None:
        for record in records:
            if "toguid" in names_of(record.rtype):
                record.put("toguid", 0)

    target = "v/new" if name == "full-s0" else "v/x"
    kept.refuses(forged(stream("rs512b", name), change), target, why="has the guid 0")


def test_p4_keys_in_a_stream_that_is_not_raw_are_refused(box: Box) -> None:
    assert box.zkeep("set", "blind=off", "v").status == 0
    features = begin_of(FULL).versioninfo & ~(int(Feature.RAW) << 2)
    box.refuses(forged(FULL, put("versioninfo", features)), "v/x", why="is not raw")


@pytest.mark.parametrize("name", INHERITED)
def test_p4_an_increment_of_other_keys_or_shape_is_refused(kept: Box, name: str) -> None:
    other = {"DSL_CRYPTO_SUITE": 3, "mdn_blksz": 32768, "mdn_nlevels": 5, "mdn_indblkshift": 14}.get(name, 77)
    kept.refuses(forged(NEXT, field(name, other)), "v/x@s1", why="mismatch" if name != "mdn_nblkptr" else "must be 3")
    clone = forged(NEXT, lambda records: (field(name, other)(records), put("flags", begin_of(NEXT).flags | 1)(records)))
    kept.refuses(clone, "-o", "origin=v/x@s0", "v/y")


def test_p4_an_increment_without_ivset_guid_is_refused(kept: Box) -> None:
    for change in (keyed(lambda crypt: crypt.remove("from_ivset_guid")), field("from_ivset_guid", 0)):
        kept.refuses(forged(NEXT, change), "v/x@s1", why="IV set guid missing")


def test_p4_a_full_without_ivset_guid_has_no_increments(box: Box) -> None:
    box.takes(forged(FULL, keyed(lambda crypt: crypt.remove("to_ivset_guid"))), "v/x@s0")
    box.refuses(NEXT, "v/x@s1", why="IV set guid missing: v/x@s0")


def test_p4_a_volume_does_not_follow_a_filesystem(kept: Box) -> None:
    kept.refuses(forged(NEXT, put("type", 3)), "v/x@s1", why="is of a volume")
    kept.refuses(forged(NEXT, put("type", 3)), "-F", "v/x@s1", why="is of a volume")


def test_p4_nothing_is_received_below_a_volume(box: Box) -> None:
    box.takes(forged(FULL, put("type", 3)), "v/vol")
    for more in ([], ["-s"], ["-F"]):
        box.refuses(FULL, *more, "v/vol/x", why="is a volume")
    box.refuses(FULL, "-d", "v/vol", why="is a volume")


def test_p4_a_clone_is_not_taken_into_a_dataset_with_snapshots(kept: Box) -> None:
    clone = forged(NEXT, put("flags", begin_of(NEXT).flags | BeginFlag.CLONE))
    kept.refuses(clone, "v/x@s1", why="of a clone")
    kept.refuses(clone, "-F", "v/x@s1", why="of a clone")
    kept.refuses(NEXT, "-o", "origin=v/x@s0", "v/x@s1", why="of a clone")


# What goes on with an interrupted receive


def token(box: Box, dataset: str) -> str:
    return box.zkeep("get", "-Ho", "value", "receive_resume_token", dataset).out.strip()


def rest_of(box: Box, dataset: str) -> bytes:
    """What `zfs send -t` of the source would send."""
    sink = io.BytesIO()
    with Pool.open(box.path, "v") as pool:
        send(pool, SendRequest(token=token(box, dataset), received_name=True), sink)
    return sink.getvalue()


@pytest.fixture
def broken(box: Box) -> Box:
    """v/h, of which half has arrived; v/source, from which the rest comes."""
    box.takes(FULL, "v/source@s0")
    assert box.receive(FULL[: len(FULL) // 2], "-s", "v/h@s0").status == 5
    return box


def add(name: str, more: int) -> Change:
    return lambda records: records[0].put(name, getattr(records[0].get(), name) + more)


def without(feature: Feature) -> Change:
    return lambda records: records[0].put("versioninfo", records[0].get().versioninfo & ~(int(feature) << 2))  # type: ignore[attr-defined]


OTHER: dict[str, Change] = {
    "fromguid": add("fromguid", 1),
    "creation time": add("creation_time", 1),
    "type": put("type", 3),
    "no spill flag": put("flags", 4),
    "fewer features": without(Feature.COMPRESSED),
    "more features": add("versioninfo", int(Feature.LARGE_BLOCKS) << 2),
    "key guid": field("DSL_CRYPTO_GUID", 5),
    "cipher": field("DSL_CRYPTO_SUITE", 4),
    "keys with another guid, wrapped": keyed(
        lambda crypt: [crypt.set("DSL_CRYPTO_MASTER_KEY_1", b"k" * 32), crypt.set("DSL_CRYPTO_GUID", 6)]
    ),
    "keys of another snapshot, wrapped": keyed(
        lambda crypt: [crypt.set("DSL_CRYPTO_MASTER_KEY_1", b"k" * 32), crypt.set("portable_mac", b"m" * 32)]
    ),
    "no legal wrap": keyed(lambda crypt: crypt.set("DSL_CRYPTO_IV", bytes(16))),
    "rounds for a key that is no passphrase": keyed(
        lambda crypt: crypt.set("pbkdf2iters", 0 if int(str(crypt["pbkdf2iters"])) else 350_000)
    ),
    "ivset": field("to_ivset_guid", 9),
    "from ivset": field("from_ivset_guid", 9),
    "portable mac": field("portable_mac", bytes(32)),
    "metadnode": field("mdn_nlevels", 4),
    "last block": field("mdn_maxblkid", 4),
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_p4_a_resume_goes_on_with_exactly_what_was_begun(broken: Box, change: Change) -> None:
    rest = rest_of(broken, "v/h")
    broken.refuses(forged(rest, change), "-s", "v/h")
    broken.refuses(forged(rest, change), "-F", "v/h")
    broken.takes(rest, "-s", "v/h")


def test_p4_a_resume_of_another_snapshot_is_refused(broken: Box) -> None:
    def change(records: list[Record]) -> None:
        for record in records:
            record.put("toguid", 99)

    rest = rest_of(broken, "v/h")
    broken.refuses(forged(rest, change), "v/h", why="of another snapshot")
    broken.takes(rest, "v/h")


def other_way_round(data: bytes) -> bytes:
    """The same records in the other byte order."""
    records = taken_apart(data)
    writer, out = Writer("big"), b""
    for record in records:
        header = record.get()
        if isinstance(header, Begin):
            out += writer.begin(header, record.payload)
        elif not isinstance(header, End):
            out += writer.record(header, record.payload)
    return out + writer.end()


def test_p4_a_resume_in_the_other_byte_order_is_refused(broken: Box) -> None:
    rest = other_way_round(rest_of(broken, "v/h"))
    assert list(read_events(io.BytesIO(rest)))
    broken.refuses(rest, "v/h", why="byte order")


def resuming(box: Box, dataset: str, data: bytes) -> bytes:
    """A stream that pretends to go on with what a dataset has."""
    with Pool.open(box.path, "v") as pool:
        state = pool.catalog.get("receive", pool.dataset(DatasetName.parse(dataset)).key)
    assert state is not None
    point, toguid = (state["object"], state["offset"]), state["toguid"]

    def change(records: list[Record]) -> None:
        from zkeep.format.nvlist import encode

        begin = records[0].get()
        assert isinstance(begin, Begin)
        payload = NvList()
        payload.set("resume_object", point[0])
        payload.set("resume_offset", point[1])
        records[0].payload = encode(payload)
        changed = replace(
            begin,
            payloadlen=len(records[0].payload),
            versioninfo=begin.versioninfo | int(Feature.RESUMING) << 2,
            creation_time=begin_of(FULL).creation_time,
        )
        records[0].header[:] = changed.pack("little")
        for record in records:
            record.put("toguid", toguid)

    return forged(data, change)


def test_p1_a_raw_receive_is_not_gone_on_with_in_the_open(broken: Box) -> None:
    broken.refuses(resuming(broken, "v/h", PLAIN), "-s", "v/h", why="blind=on")
    assert broken.zkeep("set", "blind=off", "v").status == 0
    broken.refuses(resuming(broken, "v/h", PLAIN), "-s", "v/h", why="stream features")
    broken.takes(rest_of(broken, "v/h"), "-s", "v/h")


def test_p1_what_was_begun_in_the_open_ends_when_the_pool_becomes_blind(box: Box) -> None:
    assert box.zkeep("set", "blind=off", "v").status == 0
    assert box.receive(PLAIN[: len(PLAIN) // 2], "-s", "v/h@s0").status == 5
    assert box.zkeep("set", "blind=on", "v").status == 0
    box.refuses(resuming(box, "v/h", PLAIN), "-s", "v/h@s0", why="blind=on")


@pytest.mark.parametrize("again", [False, True], ids=["resumed", "sent again"])
def test_p1_what_an_interrupted_receive_was_told_gives_way_to_what_was_set_since(box: Box, again: bool) -> None:
    """Its -o blind=off was for then; blind=on, set in the dataset since, is the last word."""
    assert box.receive(PLAIN[: len(PLAIN) * 3 // 4], "-s", "-o", "blind=off", "v/h@s0").status == 5
    rest = PLAIN if again else resuming(box, "v/h", PLAIN)
    assert box.zkeep("set", "blind=on", "v/h").status == 0
    box.refuses(rest, "-s", "v/h@s0", why="blind=on")
    assert box.zkeep("inherit", "blind", "v/h").status == 0
    box.refuses(rest, "-s", "v/h@s0", why="blind=on")
    box.takes(PLAIN, "-s", "-o", "blind=off", "v/h@s0")


def test_p4_what_bounds_an_interrupted_increment_since_stays(box: Box) -> None:
    box.takes(stream("rs512b", "full-s0"), "-o", "blind=off", "v/h@s0")
    rest = stream("rs512b", "inc-s0-s1")
    asked = ("-s", "-o", "quota=1G", "-o", "refquota=1G")
    assert box.receive(rest[: len(rest) - 400], *asked, "v/h@s1").status == 5
    assert box.zkeep("set", "quota=100M", "v/h").status == 0
    box.takes(rest, "-s", "v/h@s1")
    got = box.zkeep("get", "-Hp", "-o", "value", "quota,refquota", "v/h").out.split()
    assert got == [str(100 << 20), str(1 << 30)]


def test_p4_a_rollback_that_was_begun_needs_its_letter_again(box: Box) -> None:
    """What was to be given up then is still there, and may have been held since."""
    box.takes(stream("rs512b", "full-s1"), "v/source@s1")
    late = stream("rs512b", "inc-s1-s3")
    box.takes(late, "v/source@s3")
    box.takes(stream("rs512b", "full-s1"), "v/h@s1")
    box.takes(stream("rs512b", "inc-s1-s2"), "v/h@s2")
    assert box.receive(late[: len(late) * 2 // 3], "-sF", "v/h@s3").status == 5
    rest = rest_of(box, "v/h")
    box.refuses(rest, "-s", "v/h", why="roll back with -F")
    assert box.zkeep("hold", "keep", "v/h@s2").status == 0
    box.refuses(rest, "-sF", "v/h", why="is held")
    assert box.zkeep("release", "keep", "v/h@s2").status == 0
    box.takes(rest, "-sF", "v/h")
    assert box.zkeep("list", "-H", "-t", "snapshot", "-o", "name", "v/h").out.split() == ["v/h@s1", "v/h@s3"]
    assert box.zkeep("pool", "scrub", "v").status == 0


def test_p4_a_volume_that_overwrites_is_one_when_resumed_too(box: Box) -> None:
    volume = forged(FULL, put("type", 3))
    box.takes(volume, "v/source@s0")
    assert box.zkeep("create", "v/h").status == 0
    assert box.receive(volume[: len(volume) // 2], "-sF", "v/h@s0").status == 5
    box.takes(rest_of(box, "v/h"), "-sF", "v/h")
    assert box.zkeep("get", "-Ho", "value", "type", "v/h").out.strip() == "volume"
