"""Packed nvlists: typed values, and the bytes back exactly as they came.

An nvlist is an ordered list of (name, type, value). Two encodings of it travel in streams: XDR (compound
headers, substreams of kernels since 2026-05) and native, a dump of the C structures in the sender's byte
order. What was decoded keeps its encoding, and every pair that is not changed is encoded by copying its
bytes.

Source: OpenZFS module/nvpair/nvpair.c (nvs_native_*, nvs_xdr_*), include/sys/nvpair.h.
"""

from __future__ import annotations

from zkeep.format._nvcodec import decode_list, encode_list
from zkeep.format._nvpairs import (
    MAX_DEPTH,
    MAX_PAIRS,
    MAX_SIZE,
    UNIQUE_NAME,
    UNIQUE_NAME_TYPE,
    BadNvlist,
    Encoding,
    NvForm,
    NvList,
    NvType,
    Pair,
    Value,
    is_uint64,
)

__all__ = [
    "MAX_DEPTH",
    "MAX_PAIRS",
    "MAX_SIZE",
    "UNIQUE_NAME",
    "UNIQUE_NAME_TYPE",
    "BadNvlist",
    "Encoding",
    "NvForm",
    "NvList",
    "NvType",
    "Pair",
    "Value",
    "decode",
    "encode",
    "is_uint64",
]


def decode(data: bytes | bytearray | memoryview, max_size: int = MAX_SIZE) -> NvList:
    """Read a packed nvlist of either encoding and byte order.

    Raises:
        BadNvlist: it breaks the format, or exceeds MAX_DEPTH, MAX_PAIRS or `max_size` bytes.
    """
    if len(data) > max_size:
        raise BadNvlist(f"{len(data)} bytes are more than {max_size}", 0)
    return decode_list(bytes(data))


def encode(nvlist: NvList) -> bytes:
    """Pack; what was decoded and not changed comes out as it came, padding included."""
    return encode_list(nvlist)
