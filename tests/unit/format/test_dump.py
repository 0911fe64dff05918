"""What zstream prints, byte for byte: the golden files are its own output."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pytest
from streamkit import DATA, STREAMS, boundaries, stream, transcribe

from zkeep.errors import BadStream
from zkeep.format.dump import dump, nvlist_lines
from zkeep.format.nvlist import NvList, NvType
from zkeep.format.records import RecordType

GOLDEN = sorted((DATA / "dump").glob("*.txt"))


def dumped(data: bytes, verbose: bool) -> str:
    out = io.StringIO()
    dump(io.BytesIO(data), out, verbose)
    return out.getvalue()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_it_prints_what_zstream_prints(path: Path) -> None:
    name = path.name.removesuffix(".txt").removesuffix(".verbose")
    assert dumped(stream(name), path.stem.endswith(".verbose")) == path.read_text()


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_the_installed_zstream_agrees(path: Path) -> None:
    zstream = shutil.which("zstream")
    if zstream is None:
        pytest.skip("zstream is not installed")
    real = subprocess.run([zstream, "dump", "-v", str(path)], check=True, capture_output=True).stdout.decode()
    if "OBJECT_RANGE records" in real:
        pytest.skip("this zstream is newer than 2.1, and prints more")
    assert dumped(path.read_bytes(), True) == real


def test_the_byte_order_makes_no_difference() -> None:
    """But for the sums, whose words are read the other way round."""
    data = stream("rs512.inc-s5-s6")
    here, there = (dumped(each, True).splitlines() for each in (data, transcribe(data, "big")))
    differ = [mine for mine, yours in zip(here, there, strict=True) if mine != yours]
    assert [line.split(" = ")[0] for line in differ] == ["END checksum"]


def test_a_fault_is_told_after_what_came_before_it() -> None:
    data = bytearray(stream("inc-w"))
    offset = next(offset for offset, rtype in boundaries(data) if rtype == RecordType.WRITE)
    data[offset + 20] ^= 1
    out = io.StringIO()
    with pytest.raises(BadStream) as caught:
        dump(io.BytesIO(data), out, True)
    assert f"WRITE record at byte {offset}: the checksum differs" in str(caught.value)
    assert dumped(stream("inc-w"), True).startswith(out.getvalue())
    assert "OBJECT object = 1 " in out.getvalue()


def test_every_kind_of_value_is_shown() -> None:
    nvlist, inner = NvList(), NvList()
    inner.set("here", True, NvType.BOOLEAN)
    nvlist.set("list", inner)
    nvlist.set("lists", (inner,))
    nvlist.set("yes", True)
    nvlist.set("signed", -5, NvType.INT64)
    nvlist.set("bytes", b"\1\xff", NvType.BYTE_ARRAY)
    nvlist.set("small", b"\1\xff", NvType.UINT8_ARRAY)
    nvlist.set("words", ("a", "b"))
    nvlist.set("numbers", (1, 255))
    assert list(nvlist_lines(nvlist)) == [
        "nvlist version: 0",
        "\tlist = (embedded nvlist)",
        "\tnvlist version: 0",
        "\t\there = 1",
        "\t(end list)",
        "",
        "\tlists = (array of embedded nvlists)",
        "\t(start lists[0])",
        "\tnvlist version: 0",
        "\t\there = 1",
        "\t(end lists[0])",
        "\t(end lists)",
        "\tyes = true",
        "\tsigned = -5",
        "\tbytes = 0x01 0xff",
        "\tsmall = 0x1 0xff",
        "\twords = a b",
        "\tnumbers = 0x1 0xff",
    ]
