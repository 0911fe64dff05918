"""zkeep pool: create, import, export, list, status, scrub, compact, upgrade, destroy."""

from __future__ import annotations

import os
import pwd
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from zkeep.cli.common import asjson, text, usage
from zkeep.cli.common.output import OutputOptions, json_option, takes_output
from zkeep.cli.common.pools import note_settings, registry, unencrypted, wait
from zkeep.cli.common.terminal import say
from zkeep.cli.common.words import chosen_words
from zkeep.cli.common.zfs_options import accepted
from zkeep.cli.pool.properties import PoolProperty, chosen, find
from zkeep.errors import Damaged, Refused, TryAgain, WrongUsage, ZkeepError
from zkeep.names import DatasetName, parse_pool, shown
from zkeep.pool.datasets import destroyed, lifecycle, properties
from zkeep.pool.datasets.answers import Answer
from zkeep.pool.datasets.lifecycle import Status
from zkeep.pool.datasets.model import FORMAT, NotThere
from zkeep.pool.datasets.registry import Registry

_COLUMNS = "name,size,allocated,free,capacity,health,path"
_FIELDS = ("name", "property", "value", "source")


class PoolVerbs(usage.VerbGroup):
    absent = usage.ABSENT_POOL


@click.group("pool", cls=PoolVerbs, context_settings={"help_option_names": ["-h", "--help"]})
def pool_verb() -> None:
    """Create, find, check and remove pools.

    A pool is a folder that zkeep alone writes to. It is known by a name, the first part of its datasets'
    names, through a registry in ZKEEP_HOME (default: /var/lib/zkeep for root, else ~/.local/share/zkeep).

    \b
        zkeep pool create vault ~/vault
        zkeep pool status vault
    """


@pool_verb.command("create")
@click.option("-O", "-o", "options", multiple=True, metavar="P=V", help="Set a property of the top dataset.")
@click.argument("name")
@click.argument("path", type=click.Path(file_okay=False, path_type=Path))
def create(options: Sequence[str], name: str, path: Path) -> None:
    """Make a pool NAME in the folder PATH, which is empty or not there yet.

    \b
        zkeep pool create vault ~/vault
        zkeep pool create -O blind=off -O quota=2T lab /srv/lab
    """
    wanted = unencrypted(options, f"cannot create pool {shown(name)[1:-1]}")
    local = dict(properties.check(key, value, "f") for key, value in wanted.items())
    known = registry()
    destroyed.expire(known)
    with _explained(path, f"cannot create pool {name}"):
        destroyed.create(known, parse_pool(name), path, local)
    _note_made(known, name, local)


def _note_made(known: Registry, name: str, local: Mapping[str, str]) -> None:
    """Remember what was set here. The pool is there by now: what fails is a warning."""
    if not local:
        return
    try:
        with known.open(name, wait()) as pool:
            note_settings(pool, [DatasetName(name)], local)
    except (OSError, ZkeepError) as error:
        say(f"warning: {name} is created, but what was set here was not noted: {error}")


@contextmanager
def _explained(path: Path, cannot: str) -> Iterator[None]:
    """If this user may not make the folder, say who may, and where."""
    try:
        yield
    except PermissionError as error:
        at = error.filename or path
        way = f"choose a folder of yours, such as ~/{path.name}, or have root make it: install -d -o {_user()} {path}"
        raise Refused(f"{cannot}: {at}: {error.strerror}; {way}") from None


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


_LOOK = "The folder in which pools are looked for."


@pool_verb.command("import")
@click.option("-d", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR", help=_LOOK)
@click.option("-a", "everything", is_flag=True, help="Import all pools found in DIR.")
@click.option("-D", "buried", is_flag=True, help="Bring back destroyed pools, or list those that can be.")
@accepted("-f", why="a pool's folder is no device that another host may have in use")
@accepted("-N", "-m", why="nothing is mounted by it, and there are no log devices")
@click.argument("which", required=False, metavar="[PATH|NAME]")
@click.argument("name", required=False, metavar="[NEWNAME]")
def import_(
    *, folder: Path | None, everything: bool, buried: bool, which: str | None, name: str | None
) -> None:
    """Make a pool known that was made elsewhere or exported.

    PATH is the pool's folder; or NAME is looked for in DIR. Without either, the pools in DIR (default: the
    current folder) are listed. 'notify' and 'mountpoint' as they are set in the pool act only if they were set on this
    machine.

    \b
        zkeep pool import /mnt/disk/vault
        zkeep pool import -d /mnt/disk vault oldvault
        zkeep pool import -D vault
    """
    known = registry()
    # -D: pools that were destroyed, as long as their files are there.
    if buried:
        _import_destroyed(known, folder, everything, which, name)
        return
    place = folder or Path()
    # A path names the pool itself.
    if which and folder is None:
        lifecycle.adopt(known, Path(which), name)
        return
    found = lifecycle.importable(place)
    if which:
        paths = [path for path, called in found.items() if called == which]
        if len(paths) != 1:
            why = "there is none" if not paths else "there are several; give the path"
            raise Refused(f"cannot import {shown(which)[1:-1]}: {why} in {place}")
        lifecycle.adopt(known, paths[0], name or which)
    # Otherwise look through a folder: for one name, for all, or to list them.
    elif everything:
        new = {path: called for path, called in found.items() if path not in known.pools().values()}
        lifecycle.refuse_taken(known, list(new.values()))
        for path in new:
            lifecycle.adopt(known, path)
    else:
        rows = [[n, text.safe(str(p))] for p, n in found.items()]
        click.echo(text.table(["NAME", "PATH"], rows, [False] * 2), nl=False)


def _import_destroyed(
    known: Registry, folder: Path | None, everything: bool, which: str | None, name: str | None
) -> None:
    found = destroyed.known(known, folder)
    if not which and not everything:
        rows = [[p.name, str(p.path), text.date(p.at), text.date(p.until)] for p in found]
        click.echo(text.table(["NAME", "PATH", "DESTROYED", "UNTIL"], rows, [False] * 4), nl=False)
        return
    chosen = found if everything else destroyed.named(found, which or "")
    if which and len(chosen) != 1:
        lists = "'zkeep pool import -D' lists those that can be"
        why = destroyed.SEVERAL if chosen else f"no such pool was destroyed here; {lists}"
        raise Refused(f"cannot import {shown(which)[1:-1]}: {why}")
    if everything:
        lifecycle.refuse_taken(known, [pool.name for pool in chosen])
    for pool in chosen:
        destroyed.bring_back(known, pool, name)


@pool_verb.command("export")
@click.option("-a", "everything", is_flag=True, help="All pools.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def export(everything: bool, names: Sequence[str]) -> None:
    """Forget pools by name, and their keys; their folders stay as they are."""
    known = registry()
    if everything == bool(names):
        raise WrongUsage("name a pool, or -a for all")
    names = names or list(known.pools())
    guids = {name: _guid(known, name) for name in names}
    for name in names:
        _refuse_mounted(known, name, f"cannot export '{name}'")
        busy = "something is received into it or sent from it; try again when that is done"
        destroyed.check_idle(known.path(name), f"cannot export '{name}': pool is busy: {busy}")
    known.remove(*names)
    for name, guid in guids.items():
        _unload_keys(name, guid)


def _refuse_mounted(known: Registry, name: str, cannot: str) -> None:
    """Raises TryAgain: a dataset of the pool is mounted read-write, which goes on writing to it."""
    from zkeep.pool.datasets.head import is_mounted

    mounted: list[str] = []
    with suppress(Refused, Damaged, OSError), known.open(name, wait()) as pool:
        written = [each for each in pool.tree().by_id.values() if each.doc.get("live")]
        mounted = [each.name.text for each in written if is_mounted(pool, each)]
    if mounted:
        raise TryAgain(f"{cannot}: pool is busy: {mounted[0]} is mounted: unmount it first")


def _guid(known: Registry, name: str) -> int | None:
    """The guid of a pool; None if the pool cannot be read."""
    try:
        with known.open(name, wait()) as pool:
            return int(pool.doc["guid"])
    except (ZkeepError, OSError):
        return None


def _unload_keys(name: str, guid: int | None) -> None:
    """Unload the keys of a pool that is not known any more."""
    from zkeep.agent import client

    try:
        if guid is not None:
            client.unload_gone(guid)
    except ZkeepError as error:
        say(f"warning: keys of {name} are still loaded: {error}")


@pool_verb.command("list")
@takes_output
@accepted("-g", "-L", "-P", "-v", why="a pool is a folder and has no devices")
@click.option("-o", "columns", metavar="P,...", help="Columns: any property of 'zkeep pool get all'.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def list_(*, output: OutputOptions, columns: str | None, names: Sequence[str]) -> None:
    """List pools: what their files take, what the disk below has left, and how they do."""
    wanted = [find(word) for word in (columns or _COLUMNS).split(",")]
    pools = _statuses(names)
    if output.as_json:
        sys.stdout.write(_json_list(pools, wanted, output, "zpool list"))
        return
    rows = [[prop.of(pool, output.exact) for prop in wanted] for pool in pools]
    if output.scripted:
        sys.stdout.write(text.tabbed(rows))
    elif rows:
        sys.stdout.write(text.table([prop.column for prop in wanted], rows, [prop.right for prop in wanted]))
    else:
        click.echo("no pools available", err=True)


def _statuses(names: Sequence[str]) -> list[Status]:
    known = registry()
    return [lifecycle.status(known, name) for name in names or known.pools()]


def _json_list(pools: Sequence[Status], wanted: Sequence[PoolProperty], output: OutputOptions, command: str) -> str:
    found: asjson.Object = {}
    for pool in pools:
        answers = [(p.name, Answer(None, p.source), p.of(pool, output.exact_json)) for p in wanted if p.name != "name"]
        cells = {name: asjson.prop(answer, cell, output.as_int) for name, answer, cell in answers}
        found[pool.name] = {**_json_head(pool, output.as_int), "properties": cells}
    return asjson.dump({"output_version": asjson.version(command), "pools": found})


def _json_head(pool: Status, as_int: bool) -> asjson.Object:
    guid = "-" if pool.guid is None else asjson.number(pool.guid, as_int)
    return {"name": pool.name, "type": "POOL", "state": pool.health, "guid": guid}


@pool_verb.command("get")
@takes_output
@click.option("-o", "fields", metavar="FIELD,...", help="name property value source, or all")
@click.argument("wanted", metavar="all|PROPERTY[,PROPERTY]...")
@click.argument("names", nargs=-1, metavar="[POOL]...")
def get(
    *,
    output: OutputOptions,
    fields: str | None,
    wanted: str,
    names: Sequence[str],
) -> None:
    """Show properties of pools, under zpool's names.

    Of features those are 'active' or 'enabled' that what was received may use; the others are about devices.

    \b
        zkeep pool get -H -o value feature@extensible_dataset vault
        zkeep pool get all
    """
    props = chosen(wanted)
    columns = chosen_words(fields, _FIELDS, ",".join(_FIELDS), "column")
    pools = _statuses(names)
    if output.as_json:
        sys.stdout.write(_json_list(pools, props, output, "zpool get"))
        return
    rows: list[list[str]] = []
    for pool in pools:
        for prop in props:
            value = prop.of(pool, output.exact)
            cells = {"name": pool.name, "property": prop.name, "value": value, "source": prop.source}
            rows.append([cells[column] for column in columns])
    if output.scripted:
        sys.stdout.write(text.tabbed(rows))
    elif rows:
        sys.stdout.write(text.table([column.upper() for column in columns], rows, [False] * len(columns)))


@pool_verb.command("status")
@click.option("-v", "verbose", is_flag=True, help="List every error that the last scrub found.")
@accepted("-g", "-L", "-P", "-D", "-e", "-i", "-p", "-s", "-t", why="a pool is a folder and has no devices")
@click.option("-x", "only_sick", is_flag=True, help="Only pools with errors.")
@json_option
@click.argument("names", nargs=-1, metavar="[NAME]...")
def status(verbose: bool, only_sick: bool, as_json: bool, names: Sequence[str]) -> None:
    """Say how pools do, and what their last scrub found."""
    pools = [p for p in _statuses(names) if not only_sick or p.health != "ONLINE"]
    if as_json:
        states: asjson.Object = {}
        for pool in pools:
            state: asjson.Object = {**_json_head(pool, False), "path": str(pool.path), "scrub": pool.scrub}
            if pool.begun:
                state["scanning"] = {**pool.begun, "active": pool.scrubbing}
            states[pool.name] = state
        sys.stdout.write(asjson.dump({"output_version": asjson.version("zpool status"), "pools": states}))
    elif pools:
        click.echo("\n".join(_report(pool, verbose) for pool in pools), nl=False)
    else:
        click.echo("all pools are healthy" if only_sick else "no pools available")


def _report(pool: Status, verbose: bool) -> str:
    from zkeep.cli.pool.scrub import scan_lines

    errors = pool.scrub.get("errors", []) if pool.scrub else []
    lines = [f"  pool: {pool.name}", f" state: {pool.health}"]
    for head, words in _advice(pool):
        line = f"{head}: {text.safe(words)}"
        if words == pool.trouble:  # holds names, at which it must not be broken
            lines.append(line)
        else:
            lines += textwrap.wrap(line, 80, subsequent_indent="\t", break_long_words=False, break_on_hyphens=False)
    lines += [f"  scan: {line}" if at == 0 else f"\t{line}" for at, line in enumerate(scan_lines(pool))]
    lines += [f"config: {text.safe(str(pool.path))}", "", f"errors: {_errors(errors, verbose)}"]
    if verbose:
        lines += [f"        {text.safe(str(error))}" for error in errors]
    return "\n".join(lines) + "\n"


def _advice(pool: Status) -> Sequence[tuple[str, str]]:
    """What is wrong with a pool, and what to do about it; empty for a healthy one."""
    name = pool.name
    if pool.health == "ONLINE":
        return ()
    # Each state has its trouble and the way out of it, as zpool status has.
    if pool.health == "DEGRADED":
        trouble = (
            "The last scrub found data that is not what was stored. The snapshots that it hurts are named below "
            "('-v'); all others can be sent and read."
        )
        action = (
            "Find out what damaged the disk. 'zkeep receive -c SNAPSHOT' heals what is hurt from a full stream of it, "
            "which its source sends. Or destroy what is hurt and receive it again, or send what is whole to another "
            f"pool; then 'zkeep pool scrub {name}'."
        )
        return ("status", trouble), ("action", action)
    if pool.health == "UNAVAIL":
        action = (
            "Attach the disk that it lies on, or see in the system's log why it fails. Where its folder was moved, "
            f"'zkeep pool export {name}' and 'zkeep pool import PATH'."
        )
        return ("status", pool.trouble), ("action", action)
    action = (
        f"'zkeep pool scrub --rebuild-catalog {name}' rebuilds the catalog from the pool's other files. Where that "
        "fails, restore the folder from a copy, or receive everything again into a new pool."
    )
    return ("status", pool.trouble), ("action", action)


def _errors(errors: Sequence[object], verbose: bool) -> str:
    if not errors:
        return "No known data errors"
    return text.count(len(errors), "data error") + (":" if verbose else ", use '-v' for a list")


@pool_verb.command("scrub")
@click.option("-s", "stop", is_flag=True, help="Stop the scrub that is at work.")
@accepted("-w", why="it always waits for the end")
@click.option("--rebuild-catalog", "rebuild", is_flag=True, help="First rebuild the catalog from the files.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def scrub(stop: bool, rebuild: bool, names: Sequence[str]) -> None:
    """Verify every stored byte and every row of the catalog; no key is needed.

    Exit status 3 if anything is damaged: the snapshots that it hurts are named. One scrub of a pool runs at a time;
    'zkeep pool status' shows how far it is.

    \b
        zkeep pool scrub vault
        zkeep pool scrub -s vault
    """
    from zkeep.cli.pool.scrub import cancel, scrub_pool

    if stop and rebuild:
        raise WrongUsage("-s goes with no other option: it stops the scrub that is at work")
    for name in names:
        if stop:
            cancel(registry(), name)
        else:
            scrub_pool(registry(), name, rebuild)


@pool_verb.command("compact")
@click.option("-v", "verbose", is_flag=True, help="Say what was done, and what had to be left.")
@click.argument("names", nargs=-1, required=True, metavar="NAME|PATH...")
def compact(verbose: bool, names: Sequence[str]) -> None:
    """Give the disk back what destroyed snapshots, rollbacks and crashes left in a pool's files.

    Nothing that can be sent changes. Safe to interrupt; destroy does a part of it each time. With the name of a
    destroyed pool, or the path of its folder, what is left of that is removed: then it cannot be brought back any more.

    \b
        zkeep pool compact -v vault
    """
    from zkeep.pool.maintenance import compact as work

    known = registry()
    # Pools that were destroyed long enough ago go for good.
    destroyed.expire(known)
    for name in names:
        # A destroyed pool, named: all of its space comes back.
        if name not in known.pools() and (gone := destroyed.named(destroyed.known(known), name)):
            if len(gone) > 1:
                raise Refused(f"cannot compact {name}: {destroyed.SEVERAL}")
            freed = destroyed.remove(known, gone[0])
            if verbose:
                click.echo(f"{name}: {text.nice_bytes(freed)} freed")
            continue
        with registry().open(name, wait()) as pool:
            report = work.compact(pool)
        if verbose:
            sizes = [text.nice_bytes(size) for size in (report.freed, report.written)]
            click.echo(f"{name}: {sizes[0]} freed, {sizes[1]} rewritten")
            for line in report.skipped:
                click.echo(f"{name}: left for another time: {text.safe(line)}")
        if report.lacking:
            done, need = text.nice_bytes(report.freed), text.nice_bytes(report.lacking)
            why = f"{done} were freed; to rewrite what is left needs {need} of room on its disk"
            raise TryAgain(f"cannot compact {name} completely: {why}: make some, and try again")


@pool_verb.command("upgrade")
@click.option("-v", "versions", is_flag=True, help="List the formats that this zkeep knows.")
@accepted("-a", why="all pools are looked at where none is named")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def upgrade(versions: bool, names: Sequence[str]) -> None:
    """Bring pools to the newest format on disk; there is one format so far."""
    if versions:
        rows = [[str(number), what] for number, what in lifecycle.formats()]
        click.echo(text.table(["VER", "DESCRIPTION"], rows, [True, False]), nl=False)
        return
    for name in names:
        registry().path(name)
    click.echo(f"All pools have format {FORMAT}, the newest one.")


@pool_verb.command("destroy")
@click.option("-f", "force", is_flag=True, help="Do not ask, and destroy a pool that cannot be read.")
@click.argument("name")
def destroy(force: bool, name: str) -> None:
    """Destroy a pool with everything in it.

    On a terminal it asks first. A pool with held snapshots stays. 'zkeep pool import -D' brings a destroyed pool back
    for seven days; 'zkeep pool compact NAME' gives its space back to the disk before.

    \b
        zkeep pool destroy vault
        zkeep pool import -D vault
    """
    known = registry()
    _show_contents(known, name, force)
    if not force and sys.stdin.isatty() and not click.confirm(f"destroy {name}?", err=True):
        raise Refused(f"{name} is not destroyed")
    _refuse_mounted(known, name, f"cannot destroy '{name}'")
    guid = _guid(known, name)
    done = destroyed.destroy(known, name)
    _unload_keys(name, guid)
    if done:
        ways = f"'zkeep pool import -D {name}' brings it back until {text.date(done.until)}"
        say(f"destroyed {name}; {ways}, 'zkeep pool compact {name}' frees its space now")
    destroyed.expire(known)


def _show_contents(known: Registry, name: str, force: bool) -> None:
    """Say what goes. Refused if something of it is held."""
    try:
        with known.open(name, wait()) as pool:
            for dataset, count in destroyed.contents(pool):
                snapshots = f" ({text.count(count, 'snapshot')})" if count else ""
                click.echo(f"will destroy {text.safe(dataset)}{snapshots}")
    except NotThere:
        click.echo(f"will forget {name}: there is no pool in {known.path(name)}")
    except (Damaged, OSError) as error:
        if not force:
            why = f"what it holds cannot be read ({error}); -f destroys it all the same"
            raise Refused(f"cannot destroy {name}: {why}") from None
