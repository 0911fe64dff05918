"""zkeep dump."""

from __future__ import annotations

import sys

import click

from zkeep.errors import Refused


@click.command("dump")
@click.option("-v", "verbose", is_flag=True, help="Print every record.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False), required=False)
def dump_verb(verbose: bool, file: str | None) -> None:
    """Print what a send stream holds, as 'zstream dump' does.

    The stream is FILE, or standard input. Where it breaks the format, the byte and the record are named.

    \b
        zkeep dump -v full.zfs | less
        zkeep send -w vault/home@monday | zkeep dump
    """
    from zkeep.format.dump import dump

    if file:
        with open(file, "rb") as source:
            dump(source, sys.stdout, verbose=verbose)
        return
    if sys.stdin.isatty():
        raise Refused("cannot dump: a stream is not read from a terminal; name a FILE or redirect standard input")
    dump(sys.stdin.buffer, sys.stdout, verbose=verbose)
