"""zkeep load-key, unload-key, forget-keys: what opens datasets, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import click

from zkeep.agent import client
from zkeep.agent.in_use import Busy, unused
from zkeep.cli.common import usage
from zkeep.cli.common.pools import by_pool, datasets_only, opened, parse, registry
from zkeep.cli.common.terminal import say
from zkeep.cli.keys.root_key import family, opening_key
from zkeep.errors import Refused, TryAgain, WrongUsage, ZkeepError
from zkeep.names import DatasetName, shown, whole_number
from zkeep.pool.datasets import keyrecords
from zkeep.pool.datasets.begin import number
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.properties import PROPERTIES
from zkeep.pool.datasets.view import View

MOST_DAYS = 36_500
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass
class KeyCounts:
    """The counts that zfs prints when several keys are asked for."""

    attempted: int = 0
    failed: int = 0
    status: int = 0
    "The greatest exit status of those that failed."

    def each(self, roots: Iterable[tuple[Pool, Dataset]], what: str, act: Callable[[Pool, Dataset], None]) -> None:
        for pool, root in roots:
            self.attempted += 1
            try:
                act(pool, root)
            except (Refused, Busy) as error:
                self.failed += 1
                self.status = max(self.status, error.status)
                say(f"{what} error: {error}")


@dataclass(frozen=True)
class Work:
    """The action for each key, and the words that report it."""

    what: str
    done: str
    act: Callable[[Pool, Dataset], None]
    loads: bool
    "Whether keys are loaded afterwards; where many are asked for, those that are so already are passed over."
    noop: bool = False


@click.command("load-key")
@click.option("-r", "recursive", is_flag=True, help="Also the keys of the datasets below.")
@click.option("-a", "every", is_flag=True, help="The keys of all datasets of all pools.")
@click.option("-n", "noop", is_flag=True, help="Only check the key.")
@click.option("-L", "location", metavar="KEYLOCATION", help="file:///path or prompt, in place of the property.")
@click.option("--lifetime", metavar="TIME", help="Forget the key after TIME, such as 30m, 8h, 1d.")
@click.argument("names", nargs=-1, metavar="DATASET")
def load_key_verb(
    *, recursive: bool, every: bool, noop: bool, location: str | None, lifetime: str | None, names: Sequence[str]
) -> None:
    """Load the key of an encryption root, so that it and what inherits from it can be opened.

    A process of yours holds it in memory; it is never written anywhere. keystatus then says 'available', and ls, cat,
    extract, verify, diff and mount need no -L.

    \b
        zkeep set keylocation=file:///media/usb/key vault/home
        zkeep load-key vault/home
        zkeep load-key --lifetime 1h -L prompt vault/mail
    """
    seconds = _seconds(lifetime)

    def load(pool: Pool, root: Dataset) -> None:
        if not noop and root.id in client.roots(pool.doc["guid"]):
            raise Refused(f"Key already loaded for '{root.name}'.")
        key = opening_key(pool, root, location)
        if not noop:
            client.load(pool.doc["guid"], root.id, key, seconds)

    _run(names, recursive, every, Work("Key load", "verified" if noop else "loaded", load, loads=True, noop=noop))


@click.command("unload-key")
@click.option("-r", "recursive", is_flag=True, help="Also the keys of the datasets below.")
@click.option("-a", "every", is_flag=True, help="The keys of all datasets of all pools.")
@click.argument("names", nargs=-1, metavar="DATASET")
def unload_key_verb(*, recursive: bool, every: bool, names: Sequence[str]) -> None:
    """Forget the key of an encryption root; not while something that it opens is mounted or read.

    Where another root has the same key, and it is loaded for that one, too, it still opens both; a line names that
    root.

    \b
        zkeep unload-key vault/home
        zkeep unload-key -a
    """
    still: list[StillOpen] = []

    def unload(pool: Pool, root: Dataset) -> None:
        guid = pool.doc["guid"]
        if root.id not in client.roots(guid):
            raise Refused(f"Key already unloaded for '{root.name}'.")
        inside = [int(dataset.doc["crypt"].get("guid", 0)) for dataset in family(pool, root)]
        with unused(inside, f"'{root.name}' is busy: something of it is mounted or read; unmount it first"):
            still.extend(StillOpen(root.name.text, *other) for other in client.unload_one(guid, root.id))

    _run(names, recursive, every, Work("Key unload", "unloaded", unload, loads=False))
    _tell_still_open(still)


@dataclass(frozen=True)
class StillOpen:
    """A root whose key was unloaded, and another root, with its pool's guid, for which the same key was loaded."""

    unloaded: str
    pool: int
    root: int


def _tell_still_open(found: list[StillOpen]) -> None:
    """Name the roots by whose key those that were unloaded are still open; some may have been unloaded since."""
    loaded = {pool: client.roots(pool) for pool in {each.pool for each in found}}
    names: dict[tuple[int, int], str] = {}
    left = [each for each in found if each.root in loaded[each.pool]]
    for name in registry().pools() if left else ():
        with suppress(ZkeepError), opened(name) as pool:
            tree = pool.tree().by_id
            wanted = [each.root for each in left if each.pool == pool.doc["guid"] and each.root in tree]
            names |= {(pool.doc["guid"], root): tree[root].name.text for root in wanted}
    others: dict[str, list[str]] = {}
    for each in left:
        others.setdefault(each.unloaded, []).append(names.get((each.pool, each.root), "a root of another pool"))
    for unloaded, roots in others.items():
        say(
            f"warning: {unloaded} has the same key as {', '.join(sorted(set(roots)))}, for which it stays loaded: "
            "it opens both until it is unloaded there, too"
        )


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    number, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS else (text, "s")
    try:
        return whole_number(number, MOST_DAYS * UNITS["d"] // UNITS[unit], least=1) * UNITS[unit]
    except ValueError:
        form = f"a number of seconds, or one with s, m, h or d behind it, {MOST_DAYS} days at most"
        raise WrongUsage(f"--lifetime is {form}, not {shown(text)}") from None


def _run(names: Sequence[str], recursive: bool, every: bool, work: Work) -> None:
    """Counts as zfs does.

    Source: OpenZFS cmd/zfs/zfs_main.c load_unload_keys(), load_key_callback().
    """
    if every == bool(names):
        raise usage.missing("name a dataset, or say -a for all")
    counts, many = KeyCounts(), recursive or every
    for pool_name, chosen in _chosen(names, every).items():
        with opened(pool_name) as pool:
            # Only encryption roots have keys; those below inherit theirs.
            roots = list(_roots(pool, chosen, many, work.what))
            loaded = client.roots(pool.doc["guid"]) if many and roots else set()
            # With -a or -r, leave out the roots that are in the wanted state already.
            wanted = [root for root in roots if not many or (root.id in loaded) != work.loads]
            counts.each([(pool, root) for root in wanted], work.what, work.act)
    if work.noop or (many and counts.attempted):
        click.echo(f"{counts.attempted - counts.failed} / {counts.attempted} key(s) successfully {work.done}")
    if counts.failed:
        click.get_current_context().find_root().meta["status"] = counts.status


def _chosen(names: Sequence[str], every: bool) -> dict[str, list[DatasetName]]:
    if every:
        return {name: [DatasetName(name)] for name in registry().pools()}
    return {pool: datasets_only(found, "load or unload the key of") for pool, found in by_pool(parse(names)).items()}


def _roots(pool: Pool, names: Sequence[DatasetName], recursive: bool, what: str) -> Iterator[Dataset]:
    """`what`: the action, for messages."""
    view = View(pool)
    for name in names:
        first = pool.dataset(name)
        for dataset in view.tree.within(first) if recursive else [first]:
            root = encryption_root(view, dataset)
            # With -r, datasets that inherit or are not encrypted are passed over; named themselves, they are an error.
            if root == dataset:
                yield dataset
            elif not recursive and root is None:
                raise Refused(f"{what} error: '{name}' is not encrypted.")
            elif not recursive and root is not None:
                does = what.lower().removeprefix("key ")
                raise Refused(f"{what} error: Keys must be {does}ed for encryption root of '{name}' ({root.name}).")


# Dropping old ones


@click.command("forget-keys")
@click.option("-r", "recursive", is_flag=True, help="Also those of the encryption roots below.")
@click.option("-n", "noop", is_flag=True, help="Only say what would go.")
@click.option("-f", "force", is_flag=True, help="Do not ask.")
@click.argument("name", metavar="DATASET")
def forget_keys_verb(*, recursive: bool, noop: bool, force: bool, name: str) -> None:
    """Keep only the newest wrap of the keys of an encryption root, and of what inherits from it.

    After change-key, here or at the source, the old key still opens what came with it, and through it all snapshots.
    This drops the old wraps for good: only the newest key opens anything then. Snapshots are sent with the newest
    wrap from then on.

    \b
        zkeep forget-keys vault/home
    """
    dataset_name = DatasetName.parse(name)
    with opened(dataset_name) as pool:

        def planned() -> list[keyrecords.Forgetting]:
            members = [d for root in _roots(pool, [dataset_name], recursive, "Key load") for d in family(pool, root)]
            return keyrecords.plan_forget(pool, members)

        # Tell first what would be dropped: afterwards nothing brings it back.
        plans = planned()
        for plan in plans:
            _tell_forgetting(plan)
        # Clones and received copies have the same keys under their own wraps.
        for dataset, mark in keyrecords.still_wrapped(pool, plans):
            say(f"{dataset.name} holds the same keys, and keeps {mark}: zkeep forget-keys it, too")
        if not plans:
            click.echo(f"{name}: the keys are wrapped once; nothing is old")
        if not noop and (not plans or force or click.confirm("Drop them for good?", err=True)):
            _forget(pool, plans, planned)


def _gist(plans: list[keyrecords.Forgetting]) -> dict[int, tuple[str, frozenset[str]]]:
    """The wrap that each dataset keeps, and those that it loses."""
    return {plan.dataset.id: (plan.kept.mark, frozenset(plan.dropped)) for plan in plans}


def _tell_forgetting(plan: keyrecords.Forgetting) -> None:
    kept = plan.kept
    coded = {code: text for text, code in PROPERTIES["keyformat"].codes.items()}
    what = coded.get(number(kept.fields, "keyformat"), "key")
    came = f"that came with @{kept.snapshot.doc['name']}" if kept.snapshot else "that was made here"
    click.echo(
        f"{plan.dataset.name}: {', '.join(plan.dropped)} would no longer open it, only the {what} {kept.mark} {came}"
    )


def _forget(
    pool: Pool, told: list[keyrecords.Forgetting], planned: Callable[[], list[keyrecords.Forgetting]]
) -> None:
    """Drop the old wraps, and rewrite the catalog's files, in which an interrupted call may have left some."""
    if told:
        with pool.transaction() as t:
            # While the user was asked, change-key or a receive may have brought another wrap, which is the newest now:
            # what was told is done only if it still is what would be told.
            plans = planned()
            if _gist(plans) != _gist(told):
                raise TryAgain("the keys were changed meanwhile, so nothing is dropped; call it again")
            for plan in plans:
                # A receive that goes on later needs the wrap with which it began.
                if t.get("receive", plan.dataset.key):
                    where = f"cannot forget keys of {plan.dataset.name}"
                    raise Refused(f"{where}: a receive is in progress; end it or zkeep receive -A")
                keyrecords.forget(pool, t, plan)
    try:
        # Dropped rows may still lie in free pages of SQLite and in the journal: both files are written again.
        pool.catalog.renew()
    except (OSError, TryAgain) as error:
        raise TryAgain(f"dropped, but files of the catalog still have them: {error}; call it again") from None
