"""The properties of datasets, snapshots and bookmarks: names, defaults, what may be set, codes in streams.

Names, order, defaults and codes are zfs's (2.3), so that what a stream carries can be shown, and sent back.
A value is kept as text, in the form in which `zfs get -p` prints it.

`blind` is zkeep's own: `on` (the default, inherited) refuses at BEGIN every stream that is not raw. So is `contents`:
`metadata` lets compaction drop contents that are stored elsewhere (contents.py). So are `retention` and
`retention_min`: which snapshots `zkeep prune` keeps; and `max_age`, `max_scrub_age` and `notify`, by which `zkeep
health` goes.

A stream's properties are authenticated by nothing. Those that zkeep acts on (`is_policy`) take effect only where they
were set here: a received value is kept, shown as received, and sent back. zkeep's own (`is_own`) are not even taken
from a stream, and not sent.

Source: OpenZFS module/zcommon/zfs_prop.c zfs_prop_init(); man/man7/zfsprops.7; include/sys/fs/zfs.h.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from zkeep.errors import Refused
from zkeep.names import MAX_UINT64, MAX_USER_VALUE, is_user_property, shown, whole_number
from zkeep.pool.datasets import notify, retention
from zkeep.zstd_levels import FIRST_FAST, ZSTD_FAST

Kind = Literal["size", "count", "id", "ratio", "date", "index", "text"]
How = Literal["inherit", "default", "once", "readonly"]

_SIZE = re.compile(r"(\d+)(?:\.(\d+))?([KMGTPE]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_UNITS = " KMGTPE"
_BOOLEAN = {"off": 0, "on": 1}
_UNLIMITED = ("filesystem_limit", "snapshot_limit")


@dataclass(frozen=True, slots=True)
class Property:
    name: str
    column: str
    "The heading in `zfs list`."
    applies: str
    "Letters: f filesystem, v volume, s snapshot, b bookmark."
    how: How
    kind: Kind
    default: str = ""
    codes: dict[str, int] = field(default_factory=dict)
    "For an index: the number that streams carry for each value."
    is_policy: bool = False
    "zkeep acts on it: a received value never has effect."
    is_own: bool = False
    "Unknown to zfs: neither taken from a stream nor sent."

    @property
    def is_number(self) -> bool:
        """Sorted as one; an integer in JSON."""
        return self.kind in ("size", "count", "id", "ratio", "date")

    @property
    def can_be_set(self) -> bool:
        return self.how in ("inherit", "default")


class BadProperty(Refused):
    """A property or a value that cannot be set."""


def _index(text: str) -> dict[str, int]:
    """`a b=5 c` -> {a: 0, b: 5, c: 6}: as a C enum counts."""
    codes: dict[str, int] = {}
    following = 0
    for word in text.split():
        name, _, code = word.partition("=")
        following = int(code) if code else following
        codes[name] = following
        following += 1
    return codes


def _compressions() -> dict[str, int]:
    codes = _index("on=1 off lzjb gzip=10 gzip-1=5 gzip-2 gzip-3 gzip-4 gzip-5 gzip-6 gzip-7 gzip-8 gzip-9")
    codes |= _index("zle=14 lz4 zstd")
    # zstd's level stands above the code of zstd (16), in bits 7 and up; -fast- levels count from 103.
    codes["zstd-fast"] = 16 | FIRST_FAST << 7
    codes |= {f"zstd-{level}": 16 | level << 7 for level in range(1, 20)}
    return codes | {f"zstd-fast-{level}": 16 | FIRST_FAST + at << 7 for at, level in enumerate(ZSTD_FAST)}


def _dedups() -> dict[str, int]:
    plain = _index("on=1 off sha256=8 sha512=11 skein blake3=14")
    names = ("sha256", "sha512", "skein", "blake3")
    # Bit 8 says that a block with the same checksum is compared before it is shared.
    verify = {f"{name},verify": plain[name] | 256 for name in names} | {"edonr,verify": 13 | 256}
    return plain | {"verify": 1 | 256} | verify


_CACHE = _index("none metadata all")
_SUITES = _index("on=1 off aes-128-ccm aes-192-ccm aes-256-ccm aes-128-gcm aes-192-gcm aes-256-gcm")
_KEYFORMATS = _index("none raw hex passphrase")
_KEYSTATUS = _index("none unavailable available")
_DEFAULTS = {"retention": "none", "retention_min": "none", "max_age": "none", "max_scrub_age": "35d", "notify": "none"}
"What prune and health go by."
_TABLE = [
    Property("name", "NAME", "fvsb", "readonly", "text"),
    Property("type", "TYPE", "fvsb", "readonly", "text"),
    Property("creation", "CREATION", "fvsb", "readonly", "date"),
    Property("used", "USED", "fvs", "readonly", "size"),
    Property("available", "AVAIL", "fv", "readonly", "size"),
    Property("referenced", "REFER", "fvsb", "readonly", "size"),
    Property("compressratio", "RATIO", "fvs", "readonly", "ratio"),
    Property("mounted", "MOUNTED", "f", "readonly", "index", codes=_BOOLEAN),
    Property("origin", "ORIGIN", "fv", "readonly", "text"),
    Property("quota", "QUOTA", "fv", "default", "size", "0", is_policy=True),
    Property("reservation", "RESERV", "fv", "default", "size", "0", is_policy=True),
    Property("volsize", "VOLSIZE", "v", "default", "size"),
    Property("volblocksize", "VOLBLOCK", "v", "once", "size"),
    Property("recordsize", "RECSIZE", "f", "inherit", "size", "131072"),
    Property("mountpoint", "MOUNTPOINT", "f", "inherit", "text", "/"),
    Property("sharenfs", "SHARENFS", "f", "inherit", "text", "off"),
    Property(
        *("checksum", "CHECKSUM", "fv", "inherit", "index", "on"),
        _index("on=1 off fletcher2=6 fletcher4 sha256 noparity=10 sha512 skein edonr blake3"),
    ),
    Property("compression", "COMPRESS", "fv", "inherit", "index", "on", _compressions()),
    Property("atime", "ATIME", "f", "inherit", "index", "on", _BOOLEAN),
    Property("devices", "DEVICES", "fs", "inherit", "index", "on", _BOOLEAN),
    Property("exec", "EXEC", "fs", "inherit", "index", "on", _BOOLEAN),
    Property("setuid", "SETUID", "fs", "inherit", "index", "on", _BOOLEAN),
    Property("readonly", "RDONLY", "fv", "inherit", "index", "off", _BOOLEAN),
    Property("zoned", "ZONED", "f", "inherit", "index", "off", _BOOLEAN),
    Property("snapdir", "SNAPDIR", "f", "inherit", "index", "hidden", _index("hidden visible disabled")),
    Property(
        *("aclmode", "ACLMODE", "f", "inherit", "index", "discard"),
        _index("discard groupmask=2 passthrough restricted"),
    ),
    Property(
        *("aclinherit", "ACLINHERIT", "f", "inherit", "index", "restricted"),
        _index("discard noallow restricted=4 passthrough=3 passthrough-x=5"),
    ),
    Property("createtxg", "CREATETXG", "fvsb", "readonly", "id"),
    Property("canmount", "CANMOUNT", "f", "default", "index", "on", _index("off on noauto")),
    Property("xattr", "XATTR", "fs", "inherit", "index", "on", _index("off on=1 sa=2 dir=1")),
    Property("copies", "COPIES", "fv", "inherit", "index", "1", _index("1=1 2 3")),
    Property("version", "VERSION", "fs", "once", "text"),
    Property("utf8only", "UTF8ONLY", "fs", "once", "index", codes=_BOOLEAN),
    Property(
        *("normalization", "NORMALIZATION", "fs", "once", "index"),
        codes={"none": 0, "formC": 0x50, "formD": 0x10, "formKC": 0x60, "formKD": 0x20},
    ),
    Property("casesensitivity", "CASE", "fs", "once", "index", codes=_index("sensitive insensitive mixed")),
    Property("vscan", "VSCAN", "f", "inherit", "index", "off", _BOOLEAN),
    Property("nbmand", "NBMAND", "fs", "inherit", "index", "off", _BOOLEAN),
    Property("sharesmb", "SHARESMB", "f", "inherit", "text", "off"),
    Property("refquota", "REFQUOTA", "f", "default", "size", "0", is_policy=True),
    Property("refreservation", "REFRESERV", "fv", "default", "size", "0", is_policy=True),
    Property("guid", "GUID", "fvsb", "readonly", "id"),
    Property("primarycache", "PRIMARYCACHE", "fvs", "inherit", "index", "all", _CACHE),
    Property("secondarycache", "SECONDARYCACHE", "fvs", "inherit", "index", "all", _CACHE),
    Property("usedbysnapshots", "USEDSNAP", "fv", "readonly", "size"),
    Property("usedbydataset", "USEDDS", "fv", "readonly", "size"),
    Property("usedbychildren", "USEDCHILD", "fv", "readonly", "size"),
    Property("usedbyrefreservation", "USEDREFRESERV", "fv", "readonly", "size"),
    Property("defer_destroy", "DEFER_DESTROY", "s", "readonly", "index", codes=_BOOLEAN),
    Property("userrefs", "USERREFS", "s", "readonly", "count"),
    Property("logbias", "LOGBIAS", "fv", "inherit", "index", "latency", _index("latency throughput")),
    Property("objsetid", "OBJSETID", "fv", "readonly", "id"),
    Property("dedup", "DEDUP", "fv", "inherit", "index", "off", _dedups()),
    Property("mlslabel", "MLSLABEL", "fvs", "inherit", "text", "none"),
    Property("sync", "SYNC", "fv", "inherit", "index", "standard", _index("standard always disabled")),
    Property(
        *("dnodesize", "DNSIZE", "f", "inherit", "index", "legacy"),
        _index("legacy auto 1k=1024 2k=2048 4k=4096 8k=8192 16k=16384"),
    ),
    Property("refcompressratio", "REFRATIO", "fvs", "readonly", "ratio"),
    Property("written", "WRITTEN", "fvs", "readonly", "count"),
    Property("clones", "CLONES", "s", "readonly", "text"),
    Property("logicalused", "LUSED", "fv", "readonly", "count"),
    Property("logicalreferenced", "LREFER", "fvsb", "readonly", "count"),
    Property("volmode", "VOLMODE", "fv", "inherit", "index", "default", _index("default full=1 geom=1 dev=2 none")),
    Property("filesystem_limit", "FSLIMIT", "f", "default", "count", "none", is_policy=True),
    Property("snapshot_limit", "SSLIMIT", "fv", "default", "count", "none", is_policy=True),
    Property("filesystem_count", "FSCOUNT", "f", "readonly", "count"),
    Property("snapshot_count", "SSCOUNT", "fv", "readonly", "count"),
    Property("snapdev", "SNAPDEV", "fv", "inherit", "index", "hidden", _index("hidden visible")),
    Property("acltype", "ACLTYPE", "fs", "inherit", "index", "off", _index("off posix nfsv4")),
    Property("context", "CONTEXT", "fvs", "default", "text", "none"),
    Property("fscontext", "FSCONTEXT", "fvs", "default", "text", "none"),
    Property("defcontext", "DEFCONTEXT", "fvs", "default", "text", "none"),
    Property("rootcontext", "ROOTCONTEXT", "fvs", "default", "text", "none"),
    Property("relatime", "RELATIME", "f", "inherit", "index", "on", _BOOLEAN),
    Property(
        *("redundant_metadata", "REDUND_MD", "fv", "inherit", "index", "all"),
        _index("all most some none"),
    ),
    Property("overlay", "OVERLAY", "f", "inherit", "index", "on", _BOOLEAN),
    Property("receive_resume_token", "RESUMETOK", "fv", "readonly", "text"),
    Property("encryption", "ENCRYPTION", "fvs", "once", "index", codes=_SUITES),
    Property("keylocation", "KEYLOCATION", "fv", "default", "text", "none", is_policy=True),
    Property("keyformat", "KEYFORMAT", "fv", "once", "index", codes=_KEYFORMATS),
    Property("pbkdf2iters", "PBKDF2ITERS", "fv", "once", "id"),
    Property("encryptionroot", "ENCROOT", "fvs", "readonly", "text"),
    Property("keystatus", "KEYSTATUS", "fvs", "readonly", "index", codes=_KEYSTATUS),
    Property("special_small_blocks", "SPECIAL_SMALL_BLOCKS", "fv", "inherit", "size", "0"),
    Property("snapshots_changed", "SNAPSHOTS_CHANGED", "fv", "readonly", "date"),
    Property("prefetch", "PREFETCH", "fvs", "inherit", "index", "all", _CACHE),
    Property("direct", "DIRECT", "f", "inherit", "index", "standard", _index("disabled standard always")),
    Property("longname", "LONGNAME", "f", "inherit", "index", "off", _BOOLEAN),
    Property("ivsetguid", "IVSETGUID", "sb", "readonly", "id"),
    Property("keyguid", "KEYGUID", "fvs", "readonly", "id", is_own=True),
    Property("keyhistory", "KEYHISTORY", "fvs", "readonly", "text", is_own=True),
    Property("inconsistent", "INCONSISTENT", "fvs", "readonly", "id"),
    Property(
        *("contents", "CONTENTS", "fvs", "default", "index", "all"),
        _index("all metadata"), is_policy=True, is_own=True,
    ),
    Property("received_at", "RECEIVED_AT", "s", "readonly", "date", is_own=True),
    Property("blind", "BLIND", "fv", "inherit", "index", "on", _BOOLEAN, is_policy=True, is_own=True),
    *(
        Property(name, name.upper(), "fv", "inherit", "text", default, is_policy=True, is_own=True)
        for name, default in _DEFAULTS.items()
    ),
]
PROPERTIES = {p.name: p for p in _TABLE}
"All native properties by name, in the order in which `get all` prints them."
OWN_PREFIX = "zkeep:"
"User properties that zkeep sets itself begin with it (backup/local.py); they count only where they were set here."
HIDDEN = ("name", "ivsetguid", "keyguid", "inconsistent", "received_at")
"Shown only if requested by name."
_SHORT = {p.column.lower(): p.name for p in _TABLE}


def find(name: str) -> Property | None:
    """Find a property by name or by its column's heading in lower case (`avail`). Any user property is found."""
    native = PROPERTIES.get(name) or PROPERTIES.get(_SHORT.get(name, ""))
    if native:
        return native
    if is_user_property(name) or _is_written_since(name):
        return Property(name, name.upper(), "fvs", "inherit", "text")
    return None


def _is_written_since(name: str) -> bool:
    return name.startswith(("written@", "written#"))


def is_user(prop: Property) -> bool:
    return prop.name not in PROPERTIES and not _is_written_since(prop.name)


def parse_size(text: str) -> int:
    """`1.5G`, `10M`, `512`; ValueError otherwise. A part of a byte, or of one of anything, is no number."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(text)
    whole, fraction, unit = match.groups()
    if fraction and not unit:
        raise ValueError(text)
    # Each unit is 2^10 times the one before; a fraction is scaled as an integer, so that 1.1G is exact.
    scale = 1 << 10 * _UNITS.index(unit.upper() or " ")
    size = int(whole) * scale + (int(fraction) * scale // 10 ** len(fraction) if fraction else 0)
    if size > MAX_UINT64:
        raise ValueError(text)
    return size


_ONCE = dict.fromkeys(("utf8only", "normalization", "casesensitivity"), "when a dataset is created")


def check(name: str, text: str, what: str = "fv") -> tuple[str, str]:
    """The property's full name and the value as it is kept. `what`: the letter of the thing it is set on."""
    prop = find(name)
    if not prop or _is_written_since(name):
        from difflib import get_close_matches

        near = get_close_matches(name, [each.name for each in PROPERTIES.values() if each.can_be_set], n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise BadProperty(f"bad property {shown(name)}: there is none of this name{hint}")
    if is_user(prop):
        if len(text.encode("utf-8", "surrogateescape")) > MAX_USER_VALUE:
            raise BadProperty(f"bad value for property {name}: more than {MAX_USER_VALUE} bytes")
        if "\0" in text:
            raise BadProperty(f"bad value for property {name}: NUL in it")
        return name, text
    if not prop.can_be_set:
        once = f"it is set once, {_ONCE.get(prop.name, 'by what is received')}"
        why = once if prop.how == "once" else "it is read-only"
        raise BadProperty(f"cannot set property {prop.name}: {why}")
    if not set(prop.applies) & set(what):
        raise BadProperty(f"cannot set property {prop.name}: it does not apply to this type of dataset")
    try:
        return prop.name, _canonical(prop, text)
    except ValueError as error:
        raise BadProperty(f"bad value {shown(text)} for property {prop.name}: {error}") from None


def _canonical(prop: Property, text: str) -> str:
    # By kind: one of a few words, a number, what has a syntax of its own, or plain text.
    if prop.kind == "index":
        if text not in prop.codes:
            raise ValueError("must be one of " + " ".join(list(prop.codes)[:12]))
        return text
    if prop.kind in ("size", "count"):
        return _canonical_number(prop, text)
    if prop.name in _CHECKS:
        return _CHECKS[prop.name](text)
    if not text.isprintable():
        raise ValueError("it has characters that cannot be printed")
    return text


def _canonical_number(prop: Property, text: str) -> str:
    if text == "none" and prop.default in ("none", "0"):
        return prop.default
    try:
        size = parse_size(text)
    except ValueError:
        way = ", or none" if prop.default in ("none", "0") else ""
        raise ValueError(f"must be a number, like 512, 10M or 1.5G{way}") from None
    if prop.name == "recordsize" and (size & (size - 1) or not 512 <= size <= 1 << 24):
        raise ValueError("must be a power of 2 from 512 to 16M")
    if prop.name == "special_small_blocks" and size and (size & (size - 1) or not 512 <= size <= 1 << 20):
        raise ValueError("must be 0, or a power of 2 from 512 to 1M")
    return str(size)


def _check_mountpoint(text: str) -> str:
    if text in ("none", "legacy"):
        return text
    if not text.startswith("/") or not text.isprintable():
        raise ValueError("must be an absolute path, none or legacy")
    if any(len(component) > 255 for component in text.split("/")):
        raise ValueError("a component is longer than 255 bytes")
    return text.rstrip("/") or "/"


def _check_keylocation(text: str) -> str:
    """What zfs takes, also where zkeep itself reads no key from (a URL): the dataset may be sent back there.

    Source: OpenZFS module/zcommon/zfs_prop.c zfs_prop_valid_keylocation().
    """
    if text not in ("none", "prompt") and not text.startswith(("file:///", "https://", "http://")):
        raise ValueError("must be prompt or file:///path")
    if not text.isprintable():
        raise ValueError("it has characters that cannot be printed")
    return text


_CHECKS: dict[str, Callable[[str], str]] = {
    "mountpoint": _check_mountpoint,
    "keylocation": _check_keylocation,
    "retention": retention.canonical,
    "retention_min": retention.canonical_age,
    "max_age": retention.canonical_age,
    "max_scrub_age": retention.canonical_age,
    "notify": notify.canonical,
}
"What has a syntax of its own: each returns the text that is kept, or raises ValueError."
_TOLD = frozenset({"retention", "retention_min"})
"Of those, what makes no sense is told by who acts on it: nothing is pruned then."


def makes_sense(name: str, text: str) -> bool:
    """Whether a value that a document has can be one of the property.

    What is set and received here was checked; a pool's folder from elsewhere may say anything.
    """
    prop = PROPERTIES.get(name)
    try:
        # Text of a user's and of zfs's own is shown and sent as it is; what zkeep acts on has a syntax.
        if prop is not None and prop.kind in ("size", "count") and not (name in _UNLIMITED and text == "none"):
            whole_number(text, MAX_UINT64)
        elif prop is not None and prop.is_own and name in _CHECKS and name not in _TOLD:
            _CHECKS[name](text)
    except ValueError:
        return False
    return prop is None or prop.kind != "index" or text in prop.codes


def from_stream(name: str, value: int | str) -> str | None:
    """What a stream's `props` say, as text; None if this zkeep has no use for it or it makes no sense.

    Streams carry numbers for sizes and indices, text for the rest; a boolean is neither.
    """
    prop = find(name)
    if not prop or not prop.can_be_set or prop.is_own or _is_written_since(name) or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return (
            value
            if prop.kind == "text"
            and ("\0" not in value and len(value.encode("utf-8", "surrogateescape")) <= MAX_USER_VALUE)
            else None
        )
    # An enum of libzfs: a number that this zkeep has no name for is dropped.
    if prop.kind == "index":
        return next((text for text, code in prop.codes.items() if code == value), None)
    if prop.name in _UNLIMITED and value == MAX_UINT64:
        return "none"
    return str(value) if prop.kind in ("size", "count") and 0 <= value <= MAX_UINT64 else None


def to_stream(name: str, text: str) -> int | str:
    """The inverse of from_stream, for what from_stream or check gave."""
    prop = find(name)
    if not prop or prop.kind == "text":
        return text
    if prop.kind == "index":
        return prop.codes[text]
    return MAX_UINT64 if text == "none" else int(text)
