"""zkeep shim: programs called zfs and zpool that are zkeep, for tools that run on this machine."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import click

from zkeep.cli.common.pools import registry
from zkeep.errors import Refused, TryAgain
from zkeep.names import shown
from zkeep.pool.store.disk import make_folder, replace_durably

NAMES = ("zfs", "zpool")
_MARK = "Made by 'zkeep shim': this is zkeep, which answers as"
_SCRIPT = """#!/bin/sh
'''exec' '{python}' -P "$0" "$@"
'''
# {mark} {name} does.
import os
import sys

os.environ.setdefault("ZKEEP_HOME", {home!r})
sys.argv[0] = {name!r}
from zkeep.__main__ import main

main()
"""
"The first lines are sh to sh, which starts Python, and a string to Python: so the path may hold spaces."


@click.command("shim")
@click.option("-f", "force", is_flag=True, help="Also where DIR has programs of these names that are not ours.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
def shim_verb(force: bool, folder: Path) -> None:
    """Install two small programs, zfs and zpool, in DIR: they are zkeep, and say what zfs and zpool would say.

    For replication tools that run on this machine, or reach it over ssh without 'zkeep server'. They use the pools
    that are known to who installs them, whatever the environment says. Tools find them if DIR comes first on their
    PATH.

    \b
        zkeep shim ~/bin
        PATH=~/bin:$PATH syncoid ...
    """
    make_folder(folder)
    paths = [folder / name for name in NAMES]
    for path in paths:
        if os.path.lexists(path) and not force and not _is_ours(path):
            raise Refused(f"cannot install {path}: another program is there; choose another folder, or say -f")
    for number, path in enumerate(paths):
        try:
            _install(path)
        except OSError as error:
            if not number:
                raise
            done = ", ".join(str(each) for each in paths[:number])
            why = f"{shown(done, 4096)} is installed, {shown(path.name)} is not ({error.strerror})"
            raise TryAgain(f"{why}: run the same again") from None


def _is_ours(path: Path) -> bool:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait
            return False
        with path.open("rb") as file:
            return _MARK.encode() in file.read(4096)
    except OSError:
        return False


def _install(path: Path) -> None:
    """Replace the file at once: a tool that runs meanwhile finds the old one or the new one."""
    if "'" in sys.executable or "\n" in sys.executable:
        raise Refused(f"cannot install {path}: the path of Python, {sys.executable!a}, has a quote in it")
    text = _SCRIPT.format(python=sys.executable, mark=_MARK, name=path.name, home=str(registry().home.absolute()))
    # Under a name that was not there: where others can write, a link might wait under one that can be guessed.
    number, made = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    fresh = Path(made)
    try:
        with open(number, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(number, 0o755)
        replace_durably(fresh, path)
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
