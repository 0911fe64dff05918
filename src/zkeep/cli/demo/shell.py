"""Runs zkeep's own verbs in this process, streams and all, and shows them: what `zkeep demo` is played on."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from zkeep.cli.common.text import nice_bytes, safe
from zkeep.errors import Damaged

if TYPE_CHECKING:
    from rich.console import Console

SOURCE, SERVER = "source#", "server$"
"""The prompts: of the machine with ZFS, and of ours."""
INDENT = 10


class Outcome(NamedTuple):
    status: int
    out: bytes
    err: str


def call(command: str, content: bytes = b"") -> Outcome:
    """Run `zkeep COMMAND` with these bytes as standard input."""
    from zkeep.cli.main import run

    with ExitStack() as stack:
        source, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        source.write(content)
        source.seek(0)
        with _plumbed(source, out, err):
            status = run(shlex.split(command))
        out.seek(0)
        err.seek(0)
        return Outcome(status, out.read(), err.read().decode(errors="replace"))


@contextmanager
def _plumbed(source: IO[bytes], out: IO[bytes], err: IO[bytes]) -> Iterator[None]:
    """The process's descriptors 0, 1, 2 are these files, and so are Python's own three."""
    kept, stdin = [os.dup(fd) for fd in range(3)], sys.stdin
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        # Verbs write streams to descriptor 1 and text to sys.stdout: both must lead to the same files.
        for fd, file in enumerate((source, out, err)):
            os.dup2(file.fileno(), fd)
        with (
            open(0, closefd=False) as sys.stdin,
            open(1, "w", encoding="utf-8", closefd=False) as text,
            open(2, "w", encoding="utf-8", closefd=False) as errors,
            redirect_stdout(text),
            redirect_stderr(errors),
        ):
            yield
    finally:
        sys.stdin = stdin
        for fd, before in enumerate(kept):
            os.dup2(before, fd)
            os.close(before)


@dataclass
class DemoShell:
    """Shows commands, runs them, compares what they give. The first thing that is not as it must be raises Damaged."""

    console: Console
    folder: Path
    scenes: int = 0
    compared: int = 0
    """Bytes."""
    prompt: str = SERVER
    """The prompt of the machine on which commands run."""
    noted: int = 0
    """A figure that a scene leaves for a later one."""

    def title(self, text: str) -> None:
        self.scenes += 1
        self.console.print(f"\n[bold cyan]{self.scenes}[/] [bold]{text}[/]")

    def elsewhere(self, command: str) -> None:
        """What was done on the machine with ZFS."""
        self._command(SOURCE, "yellow", command, "")

    def run(self, command: str, answers: str = "", content: bytes = b"", *, show: bool = True, runs: str = "") -> bytes:
        """Run a command; `answers`: the command of zfs(8) or zpool(8) that it stands for; `runs`: only this part."""
        self._command(self.prompt, "green", f"zkeep {command}", answers)
        outcome = self.quietly(runs or command, content)
        if show:
            self._print(outcome.err + outcome.out.decode())
        return outcome.out

    def refused(self, command: str, content: bytes) -> None:
        """Run a command that must fail and change nothing."""
        self._command(self.prompt, "green", f"zkeep {command}", "")
        outcome = call(command, content)
        self._print(outcome.err, "red")
        if outcome.status != 1:
            raise Damaged(f"demo: zkeep {command}: exit status {outcome.status} where 1 was due")

    def quietly(self, command: str, content: bytes = b"") -> Outcome:
        outcome = call(command, content)
        if outcome.status:
            raise Damaged(f"demo: zkeep {command}: exit status {outcome.status}: {outcome.err.strip()}")
        return outcome

    def passed(self, text: str) -> None:
        self.console.print(f"{' ' * (INDENT - 2)}[bold green]✓[/] {text}")

    def compare(self, made: bytes, wanted: bytes, what: str) -> None:
        """Raises Damaged at the first byte that differs."""
        if made != wanted:
            pairs = enumerate(zip(made, wanted, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(made), len(wanted)))
            raise Damaged(f"demo: what was sent differs from {what} at byte {at}")
        self.compared += len(made)
        self.passed(f"{nice_bytes(len(made))} equal to {what}")

    def _command(self, prompt: str, colour: str, command: str, answers: str) -> None:
        from rich.text import Text

        width = max(self.console.width - max(INDENT, len(prompt) + 3) - 2, 40)
        lines = f" \\\n{' ' * INDENT}".join(textwrap.wrap(command, width, break_on_hyphens=False))
        weight = "" if prompt == SOURCE else "bold"
        self.console.print(Text.assemble("  ", (prompt, colour), " ", (lines, weight)))
        if answers:
            self.console.print(Text(f"{' ' * INDENT}with ZFS: {answers}", "dim"))

    def _print(self, text: str, style: str = "") -> None:
        from rich.padding import Padding
        from rich.text import Text

        for line in text.splitlines():
            self.console.print(Padding(Text(safe(line.expandtabs(4)), style), (0, 0, 0, INDENT), expand=False))
