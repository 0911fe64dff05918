"""How each verb is called, in zfs's notation, and what is said of verbs that are not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from zkeep.cli.common import zfs_options
from zkeep.errors import Refused
from zkeep.names import shown, whole_number

if TYPE_CHECKING:
    _Number = click.ParamType[int]
else:  # click before 8.2 has no type arguments
    _Number = click.ParamType

GROUPS = ("pool", "key")
"Verbs that have verbs of their own."
_NAMES_PATH = re.compile(r"\b(DEST|DIR|FILE|IMAGE|KEYFILE|KEYLOCATION|PATH|SHEET|SRC|STREAM)\b")
"In what stands for a value in the usage of a verb: it may be a path."
ALIASES = {"recv": "receive", "snap": "snapshot", "umount": "unmount"}
_RECEIVE = "receive [-vMnsFhu] [-o <property>=<value>] ... [-x <property>] ..."
USAGE = {
    "change-key": (
        "change-key [-l] [-o keyformat=<value>] [-o keylocation=<value>] [-o pbkdf2iters=<value>] <filesystem|volume>",
        "change-key -i [-l] <filesystem|volume>",
    ),
    "destroy": (
        "destroy [-fnpRrv] <filesystem|volume>",
        "destroy [-dnpRrv] <filesystem|volume>@<snap>[%<snap>][,...]",
        "destroy [-n] <filesystem|volume>#<bookmark>",
    ),
    "load-key": ("load-key [-rn] [-L <keylocation>] [--lifetime <time>] <-a | filesystem|volume>",),
    "receive": (
        f"{_RECEIVE} <filesystem|volume|snapshot>",
        f"{_RECEIVE} [-d | -e] <filesystem>",
        "receive -A <filesystem|volume>",
    ),
    "rollback": ("rollback [-rRf] <snapshot>",),
    "send": (
        "send [-DLPbcehnpsVvw] [--received-name] [--newest-key] [-i|-I snapshot]"
        " [-R [-X dataset[,dataset]...]] <snapshot>",
        "send [-DnVvPLecw] [-i snapshot|bookmark] <snapshot>",
        "send [-nVvPe] -t <receive_resume_token>",
    ),
    "unload-key": ("unload-key [-r] <-a | filesystem|volume>",),
}
"Calls that exclude one another, for verbs where one line of letters would not say so."

ABSENT = {
    "allow": "there are no users here to delegate to; give each client an ssh key of its own (command=), or a pool",
    "groupspace": "who owns what is encrypted; ask on the host that has the key and ZFS",
    "jail": "nothing is mounted into jails here",
    "program": "channel programs run in the kernel module, and there is none; give the verbs one by one",
    "project": "who owns what is set where files are written; set projects on the sending side",
    "projectspace": "who owns what is encrypted; ask on the host that has the key and ZFS",
    "redact": "what is redacted is chosen by reading files, and no key is here; make the bookmark on the sending side",
    "rewrite": "blocks stay as they came; rewrite on the sending side and send the next increment",
    "share": "nothing is mounted here that could be shared; mount a snapshot with 'zkeep mount' and share that folder",
    "unallow": "there are no users here to delegate to",
    "unjail": "nothing is mounted into jails here",
    "unshare": "nothing is shared here",
    "unzone": "nothing is mounted into zones here",
    "upgrade": "a dataset keeps the version with which it was sent; pools are brought up with 'zkeep pool upgrade'",
    "userspace": "who owns what is encrypted; ask on the host that has the key and ZFS",
    "wait": "nothing goes on in the background: each verb ends when its work is done",
    "zone": "nothing is mounted into zones here",
}
"Verbs of zfs(8) that make no sense here, or need what is not here: why, and the way out."

_FOLDER = "a pool is a folder and has no devices"
ABSENT_POOL = {
    "add": f"{_FOLDER}; give the file system below it more room",
    "attach": f"{_FOLDER}; keep a second copy with 'zkeep send | zkeep receive' into another pool",
    "checkpoint": "there is none to go back to; holds keep snapshots: 'zkeep hold'",
    "clear": "errors go when a scrub finds none: 'zkeep pool scrub'",
    "ddtprune": "nothing is deduplicated here",
    "detach": _FOLDER,
    "events": "no kernel module logs events here; 'zkeep pool status -v' lists what the last scrub found",
    "history": "see 'zkeep history': what clients of 'zkeep server' did",
    "initialize": _FOLDER,
    "iostat": f"{_FOLDER}; ask iostat(1) about the disk below it",
    "labelclear": _FOLDER,
    "offline": _FOLDER,
    "online": _FOLDER,
    "prefetch": "nothing is deduplicated here",
    "reguid": "the guid is what a pool is known by",
    "remove": _FOLDER,
    "reopen": _FOLDER,
    "replace": f"{_FOLDER}; copy the folder and 'zkeep pool import' it",
    "resilver": f"{_FOLDER}; 'zkeep pool scrub' verifies it, and what is damaged must be sent again",
    "set": "pools have no properties to set; those of its top dataset are set with 'zkeep set PROPERTY=VALUE POOL'",
    "split": _FOLDER,
    "sync": "what a verb has done is on the disk when it ends",
    "trim": f"{_FOLDER}; 'zkeep pool compact' gives its space back to the file system below",
    "version": "see 'zkeep version'",
    "wait": "nothing goes on in the background: each verb ends when its work is done",
}
"The same for zpool(8)."


class AbsentOption(click.UsageError):
    """An option of zfs's that is not here; the message says why, and what to do instead."""


def group_of(parent: click.Context | None) -> str:
    """The group of a verb, as `pool`; empty for verbs of zfs(8)."""
    name = parent.command.name if parent is not None else None
    return name if name in GROUPS else ""


def lines(command: click.Command, name: str, parent: click.Context | None = None) -> list[str]:
    """How `name` is called, without what is typed before it: one line for each way."""
    known = ALIASES.get(name, name)
    if known in USAGE and not group_of(parent):
        first, *others = USAGE[known]
        return [name + line.removeprefix(known) for line in (_with_letters(first, command, known), *others)]
    return [f"{name} {_parameters(command)}".rstrip()]


def _with_letters(line: str, command: click.Command, known: str) -> str:
    """The first way of a call, with the letters of the command that none of them names."""
    named = set("".join(re.findall(r"(?<![\w-])-([A-Za-z]+)", " ".join(USAGE[known]))))
    more = "".join(letter for letter in _letters(command) if letter not in named)
    return re.sub(r"\[-([A-Za-z]+)\]", rf"[-\g<1>{more}]", line, count=1)


def _letters(command: click.Command) -> str:
    """The options of a command that take no value."""
    options = [p for p in command.params if isinstance(p, click.Option) and not isinstance(p, zfs_options.Accepted)]
    flags = [p for p in options if p.is_flag and not p.hidden]
    return "".join(opt[1] for p in flags for opt in p.opts[:1] if not opt.startswith("--"))


def _parameters(command: click.Command) -> str:
    """`[-nv] [--force] [-o P=V] ... NAME...`, as the options are declared."""
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    letters = _letters(command)
    words = [f"[-{letters}]"] if letters else []
    words += [f"[{p.opts[0]}]" for p in options if p.is_flag and p.opts[0].startswith("--")]
    # Options with a value, then arguments: brackets mean that one may be left out.
    for option in options:
        if not option.is_flag:
            words.append(f"[{option.opts[0]} {option.metavar or 'VALUE'}]" + (" ..." if option.multiple else ""))
    for argument in command.params:
        if isinstance(argument, click.Argument):
            metavar = argument.metavar or (argument.name or "").upper()
            words.append(metavar if argument.required or metavar.startswith("[") else f"[{metavar}]")
    return " ".join(words)


class VerbGroup(click.Group):
    """Verbs that say in zfs's notation how they are called; and for those that are not there, why, or what is meant."""

    absent: Mapping[str, str] = {}

    def elsewhere(self) -> Sequence[str]:
        """Verbs that one may look for here, as they are typed."""
        return ()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        command = super().get_command(ctx, name)
        return with_usage(command, name) if command else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.get_short_help_str(10_000)) for name, verb in known if verb])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        # A verb of zfs that cannot be here: say why.
        if name in self.absent:
            raise Refused(f"cannot {name}: {self.absent[name]}")
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            # 'zkeep scrub' is meant for 'zkeep pool scrub'; else the nearest spelling.
            near = [verb for verb in self.elsewhere() if verb.split(" ")[-1] == name]
            meant = f" (did you mean '{near[0]}'?)" if near else hint(name, self.list_commands(ctx))
            raise click.UsageError(f"there is no verb {shown(name)}{meant}", ctx)
        return super().resolve_command(ctx, args)


def with_usage(command: click.Command, name: str) -> click.Command:
    """The verb, whose help and errors say how it is called."""
    if not isinstance(command, click.Group):
        command.format_usage = partial(_write, command, name)  # type: ignore[method-assign]
        command.make_context = partial(_make_context, command)  # type: ignore[method-assign]
    return command


def _write(command: click.Command, name: str, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """The head of a verb's help."""
    above = ctx.parent.command_path if ctx.parent else ""
    for at, line in enumerate(lines(command, name, ctx.parent)):
        formatter.write_usage(above, line, "Usage: " if at == 0 else "   or: ")


def _make_context(
    command: click.Command, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
) -> click.Context:
    """Like click's own, but parse errors know which verb was called, and why it has not all options of zfs's."""
    given = list(args)
    try:
        made = type(command).make_context(command, info_name, args, parent, **extra)
        _refuse_empty_paths(command, given, made)
        return made
    except click.UsageError as error:
        ctx = error.ctx or click.Context(command, parent, info_name)
        verb = " ".join(filter(None, (group_of(parent), ALIASES.get(info_name or "", info_name))))
        if isinstance(error, click.NoSuchOption) and (why := zfs_options.reason(verb, error)):
            raise AbsentOption(f"cannot {verb} {error.option_name}: {why}", ctx) from None
        error.ctx = ctx
        raise


def _refuse_empty_paths(command: click.Command, given: list[str], ctx: click.Context) -> None:
    """An empty path is mostly a variable that was never set. It must not stand for this folder, or for everything."""
    if not any(word == "" or word.endswith("=") for word in given):
        return
    # As they were written: a Path of nothing is that of this folder.
    raw, _, _ = command.make_parser(ctx).parse_args(given)
    for param in command.get_params(ctx):
        values = raw.get(param.name or "")
        is_path = isinstance(param.type, click.Path) or _NAMES_PATH.search(param.metavar or (param.name or "").upper())
        if is_path and (values == "" or (isinstance(values, list | tuple) and "" in values)):
            raise click.BadParameter("it is empty", ctx, param)


def missing(message: str) -> click.UsageError:
    """An error that tells how the verb that runs is called."""
    return click.UsageError(message, click.get_current_context())


class WholeNumber(_Number):
    """A number in decimal digits, from `least` to `most`: not all that int() takes is one for a person."""

    name = "number"

    def __init__(self, least: int = 0, most: int = 1 << 31) -> None:
        self._least, self._most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else whole_number(str(value), self._most, self._least)
        except ValueError:
            self.fail(f"{shown(str(value))} is not a whole number from {self._least} to {self._most}", param, ctx)


def of_error(error: click.UsageError) -> list[str]:
    """All ways to call the verb that was called wrongly; none where no verb is known."""
    ctx = error.ctx
    if ctx is None or ctx.parent is None or isinstance(ctx.command, click.Group):
        return []
    return lines(ctx.command, ctx.info_name or "", ctx.parent)


def hint(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'list'?)` where something known is written alike, else nothing."""
    found = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{found[0]}'?)" if found else ""
