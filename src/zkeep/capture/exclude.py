"""Decide which files of a folder are left out of its snapshot, and say why.

Patterns are those of gitignore(5). An entry is decided on where it is met: what lies below a folder that is left out
is never looked at, so that no pattern can bring it back, as in git.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zkeep.capture.contents import open_file
from zkeep.capture.scan import FOLDER, ReadProblem, Seen
from zkeep.errors import WrongUsage

IGNORE_FILE = b".zkeepignore"
MAX_IGNORE_FILE = 1 << 20
CACHE_TAG, CACHE_SIGNATURE = b"CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55"
_ASTERISK, _QUESTION_MARK, _BEFORE, _BETWEEN = "[^/]*", "[^/]", "^(?:.+/)?", "(?:/.+)?"
"What pathspec makes of `*`, `?`, of `**/` before a name, and of `/**` between two."


class IgnoreRule(NamedTuple):
    """One pattern. `leaves_out`: False if it begins with an exclamation mark."""

    text: str
    pattern: re.Pattern[str]
    leaves_out: bool
    only_folders: bool

    def matches(self, path: str, is_folder: bool) -> bool:
        """Whether it is this entry that matches, and not only a folder above it, which was decided on before."""
        if self.only_folders and not is_folder:
            return False
        found = self.pattern.search(path)
        return found is not None and not any(found.groupdict().values())


OnLeftOut = Callable[[bytes, str], None]
"(path, why)"


@dataclass(frozen=True)
class ExcludeOptions:
    """What the user wants to leave out. `own`: device and inode of folders that are never stored: the pool's."""

    patterns: tuple[str, ...] = ()
    one_file_system: bool = False
    caches: bool = False
    if_present: tuple[bytes, ...] = ()
    larger_than: int | None = None
    own: frozenset[tuple[int, int]] = frozenset()
    own_devices: frozenset[int] = frozenset()
    "Devices of zkeep's own mounts."


@dataclass
class Exclusions:
    """Chooses among the entries of each folder that is scanned. `problems`: what could not be followed."""

    options: ExcludeOptions = ExcludeOptions()
    on_left_out: OnLeftOut = lambda path, why: None
    problems: list[ReadProblem] = field(default_factory=list)
    _device: int = -1
    _ignore_files: dict[bytes, list[IgnoreRule]] = field(default_factory=dict)
    "By the path of their folder, with a slash behind it."

    def __post_init__(self) -> None:
        self._patterns = parse_patterns(self.options.patterns) if self.options.patterns else None

    def choose(self, path: bytes, fd: int, entries: list[Seen]) -> list[Seen]:
        """The entries of a folder, open at `fd`, that are stored."""
        # 1. The whole folder: something else is mounted on it.
        device = os.fstat(fd).st_dev
        if not path:
            self._device = device
        elif why := self._whole(device):
            self.on_left_out(path, why)
            return []
        # 2. All but the file that marks the folder as not worth storing (CACHEDIR.TAG, --exclude-if-present).
        prefix = path + b"/" if path else b""
        if tag := self._tag(fd, entries):
            self.on_left_out(path, f"it holds {os.fsdecode(tag)}: only that is stored of it")
            return [entry for entry in entries if entry.name == tag]
        # 3. Each entry, by the patterns of the command line, of this folder and of those above.
        if any(entry.name == IGNORE_FILE for entry in entries):
            self._read_ignore_file(prefix, fd)
        kept = []
        for entry in entries:
            why = self._why_not(prefix, entry, device)
            if why is None:
                kept.append(entry)
            else:
                self.on_left_out(prefix + entry.name, why)
        return kept

    def keeps_all(self, names: bytes, folders: list[tuple[int, int]]) -> bool:
        """Whether nothing is left out of a folder on the device of the top one, so that choose() need not be asked.

        `names`: of its entries, with slashes between them. `folders`: device and inode of those among them.
        """
        options = self.options
        looks_at_entries = options.caches or options.if_present or options.larger_than is not None
        if looks_at_entries or self._patterns is not None or self._ignore_files or self._device in options.own_devices:
            return False
        return IGNORE_FILE not in names and options.own.isdisjoint(folders)

    def _whole(self, device: int) -> str | None:
        """Why nothing in a folder is stored: what is mounted on it. The folder itself is."""
        if device in self.options.own_devices:
            return "a snapshot is mounted on it"
        if self.options.one_file_system and device != self._device:
            return "another file system is mounted on it"
        return None

    def _tag(self, fd: int, entries: list[Seen]) -> bytes | None:
        """The file that marks a folder whose contents are not wanted."""
        names = {entry.name for entry in entries} if self.options.caches or self.options.if_present else set()
        found = next((name for name in self.options.if_present if name in names), None)
        if found is None and self.options.caches and CACHE_TAG in names and _is_cache_tag(fd):
            return CACHE_TAG
        return found

    def _why_not(self, prefix: bytes, entry: Seen, device: int) -> str | None:
        status, options = entry.stat, self.options
        if status is not None:
            # The pool must not be stored in itself: each snapshot would make the next one larger.
            if (status.st_dev, status.st_ino) in options.own:
                return "it is the pool's own folder"
            if options.one_file_system and entry.kind != FOLDER and status.st_dev != device:
                return "it is on another file system"
            # Only plain files are large: a folder's size is that of its list.
            large = options.larger_than is not None and status.st_size > options.larger_than
            if large and entry.kind == stat.S_IFREG >> 12:
                return f"it is larger than {options.larger_than} bytes"
        if self._patterns is None and not self._ignore_files:
            return None
        return self._matches(prefix + entry.name, entry.kind == FOLDER)

    def _matches(self, path: bytes, is_folder: bool) -> str | None:
        """The pattern that leaves a path out: the command line's count before those of the nearest file."""
        for base, rules in self._rules(path):
            tail = os.fsdecode(path[len(base) :])
            # Within one list the last pattern that matches decides, as in gitignore.
            rule = next((rule for rule in reversed(rules) if rule.matches(tail, is_folder)), None)
            if rule is None:
                continue
            source = "--exclude" if rules is self._patterns else os.fsdecode(base + IGNORE_FILE)
            return f"it matches {rule.text} of {source}" if rule.leaves_out else None
        return None

    def _rules(self, path: bytes) -> Iterable[tuple[bytes, list[IgnoreRule]]]:
        if self._patterns is not None:
            yield b"", self._patterns
        if not self._ignore_files:
            return
        end = len(path)
        while end >= 0:
            # From the folder that the path lies in, up to the top.
            end = path.rfind(b"/", 0, end)
            base = path[: end + 1]
            if base in self._ignore_files:
                yield base, self._ignore_files[base]

    def _read_ignore_file(self, prefix: bytes, fd: int) -> None:
        path = prefix + IGNORE_FILE
        try:
            self._ignore_files[prefix] = parse_patterns(_lines_of(fd))
        except OSError as error:
            self.problems.append(ReadProblem(path, f"its patterns are not followed: {error.strerror or error}"))
        except WrongUsage as error:
            self.problems.append(ReadProblem(path, f"its patterns are not followed: {error}"))


def parse_patterns(lines: Sequence[str]) -> list[IgnoreRule]:
    """Raises WrongUsage: one of them is no pattern."""
    if not lines:
        return []
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    found = []
    for line in lines:
        # Spaces at the end do not count unless they are escaped; a file from Windows ends its lines with a return.
        text = line.rstrip(" \r") if not line.endswith("\\ ") else line
        try:
            regex, leaves_out = GitIgnoreSpecPattern.pattern_to_regex(text.rstrip("/"))
        except ValueError:
            raise WrongUsage(f"{line!r} is no pattern of gitignore") from None
        # Empty lines and comments are no patterns; the rest is kept in order, as the last match decides.
        if regex is not None:
            found.append(IgnoreRule(text, re.compile(linear(regex)), bool(leaves_out), text.endswith("/")))
    return found


def linear(regex: str) -> str:
    """The regular expression of a pattern, as pathspec makes it, so that it matches in linear time.

    Who may write a file of patterns into a folder could hold up its backup for ever else: `*a*a*a*...b` tries all ways
    to share a name out among its asterisks. The first place that fits what follows one is as good as any other unless
    it is the last of its name, so the others may be atomic; and so with names among double asterisks. A name may hold
    line breaks.
    """
    # 1. Asterisks within names: one is the last of its name if a slash comes before the next one.
    first, *pieces = regex.split(_ASTERISK)
    text = first
    for piece in pieces:
        is_last = "/" in piece.replace(_QUESTION_MARK, "")
        text += _ASTERISK + piece if is_last else f"(?>[^/]*?{piece})"
    # 2. Double asterisks between names: all but the last.
    head, *blocks = text.split(_BETWEEN)
    if blocks:
        if head.startswith(_BEFORE):
            head = f"^(?>(?:[^/]+/)*?{head[len(_BEFORE) :]}(?=/))"
        inner = "".join(f"(?>(?:/[^/]+)*?{block}(?=/))" for block in blocks[:-1])
        text = head + inner + _BETWEEN + blocks[-1]
    return "(?s)" + text.replace("|$)", r"|\Z)")


def _lines_of(folder: int) -> list[str]:
    fd = open_file(IGNORE_FILE, folder)
    with open(fd, "rb") as source:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is no regular file")
        # One byte more than allowed shows that it is too large, without reading all of it.
        content = source.read(MAX_IGNORE_FILE + 1)
    if len(content) > MAX_IGNORE_FILE:
        raise OSError(0, f"it is larger than {MAX_IGNORE_FILE} bytes")
    return [os.fsdecode(line) for line in content.split(b"\n")]


def _is_cache_tag(folder: int) -> bool:
    """Whether the tag begins as it has to: see https://bford.info/cachedir/."""
    try:
        with open(open_file(CACHE_TAG, folder), "rb") as source:
            return stat.S_ISREG(os.fstat(source.fileno()).st_mode) and source.read(43) == CACHE_SIGNATURE
    except OSError:
        return False


def mounts_of_zkeep(path: str = "/proc/self/mountinfo") -> frozenset[int]:
    """The devices of snapshots that are mounted here; where the system does not tell, none."""
    found = set()
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as source:
            for line in source:
                # A line is: id, parent, major:minor, root, mount point, options ... - type, source, options.
                fields, _, kind = line.partition(" - ")
                if kind.startswith("fuse.zkeep "):
                    major, _, minor = fields.split(" ")[2].partition(":")
                    found.add(os.makedev(int(major), int(minor)))
    except (OSError, ValueError, IndexError):
        pass
    return frozenset(found)
