"""Names of pools, datasets, snapshots, bookmarks and properties, and numbers, parsed once and then trusted.

A refused name is never repeated raw in an error: unprintable characters are escaped and long names cut, so that an
error stays one line whatever came in.

Source: OpenZFS module/zcommon/zfs_namecheck.c, lib/libzfs/libzfs_dataset.c zfs_validate_name(),
include/sys/fs/zfs.h ZFS_MAX_DATASET_NAME_LEN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from zkeep.errors import Refused

MAX_NAME = 255
"Bytes of a whole name, `dataset@snapshot` included."
MAX_DEPTH = 50
"A dataset's name has fewer `/` than this."
MAX_POOL_NAME = 237
"A real pool needs the rest for names that it makes itself."
MAX_USER_VALUE = 8191
"Bytes of a user property's value."
MAX_UINT64 = (1 << 64) - 1
"ZFS's numbers have 64 bits. A range that ends here goes on to the end (UINT64_MAX, DMU_OBJECT_END)."

_COMPONENT = re.compile(r"[A-Za-z0-9\-_.: ]+")
_INVALID = re.compile(r"[^A-Za-z0-9\-_.: ]")
_USER_PROPERTY = re.compile(r"[a-z0-9\-_.]*:[a-z0-9:\-_.]*")


class BadName(Refused):
    """A name breaks zfs's rules; `name` is shown safely in the text, `reason` alone says what is wrong."""

    def __init__(self, kind: str, name: str, reason: str) -> None:
        self.reason = reason
        super().__init__(f"bad {kind} name {shown(name)}: {reason}")


def shown(name: str, limit: int = 80) -> str:
    """`name` in quotes, one line, printable ASCII, cut to about `limit` characters."""
    cut = name if len(name) <= limit else name[:limit] + "..."
    return ascii(cut)


def whole_number(text: str, most: int, least: int = 0) -> int:
    """A number in decimal digits.

    Raises:
        ValueError: it is none, or not from `least` to `most`; however many digits it has.
    """
    if not (text.isascii() and text.isdecimal() and len(text.lstrip("0")) <= len(str(most))):
        raise ValueError(text)
    number = int(text.lstrip("0") or "0")
    if not least <= number <= most:
        raise ValueError(text)
    return number


_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"Control characters, line ends, what changes the direction of writing, and bytes that are no UTF-8."
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|\\)")


def printable(text: str, keep: str = "") -> str:
    """`text` with everything escaped that could steer a terminal or break a line, but for the characters `keep`."""
    # Nearly every name is plain: no regular expression then.
    if text.isascii() and text.isprintable():
        return text
    return _STEERING.sub(lambda found: found.group() if found.group() in keep else _escaped(found.group()), text)


def _escaped(character: str) -> str:
    # Bytes that are no UTF-8 came in as U+DC80 to U+DCFF (surrogateescape); show the byte.
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte that is no UTF-8
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def printable_path(path: bytes) -> str:
    """A path for a person, whatever it holds; unescaped() gives it back. `/` for an empty one."""
    text = path.decode("utf-8", "surrogateescape")
    # A backslash is doubled only where there are escapes, so that plain names stay as they are.
    return printable(text.replace("\\", "\\\\") if _STEERING.search(text) else text) or "/"


def unescaped(path: bytes) -> bytes:
    """A path from what printable_path() shows of it."""

    def character(found: re.Match[bytes]) -> bytes:
        byte, point = found.groups()
        if byte:
            return bytes([int(byte, 16)])
        return chr(int(point, 16)).encode("utf-8", "surrogatepass") if point else b"\\"

    return _ESCAPE.sub(character, path)


def _check_component(kind: str, whole: str, component: str) -> None:
    if not component:
        raise BadName(kind, whole, "a component is empty")
    if component in (".", ".."):
        raise BadName(kind, whole, f"'{component}' is not allowed as a component")
    if _COMPONENT.fullmatch(component):
        return
    bad = _INVALID.search(component)
    raise BadName(kind, whole, f"invalid character {(bad.group() if bad else component)!a}")


def _check_length(kind: str, whole: str, limit: int = MAX_NAME) -> None:
    size = len(whole.encode("utf-8", "surrogatepass"))
    if size > limit:
        raise BadName(kind, whole, f"it has {size} bytes, {limit} are allowed")


def parse_pool(text: str) -> str:
    """Check the name of a pool: one component, begins with a letter, not reserved."""
    _check_length("pool", text, MAX_POOL_NAME)
    if "/" in text or "@" in text or "#" in text:
        raise BadName("pool", text, "a pool's name has no '/', '@' or '#'")
    _check_component("pool", text, text)
    if not text[0].isalpha():
        raise BadName("pool", text, "it must begin with a letter")
    if text == "log" or text.startswith(("mirror", "raidz", "draid", "spare")):
        raise BadName("pool", text, "the name is reserved")
    return text


@dataclass(frozen=True, slots=True, order=True)
class DatasetName:
    """`pool/a/b`. The pool's own top dataset has the pool's name alone."""

    text: str

    @classmethod
    def parse(cls, text: str) -> DatasetName:
        """Raises BadName; a `@` or `#` in it is one of the things refused."""
        _check_length("dataset", text)
        if text.startswith("/"):
            raise BadName("dataset", text, "it begins with '/'")
        if text.endswith("/"):
            raise BadName("dataset", text, "it ends with '/'")
        components = text.split("/")
        for component in components:
            _check_component("dataset", text, component)
        if len(components) > MAX_DEPTH:
            raise BadName("dataset", text, f"it is nested deeper than {MAX_DEPTH} levels")
        return cls(text)

    @property
    def pool(self) -> str:
        return self.text.partition("/")[0]

    @property
    def parent(self) -> DatasetName | None:
        """None for the pool's top dataset."""
        head, slash, _ = self.text.rpartition("/")
        return DatasetName(head) if slash else None

    @property
    def base(self) -> str:
        """The last component."""
        return self.text.rpartition("/")[2]

    @property
    def components(self) -> list[str]:
        return self.text.split("/")

    @property
    def depth(self) -> int:
        """0 for the pool's top dataset."""
        return self.text.count("/")

    def child(self, relative: str) -> DatasetName:
        """The dataset `relative` (one or more components) below this one."""
        return DatasetName.parse(f"{self.text}/{relative}")

    def is_within(self, other: DatasetName) -> bool:
        """Whether it is `other` or lies below it."""
        return self.text == other.text or self.text.startswith(other.text + "/")

    def snapshot(self, name: str) -> SnapshotName:
        return SnapshotName.parse(f"{self.text}@{name}")

    def bookmark(self, name: str) -> BookmarkName:
        return BookmarkName.parse(f"{self.text}#{name}")

    def __str__(self) -> str:
        return self.text


def _split(kind: str, text: str, mark: str) -> tuple[DatasetName, str]:
    _check_length(kind, text)
    head, found, tail = text.partition(mark)
    if not found:
        raise BadName(kind, text, f"there is no '{mark}' in it")
    if "@" in tail or "#" in tail:
        raise BadName(kind, text, "more than one '@' or '#'")
    try:
        dataset = DatasetName.parse(head)
    except BadName as error:
        raise BadName(kind, text, error.reason) from None
    _check_component(kind, text, tail)
    return dataset, tail


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """`pool/a@name`."""

    dataset: DatasetName
    name: str

    @classmethod
    def parse(cls, text: str) -> SnapshotName:
        return cls(*_split("snapshot", text, "@"))

    def __str__(self) -> str:
        return f"{self.dataset.text}@{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class BookmarkName:
    """`pool/a#name`."""

    dataset: DatasetName
    name: str

    @classmethod
    def parse(cls, text: str) -> BookmarkName:
        return cls(*_split("bookmark", text, "#"))

    def __str__(self) -> str:
        return f"{self.dataset.text}#{self.name}"


AnyName = DatasetName | SnapshotName | BookmarkName


def parse_any(text: str) -> AnyName:
    """Parse a dataset, snapshot or bookmark, whichever `@` or `#` in it says."""
    if "@" in text:
        return SnapshotName.parse(text)
    return BookmarkName.parse(text) if "#" in text else DatasetName.parse(text)


def parse_tag(text: str) -> str:
    """Check the tag of a hold: 1 to 255 bytes, printable."""
    _check_length("tag", text)
    if not text or not text.isprintable():
        raise BadName("tag", text, "it must be printable and not empty")
    return text


def is_user_property(name: str) -> bool:
    """Whether it is `module:property`: a colon somewhere, lower case, at most 255 bytes."""
    return len(name) <= MAX_NAME and bool(_USER_PROPERTY.fullmatch(name))
