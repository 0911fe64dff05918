"""zkeep load-key, unload-key, change-key: what opens datasets, and for how long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from zkeep.agent import client
from zkeep.cli.home import by_pool, datasets_only, opened, parse, registry, settings
from zkeep.cli.main import say
from zkeep.cli.opening import MAX_KEY_FILE, read_key, typed
from zkeep.errors import Damaged, Refused, WrongUsage
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets import keyrecords
from zkeep.pool.datasets.begin import number
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.keyrecords import KeyRecord
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.properties import PROPERTIES
from zkeep.pool.datasets.view import View

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import MasterKeys

MIN_ITERATIONS = 100_000
"OpenZFS include/sys/fs/zfs.h, MIN_PBKDF2_ITERATIONS."
DEFAULT_ITERATIONS = 350_000
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass
class Tally:
    """What zfs counts when several keys are asked for."""

    attempted: int = 0
    failed: int = 0

    def each(self, roots: Iterable[tuple[Pool, Dataset]], what: str, act: Callable[[Pool, Dataset], None]) -> None:
        for pool, root in roots:
            self.attempted += 1
            try:
                act(pool, root)
            except Refused as error:
                self.failed += 1
                say(f"{what} error: {error}")


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

    _run(
        names,
        recursive,
        every,
        "Key load",
        load,
        ("verified" if noop else "loaded") if noop or _many(recursive, every) else "",
    )


@click.command("unload-key")
@click.option("-r", "recursive", is_flag=True, help="Also the keys of the datasets below.")
@click.option("-a", "every", is_flag=True, help="The keys of all datasets of all pools.")
@click.argument("names", nargs=-1, metavar="DATASET")
def unload_key_verb(*, recursive: bool, every: bool, names: Sequence[str]) -> None:
    """Forget the key of an encryption root.

    \b
        zkeep unload-key vault/home
        zkeep unload-key -a
    """

    def unload(pool: Pool, root: Dataset) -> None:
        if not client.unload(pool.doc["guid"], root.id) and not _many(recursive, every):
            raise Refused(f"Key already unloaded for '{root.name}'.")

    _run(names, recursive, every, "Key unload", unload, "unloaded" if _many(recursive, every) else "")


def _many(recursive: bool, every: bool) -> bool:
    return recursive or every


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    number, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS else (text, "s")
    if not number.isdecimal() or not int(number):
        raise WrongUsage(f"--lifetime is a number of seconds, or one with s, m, h or d behind it, not {shown(text)}")
    return int(number) * UNITS[unit]


def _run(
    names: Sequence[str], recursive: bool, every: bool, what: str, act: Callable[[Pool, Dataset], None], done: str
) -> None:
    if every == bool(names):
        raise WrongUsage("name a dataset, or say -a for all")
    tally = Tally()
    for pool_name, chosen in _chosen(names, every).items():
        with opened(pool_name) as pool:
            tally.each([(pool, root) for root in _roots(pool, chosen, recursive or every)], what, act)
    if done and (tally.attempted or not every):
        click.echo(f"{tally.attempted - tally.failed} / {tally.attempted} key(s) successfully {done}")
    if tally.failed:
        click.get_current_context().find_root().meta["status"] = 1


def _chosen(names: Sequence[str], every: bool) -> dict[str, list[DatasetName]]:
    if every:
        return {name: [DatasetName(name)] for name in registry().pools()}
    return {pool: datasets_only(found, "load or unload the key of") for pool, found in by_pool(parse(names)).items()}


def _roots(pool: Pool, names: Sequence[DatasetName], recursive: bool) -> Iterator[Dataset]:
    view = View(pool)
    for name in names:
        first = pool.dataset(name)
        for dataset in view.tree.within(first) if recursive else [first]:
            root = encryption_root(view, dataset)
            if root == dataset:
                yield dataset
            elif not recursive and root is None:
                raise Refused(f"Key load error: '{name}' is not encrypted.")
            elif not recursive and root is not None:
                raise Refused(f"Key load error: Keys must be loaded for encryption root of '{name}' ({root.name}).")


# From a person's key to the one that opens


def family(pool: Pool, root: Dataset) -> list[Dataset]:
    """The datasets whose keys are sealed with the root's: itself and those below it that inherit."""
    view = View(pool)
    below = view.tree.within(root)
    return [d for d in below if d.doc.get("crypt") and encryption_root(view, d) == root]


def records_of(pool: Pool, root: Dataset) -> list[KeyRecord]:
    """What its key can be tried on, the newest first: the root's own, or its children's where it holds nothing."""
    for dataset in family(pool, root):
        if found := list(keyrecords.distinct(keyrecords.of_dataset(pool, dataset))):
            return found
    raise Refused(f"cannot open '{root.name}': it holds no snapshot, and so no key record")


def opening_key(pool: Pool, root: Dataset, location: str | None) -> bytes:
    """The 32 bytes that open a root's keys, from where its keylocation, or `location`, says.

    Raises:
        Refused: it is not the key.
        Damaged: it is the key of other snapshots of the same keys, so that the newest key record must be damaged.
    """
    from zkeep.crypto.unwrap import WrappedKeys, WrongKey, from_material, unwrap

    records = records_of(pool, root)
    material = _material(root, records[0], location or _location(pool, root))
    reasons: list[Refused | Damaged] = []
    for record in records:
        try:
            wrapped = WrappedKeys.of(record.fields)
            key = from_material(material, wrapped)
            unwrap(wrapped, key)
            return key
        except (WrongKey, Damaged) as error:
            reasons.append(error)
    if isinstance(reasons[0], Damaged):
        raise reasons[0]
    _tell_damage(pool, root, material)
    why = "" if "not that of key guid" in str(reasons[0]) else f" ({reasons[0]})"
    raise Refused(f"Incorrect key provided for '{root.name}'.{why}")


def _tell_damage(pool: Pool, root: Dataset, material: bytes) -> None:
    """Raises Damaged if the key opens what inherits from the root: then it is the root's key record that is wrong."""
    from zkeep.crypto.unwrap import first_that_opens
    from zkeep.restore.keys import first_opened

    for dataset in family(pool, root)[1:]:
        records = list(keyrecords.distinct(keyrecords.of_dataset(pool, dataset)))
        if records and first_opened(records, first_that_opens([material]), records[0].guid):
            raise Damaged(f"the key record of '{root.name}' is damaged: its key opens '{dataset.name}', but not itself")


def _location(pool: Pool, root: Dataset) -> str:
    return str(View(pool).get(root, "keylocation").value)


def _material(root: Dataset, record: KeyRecord, location: str) -> bytes:
    from zkeep.crypto.unwrap import KeyFormat, WrappedKeys

    if location != "prompt":
        return read_key(location)
    if not sys.stdin.isatty():
        return sys.stdin.buffer.read(MAX_KEY_FILE)
    keyformat = WrappedKeys.of(record.fields).keyformat
    if keyformat == KeyFormat.RAW:
        raise Refused(f"the key of '{root.name}' is raw bytes, which cannot be typed: name a file with -L")
    return typed(keyformat, root.name.text)


# Changing it


@click.command("change-key")
@click.option("-l", "load_first", is_flag=True, help="Load the present key first.")
@click.option("-i", "inherit", is_flag=True, help="Inherit the parent's key.")
@click.option("-o", "options", multiple=True, metavar="P=V", help="keyformat, keylocation, pbkdf2iters of the new key.")
@click.option("-L", "location", metavar="KEYLOCATION", help="Where the present key is, if it is not loaded.")
@click.argument("name", metavar="DATASET")
def change_key_verb(
    *, load_first: bool, inherit: bool, options: Sequence[str], location: str | None, name: str
) -> None:
    """Seal the keys of a root and of what inherits from it under a new key.

    The new sealing stands beside those that came with snapshots: what they are opened with goes on opening them, and
    what is received later takes nothing away. 'zkeep forget-keys' drops the old ones.

    \b
        zkeep change-key -o keyformat=raw -o keylocation=file:///media/usb/new vault/home
    """
    dataset_name = DatasetName.parse(name)
    if inherit:
        raise Refused(f"Key change error: '{name}' cannot inherit here: its parent's key is not in its snapshots")
    wanted = settings(options)
    if unknown := wanted.keys() - {"keyformat", "keylocation", "pbkdf2iters"}:
        raise WrongUsage(f"change-key sets keyformat, keylocation and pbkdf2iters, not {', '.join(sorted(unknown))}")
    with opened(dataset_name) as pool:
        (root,) = _roots(pool, [dataset_name], False)
        old = _present_key(pool, root, location, load_first)
        _change(pool, root, old, _NewKey.of(root, wanted))


def _present_key(pool: Pool, root: Dataset, location: str | None, load_first: bool) -> bytes:
    from zkeep.crypto.unwrap import WrappedKeys, WrongKey, key_that_opens

    if location is None and not load_first:
        for record in records_of(pool, root):
            try:
                return key_that_opens(client.keys(), WrappedKeys.of(record.fields))
            except WrongKey:
                continue
    return opening_key(pool, root, location)


@dataclass(frozen=True)
class _NewKey:
    """What a person wants the key to become."""

    keyformat: str
    location: str
    iterations: int
    root: str

    @classmethod
    def of(cls, root: Dataset, wanted: dict[str, str]) -> _NewKey:
        codes = PROPERTIES["keyformat"].codes
        now = next((text for text, code in codes.items() if code == root.doc["crypt"]["keyformat"]), "passphrase")
        keyformat = wanted.get("keyformat", now)
        if keyformat not in ("raw", "hex", "passphrase"):
            raise WrongUsage(f"keyformat is raw, hex or passphrase, not {shown(keyformat)}")
        iterations = wanted.get("pbkdf2iters", str(DEFAULT_ITERATIONS))
        if not iterations.isdecimal() or int(iterations) < MIN_ITERATIONS:
            raise WrongUsage(f"pbkdf2iters is a number of at least {MIN_ITERATIONS}, not {shown(iterations)}")
        return cls(keyformat, wanted.get("keylocation", "prompt"), int(iterations), root.name.text)

    def material(self) -> bytes:
        if self.location != "prompt":
            return read_key(self.location)
        if not sys.stdin.isatty():
            return sys.stdin.buffer.read(MAX_KEY_FILE)
        if self.keyformat == "raw":
            raise Refused("a raw key cannot be typed: name a file with -o keylocation=file:///path")
        return typed(PROPERTIES["keyformat"].codes[self.keyformat], self.root, again=True)


def _change(pool: Pool, root: Dataset, old: bytes, new: _NewKey) -> None:
    import os

    from zkeep.crypto.unwrap import WrappedKeys, from_material, wrap

    code = PROPERTIES["keyformat"].codes[new.keyformat]
    is_passphrase = new.keyformat == "passphrase"
    salt = int.from_bytes(os.urandom(8), "little") if is_passphrase else 0
    iterations = new.iterations if is_passphrase else 0
    members = [(dataset, _opened_keys(pool, dataset, old)) for dataset in family(pool, root)]
    like = replace(WrappedKeys.of(records_of(pool, root)[0].fields), keyformat=code, iterations=iterations, salt=salt)
    key = from_material(new.material(), like)
    with pool.transaction() as t:
        for dataset, keys in members:
            if keys is not None:
                keyrecords.add(pool, t, dataset, wrap(keys, key, code, iterations, salt).fields())
        fresh = pool.dataset(root.name)
        pool.update_dataset(t, fresh, local={**fresh.doc["local"], "keylocation": new.location})
    if root.id in client.roots(pool.doc["guid"]):
        client.load(pool.doc["guid"], root.id, key)


def _opened_keys(pool: Pool, dataset: Dataset, key: bytes) -> MasterKeys | None:
    """None where it holds nothing yet that could be opened."""
    from zkeep.restore.keys import first_opened

    records = list(keyrecords.distinct(keyrecords.of_dataset(pool, dataset)))
    if not records:
        return None
    found = first_opened(records, lambda _: key, records[0].guid)
    if found is None:
        raise Refused(f"Key change error: the key of the root does not open '{dataset.name}'.")
    return found


# Dropping old ones


@click.command("forget-keys")
@click.option("-r", "recursive", is_flag=True, help="Also those of the encryption roots below.")
@click.option("-n", "noop", is_flag=True, help="Only say what would go.")
@click.option("-f", "force", is_flag=True, help="Do not ask.")
@click.argument("name", metavar="DATASET")
def forget_keys_verb(*, recursive: bool, noop: bool, force: bool, name: str) -> None:
    """Keep only the newest sealing of the keys of an encryption root, and of what inherits from it.

    After change-key, here or at the source, the old key goes on opening what came with it, and through it all
    snapshots. This drops the old sealings for good: only the newest key opens anything then. Snapshots are sent with
    the newest sealing from then on.

    \b
        zkeep forget-keys vault/home
    """
    dataset_name = DatasetName.parse(name)
    with opened(dataset_name) as pool:
        members = [d for root in _roots(pool, [dataset_name], recursive) for d in family(pool, root)]
        plans = keyrecords.plan_forget(pool, members)
        for plan in plans:
            _tell_forgetting(plan)
        if not plans:
            click.echo(f"{name}: there is one sealing of the keys; nothing is old")
        elif not noop and (force or click.confirm("Drop them for good?", err=True)):
            _forget(pool, members, plans)


def _tell_forgetting(plan: keyrecords.Forgetting) -> None:
    kept = plan.kept
    coded = {code: text for text, code in PROPERTIES["keyformat"].codes.items()}
    what = coded.get(number(kept.fields, "keyformat"), "key")
    came = f"that came with @{kept.snapshot.doc['name']}" if kept.snapshot else "that was made here"
    click.echo(
        f"{plan.dataset.name}: {', '.join(plan.dropped)} would no longer open it, only the {what} {kept.mark} {came}"
    )


def _forget(pool: Pool, members: list[Dataset], plans: list[keyrecords.Forgetting]) -> None:
    for dataset in members:
        if pool.catalog.get("receive", dataset.key):
            raise Refused(f"cannot forget keys of {dataset.name}: a receive is in progress; end it or zkeep receive -A")
    with pool.transaction() as t:
        for plan in plans:
            keyrecords.forget(pool, t, plan)
    pool.catalog.renew()
