"""zkeep completion: what a shell needs in order to complete verbs, options and names.

The script that a shell reads calls zkeep again with _ZKEEP_COMPLETE set; main.py hands that to answer().
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from zkeep.errors import ZkeepError

VARIABLE = "_ZKEEP_COMPLETE"
SHELLS = ("bash", "fish", "zsh")
_WHOLE_WORDS = "COMP_WORDBREAKS=${COMP_WORDBREAKS//[@:]/}  # names of snapshots and properties are one word\n"
_FILES = ("cat", "dump", "extract", "ls", "mount", "verify")
"Verbs whose arguments may be files, too."


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_verb(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete verbs, options, and the names of pools, datasets and snapshots.

    \b
        zkeep completion bash > ~/.local/share/bash-completion/completions/zkeep
        zkeep completion zsh > ~/.zfunc/_zkeep
        zkeep completion fish > ~/.config/fish/completions/zkeep.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    top = ctx.find_root().command
    script = ShellComplete.source(kind(top, {}, "zkeep", VARIABLE))  # past bash's own, which runs a bash to ask it
    click.echo((_WHOLE_WORDS if shell == "bash" else "") + script)


def answer(cli: click.Command, instruction: str) -> int:
    """Print what completes the words that the shell passes in the environment; the exit status."""
    shell, _, what = instruction.partition("_")
    kind = get_completion_class(shell)
    if kind is None or what != "complete":
        return 1
    # click knows verbs and options; names of datasets come from the pools.
    completer = kind(cli, {}, "zkeep", VARIABLE)
    words, incomplete = completer.get_completion_args()
    items = completer.get_completions(words, incomplete)
    plain = items and items[0].type != "plain"
    # Files are completed by the shell; names go before them.
    if (not items or plain) and not incomplete.startswith("-"):
        items = [*_names(words, incomplete), *items]
    for item in items:
        click.echo(completer.format_completion(item))
    return 0


def _names(words: list[str], incomplete: str) -> Iterator[CompletionItem]:
    """Pools after `pool VERB`, else datasets, or the snapshots or bookmarks of one once its name is there."""
    from zkeep.cli.common.pools import registry

    if not words:
        return
    with suppress(ZkeepError, OSError):
        found = list(registry().pools()) if words[0] == "pool" else list(_in_pools(incomplete))
        yield from (CompletionItem(name) for name in found if name.startswith(incomplete))
    if words[0] in _FILES and "/" not in incomplete and os.path.isdir("."):
        yield from (CompletionItem(name) for name in sorted(os.listdir()) if name.startswith(incomplete))


def _in_pools(incomplete: str) -> Iterator[str]:
    from zkeep.cli.common.pools import opened, registry

    for pool in registry().pools():
        with suppress(ZkeepError, OSError), opened(pool) as found:
            for dataset in found.tree().by_name.values():
                name = dataset.name.text
                if incomplete.startswith(f"{name}@"):
                    yield from (str(s.name) for s in found.snapshots(dataset))
                elif incomplete.startswith(f"{name}#"):
                    yield from (str(b.name) for b in found.bookmarks(dataset))
                else:
                    yield name
