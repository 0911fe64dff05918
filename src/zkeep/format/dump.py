"""A stream as text: what `zstream dump` and `zstream dump -v` print, for streams of either byte order.

The lines are those of OpenZFS 2.1 (cmd/zstream/zstream_dump.c); nvlists look as libnvpair prints them. Unlike
zstream, this checks everything on the way, and stops at the first fault with the byte and the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, TextIO

from zkeep.format.events import Batch, Event, Package, PackageEnd, SubBegin, SubEnd
from zkeep.format.nvlist import NvList, NvType, Pair, decode
from zkeep.format.reader import read_streams
from zkeep.format.records import (
    HEADER,
    LAYOUTS,
    Begin,
    End,
    Layout,
    RecordType,
    Words,
)
from zkeep.names import printable

_CRYPT = "salt = {salt} iv = {iv} mac = {mac}"
_LINES = {
    RecordType.OBJECT: "OBJECT object = {object} type = {type} bonustype = {bonustype} blksz = {blksz} "
    "bonuslen = {bonuslen} dn_slots = {dn_slots} raw_bonuslen = {raw_bonuslen} flags = {flags} "
    "maxblkid = {maxblkid} indblkshift = {indblkshift} nlevels = {nlevels} nblkptr = {nblkptr}",
    RecordType.FREEOBJECTS: "FREEOBJECTS firstobj = {firstobj} numobjs = {numobjs}",
    RecordType.WRITE: "WRITE object = {object} type = {type} checksum type = {checksumtype} "
    "compression type = {compressiontype} flags = {flags} offset = {offset} logical_size = {logical_size} "
    "compressed_size = {compressed_size} payload_size = {payload_size} props = {key_prop:x} " + _CRYPT,
    RecordType.FREE: "FREE object = {object} offset = {offset} length = {signed_length}",
    RecordType.SPILL: "SPILL block for object = {object} length = {length} flags = {flags} "
    "compression type = {compressiontype} compressed_size = {compressed_size} payload_size = {payload_size} " + _CRYPT,
    RecordType.WRITE_EMBEDDED: "WRITE_EMBEDDED object = {object} offset = {offset} length = {length} "
    "toguid = {toguid:x} comp = {compression} etype = {etype} lsize = {lsize} psize = {psize}",
    RecordType.OBJECT_RANGE: "OBJECT_RANGE firstobj = {firstobj} numslots = {numslots} flags = {flags} " + _CRYPT,
    RecordType.REDACT: "REDACT object = {object} offset = {offset} length = {length}",
}
_SUMMARY = (
    RecordType.BEGIN,
    RecordType.END,
    RecordType.OBJECT,
    RecordType.FREEOBJECTS,
    RecordType.WRITE,
    RecordType.WRITE_BYREF,
    RecordType.WRITE_EMBEDDED,
    RecordType.FREE,
    RecordType.SPILL,
)


def dump(source: BinaryIO, out: TextIO, verbose: bool) -> None:
    """Print the BEGINs and ENDs of a stream or of several in a row, with `verbose` all records and their fields.

    Raises:
        BadStream: everything before the fault was printed; the summary was not.
    """
    printer = _Printer(out, verbose)
    for event in chain.from_iterable(read_streams(source)):
        printer.event(event)
    printer.summary()


class _Printer:
    def __init__(self, out: TextIO, verbose: bool) -> None:
        self._out = out
        self._verbose = verbose
        self._records: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()

    def event(self, event: Event) -> None:
        match event:
            case Package():
                end = End.unpack(event.raw[-HEADER:], event.byteorder)
                self._begin(event.header, memoryview(event.raw)[HEADER:-HEADER], event.nvlist)
                self._end(end.body_checksum)
            case SubBegin():
                self._begin(event.begin, event.payload, event.nvlist)
            case Batch():
                self._batch(event)
            case SubEnd():
                self._end(event.end.body_checksum)
            case PackageEnd():
                self._end((0, 0, 0, 0))

    def _print(self, line: str = "") -> None:
        self._out.write(line + "\n")

    def _count(self, rtype: int, payload: int) -> None:
        self._records[rtype] += 1
        self._bytes[rtype] += payload

    def _begin(self, begin: Begin, payload: bytes | memoryview, nvlist: NvList | None) -> None:
        self._count(RecordType.BEGIN, len(payload))
        self._print("BEGIN record")
        for line in _begin_lines(begin):
            self._print("\t" + line)
        if self._verbose:
            self._print()
        if payload:
            for line in nvlist_lines(nvlist if nvlist is not None else decode(payload)):
                self._print(line)

    def _end(self, checksum: Words) -> None:
        self._count(RecordType.END, 0)
        self._print("END checksum = " + "/".join(f"{word:x}" for word in checksum))

    def _batch(self, batch: Batch) -> None:
        types, payloads = batch.types.tolist(), (batch.lengths - HEADER).tolist()
        # Counting needs no headers: type and length of each record are columns already.
        self._records.update(types)
        for rtype, payload in zip(types, payloads, strict=True):
            self._bytes[rtype] += payload
        if self._verbose:
            for start, rtype, payload in zip(batch.offsets.tolist(), types, payloads, strict=True):
                layout = LAYOUTS[RecordType(rtype)].unpack(batch.buffer[start : start + HEADER], batch.byteorder)
                self._print(_LINES[layout.RTYPE].format_map(_Fields(layout, payload)))

    def summary(self) -> None:
        headers, payloads = HEADER * self._records.total(), self._bytes.total()
        self._print("SUMMARY:")
        for rtype in _SUMMARY:
            name, count, size = rtype.name, self._records[rtype], self._bytes[rtype]
            self._print(f"\tTotal DRR_{name} records = {count} ({size} bytes)")
        self._print(f"\tTotal records = {self._records.total()}")
        sizes = (
            ("payload size", payloads),
            ("header overhead", headers),
            ("stream length", payloads + headers),
        )
        for what, size in sizes:
            self._print(f"\tTotal {what} = {size} ({size:#x})")


def _begin_lines(begin: Begin) -> Iterator[str]:
    yield f"hdrtype = {begin.hdrtype}"
    yield f"features = {int(begin.features):x}"
    for name in ("magic", "creation_time"):
        yield f"{name} = {getattr(begin, name):x}"
    yield f"type = {begin.type}"
    yield f"flags = 0x{begin.flags:x}"
    for name in ("toguid", "fromguid"):
        yield f"{name} = {getattr(begin, name):x}"
    yield "toname = " + printable(begin.name.decode("utf-8", "surrogateescape"))
    yield f"payloadlen = {begin.payloadlen}"


class _Fields(dict[str, Any]):
    """The values that the lines name: a record's fields, with salt, IV and MAC in hex."""

    def __init__(self, layout: Layout, payload: int) -> None:
        super().__init__(payload_size=payload)
        self._layout = layout

    def __missing__(self, name: str) -> Any:
        if name == "signed_length":
            length: int = self["length"]
            return length - (1 << 64) if length >> 63 else length
        value = getattr(self._layout, name)
        return value.hex() if isinstance(value, bytes) else value


def nvlist_lines(nvlist: NvList, indent: int = 0) -> Iterator[str]:
    """An nvlist as libnvpair's nvlist_print() shows it."""
    tabs = "\t" * indent
    yield f"{tabs}nvlist version: {nvlist.version}"
    for pair in nvlist.each():
        name = printable(pair.name)
        if pair.type == NvType.NVLIST:
            yield f"{tabs}\t{name} = (embedded nvlist)"
            yield from nvlist_lines(pair.lists()[0], indent + 1)
            yield f"{tabs}\t(end {name})"
            yield ""
        elif pair.type == NvType.NVLIST_ARRAY:
            yield from _array_lines(pair, indent)
        else:
            yield f"{tabs}\t{name} = {_value(pair)}"


def _array_lines(pair: Pair, indent: int) -> Iterator[str]:
    tabs, name = "\t" * (indent + 1), printable(pair.name)
    yield f"{tabs}{name} = (array of embedded nvlists)"
    for i, inner in enumerate(pair.lists()):
        yield f"{tabs}(start {name}[{i}])"
        yield from nvlist_lines(inner, indent + 1)
        yield f"{tabs}(end {name}[{i}])"
    yield f"{tabs}(end {name})"


def _value(pair: Pair) -> str:
    if pair.type == NvType.BOOLEAN:
        return "1"
    if pair.type == NvType.BOOLEAN_VALUE:
        return "true" if pair.value else "false"
    if pair.type in (NvType.STRING, NvType.DOUBLE):
        return printable(str(pair.value))
    values = pair.value if isinstance(pair.value, tuple | bytes) else (pair.value,)
    return " ".join(_number(pair.type, value) for value in values)


def _number(kind: NvType, value: object) -> str:
    """Signed integers and text as they are, unsigned integers in hex."""
    if not isinstance(value, int) or kind.name.startswith("INT") or kind == NvType.BOOLEAN_ARRAY:
        return printable(str(value))
    return f"0x{value:02x}" if kind in (NvType.BYTE, NvType.BYTE_ARRAY) else f"0x{value:x}"
