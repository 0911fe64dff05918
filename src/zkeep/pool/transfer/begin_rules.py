"""Rules for the BEGIN of a substream, as tables: what a kernel would refuse to receive, and what must be the same in
an increment as in its source, or in a resumed stream as in the interrupted one.

All functions are pure; they return why a BEGIN breaks a rule, or None.

Source: OpenZFS module/zfs/dsl_crypt.c dsl_crypto_recv_raw_key_check(), dsl_crypto_recv_raw_objset_check();
module/zfs/dmu_recv.c dmu_recv_begin_check(), dmu_recv_resume_begin_check(), redact_check().
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from zkeep.format.nvlist import UNIQUE_NAME, UNIQUE_NAME_TYPE, NvList, NvType
from zkeep.format.objtypes import ObjsetType
from zkeep.format.records import BeginFlag, Feature
from zkeep.names import MAX_UINT64
from zkeep.pool.datasets.begin import Opening, number
from zkeep.pool.datasets.keyrecords import WRAP

DATASET_TYPES = frozenset(ObjsetType)
"The only object sets that are datasets."
_PASSPHRASE = 3
"ZFS_KEYFORMAT_PASSPHRASE."


@dataclass(frozen=True)
class KeydataRule:
    """A rule for one field of crypt_keydata. `legal` is called with its value and whether the key is a passphrase."""

    field: str
    type: NvType
    legal: Callable[[Any, bool], bool]
    must: str


def _number(field: str, first: int, last: int, step: int = 1) -> KeydataRule:
    must = f"must be {first}" if first == last else f"must be from {first} to {last}"
    must += f", a multiple of {step}" if step > 1 else ""
    return KeydataRule(field, NvType.UINT64, lambda value, _: first <= value <= last and value % step == 0, must)


def _bytes(field: str, size: int) -> KeydataRule:
    return KeydataRule(field, NvType.UINT8_ARRAY, lambda value, _: len(value) == size, f"must be {size} bytes")


def _with_passphrase(field: str) -> KeydataRule:
    must = "must be given for a passphrase, and be 0 for other keys"
    return KeydataRule(field, NvType.UINT64, lambda value, passphrase: bool(value) == passphrase, must)


KEYDATA = (
    _number("DSL_CRYPTO_SUITE", 3, 8),
    _number("DSL_CRYPTO_GUID", 0, MAX_UINT64),
    _number("DSL_CRYPTO_VERSION", 1, 1),
    _bytes("DSL_CRYPTO_MASTER_KEY_1", 32),
    _bytes("DSL_CRYPTO_HMAC_KEY_1", 64),
    _bytes("DSL_CRYPTO_IV", 12),
    _bytes("DSL_CRYPTO_MAC", 16),
    _number("keyformat", 1, _PASSPHRASE),
    _with_passphrase("pbkdf2iters"),
    _with_passphrase("pbkdf2salt"),
    _number("mdn_compress", 0, 14),
    _number("mdn_checksum", 0, 8),
    _number("mdn_nlevels", 1, 12),
    _number("mdn_blksz", 512, 16 << 20, 512),
    _number("mdn_indblkshift", 12, 17),
    _number("mdn_nblkptr", 3, 3),
    _number("mdn_maxblkid", 0, MAX_UINT64),
    _bytes("portable_mac", 32),
)
"The fields that a raw BEGIN must have: the wrapped keys, and the shape of the metadnode."
OPTIONAL = {
    "to_ivset_guid": NvType.UINT64,
    "from_ivset_guid": NvType.UINT64,
}
"The fields of crypt_keydata that may be missing, and their types: a kernel does not find one of another type."
BESIDE = {
    "resume_object": NvType.UINT64,
    "resume_offset": NvType.UINT64,
    "redact_snaps": NvType.UINT64_ARRAY,
    "redact_from_snaps": NvType.UINT64_ARRAY,
    "crypt_keydata": NvType.NVLIST,
}
"The fields beside crypt_keydata in a BEGIN's payload, all optional."
INHERITED = {
    "DSL_CRYPTO_GUID": "encryption key",
    "DSL_CRYPTO_SUITE": "cipher",
    "mdn_nlevels": "levels of the metadnode",
    "mdn_blksz": "block size of the metadnode",
    "mdn_indblkshift": "indirect block size of the metadnode",
    "mdn_nblkptr": "block pointers of the metadnode",
}
"The fields in which a raw increment must equal its source, and their names for a person."


def refuse_form(opening: Opening) -> str | None:
    """Why no kernel would receive such a stream, whatever its source."""
    begin = opening.begin
    if begin.type not in DATASET_TYPES:
        return f"the stream is of an object set of type {begin.type}, neither a filesystem (2) nor a volume (3)"
    if begin.toguid == 0:  # which an increment from it would name as its source, and so say that it is full
        return "its snapshot has the guid 0, and no increment could follow it"
    if broken := _refuse_list(opening.fields, BESIDE, "payload") or _refuse_redaction(opening):
        return broken
    crypt = opening.crypt
    if not begin.raw:
        return "the stream carries keys (crypt_keydata), but is not raw" if crypt is not None else None
    if crypt is None:
        return "the stream is raw but carries no keys (crypt_keydata)"
    return _refuse_keydata(crypt)


def _refuse_redaction(opening: Opening) -> str | None:
    """Why a kernel would not even refuse the stream, but stop the machine.

    Source: OpenZFS module/zfs/dmu_recv.c dmu_recv_begin_sync(), VERIFY0 of the lookup.
    """
    if not opening.begin.features & Feature.REDACTED or "redact_snaps" in (opening.fields or ()):
        return None
    return "no kernel would take the stream back: it is redacted, and does not say for what (redact_snaps)"


def _refuse_list(nvlist: NvList | None, types: dict[str, NvType], what: str) -> str | None:
    """Why a kernel would not find a field that is there: it has another type, or the list's names are not unique.

    Source: OpenZFS module/nvpair/nvpair.c nvlist_lookup_common().
    """
    if nvlist is None:
        return None
    if not nvlist.flags & (UNIQUE_NAME | UNIQUE_NAME_TYPE):
        return f"no kernel would take the stream back: the names in the {what} of its BEGIN need not be unique"
    # The kernel looks fields up by name and type together: one of another type is as if it were missing.
    for field, kind in types.items():
        pair = nvlist.find(field)
        if pair is not None and pair.type != kind:
            return f"no kernel would take the stream back: {field} of its BEGIN must be of type {kind.name}"
    return None


def _refuse_keydata(crypt: NvList) -> str | None:
    if broken := _refuse_list(crypt, OPTIONAL, "crypt_keydata"):
        return broken
    # Only a passphrase has an iteration count and a salt.
    passphrase = number(crypt, "keyformat") == _PASSPHRASE
    for rule in KEYDATA:
        pair = crypt.find(rule.field)
        if pair is None or pair.type != rule.type or not rule.legal(pair.value, passphrase):
            value = f" is {pair.value}," if pair and isinstance(pair.value, int) else ""
            return f"no kernel would take the stream back: {rule.field} of its crypt_keydata{value} {rule.must}"
    return None


def refuse_after(opening: Opening, source: Opening, name: str) -> str | None:
    """Why an increment cannot follow its source, the snapshot `name` that began with `source`."""
    begin, before = opening.begin, source.begin
    if begin.type != before.type:
        kinds: dict[int, str] = {ObjsetType.FILESYSTEM: "a filesystem", ObjsetType.VOLUME: "a volume"}
        return f"the stream is of {kinds.get(begin.type)}, {name} is of {kinds.get(before.type)}"
    # Blocks that are encrypted and blocks that are not cannot follow each other in one dataset.
    if before.raw and not begin.raw:
        return f"{name} was received raw, so the increment must be raw, too: zfs send -w -i"
    if begin.raw and not before.raw:
        return f"a raw increment cannot follow {name}, which was not received raw"
    if before.features & Feature.LARGE_BLOCKS and not begin.features & Feature.LARGE_BLOCKS:
        return f"{name} has large blocks: send with -L (or -w)"
    if before.features & Feature.REDACTED and not is_redacted_alike(opening, _guids(source, "redact_snaps")):
        return f"{name} is redacted, and the stream does not say that it was made for it"
    return _refuse_other_key(opening, source, name) if begin.raw else None


def _refuse_other_key(opening: Opening, source: Opening, name: str) -> str | None:
    mine, theirs = opening.crypt, source.crypt
    for field, what in INHERITED.items():
        if number(mine, field) != number(theirs, field):
            return f"{what} mismatch: the stream is not of the dataset of {name}; send it in full"
    return None


def refuse_other_ivset(opening: Opening, have: int, name: str) -> str | None:
    """Why a raw increment does not continue the IV set `have` of its source."""
    want = opening.from_ivset_guid
    if have and want == have:
        return None
    if not want or not have:
        who = "the stream" if not want else name
        return f"IV set guid missing: {who} tells none, so a kernel would refuse the increment; send in full"
    return (
        f"IV set guid mismatch: the stream follows {want:#x}, {name} has {have:#x}: "
        "it is not the snapshot that this increment was made from; send from an older common snapshot, or in full"
    )


def redaction_of(opening: Opening) -> dict[str, tuple[int, ...]]:
    """What a resume token tells of a redacted stream, by the token's names: see token.REDACTION."""
    redacted = _guids(opening, "redact_snaps") if opening.begin.features & Feature.REDACTED else set()
    found = {"redact_snaps": redacted, "book_redact_snaps": _guids(opening, "redact_from_snaps")}
    return {name: tuple(sorted(guids)) for name, guids in found.items() if guids}


def is_redacted_alike(opening: Opening, lacking: Collection[int]) -> bool:
    """Whether the stream was made for a source with this redaction, or brings what the source lacks.

    `lacking`: guids of the snapshots that the source was redacted for.
    """
    # A stream from a redacted source lists what the source was redacted for, or is itself redacted for as much;
    # or it is of a snapshot that the source was redacted for.
    for field, needed in (("redact_from_snaps", False), ("redact_snaps", True)):
        given = _guids(opening, field)
        if given or (needed and opening.begin.features & Feature.REDACTED):
            return bool(given) and given <= set(lacking)
    return opening.begin.toguid in lacking


def _guids(opening: Opening, field: str) -> set[int]:
    found = opening.fields.get(field) if opening.fields is not None else None
    return {guid for guid in found if isinstance(guid, int)} if isinstance(found, tuple) else set()


CONTINUED: dict[str, Callable[[Opening], object]] = {
    "snapshot": lambda opening: opening.begin.toguid,
    "incremental source": lambda opening: opening.begin.fromguid,
    "byte order": lambda opening: opening.byteorder,
    "set of stream features": lambda opening: opening.begin.features & ~Feature.RESUMING,
    "type of dataset": lambda opening: opening.begin.type,
    "set of flags": lambda opening: int(opening.begin.flags) & ~int(BeginFlag.CLONE),
    "creation time": lambda opening: opening.begin.creation_time,
    "set of encryption keys": lambda opening: {
        name: value for name, value in (opening.crypt or {}).items() if name not in WRAP
    },
    "redaction": lambda opening: [_guids(opening, field) for field in ("redact_snaps", "redact_from_snaps")],
}
"""What a resumed stream must have in common with the interrupted one. Not the wrap of its keys: change-key may have
changed that at the source meanwhile. The portable MAC, keyed with the keys inside, shows that they are the same.

Source: OpenZFS module/zfs/dsl_crypt.c dsl_crypto_recv_raw_key_check(), which compares the guid of the key."""


def refuse_rest(opening: Opening, begun: Opening) -> str | None:
    """Why a resumed stream is not the rest of the interrupted one."""
    other = next((what for what, of in CONTINUED.items() if of(opening) != of(begun)), None)
    if other is None:
        return None
    if other in ("snapshot", "incremental source"):
        return "the stream is of another snapshot than the one that was interrupted"
    return f"the stream has another {other} than the one that was interrupted"
