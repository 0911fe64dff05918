"""zkeep server: what one ssh key may do, as sshd's forced command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from zkeep.cli.common import usage
from zkeep.cli.common.named_files import read_small
from zkeep.errors import Refused, WrongUsage
from zkeep.names import DatasetName

LINE = "SSH_ORIGINAL_COMMAND"
"""The variable in which sshd passes on what the client asked for."""


@click.command("server")
@click.option("--root", metavar="DATASET", required=True, help="All that the client sees, with what lies below it.")
@click.option("--allow", "roles", multiple=True, metavar="ROLE,...", help="Default: receive,list.")
@click.option("--client", metavar="NAME", default="", help="What 'zkeep history' calls the client.")
@click.option("--idle", metavar="SECONDS", default="3600", help="End when the client is silent for so long; 0: never.")
@click.option("--rate", metavar="SIZE", default="0", help="Bytes a second at most, like 10M.")
@click.option("--connections", "most", type=usage.WholeNumber(1, 1000), metavar="N", default=16, help="At once; 16.")
@click.option("--timezone", "zone", metavar="ZONE", default="", help="As in TZ; else the system's, never a client's.")
@click.option("--print-authorized-keys", "print_keys", is_flag=True, help="Print lines for the keys in KEYFILEs.")
@click.argument("key_files", nargs=-1, type=click.Path(path_type=Path), metavar="[KEYFILE]...")
def server_verb(
    *,
    root: str,
    roles: Sequence[str],
    client: str,
    idle: str,
    rate: str,
    most: int,
    zone: str,
    print_keys: bool,
    key_files: Sequence[Path],
) -> None:
    """Serve one client over ssh: the verbs that its roles allow, on the datasets below DATASET.

    It is the forced command of a key in ~/.ssh/authorized_keys. What the client asked ssh to run is parsed without a
    shell. Understood are zkeep, zfs and zpool with their verbs, and what replication tools (syncoid, zfs-autobackup,
    bzfs, zrepl, TrueNAS, ...) say besides.

    \b
    Roles: receive   append; nothing that is there is changed or destroyed
           list      list, get, holds
           send      send snapshots back
           hold      hold, release
           destroy   destroy, rollback, receive -F over newer snapshots
           snapshot  bookmark; a snapshot needs the key, and none is ever used for a client
           admin     all of these, and rename, promote, set, inherit

    \b
        zkeep create -p -o quota=500G vault/alice
        zkeep server --root vault/alice --print-authorized-keys alice.pub >> ~/.ssh/authorized_keys
        zkeep server --root vault/alice --allow receive,list,send --print-authorized-keys alice.pub
    """
    from zkeep.cli.server.serving import Settings, serve

    settings = Settings.parse(root, roles, client, idle, rate, most, zone)
    if print_keys:
        _print_keys(settings.line(client), settings.access.root, key_files)
        return
    if key_files:
        raise WrongUsage("KEYFILE goes with --print-authorized-keys")
    # sshd runs us instead of what the client asked for, which it puts here.
    line = os.environ.get(LINE)
    if line is None:
        raise Refused(
            "no command: this key is for backups, and opens no shell; try: ssh HOST zkeep list, or "
            f"zfs send -w ... | ssh HOST zkeep receive {settings.access.root}/NAME"
        )
    click.get_current_context().find_root().meta["status"] = serve(line, settings)


def _print_keys(command: str, root: DatasetName, key_files: Sequence[Path]) -> None:
    from zkeep.server.keys import authorized_lines

    if not key_files:
        raise WrongUsage("name the files with the clients' public keys, such as alice.pub")
    for path in key_files:
        text = read_small(str(path)).decode("utf-8", "surrogateescape")
        for line in authorized_lines(text, command, str(path)):
            click.echo(line)
