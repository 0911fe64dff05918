"""zkeep dump."""

from __future__ import annotations

import sys

import click


@click.command("dump")
@click.option("-v", "verbose", is_flag=True, help="Print every record.")
@click.argument("file", required=False)
def dump_verb(verbose: bool, file: str | None) -> None:
    """Print what a send stream holds, as 'zstream dump' does.

    The stream is FILE, or standard input, also compressed (gzip, xz, bzip2, zstd, lz4), or several in a row. Where
    it breaks the format, the byte and the record are named.

    \b
        zkeep dump -v full.zfs | less
        zkeep send -w vault/home@monday | zkeep dump
    """
    from zkeep.cli.common.stream_files import STDIN, opened_stream
    from zkeep.format.dump import dump

    with opened_stream(file or STDIN) as source:
        dump(source, sys.stdout, verbose=verbose)
