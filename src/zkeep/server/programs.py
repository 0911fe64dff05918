"""Programs that replication tools run at the far end of ssh, beside zfs: probes, and filters of the stream.

None of them is executed. A probe gets the answer that a plain host would give; filters run within this process
(server/filters.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zkeep.names import shown
from zkeep.pool.datasets.properties import parse_size
from zkeep.server.access import Access, Denied, shown_name
from zkeep.server.filters import COMPRESSORS, DECOMPRESSORS, Filter, available
from zkeep.server.frames import unframed
from zkeep.server.rules import Call, judge
from zkeep.server.shell import CannotParse, Command, Pipeline, Script, parse

DEEPEST = 2
"How often `sh -c` may be within `sh -c`."
_SHELLS = ("sh", "bash", "dash", "ash", "ksh", "zsh")
_ASSIGNMENT = re.compile(r"(?:LC_[A-Z]+|LANG|LANGUAGE|TZ)=[\w.@/:-]*")
_PATH = re.compile(r"/(?:[\w+-][\w.+-]*/)*([\w+-][\w.+-]*)")
_LONGEST_PRINT = 4096


@dataclass(frozen=True)
class Say:
    """Print a text and end with a status."""

    text: str = ""
    status: int = 0


@dataclass(frozen=True)
class Receives:
    """`ps -Ao args=`: tools look in it for a receive into the dataset that they are about to send to."""


Action = Call | Say | Receives | Script


@dataclass(frozen=True)
class Flow:
    """A pipeline: what it does, and the filters that its stream passes before (receive) or after (send)."""

    action: Action
    filters: tuple[Filter, ...] = ()


def understand(pipeline: Pipeline, access: Access, depth: int = 0) -> Flow:
    """Decide what a pipeline means.

    Raises:
        Denied, BadCall, CannotParse: it is not allowed, or not understood.
    """
    commands = pipeline.commands
    # One command: a verb, a probe, or a shell with a command line of its own.
    if len(commands) == 1:
        return Flow(_action(commands[0], access, depth))
    first, last = _plain(commands[0].words), _plain(commands[-1].words)
    # Filters in front of a receive undo what the client's end of the pipeline did to the stream.
    if _is_verb(last, "receive", "recv"):
        return Flow(_action(commands[-1], access, depth), tuple(_filters(commands[:-1], DECOMPRESSORS)))
    # Filters behind a send do what the client's end will undo.
    if _is_verb(first, "send"):
        return Flow(_action(commands[0], access, depth), tuple(_filters(commands[1:], COMPRESSORS)))
    raise CannotParse("a pipeline here ends in a receive or begins with a send")


def acting(pipeline: Pipeline) -> Command:
    """The command that does something: the one behind the filters of a receive, else the first."""
    last = pipeline.commands[-1]
    return last if _is_verb(_plain(last.words), "receive", "recv") else pipeline.commands[0]


def called(command: Command) -> str:
    """The program whose words the client expects."""
    name = (_plain(command.words) or [""])[0]
    return name if name in ("zfs", "zpool") else "zkeep"


def _is_verb(words: Sequence[str], *verbs: str) -> bool:
    return len(words) > 1 and words[0] in ("zfs", "zkeep") and words[1] in verbs


def _plain(words: Sequence[str]) -> list[str]:
    """Words without what stands before the program's name: `sudo`, `env -`, settings of the language, its folder."""
    left = list(words)
    while left:
        head = _base(left[0])
        # LC_ALL=C zfs ...
        if _ASSIGNMENT.fullmatch(left[0]):
            left = left[1:]
        # sudo -n zfs ..., but not the probe `command -v zfs`
        elif head in ("sudo", "doas", "env", "exec", "command") and left[1:2] != ["-v"]:
            left = left[2:] if left[1:2] and left[1] in ("-n", "-", "-i") else left[1:]
        else:
            return [head, *left[1:]]
    return left


def _base(word: str) -> str:
    """The last part of a plain absolute path; any other word as it is."""
    found = _PATH.fullmatch(word)
    return found[1] if found else word


def _action(command: Command, access: Access, depth: int) -> Action:
    words = _plain(command.words)
    if not words:
        return Say()
    name, rest = words[0], words[1:]
    # A verb: the table of rules decides.
    if name in ("zkeep", "zfs", "zpool"):
        if name == "zkeep" and rest[:1] == ["pool"]:
            name, rest = "zpool", rest[1:]
        return judge(name, rest, access)
    # `sh -c LINE`, and nothing else of a shell: the line is parsed as the whole one was.
    if name in _SHELLS and rest[:1] == ["-c"] and len(rest) == 2:
        if depth >= DEEPEST:
            raise CannotParse("too many shells in one another")
        return parse(unframed(rest[1]))
    if name in PROBES:
        return PROBES[name](rest)
    raise Denied(f"{shown_name(name)}: permission denied: only zkeep, zfs and zpool are here")


# Probes


def _echo(words: Sequence[str]) -> Say:
    lines = words[1:] if words[:1] == ["-n"] else words
    text = " ".join(lines)[:_LONGEST_PRINT]
    return Say(text if words[:1] == ["-n"] else f"{text}\n")


def _printf(words: Sequence[str]) -> Say:
    """A format with `%s` and `\\n` alone."""
    if not words:
        raise CannotParse("printf needs a format")
    text, *values = words
    parts = text.replace("\\n", "\n").split("%s")
    if any("%" in part for part in parts):
        raise CannotParse(f"the format {shown(text)} is not understood")
    # As many values as there are `%s`: missing ones are empty, as for a shell, and more are dropped.
    filled = [*values, *[""] * len(parts)][: len(parts) - 1]
    return Say("".join(part + value for part, value in zip(parts, [*filled, ""], strict=True))[:_LONGEST_PRINT])


def _exit(words: Sequence[str]) -> Say:
    return Say(status=int(words[0]) if words and re.fullmatch(r"[0-9]{1,2}", words[0]) else 0)


def _which(words: Sequence[str]) -> Say:
    """`command -v X`, `which X`"""
    names = [word for word in words if not word.startswith("-")]
    found = [f"/usr/bin/{_base(name)}\n" for name in names if _is_there(_base(name))]
    return Say("".join(found), 0 if found and len(found) == len(names) else 1)


def _is_there(name: str) -> bool:
    return name in ("zkeep", "zfs", "zpool", "sh", "sudo", "env") or name in PROBES or available(name)


def _command(words: Sequence[str]) -> Say:
    return _which(words) if words[:1] == ["-v"] else Say(status=127)


def _uname(words: Sequence[str]) -> Say:
    """Tools read the first word."""
    return Say("Linux zkeep 6.0 zkeep GNU/Linux\n" if "-a" in words else "Linux\n")


def _getconf(words: Sequence[str]) -> Say:
    known = {"_NPROCESSORS_ONLN": "2", "NPROCESSORS_ONLN": "2", "ARG_MAX": "131072"}
    found = known.get(words[0]) if len(words) == 1 else None
    return Say(f"{found}\n") if found else Say(status=1)


PROBES: dict[str, Callable[[Sequence[str]], Say | Receives]] = {
    "echo": _echo,
    "printf": _printf,
    "exit": _exit,
    "true": lambda words: Say(),
    ":": lambda words: Say(),
    "false": lambda words: Say(status=1),
    "command": _command,
    "which": _which,
    "uname": _uname,
    "getconf": _getconf,
    "ps": lambda words: Receives(),
}


# Filters


def _filters(commands: Sequence[Command], known: dict[str, dict[tuple[str, ...], str]]) -> list[Filter]:
    found = []
    for command in commands:
        name, *rest = _plain(command.words)
        found.append(_buffer(name, rest) if name in ("mbuffer", "pv") else _packing(name, rest, known))
    return found


def _packing(name: str, rest: Sequence[str], known: dict[str, dict[tuple[str, ...], str]]) -> Filter:
    # Levels and numbers of threads (-9, -T4, --fast) do not matter to what is read or written.
    letters = tuple(sorted(word for word in rest if not re.fullmatch(r"-(?:[0-9]{1,2}|T[0-9]{1,2}|-fast)", word)))
    packing = known.get(name, {}).get(letters)
    if packing is None or not available(name):
        raise Denied(f"{shown_name(name)}: permission denied: it is not among the programs that a stream may pass here")
    return Filter(packing)


def _buffer(name: str, rest: Sequence[str]) -> Filter:
    """What mbuffer or pv does to a stream: only their limit of the rate matters here."""
    rate, words = 0, list(rest)
    while words:
        word = words.pop(0)
        # `-m 512M` and `-m512M` are the same.
        letter, value = (word[:2], word[2:]) if len(word) > 2 else (word, "")
        if letter in ("-s", "-m", "-r", "-R", "-L", "-P", "-B", "-N"):
            value = value or (words.pop(0) if words else "")
            rate = _rate(value) if letter in ("-r", "-R", "-L") else rate
        elif not re.fullmatch(r"-[qbptreaW0-9]+", word):
            raise Denied(f"{name}: permission denied: {shown(word)} is not understood here")
    return Filter("", rate)


def _rate(text: str) -> int:
    try:
        return parse_size(text.upper())
    except ValueError:
        raise CannotParse(f"{shown(text)} is not a rate") from None
