"""zkeep version."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from zkeep import __version__
from zkeep.cli.common.output import json_option

FOLLOWS = "2.3.2"
"The OpenZFS whose verbs, letters, output and streams these are."
_LIBRARIES = ("click", "cryptography", "lz4", "numpy", "rich", "zstandard", "mfusepy")


def version_text(called: str) -> str:
    """Print as `zfs version` does when called as zfs or zpool, since programs compare that number."""
    if called in ("zfs", "zpool"):
        return f"zfs-{FOLLOWS}-zkeep-{__version__}\nzfs-kmod-{FOLLOWS}-zkeep-{__version__}"
    return f"zkeep-{__version__}"


@click.command("version")
@click.option("-v", "--verbose", "verbose", is_flag=True, help="Also what it runs on: Python, libraries, kernel.")
@json_option
@click.pass_context
def version_verb(ctx: click.Context, verbose: bool, as_json: bool) -> None:
    """Tell which zkeep this is.

    With -v also whether its inner loops run compiled or, slower, on numpy ("kernel"), the version of OpenZFS that its
    verbs and streams follow, and the versions of Python and of the libraries.

    \b
        zkeep version -v
    """
    if as_json:
        facts = {"zkeep": __version__, **(_facts() if verbose else {})}
        click.echo(json.dumps({"zkeep_version": facts}, separators=(",", ":")))
        return
    click.echo(version_text(ctx.find_root().info_name or ""))
    for name, value in _facts().items() if verbose else ():
        click.echo(f"{name:<14}{value}")


def _facts() -> dict[str, str]:
    from zkeep.format import kernel
    from zkeep.pool.datasets.model import FORMAT

    libraries = {name: _library(name) for name in _LIBRARIES}
    return {
        "kernel": kernel.NAME,
        "zfs": FOLLOWS,
        "pool format": str(FORMAT),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **libraries,
    }


def _library(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not there"
