"""A verb's help as a manual page in roff, made from the same texts.

Source: man-pages(7), man(7).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from zkeep import __version__
from zkeep.cli.common import usage

_STATUS = (
    ("0", "Done."),
    ("1", "Refused or failed with nothing changed."),
    ("2", "Wrong usage."),
    ("3", "The pool's own data is damaged."),
    ("4", "Not authentic."),
    ("5", "Try again: busy, interrupted, or the peer is gone."),
)


def page(ctx: click.Context) -> str:
    """All of the page."""
    name = ctx.command_path.replace(" ", "-")
    parts = [
        f'.TH {_text(name.upper())} 1 "" "zkeep {__version__}" "User Commands"',
        f".SH NAME\n{_text(name)} \\- {_text(_summary(ctx))}",
        ".SH SYNOPSIS",
        *_synopsis(ctx),
        ".SH DESCRIPTION",
        *_body(ctx),
        *_options(ctx),
        *_verbs(ctx),
        ".SH EXIT STATUS",
        *(f".TP\n.B {status}\n{_text(what)}" for status, what in _STATUS),
        ".SH SEE ALSO",
        ".BR zkeep (1), zfs (8), zpool (8)",
    ]
    return "\n".join(parts) + "\n"


def _text(text: str) -> str:
    """Escape what roff would take for its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", escaped, flags=re.MULTILINE)


def _summary(ctx: click.Context) -> str:
    return ctx.command.get_short_help_str(10_000).rstrip(".")


def _synopsis(ctx: click.Context) -> Iterator[str]:
    if isinstance(ctx.command, click.Group):
        yield f".B {_text(ctx.command_path)}\n.I VERB\n[argument] ..."
        return
    above = ctx.parent.command_path if ctx.parent else ""
    for at, line in enumerate(usage.lines(ctx.command, ctx.info_name or "", ctx.parent)):
        yield from [".br"] if at else []
        verb, _, rest = line.partition(" ")
        yield f".B {_text(f'{above} {verb}'.strip())}\n{_text(rest)}".rstrip()


def _body(ctx: click.Context) -> Iterator[str]:
    """Paragraphs as they are; those marked with a backspace keep their lines."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(ctx.command.help or "")):
        if paragraph.startswith("\b"):
            yield f".PP\n.nf\n{_text(paragraph[2:])}\n.fi"
        else:
            yield f".PP\n{_text(paragraph)}"


def _options(ctx: click.Context) -> Iterator[str]:
    records = [p.get_help_record(ctx) for p in ctx.command.get_params(ctx)]
    if found := [record for record in records if record]:
        yield ".SH OPTIONS"
        yield from _items(found)


def _verbs(ctx: click.Context) -> Iterator[str]:
    command = ctx.command
    if isinstance(command, click.Group):
        yield ".SH VERBS"
        known = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        yield from _items([(name, verb.get_short_help_str(10_000)) for name, verb in known if verb])


def _items(records: list[tuple[str, str]]) -> Iterator[str]:
    for term, what in records:
        yield f".TP\n.B {_text(term)}\n{_text(what)}"
