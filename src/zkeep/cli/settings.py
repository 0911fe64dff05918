"""zkeep set, inherit."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click

from zkeep.cli.common.give_back import give_back
from zkeep.cli.common.no_mount import no_mount_option
from zkeep.cli.common.pools import by_pool, note_settings, opened, parse, settings
from zkeep.errors import WrongUsage
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import contents, namespace
from zkeep.pool.datasets.model import Pool


def _things(texts: Sequence[str]) -> dict[str, Sequence[DatasetName | SnapshotName]]:
    """Datasets and snapshots by pool; bookmarks have no properties to set."""
    found: dict[str, Sequence[DatasetName | SnapshotName]] = {}
    for pool, names in by_pool(parse(texts)).items():
        things = [name for name in names if isinstance(name, DatasetName | SnapshotName)]
        if len(things) != len(names):
            raise WrongUsage("a bookmark has no properties that can be set")
        found[pool] = things
    return found


_MINDED = frozenset(
    {
        *("readonly", "quota", "refquota", "atime", "relatime", "setuid", "exec", "devices"),
        *("recordsize", "compression", "xattr", "acltype", "snapdir"),
    }
)
"Properties that the mount of a dataset acts on, as they are at that moment."


def _tell_mounts(pool: Pool, things: Sequence[DatasetName | SnapshotName], props: Collection[str]) -> None:
    """Let mounts look at properties that were changed, if there are some that they mind."""
    minded = sorted(_MINDED.intersection(props))
    if not minded or pool.scope is not None:  # mounts look every few seconds by themselves
        return
    from zkeep.cli.mount.live import tell_mounts

    what = f"{' and '.join(minded)} {'is' if len(minded) == 1 else 'are'} changed"
    with pool.afterwards(what, "zkeep unmount"):
        tell_mounts(pool, [pool.dataset(name) for name in things if isinstance(name, DatasetName)], what)


def _ids(pool: Pool, things: Sequence[DatasetName | SnapshotName]) -> set[int]:
    return {pool.dataset(name.dataset if isinstance(name, SnapshotName) else name).id for name in things}


@click.command("set")
@no_mount_option("-u", "unmounted")
@click.argument("arguments", nargs=-1, required=True, metavar="PROPERTY=VALUE... NAME...")
def set_verb(unmounted: bool, arguments: Sequence[str]) -> None:
    """Set properties of datasets, user properties (x:y) also of snapshots.

    contents=metadata of a snapshot says that it and all before it are stored elsewhere: the contents of their files and
    extended attributes too large to lie beside a file's others are dropped here, at once if they are few, else by
    'zkeep pool compact'. What is needed for the next increment stays. Of a dataset, it says so of all snapshots that it
    has now; later ones keep their contents until it is said again.

    \b
        zkeep set quota=500G vault/home
        zkeep set org.example:owner=ann vault/home vault/mail
        zkeep set contents=metadata local/home@monday
    """
    pairs = [word for word in arguments if "=" in word]
    names = [word for word in arguments if "=" not in word]
    if not pairs or not names:
        raise WrongUsage("set needs property=value and a dataset; see 'zkeep set --help'")
    wanted = settings(pairs)
    for pool, things in _things(names).items():
        with opened(pool) as found:
            namespace.set_properties(found, things, wanted)
            note_settings(found, things, wanted)
            _tell_mounts(found, things, wanted)
            if wanted.get(contents.CONTENTS) == contents.METADATA:
                with found.afterwards("it is set"):
                    give_back(found, _ids(found, things), "set")


@click.command("inherit")
@click.option("-r", "recursive", is_flag=True, help="For all datasets below as well.")
@click.option("-S", "received", is_flag=True, help="Show the received value again, if there is one.")
@click.argument("prop", metavar="PROPERTY")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def inherit_verb(recursive: bool, received: bool, prop: str, names: Sequence[str]) -> None:
    """Forget a property's own value, so that the parent's holds.

    \b
        zkeep inherit -r compression vault/home
        zkeep inherit -S mountpoint vault/home
    """
    for pool, things in _things(names).items():
        with opened(pool) as found:
            namespace.inherit(found, things, prop, received, recursive)
            _tell_mounts(found, things, [prop])
