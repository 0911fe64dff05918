"""The BEGIN of a snapshot's stream: kept as it came, and adapted when it is sent from another source or name.

Source: OpenZFS module/zfs/dmu_send.c setup_begin_record(), dmu_send_impl(); module/zfs/dsl_crypt.c
dsl_crypto_populate_key_nvlist().
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from zkeep.errors import Damaged
from zkeep.format.nvlist import BadNvlist, Encoding, NvForm, NvList, decode, encode, is_uint64
from zkeep.format.records import HEADER, Begin, BeginFlag, ByteOrder, Feature, HeaderType
from zkeep.pool.types import Doc

if TYPE_CHECKING:
    from zkeep.format.events import SubBegin

SHORT = 1 << 16
"Bytes of a payload that is decoded once for all who look at it: each increment is compared with the one before."


KEPT = 16
"Payloads that stay decoded, the last ones."
# Not a zkeep.cache.Cache: that would need a lock, for threads decode at the same time.
_decoded: dict[bytes, NvList] = {}


def _keep(payload: bytes, fields: NvList) -> NvList:
    """Keep a decoded payload. Threads may come in between at any place: at worst one is decoded again."""
    if len(payload) <= SHORT:
        for old in list(_decoded)[: max(0, len(_decoded) - KEPT + 1)]:
            _decoded.pop(old, None)
        _decoded[payload] = fields
    return fields


@dataclass(frozen=True)
class Opening:
    """A BEGIN with its payload."""

    # | type BEGIN | length | magic, versioninfo (features << 2), creation, type, flags, toguid, fromguid, toname |
    # sum |
    #                                 ^ drr_begin: header, 312 bytes
    # | nvlist: crypt_keydata {wrapped keys, mdn_*, portable_mac, ...}, resume_object, redact_snaps, ... |
    #   ^ payload, `length` bytes; empty in most plain streams
    header: bytes
    payload: bytes
    byteorder: ByteOrder

    @classmethod
    def of(cls, event: SubBegin) -> Opening:
        if event.nvlist is not None:
            _keep(event.payload, event.nvlist)
        return cls(event.header, event.payload, event.byteorder)

    @classmethod
    def from_doc(cls, doc: Doc) -> Opening:
        """Damaged: there is no BEGIN in it. A pool may be somebody else's."""
        try:
            found = cls(base64.b64decode(doc["header"]), base64.b64decode(doc["payload"]), doc["byteorder"])
            if len(found.header) == HEADER and (not found.payload or found.fields is not None):
                return found
        except (KeyError, TypeError, ValueError, BadNvlist):
            pass
        raise Damaged("the catalog's copy of a snapshot's BEGIN is not what was stored")

    def doc(self) -> Doc:
        return {
            "header": base64.b64encode(self.header).decode(),
            "payload": base64.b64encode(self.payload).decode(),
            "byteorder": self.byteorder,
        }

    @property
    def begin(self) -> Begin:
        return Begin.unpack(self.header, self.byteorder)

    @property
    def nvlist(self) -> NvList | None:
        """The payload, decoded for the caller, who may change it."""
        return decode(self.payload) if self.payload else None

    @cached_property
    def fields(self) -> NvList | None:
        """The payload, decoded once. Not to be changed."""
        found = _decoded.get(self.payload)
        if found is None and self.payload:
            found = _keep(self.payload, decode(self.payload))
        return found

    @cached_property
    def crypt(self) -> NvList | None:
        """The wrapped keys and the shape of the metadnode, in raw streams. Not to be changed."""
        found = self.fields.get("crypt_keydata") if self.fields is not None else None
        return found if isinstance(found, NvList) else None

    @property
    def maxblkid(self) -> int:
        """The last block of the metadnode."""
        return number(self.crypt, "mdn_maxblkid")

    @property
    def ivset_guid(self) -> int:
        return number(self.crypt, "to_ivset_guid")

    @property
    def from_ivset_guid(self) -> int:
        return number(self.crypt, "from_ivset_guid")


def rewrapped(opening: Opening, fields: NvList) -> Opening:
    """The same BEGIN with another wrap of the same keys; `fields` are those of a key record."""
    nvlist = opening.nvlist
    crypt = nvlist.get("crypt_keydata") if nvlist is not None else None
    if nvlist is None or not isinstance(crypt, NvList):
        return opening
    for pair in fields.pairs:
        crypt.set(pair.name, pair.value, pair.type)
    payload = encode(nvlist)
    begin = replace(opening.begin, payloadlen=len(payload))
    return Opening(begin.pack(opening.byteorder), payload, opening.byteorder)


def number(nvlist: NvList | None, name: str) -> int:
    """The integer `name` of an nvlist; 0 if there is none."""
    value = nvlist.get(name, 0) if nvlist is not None else 0
    return value if is_uint64(value) else 0


@dataclass(frozen=True)
class Address:
    """The part of a BEGIN that depends on the stream's source and on the name it is sent under."""

    toname: bytes
    fromguid: int = 0
    from_ivset_guid: int = 0
    clone: bool = False
    resume: tuple[int, int] | None = None


def addressed(opening: Opening, address: Address) -> Opening:
    """A snapshot's BEGIN for a stream from another source, or under another name (FREE_RULES A17)."""
    begin = opening.begin
    payload = _payload(opening, address)
    # Features and type of header share one word: the two lowest bits are the type.
    features = begin.features & ~Feature.RESUMING
    if address.resume:
        features |= Feature.RESUMING
    known, clone = int(begin.flags), int(BeginFlag.CLONE)  # as numbers: a flag's complement lacks what it does not know
    flags = known & ~clone | (clone if address.clone else 0)
    changed = replace(
        begin,
        payloadlen=len(payload),
        versioninfo=HeaderType.SUBSTREAM | int(features) << 2,
        flags=flags,
        fromguid=address.fromguid,
        toname=address.toname,
    )
    return Opening(changed.pack(opening.byteorder), payload, opening.byteorder)


def _payload(opening: Opening, address: Address) -> bytes:
    nvlist = opening.nvlist
    if nvlist is None:
        if not address.resume:
            return b""
        nvlist = NvList(form=NvForm(Encoding.NATIVE, opening.byteorder == "little"))
    # What depends on this stream is taken out and set again: where it resumes, and the source's IV set.
    nvlist.remove("resume_object")
    nvlist.remove("resume_offset")
    crypt = nvlist.get("crypt_keydata")
    if isinstance(crypt, NvList) and crypt.get("from_ivset_guid") != address.from_ivset_guid:
        crypt.set("from_ivset_guid", address.from_ivset_guid)
    if address.resume:
        nvlist.set("resume_object", address.resume[0])
        nvlist.set("resume_offset", address.resume[1])
        nvlist.pairs.sort(key=lambda pair: pair.name == "crypt_keydata")  # the kernel names it last
    return encode(nvlist) if len(nvlist) else b""
