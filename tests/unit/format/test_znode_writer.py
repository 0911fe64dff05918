"""Writing attributes: what the reader finds is what was written, in the places where a kernel looks for it."""

from __future__ import annotations

import stat
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.format import sa, sa_writer
from zkeep.format.compress import decompress
from zkeep.format.compress_writer import compressor
from zkeep.format.zap import Zap
from zkeep.format.znode import COLUMNS, unpack_xattrs, znode_of
from zkeep.format.znode_writer import FileFields, encode_file, trivial_acl

U64 = st.integers(0, (1 << 64) - 1)
TIMES = st.integers(-(1 << 61), 1 << 61)
MODES = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
XATTR_NAMES = st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text).map(str.encode)


def schema() -> sa.Schema:
    registry = sa_writer.registry_block(1)
    layouts = sa_writer.layout_blocks(1)
    known = list(Zap(lambda _: registry, len(registry)))
    return sa.Schema(known, list(Zap(lambda n: layouts[n], 16384)), COLUMNS)


SCHEMA = schema()


def test_layouts_have_numbers_without_a_gap() -> None:
    """A kernel gives its next layout the number `count of layouts`; a gap would make it collide, and panic."""
    numbers = sorted(sa_writer.LAYOUTS.values())
    assert numbers == list(range(2, 2 + len(numbers)))
    assert any(sa_writer.DACL_COUNT in attributes for attributes in sa_writer.LAYOUTS)


def test_registry_has_every_number_up_to_its_count() -> None:
    block = sa_writer.registry_block(1)
    numbers = sorted(entry.number & 0xFFFF for entry in Zap(lambda _: block, len(block)))
    assert numbers == list(range(len(numbers)))
    assert len(block) == 1536


@given(
    kind=MODES,
    permissions=st.integers(0, 0o7777),
    times=st.tuples(TIMES, TIMES, TIMES, TIMES),
    size=U64,
    xattrs=st.dictionaries(XATTR_NAMES, st.binary(max_size=2000), max_size=8),
    folder=st.integers(0, 1 << 40),
)
def test_attributes_read_back(
    kind: int,
    permissions: int,
    times: tuple[int, int, int, int],
    size: int,
    xattrs: dict[bytes, bytes],
    folder: int,
) -> None:
    fields = FileFields(kind | permissions, 1, 2, size, 3, *times, 4, 5, rdev=6, xattrs=xattrs, xattr_folder=folder)
    bonus, spill = encode_file(fields)
    assert len(bonus) <= 320
    assert spill is None or (len(bonus) == 192 and len(spill) % 512 == 0)
    attributes, order = SCHEMA.decode(bonus)
    if spill is not None:
        attributes |= SCHEMA.decode(spill)[0]
    node = znode_of(7, attributes, order)
    assert (node.mode, node.uid, node.gid, node.size, node.links) == (kind | permissions, 1, 2, size, 3)
    assert (node.atime, node.mtime, node.ctime, node.crtime) == times
    assert (node.parent, node.generation, node.xattr_folder) == (4, 5, folder)
    assert node.rdev == (6 if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0)
    assert unpack_xattrs(node.packed_xattrs) == xattrs
    # What user accounting reads at fixed places behind the header.
    start = (int.from_bytes(bonus[4:6], "little") >> 10) * 8
    assert struct.unpack_from("<2Q", bonus, start) == (kind | permissions, size)
    assert struct.unpack_from("<4Q", bonus, start + 24) == (1, 2, 4, node.flags)


@given(st.lists(U64, min_size=8, max_size=8), st.tuples(TIMES, TIMES, TIMES, TIMES), st.integers(3, 6))
def test_a_plain_file_is_encoded_as_any_other(numbers: list[int], times: tuple[int, int, int, int], aces: int) -> None:
    pairs = [divmod(time, 1_000_000_000) for time in times]
    names = "MODE", "SIZE", "GEN", "UID", "GID", "PARENT", "FLAGS", "LINKS"
    values = {
        getattr(sa_writer, name): struct.pack("<Q", number) for name, number in zip(names, numbers, strict=True)
    }
    clocks = sa_writer.ATIME, sa_writer.MTIME, sa_writer.CTIME, sa_writer.CRTIME
    values |= {attribute: struct.pack("<qQ", *pair) for attribute, pair in zip(clocks, pairs, strict=True)}
    values |= {sa_writer.PROJID: bytes(8), sa_writer.DACL_COUNT: struct.pack("<Q", aces)}
    acl = values[sa_writer.DACL_ACES] = bytes(range(8)) * aces
    head = *numbers[:7], *(number for pair in pairs for number in pair), numbers[7]
    assert (sa_writer.encode_plain(head, acl), None) == sa_writer.encode(values)


@pytest.mark.parametrize("length", [0, 1, 100, 124, 125, 136, 300, 4000, 60_000])
@pytest.mark.parametrize("xattrs", [{}, {b"security.x": b"y" * 10}, {b"trusted.x": b"y" * 1000}])
def test_links_read_back_at_any_length(length: int, xattrs: dict[bytes, bytes]) -> None:
    target = b"t" * length
    fields = FileFields(stat.S_IFLNK | 0o777, 0, 0, length, 1, 0, 0, 0, 0, 4, 5, target=target, xattrs=xattrs)
    bonus, spill = encode_file(fields)
    attributes, order = SCHEMA.decode(bonus)
    if spill is not None:
        attributes |= SCHEMA.decode(spill)[0]
    node = znode_of(7, attributes, order)
    assert node.target == target
    assert unpack_xattrs(node.packed_xattrs) == xattrs


def test_what_cannot_be_stored_is_refused() -> None:
    fields = FileFields(stat.S_IFLNK | 0o777, 0, 0, 70_000, 1, 0, 0, 0, 0, 4, 5, target=b"t" * 70_000)
    with pytest.raises(ValueError, match="too long"):
        encode_file(fields)


@pytest.mark.parametrize(
    ("mode", "masks"),
    [
        (0o100644, [0x1E019F, 0x120089, 0x120089]),
        (0o040755, [0x1E01FF, 0x1200A9, 0x1200A9]),
        (0o100444, [0x1E0199, 0x120089, 0x120089]),
    ],
)
def test_acl_of_a_mode(mode: int, masks: list[int]) -> None:
    acl = trivial_acl(mode)
    assert [struct.unpack_from("<I", acl, at + 4)[0] for at in range(0, len(acl), 8)] == masks


@given(st.integers(0, 0o777), st.sampled_from(["owner", "group", "other"]), st.sampled_from([1, 2, 4]))
def test_acl_allows_what_the_mode_allows(permissions: int, who: str, bit: int) -> None:
    """Evaluated as NFSv4 does it: the first entry that names a right decides."""
    acl = trivial_acl(stat.S_IFREG | permissions)
    mask = {4: 0x1, 2: 0x2, 1: 0x20}[bit]
    applies = {"owner": (0x1000, 0x4000), "group": (0x2040, 0x4000), "other": (0x4000,)}[who]
    entries = [struct.unpack_from("<HHI", acl, at) for at in range(0, len(acl), 8)]
    decisions = [kind for kind, flags, right in entries if flags in applies and right & mask]
    shift = {"owner": 6, "group": 3, "other": 0}[who]
    assert (decisions[:1] == [0]) == bool(permissions >> shift & bit)


@pytest.mark.parametrize(
    "setting", ["on", "off", "lz4", "zle", "gzip", "gzip-1", "gzip-9", "zstd", "zstd-1", "zstd-19", "zstd-fast-10"]
)
@given(pieces=st.lists(st.one_of(st.binary(max_size=600), st.integers(1, 3000).map(bytes)), max_size=6))
def test_compressed_blocks_read_back(setting: str, pieces: list[bytes]) -> None:
    block = b"".join(pieces)
    block += bytes(-len(block) % 512 or 512)
    stored, code = compressor(setting)(block)
    assert bytes(decompress(stored, code, len(block))) == block
    assert len(stored) % 512 == 0
    assert len(stored) <= len(block)
    assert (code == 2) == (len(stored) == len(block))


@pytest.mark.parametrize("setting", ["lzjb", "zstd-20", "gzip-0", "nonsense"])
def test_compression_that_cannot_be_written_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        compressor(setting)


def test_layouts_keep_their_numbers() -> None:
    """They are stored once, when a dataset is made: another order would make every later snapshot unreadable."""
    attributes = list(sa_writer.LAYOUTS)
    assert attributes[0] == (5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8)
    assert sa_writer.LAYOUTS[(*attributes[0], 21, 16, 19)] == 8
    assert len(attributes) == 52
    assert all(one < other for one, other in pairwise(sa_writer.LAYOUTS.values()))
