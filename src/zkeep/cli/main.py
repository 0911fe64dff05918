"""The command `zkeep`: verbs, one file a group, loaded when used; every failure is one line and a status."""

from __future__ import annotations

import gc
import os
import re
import sys
from importlib import import_module

import click

from zkeep.cli.common import as_zfs, usage
from zkeep.cli.common.signals import interrupting
from zkeep.cli.common.terminal import explained, fill_closed_streams, guarded, program, say, settle
from zkeep.errors import Interrupted, TryAgain, ZkeepError

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
"Read where numpy is imported: its threads for linear algebra would start, spin and have nothing to do."
gc.set_threshold(10_000, 10, 10)
"What is imported stays: looking through it for garbage after every 700 objects is a twentieth of a short command."

VERBS = {
    "backup": ("backup.backup", "Back up a folder: encrypted here, sent there, only what changed."),
    "bookmark": ("namespace", "Name a snapshot's place in time, which outlives the snapshot."),
    "cat": ("files", "Write files of a snapshot to standard output."),
    "change-key": ("keys.changekey", "Change the key that opens datasets."),
    "clone": ("clone", "Make a dataset of a snapshot, to be written to."),
    "completion": ("help.completion", "Print what makes a shell complete verbs and names."),
    "create": ("namespace", "Create a dataset: a place to receive into, or an encrypted one to fill here."),
    "demo": ("demo.demo", "Play the life of a backup server, with real streams."),
    "destroy": ("destroy", "Destroy datasets, snapshots or a bookmark."),
    "diff": ("diff", "Show what changed between two snapshots."),
    "dump": ("dump", "Print what a send stream holds, record by record."),
    "encrypt": ("encrypt", "Read a plain send stream, write it encrypted, as a raw one."),
    "extract": ("extract", "Extract files of a snapshot."),
    "forget-keys": ("keys.load", "Drop old keys for good."),
    "get": ("get", "Show properties."),
    "health": ("health.health", "Say what is late, damaged, unwritable, full or unverified."),
    "help": ("help.help", "Tell how zkeep, or one of its verbs, is called."),
    "history": ("server.history", "Show what clients of a server did."),
    "hold": ("holds", "Protect snapshots from being destroyed."),
    "holds": ("holds", "List the holds of snapshots."),
    "inherit": ("settings", "Forget a property's own value."),
    "key": ("keys.key", "Keep a key on paper, and bring it back from there."),
    "list": ("list", "List datasets, snapshots and bookmarks."),
    "load-key": ("keys.load", "Load keys, so that datasets can be opened."),
    "ls": ("files", "List the files of a snapshot."),
    "metrics": ("health.metrics", "Print the health of pools for Prometheus."),
    "mount": ("mount.mount", "Work in a dataset as a folder, look into a snapshot, or list what is mounted."),
    "pool": ("pool.pool", "Create, find, check and remove pools."),
    "promote": ("namespace", "Make a clone independent of its origin."),
    "prune": ("prune", "Destroy the snapshots that retention does not keep."),
    "receive": ("receive", "Store the send stream on standard input."),
    "recv": ("receive", "The same as receive."),
    "release": ("holds", "Remove holds from snapshots."),
    "rename": ("namespace", "Rename a dataset or a snapshot."),
    "restore": ("backup.restore", "Bring files or a dataset back from where their backups are."),
    "rollback": ("rollback", "Drop all that is newer than a snapshot."),
    "schedule": ("backup.schedule", "Let a backup run by itself."),
    "send": ("send", "Write a send stream to standard output."),
    "server": ("server.server", "Serve one ssh key: its roles, on its datasets."),
    "set": ("settings", "Set properties."),
    "shim": ("shim", "Install programs zfs and zpool that are zkeep."),
    "snap": ("snapshot", "The same as snapshot."),
    "snapshot": ("snapshot", "Take a snapshot: of a folder, or of the state that is there."),
    "unload-key": ("keys.load", "Forget loaded keys."),
    "umount": ("mount.unmount", "The same as unmount."),
    "unmount": ("mount.unmount", "Take away what is mounted."),
    "verify": ("verify", "Authenticate all of a snapshot with its key."),
    "version": ("help.version", "Tell which zkeep this is."),
}
"The module below zkeep.cli that has each verb, and its line in the overview."
CHANGING = frozenset(
    {"backup", "bookmark", "change-key", "clone", "create", "destroy", "forget-keys", "hold", "inherit", "load-key"}
    | {"mount", "promote", "prune", "receive", "recv", "release", "rename", "restore", "rollback", "set", "snap"}
    | {"snapshot", "umount", "unload-key", "unmount"}
    | {f"pool {name}" for name in ("compact", "create", "destroy", "export", "scrub", "upgrade")}
)
"Verbs that only tell on standard output of what they do: it is done whether or not that can be written."
DRY_RUN = re.compile(r"--dry-run|-[A-Za-z]*n[A-Za-z]*")
RINGS = 1 << 16
"Objects that are made before Python looks for rings among them: there are millions of objects, and hardly any ring."


class Verbs(usage.VerbGroup):
    """Loads a verb's module when the verb is called, so that none pays for another's imports."""

    absent = usage.ABSENT

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *self.extra()]

    def extra(self) -> list[str]:
        return sorted(self.commands)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return self.commands.get(name)
        module = import_module(f"zkeep.cli.{VERBS[name][0]}")
        command: click.Command = getattr(module, f"{usage.ALIASES.get(name, name).replace('-', '_')}_verb")
        return usage.with_usage(command, name)

    def elsewhere(self) -> list[str]:
        from zkeep.cli.keys.key import key_verb
        from zkeep.cli.pool.pool import pool_verb

        return [f"{group.name} {name}" for group in (pool_verb, key_verb) for name in group.commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from zkeep.cli.help.version import version_text  # a fifth of a short command's time

        click.echo(version_text(ctx.info_name or ""))
        ctx.exit()


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 10_000}
"Help is as wide as the terminal."


@click.group(cls=Verbs, context_settings=SETTINGS)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Keep encrypted OpenZFS backups on a machine that can never decrypt them.

    Back up a folder to a server, and bring it back:

    \b
        zkeep backup ~/Documents ssh://server/vault/docs
        zkeep restore ssh://server/vault/docs -C ~/restored

    Where ZFS is, verbs take what the same verbs of zfs(8) take:

    \b
        zkeep pool create vault ~/vault
        zfs send -Rw tank/home@monday | zkeep receive vault/home
        zkeep list -t all
        zkeep send -Rw vault/home@monday | zfs receive tank/restored

    Exit status: 0 done, 1 refused or failed with nothing changed, 2 wrong usage, 3 the pool's own data is
    damaged, 4 not authentic, 5 try again.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run and exit."""
    gc.set_threshold(RINGS)
    fill_closed_streams()
    status = run(arguments)
    settle()
    gc.freeze()  # else the interpreter looks for garbage in all that was imported once more: a tenth of a short command
    sys.exit(status)


def run(arguments: list[str] | None = None) -> int:
    """The exit status: ours, or one that zfs has where it goes by that name."""
    return _as_called(_run(arguments))


def call(called: str, words: list[str]) -> int:
    """Run a verb within another one, as the program `called`; returns its exit status."""
    before, sys.argv[0] = sys.argv[0], called
    try:
        with guarded(matters=answers(words)):
            return _as_called(_called(words))
    finally:
        sys.argv[0] = before


def report(called: str, error: BaseException) -> int:
    """Say what went wrong, as the program `called` does; returns its exit status."""
    before, sys.argv[0] = sys.argv[0], called
    try:
        return _as_called(_report(error))
    finally:
        sys.argv[0] = before


def _as_called(status: int) -> int:
    return status if program() == "zkeep" else as_zfs.status(status)


def _run(arguments: list[str] | None = None) -> int:
    """The exit status; whatever goes wrong is one line on standard error."""
    if instruction := os.environ.get("_ZKEEP_COMPLETE"):
        from zkeep.cli.help.completion import answer

        return answer(cli, instruction)
    words = list(sys.argv[1:] if arguments is None else arguments)
    with guarded(matters=answers(words)):
        return _stoppable(words)


def answers(words: list[str]) -> bool:
    """Whether a call is for what it writes to standard output: a question, a list, a dry run."""
    words = ["pool", *words] if program() == "zpool" else words
    name = " ".join(words[:2]) if words[:1] == ["pool"] else " ".join(words[:1])
    if name not in CHANGING or any(DRY_RUN.fullmatch(word) for word in words):
        return True
    return name == "mount" and all(word.startswith("-") for word in words[1:])  # what is mounted is listed


def _stoppable(words: list[str]) -> int:
    try:
        with interrupting():
            return _called(words)
    except KeyboardInterrupt as error:  # while the end was reported
        return _report(error)


def _called(words: list[str]) -> int:
    try:
        called = program()
        if called == "zpool" and words[:1] not in (["version"], ["--version"], ["help"]):
            words = ["pool", *words]
        with cli.make_context(called, words) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return int(context.meta.get("status", 0))
    except BaseException as error:
        if os.environ.get("ZKEEP_DEBUG") == "1":
            raise
        return _report(error)


def _report(error: BaseException) -> int:
    # A verb that ended itself has said all.
    if isinstance(error, SystemExit | click.exceptions.Exit):
        code = error.exit_code if isinstance(error, click.exceptions.Exit) else error.code
        return code if isinstance(code, int) else 1
    # The reader went away: that needs no message, but it was not done.
    if isinstance(error, BrokenPipeError):
        return TryAgain.status
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return 2
    # Everything else is one line and a status.
    text, status = _explain(error)
    say(text)
    # Tools that drive zfs look for its usage lines.
    if program() != "zkeep" and isinstance(error, click.UsageError):
        _say_usage(error)
    if isinstance(error, Interrupted):
        for line in error.advice:
            print(line, file=sys.stderr)
    return status


def _say_usage(error: click.UsageError) -> None:
    """Print the usage in lines of its own, as zfs does."""
    if calls := usage.of_error(error):
        print("usage:", *(f"\t{line}" for line in calls), sep="\n", file=sys.stderr)


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, ZkeepError):
        return str(error), error.status
    if isinstance(error, click.ClickException):
        return _explain_usage(error), 2
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", TryAgain.status
    if isinstance(error, OSError):
        return explained(error), 1
    if isinstance(error, MemoryError):
        return "out of memory", 1
    return f"unexpected {type(error).__name__}: {error}; ZKEEP_DEBUG=1 shows where", 1


def _explain_usage(error: click.ClickException) -> str:
    """The message of a usage error, with the usage line if an argument is missing."""
    text = error.format_message().rstrip(".")
    where = getattr(error, "ctx", None) or click.get_current_context(silent=True)
    command = where.command_path if where else "zkeep"
    if isinstance(error, usage.AbsentOption):
        return text
    calls = usage.of_error(error) if isinstance(error, click.UsageError) else []
    above = command.rpartition(" ")[0]
    ways = "; or ".join(f"{above} {line}" for line in calls)
    if calls:
        return f"{text}; usage: {ways}" if program() == "zkeep" else text
    return f"{text}; see '{command} --help'"
