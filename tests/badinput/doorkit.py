"""A server with two clients, and lines that a hostile client sends to it."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from badkit import Answer, Box, stream

import zkeep

ROOT = "v/alice"
CANARY = "/canary/key"
"""Nothing may ever open it."""
LZOP = ("/usr/bin/lzop", ["/usr/bin/lzop", "-dc"], None, {})
"""The one program that is run, where it is installed: with these words, in no environment (server/filters.py)."""
COMMANDS = (
    "zfs list -H -o name -t all v/alice",
    "zfs get -Hpd 1 -t snapshot guid,creation 'v/alice/home'",
    "zkeep list -r",
    "zfs receive -s -F 'v/alice/new' 2>&1",
    "mbuffer -q -s 128k -m 16M 2>/dev/null | lzop -dfc | zfs receive -s -F v/alice/home",
    "zstd -dc | zfs recv -u -x mountpoint -o readonly=on -v -s v/alice/home",
    "zfs send -w -i @s0 v/alice/home@s1 | gzip | mbuffer -q",
    "zkeep send -Rw v/alice/home@s1",
    "zfs destroy v/alice/home@s0; zfs destroy v/alice/home@s0,s1",
    "sudo -n zfs rollback -r v/alice/home@s0",
    "/usr/bin/env - zfs create -p -o readonly=on v/alice/a/b",
    "zfs hold tag v/alice/home@s0",
    "zfs release tag v/alice/home@s0",
    "zfs bookmark v/alice/home@s0 '#b'",
    "zfs rename v/alice/home v/alice/other",
    "zfs set a:b=c readonly=on v/alice/home",
    "zfs inherit -r readonly v/alice",
    "zfs promote v/alice/home",
    "zfs snapshot -r v/alice@now",
    "zpool get -H -p all v",
    "zpool list -Hp -o name,size,guid v",
    "command -v mbuffer",
    "echo -n",
    "exit",
    "ps -Ao args=",
    "sh -c 'PATH=$PATH:/usr/sbin:/sbin zfs recv -x 2>&1'",
    "if command -v echo > /dev/null; then printf 'echo\n'; fi; uname -a || true",
    "zfs mount v/alice",
    "zkeep holds -r v/alice/home@s0",
)
FRAGMENTS = (
    *("$(id)", "`id`", "$HOME", "${IFS}", ";id", "&&id", "||id", "|id", "&", "\n", "\nid\n", "\r", "\0", "\\"),
    *("'", '"', "''", "'x' "),
    *("*", "?", "[a]", "{a,b}", "~", "#", "!", ">", ">>x", "<", f"<{CANARY}", f">{CANARY}", f"2>{CANARY}", "<<EOF"),
    *("..", "/..", "../", "/", "//", "@", "#", "%", "=", "--", "-", " ", "\t", "\u202e", "é", "\ud800", "\x1b[31m"),
    *("v", "v/bob", "v/bob/secret", "v/bob/secret@s0", "v/alice/../bob", "w/x", "v/alice", "a" * 300),
    *(f"-o keylocation=file://{CANARY}", f"-o keylocation={CANARY}", f"-L file://{CANARY}", f"-L {CANARY}"),
    *(f"--from {CANARY}", f"--man-pages {CANARY}", f"-C {CANARY}", f"--exclude-from {CANARY}", f"-d {CANARY}"),
    *("-o blind=off", "-o quota=none", "-o encryption=on", "-o origin=v/bob/secret@s0", "-o mountpoint=/etc", "-F"),
    *("--append-only", "-R", "-r", "-t 1-c0ffee-0-00", "-n", "-V 1G", "--help", "--version", "-h"),
    *("zkeep extract", "zkeep mount", "zkeep cat", "zkeep verify", "zkeep load-key", "zkeep server --root v"),
    *("zkeep pool import", "zkeep pool create x", "zkeep dump", "zkeep demo", "zkeep completion", "zkeep snapshot"),
    *("sh -c", "bash", "env", "sudo", "PATH=", "LD_PRELOAD=x", "ZKEEP_HOME=/tmp", "python3 -c", "cat", "scp -t ."),
)


def mutated(chance: random.Random) -> str:
    """A line of a tool, in which something is inserted, cut out, replaced or repeated, up to five times."""
    line = chance.choice(COMMANDS)
    for _ in range(chance.randrange(5)):
        at, end = sorted(chance.randrange(len(line) + 1) for _ in range(2))
        if chance.random() < 0.5:  # between words more often than within one
            at = end = chance.choice([0, len(line), *(i for i, c in enumerate(line) if c == " ")])
        piece = chance.choice(FRAGMENTS)
        spaced = f" {piece} " if chance.random() < 0.6 else piece
        line = chance.choice(
            [
                line[:at] + spaced + line[at:],
                line[:at] + line[end:],
                line[:at] + spaced + line[end:],
                line[:end] + line[at:],
            ]
        )
    return line


@contextmanager
def watched(box: Box) -> Iterator[list[str]]:
    """The files that are opened, and the programs that are run, which have nothing to do with the pool."""
    found: list[str] = []
    allowed = (str(box.path.parent), os.devnull, *map(os.path.realpath, sys.path), sys.prefix, sys.base_prefix)
    ours = (str(Path(zkeep.__file__).parent), "/proc/", "/sys/", "/usr/share/zoneinfo", "/etc/localtime")
    _Watch.found = found
    _Watch.allowed = tuple(path for path in (*allowed, *ours) if path)
    try:
        yield found
    finally:
        _Watch.found = None


class _Watch:
    """Audit hooks cannot be taken away, so there is one, which looks only where a test wants it."""

    found: list[str] | None = None
    allowed: tuple[str, ...] = ()
    installed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _Watch.found is None:
        return
    if event == "subprocess.Popen" and arguments == LZOP:
        return
    if event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"):
        _Watch.found.append(f"{event} {arguments!r}")
    elif event in ("open", "sqlite3.connect", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove"):
        path = arguments[0]
        text = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        is_foreign = text.startswith("/") and not text.startswith(_Watch.allowed) and text != tempfile.gettempdir()
        if "canary" in text or is_foreign:
            _Watch.found.append(f"{event} {text}")


def install_watch() -> None:
    if not _Watch.installed:
        _Watch.installed = True
        sys.addaudithook(_hook)


class Door:
    """The pool `v` with the clients alice and bob; bob has what alice must not find."""

    def __init__(self, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
        self.box = box
        self._patch = monkeypatch
        for name in ("v/alice", "v/bob"):
            assert box.zkeep("create", name).status == 0
        box.takes(stream("rs512b", "full-s0"), "v/alice/home@s0")
        box.takes(stream("rs512b", "inc-s0-s1"), "v/alice/home@s1")
        box.takes(stream("rs1k", "full-s0"), "v/bob/secret@s0")
        box.takes(stream("rs1k", "inc-s0-s1"), "v/bob/secret@s1")
        assert box.zkeep("hold", "bobs", "v/bob/secret@s1").status == 0
        assert box.zkeep("bookmark", "v/bob/secret@s0", "#b").status == 0
        install_watch()

    def ask(self, line: str, *words: str, stdin: bytes = b"", allow: str = "receive,list") -> Answer:
        """What alice gets; `words`: more of the forced command."""
        with self._patch.context() as patch:
            # An environment takes no NUL and no lone surrogates; what the verb makes of them is tested all the same.
            patch.setattr(os, "environ", {**os.environ, "SSH_ORIGINAL_COMMAND": line})
            return self.box.zkeep("server", "--root", ROOT, "--allow", allow, *words, stdin=stdin)
