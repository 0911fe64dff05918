"""Resume tokens: where an interrupted receive stopped, as `zfs send -t` understands it.

    1-<checksum>-<size>-<content>       all in hex
       |          |      native nvlist (toguid, object, offset, bytes, toname, ...), compressed by zlib
       |          bytes of the nvlist before compression
       first word of fletcher-4 over the compressed bytes

A token that a peer gives is only text. It is decoded within limits, and what it says is compared with what this pool
has before anything is done with it (openzfs/zfs#14153).

Source: OpenZFS module/zfs/dsl_dataset.c get_receive_resume_token_impl(); lib/libzfs/libzfs_sendrecv.c
zfs_send_resume_token_to_nvlist().
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from zkeep.errors import Refused
from zkeep.format.checksum import fletcher4
from zkeep.format.nvlist import BadNvlist, Encoding, NvForm, NvList, NvType, decode, encode, is_uint64
from zkeep.format.records import Feature
from zkeep.names import shown

MAX_TOKEN = 64 << 10
NO_FEATURES = Feature(0)
_VERSION = "1"
_FLAGS = {
    "largeblockok": Feature.LARGE_BLOCKS,
    "embedok": Feature.EMBED_DATA,
    "compressok": Feature.COMPRESSED,
    "rawok": Feature.RAW,
}
REDACTION = ("redact_snaps", "book_redact_snaps")
"Of a redacted stream: guids of the snapshots for which it is redacted, and for which its source, a bookmark, was made."


@dataclass(frozen=True)
class Token:
    """`object`, `offset`: the last block that arrived, which is sent again. `bytes`: how much had arrived."""

    toname: str
    toguid: int
    object: int
    offset: int
    bytes: int
    fromguid: int = 0
    features: Feature = NO_FEATURES
    redaction: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    "Guids by the names of REDACTION. Without them the sender would go on with what it had left out."

    @property
    def raw(self) -> bool:
        return bool(self.features & Feature.RAW)

    def encode(self) -> str:
        nvlist = NvList(form=NvForm(Encoding.NATIVE))
        if self.fromguid:
            nvlist.set("fromguid", self.fromguid, NvType.UINT64)
        for name in ("object", "offset", "bytes", "toguid"):
            nvlist.set(name, getattr(self, name), NvType.UINT64)
        nvlist.set("toname", self.toname, NvType.STRING)
        for name, feature in _FLAGS.items():
            if self.features & feature:
                nvlist.set(name, True, NvType.BOOLEAN)
        for name, guids in self.redaction.items():
            nvlist.set(name, guids, NvType.UINT64_ARRAY)
        packed = encode(nvlist)
        squeezed = zlib.compress(packed, 6)
        return f"{_VERSION}-{_checksum(squeezed):x}-{len(packed):x}-{squeezed.hex()}"

    @classmethod
    def decode(cls, text: str) -> Token:
        """Raises Refused: it is damaged, or no token."""
        nvlist = _unpack(text.strip())
        toname = nvlist.get("toname")
        if not isinstance(toname, str):
            raise Refused("the resume token is corrupt: it has no toname")
        return cls(
            toname=toname,
            toguid=_count(nvlist, "toguid"),
            object=_count(nvlist, "object"),
            offset=_count(nvlist, "offset"),
            bytes=_count(nvlist, "bytes"),
            fromguid=_count(nvlist, "fromguid") if "fromguid" in nvlist else 0,
            features=Feature(sum(feature for name, feature in _FLAGS.items() if name in nvlist)),
            redaction={name: _guids(nvlist, name) for name in REDACTION if name in nvlist},
        )


def contents(text: str) -> list[str]:
    """What a token says, as zfs prints it: a line each.

    Source: OpenZFS lib/libzfs/libzfs_sendrecv.c zfs_send_resume_impl(); lib/libnvpair/libnvpair.c nvlist_print().
    """
    lines = ["resume token contents:", "nvlist version: 0"]
    for name, value in _unpack(text.strip()).items():
        if isinstance(value, bool):
            shown_value = "1"
        elif isinstance(value, int):
            shown_value = f"{value:#x}"
        elif isinstance(value, tuple):
            shown_value = " ".join(f"{item:#x}" if isinstance(item, int) else shown(str(item)) for item in value)
        else:
            shown_value = shown(str(value))[1:-1]
        lines.append(f"\t{shown(name)[1:-1]} = {shown_value}")
    return lines


def _unpack(text: str) -> NvList:
    # Nothing is unpacked before its length is bounded and its checksum is right.
    parts = text.split("-")
    if len(text) > MAX_TOKEN or len(parts) != 4 or parts[0] != _VERSION:
        raise Refused("this is not a resume token of version 1")
    try:
        checksum, size, squeezed = int(parts[1], 16), int(parts[2], 16), bytes.fromhex(parts[3])
    except ValueError:
        raise Refused("the resume token is corrupt: it has a character that is no hex digit") from None
    if _checksum(squeezed) != checksum:
        raise Refused("the resume token is corrupt: its checksum differs")
    try:
        # At most MAX_TOKEN bytes come out, whatever the compressed bytes would give.
        packed = zlib.decompressobj().decompress(squeezed, MAX_TOKEN)
        if len(packed) != size:
            raise Refused("the resume token is corrupt: its length differs")
        return decode(packed)
    except (zlib.error, BadNvlist):
        raise Refused("the resume token is corrupt: it cannot be unpacked") from None


def _count(nvlist: NvList, name: str) -> int:
    value = nvlist.get(name)
    if not is_uint64(value):
        raise Refused(f"the resume token is corrupt: it has no {name}")
    return value


def _guids(nvlist: NvList, name: str) -> tuple[int, ...]:
    found = nvlist.get(name)
    guids = [guid for guid in found if is_uint64(guid)] if isinstance(found, tuple) else []
    if not isinstance(found, tuple) or len(guids) < len(found):
        raise Refused(f"the resume token is corrupt: its {name} are no guids")
    return tuple(guids)


def _checksum(squeezed: bytes) -> int:
    """The first word of fletcher-4 over the whole words."""
    # fletcher-4 works on 32-bit words; zfs leaves out the last bytes that do not fill one.
    return fletcher4(squeezed[: len(squeezed) // 4 * 4])[0]
