"""zkeep help: what a verb does, on the screen or as a manual page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from zkeep.cli.common.named_files import replace_file
from zkeep.errors import WrongUsage


@click.command("help")
@click.option("--man", "as_man", is_flag=True, help="Print a manual page instead: zkeep help --man send | man -l -")
@click.option(
    "--man-pages", "folder", metavar="DIR", help="Write all manual pages (zkeep.1, zkeep-send.1, ...) to DIR."
)
@click.argument("words", nargs=-1, metavar="[VERB]")
@click.pass_context
def help_verb(ctx: click.Context, as_man: bool, folder: str | None, words: tuple[str, ...]) -> None:
    """Tell how zkeep, or one of its verbs, is called.

    \b
        zkeep help send
        zkeep help pool scrub
        zkeep help --man-pages ~/.local/share/man/man1
    """
    from zkeep.cli.help.manpage import page

    top = ctx.find_root()
    if folder is not None:
        if words or as_man:
            raise WrongUsage("--man-pages goes with nothing else: it writes those of all verbs")
        Path(folder).mkdir(parents=True, exist_ok=True)
        for each in _all(top):
            replace_file(Path(folder) / f"{each.command_path.replace(' ', '-')}.1", page(each).encode())
        return
    chosen = context_of(top, words)
    click.echo(page(chosen) if as_man else f"{chosen.get_help()}\n", nl=False)


def context_of(top: click.Context, words: tuple[str, ...]) -> click.Context:
    """The context in which the verb `words` would run; the program's own for no words."""
    for word in words:
        if not isinstance(top.command, click.Group):
            raise WrongUsage(f"{top.command_path} has no verbs of its own; see '{top.command_path} --help'")
        name, command, _ = top.command.resolve_command(top, [word])
        assert command is not None
        top = click.Context(command, top, name or word)
    return top


def _all(ctx: click.Context) -> Iterator[click.Context]:
    """Yield the program and every verb, each once."""
    yield ctx
    if isinstance(ctx.command, click.Group):
        for name in ctx.command.list_commands(ctx):
            if command := ctx.command.get_command(ctx, name):
                yield from _all(click.Context(command, ctx, name))
