"""Changes of names and settings: create, rename, set, inherit, hold, release, bookmark.

Each function is one transaction: it looks, refuses with the reason, or changes everything asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from zkeep.clock import seconds_now
from zkeep.errors import Refused
from zkeep.names import MAX_NAME, BookmarkName, DatasetName, SnapshotName, parse_tag, shown
from zkeep.pool.datasets import charge, contents, naming, properties
from zkeep.pool.datasets.answers import head as head_of
from zkeep.pool.datasets.answers import letter
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.model import Bookmark, Dataset, Exists, NotThere, Pool, Snapshot
from zkeep.pool.datasets.partial import base_of, bases
from zkeep.pool.datasets.room import refuse_overdraft
from zkeep.pool.datasets.view import View
from zkeep.pool.store.catalog import Transaction

MOST_DATASETS = 10_000
"Datasets below a client's root from which on it can make more only by sending them."
Ancestor = Callable[[Transaction, DatasetName], object]
"Makes one missing dataset above a new name; those above it are there."
_NOT_INHERITED = ("quota", "refquota", "reservation", "refreservation")


def create(
    pool: Pool,
    name: DatasetName,
    settings: Mapping[str, str],
    parents: bool = False,
    kind: str = "filesystem",
    *,
    dry_run: bool = False,
    fields: Mapping[str, Any] | None = None,
    also: Callable[[Transaction, Dataset], None] | None = None,
    ancestor: Ancestor | None = None,
) -> list[tuple[str, ...]]:
    """Create a dataset. With `parents`, missing ancestors are made, too, and an existing dataset is no error.

    `fields`: more of its document; `also` is called with the new dataset inside the transaction; `ancestor` makes one
    of the missing ones there (default: an empty place).

    Returns what was done, or with `dry_run` would be, as lines of words: zfs create -P.
    """
    asked, settings = naming.split(settings)
    local = check_settings(settings, "v" if kind == "volume" else "f")
    done: list[tuple[str, ...]] = []
    with suppress(_OnlyTriedError), pool.transaction() as t:
        if parents and pool.find(name):
            return done
        if parents and name.parent and not pool.find(name.parent):
            done.append(("create_ancestors", name.text))
            make_parents(pool, t, name, ancestor)
        # Bound the empty datasets that a client of a server can make: no quota counts them.
        own = pool.find(pool.scope) if pool.scope else None
        if own is not None and len(pool.tree().within(own)) >= MOST_DATASETS:
            raise Refused(f"cannot create {name}: there are {MOST_DATASETS} datasets already")
        more = {**(fields or {}), **_naming(pool, name, asked, kind, has_files="crypt" in (fields or {}))}
        local = {**local, **more.pop("local", {})}
        made = pool.create_dataset(t, name, kind, local=local, **more)
        if charge.of_settings(local):
            refuse_overdraft(pool, [made], f"cannot create {name}")
        if also is not None:
            also(t, made)
        done += [("create", name.text), *(("property", *pair) for pair in [*local.items(), *asked.items()])]
        if dry_run:
            raise _OnlyTriedError
    return done


def _naming(pool: Pool, name: DatasetName, asked: Mapping[str, str], kind: str, *, has_files: bool) -> dict[str, Any]:
    if kind != "volume" and has_files:
        return {naming.FIELD: naming.chosen(pool, name, asked)}
    naming.refuse(name, asked, kind)
    return {}


class _OnlyTriedError(Exception):
    """Rolls back the transaction of a dry run."""


def make_parents(
    pool: Pool, t: Transaction, name: DatasetName, ancestor: Ancestor | None = None, *, implied: bool = False
) -> None:
    """Make the missing ones above a name, the topmost first: by `ancestor`, or as empty places.

    `implied`: a stream needs them, and nobody asked for them.
    """
    above = name.parent
    if above and not pool.find(above):
        make_parents(pool, t, above, ancestor, implied=implied)
        if ancestor is None:
            pool.create_dataset(t, above, "filesystem", **({charge.IMPLIED: True} if implied else {}))
        else:
            ancestor(t, above)


def check_settings(settings: Mapping[str, str], what: str) -> dict[str, str]:
    return dict(properties.check(name, text, what) for name, text in settings.items())


# Settings


def set_properties(
    pool: Pool, things: Iterable[DatasetName | SnapshotName], settings: Mapping[str, str]
) -> None:
    with pool.transaction() as t:
        for name in things:
            thing = find_thing(pool, name)
            checked = check_settings(settings, letter(thing))
            _check_quotas(pool, thing, checked)
            _check_volume(thing, checked)
            _put_local(pool, t, thing, {**thing.doc["local"], **checked})
            if checked.get(contents.CONTENTS) == contents.METADATA:
                changed = find_thing(pool, name)
                if isinstance(changed, Snapshot):
                    contents.confirm(pool, t, changed)
                else:
                    contents.confirm_all(pool, t, changed)
            now = find_thing(pool, name).doc["local"]
            if charge.of_settings(now) > charge.of_settings(thing.doc["local"]):
                refuse_overdraft(pool, [head_of(thing)], f"cannot set property for {name}")


def _check_quotas(pool: Pool, thing: Dataset | Snapshot, checked: Mapping[str, str]) -> None:
    if not isinstance(thing, Dataset) or not {"quota", "refquota"} & set(checked):
        return
    figures = View(pool).figures(thing)
    needed = {"quota": figures.used.stored, "refquota": figures.referenced.stored}
    for name, least in needed.items():
        if 0 < int(checked.get(name, "0")) < least:
            raise Refused(f"cannot set {name} of {thing.name}: size is less than the {least} bytes in use")


def _check_volume(thing: Dataset | Snapshot, checked: Mapping[str, str]) -> None:
    """Refuse a size that no volume has: it has whole blocks."""
    if "volsize" not in checked:
        return
    size, blksz = int(checked["volsize"]), int(thing.doc.get("volblocksize") or 1)
    why = ""
    if size == 0:
        why = "cannot be zero"
    elif size % blksz:
        why = f"must be a multiple of volume block size ({blksz}): the next one is {-(-size // blksz) * blksz}"
    elif size >> 63:
        why = "must be less than 8E"
    if why:
        raise Refused(f"cannot set property for {thing.name}: 'volsize' {why}")


def inherit(
    pool: Pool, names: Iterable[DatasetName | SnapshotName], prop: str, received: bool, recursive: bool
) -> None:
    """Forget the local value; with `received`, the received value shows again, else it is hidden too."""
    found = properties.find(prop)
    if not found or (not properties.is_user(found) and not found.can_be_set):
        raise Refused(f"cannot inherit {shown(prop)}: property cannot be inherited")
    # A volume always has a size, and an encryption root says where its key is.
    if found.name == "volsize" or (found.name == "keylocation" and not received):
        raise Refused(f"cannot inherit {found.name}: property cannot be inherited")
    if found.name in _NOT_INHERITED and not received:
        hint = f"use 'zkeep set {found.name}=none' to clear"
        raise Refused(f"cannot inherit {found.name}: property cannot be inherited; {hint}")
    with pool.transaction() as t:
        for name in names:
            # A local value goes; where there is a received one, None hides it, or -S lets it show.
            first = find_thing(pool, name)
            below = pool.tree().within(first) if recursive and isinstance(first, Dataset) else [first]
            for thing in below:
                local = dict(thing.doc["local"])
                local.pop(found.name, None)
                if not received and found.name in thing.doc["received"]:
                    local[found.name] = None
                if local != thing.doc["local"]:
                    _put_local(pool, t, thing, local)


def _put_local(pool: Pool, t: Transaction, thing: Dataset | Snapshot, local: dict[str, str]) -> None:
    if isinstance(thing, Dataset):
        pool.update_dataset(t, thing, local=local)
    else:
        pool.update_snapshot(t, thing, local=local)


def find_thing(pool: Pool, name: DatasetName | SnapshotName) -> Dataset | Snapshot:
    return pool.snapshot(name) if isinstance(name, SnapshotName) else pool.dataset(name)


# Names


def rename(
    pool: Pool, old: DatasetName, new: DatasetName, parents: bool = False, ancestor: Ancestor | None = None
) -> None:
    """Rename a dataset, and with it everything below. `ancestor` makes a missing parent, as of `create`."""
    with pool.transaction() as t:
        rename_within(pool, t, old, new, parents, ancestor)


def rename_within(
    pool: Pool,
    t: Transaction,
    old: DatasetName,
    new: DatasetName,
    parents: bool = False,
    ancestor: Ancestor | None = None,
) -> None:
    """Rename a dataset, and with it everything below, inside a transaction that changes more."""
    dataset = pool.dataset(old)
    _check_rename(pool, old, new)
    if parents:
        make_parents(pool, t, new, ancestor)
    above = new.parent and pool.find(new.parent)
    if not above:
        raise NotThere(f"cannot rename to {new}: parent does not exist; -p makes it, too")
    if above.is_volume:
        raise Refused(f"cannot rename to {new}: its parent is a volume")
    # One that is mounted stays so: its mount knows it by its id.
    moved = pool.tree().within(dataset)
    _check_lengths(pool, moved, old, new)
    # The encryption roots before; the same ones must hold afterwards, or a key would not open what moved.
    roots = {d.id: encryption_root(View(pool), d) for d in moved}
    for each in moved:
        relative = pool.relative(DatasetName(new.text + each.name.text[len(old.text) :]))
        t.put("dataset", each.key, {**each.doc, "name": relative})
    # Refuse to move a dataset out of its encryption root, as zfs does.
    view = View(pool)
    for dataset_id, root in roots.items():
        now = encryption_root(view, pool.by_id(dataset_id))
        if (now and now.id) != (root and root.id):
            raise Refused(f"cannot rename {old}: it would leave its encryption root")


def _check_rename(pool: Pool, old: DatasetName, new: DatasetName) -> None:
    if old.parent is None:
        raise Refused(
            f"cannot rename {old}: it is the pool's own; export and import the pool by another name"
        )
    if new.pool != old.pool:
        raise Refused(f"cannot rename {old}: {new} is not in the same pool")
    if new.is_within(old) and new != old:
        raise Refused(f"cannot rename {old}: {new} would lie below itself")
    if pool.find(new):
        raise Exists(f"cannot rename {old}: dataset {new} already exists")


def _check_lengths(pool: Pool, moved: Iterable[Dataset], old: DatasetName, new: DatasetName) -> None:
    """Every name below must still be one; those of snapshots and bookmarks too."""
    for dataset in moved:
        name = DatasetName.parse(new.text + dataset.name.text[len(old.text) :])
        tails = [s.doc["name"] for s in pool.snapshots(dataset)]
        tails += [b.doc["name"] for b in pool.bookmarks(dataset)]
        longest = max(map(len, tails), default=-1)
        if len(name.text) + 1 + longest > MAX_NAME:
            raise Refused(
                f"cannot rename {old}: the name of a snapshot of {shown(name.text)} would be too long"
            )


def rename_snapshot(pool: Pool, old: SnapshotName, new: SnapshotName, recursive: bool = False) -> None:
    """Rename a snapshot; with `recursive`, also those of this name of all datasets below."""
    if new.dataset != old.dataset:
        raise Refused(f"cannot rename {old}: {new} is not of the same dataset")
    with pool.transaction() as t:
        first = pool.snapshot(old)
        datasets = pool.tree().within(first.dataset) if recursive else [first.dataset]
        for dataset in datasets:
            snapshot = pool.find_snapshot(dataset.name.snapshot(old.name))
            if snapshot and new.name != old.name:
                target = dataset.name.snapshot(new.name)
                if pool.find_snapshot(target):
                    raise Exists(f"cannot rename {snapshot.name}: {target} already exists")
                pool.update_snapshot(t, snapshot, name=new.name)


# Holds and bookmarks


def snapshots_named(pool: Pool, name: SnapshotName, recursive: bool) -> list[Snapshot]:
    """`name`, and with `recursive` those of the same name below; at least one, or NotThere."""
    datasets = pool.tree().within(pool.dataset(name.dataset)) if recursive else [pool.dataset(name.dataset)]
    found = [pool.find_snapshot(SnapshotName(d.name, name.name)) for d in datasets]
    snapshots = [s for s in found if s]
    if not snapshots:
        raise NotThere(f"cannot open {name}: snapshot does not exist")
    return snapshots


def hold(pool: Pool, tag: str, names: Iterable[SnapshotName], recursive: bool = False) -> None:
    """Set a hold. Which ones a client of a server has set is noted: those it may release."""
    parse_tag(tag)
    with pool.transaction() as t:
        held = [s for n in names for s in snapshots_named(pool, n, recursive)]
        for snapshot in held:
            if tag in snapshot.holds:
                raise Exists(f"cannot hold {snapshot.name}: tag {shown(tag)} already exists on it")
            own = {} if pool.scope is None else {"client_tags": [*snapshot.doc.get("client_tags", ()), tag]}
            pool.update_snapshot(t, snapshot, holds={**snapshot.holds, tag: seconds_now()}, **own)
        refuse_overdraft(pool, [snapshot.dataset for snapshot in held], f"cannot hold with {shown(tag)}")


def release(pool: Pool, tag: str, names: Iterable[SnapshotName], recursive: bool = False) -> None:
    """Remove a hold; with the last one, a snapshot whose destruction was deferred is destroyed."""
    with pool.transaction() as t:
        held = [s for n in names for s in snapshots_named(pool, n, recursive)]
        if not recursive:
            for each in held:
                if tag not in each.holds:
                    raise Refused(f"cannot release {each.name}: no hold {shown(tag)} on it")
        if not (tagged := [s for s in held if tag in s.holds]):
            raise Refused(f"cannot release {held[0].name}: no hold {shown(tag)} on it or below")
        for snapshot in tagged:
            left = {name: at for name, at in snapshot.holds.items() if name != tag}
            clients = snapshot.doc.get("client_tags", [])
            if pool.scope is not None and tag not in clients:
                raise Refused(f"cannot release {snapshot.name}: permission denied: {shown(tag)} was set on the server")
            own = {"client_tags": [name for name in clients if name != tag]} if clients else {}
            changed = pool.update_snapshot(t, snapshot, holds=left, **own)
            remove_if_deferred(pool, t, changed)


def remove_if_deferred(pool: Pool, t: Transaction, snapshot: Snapshot) -> None:
    """Destroy what `destroy -d` left for later, if no hold, clone or partial receive is left."""
    # All three must be gone: holds, clones, and partial receives that build on it.
    if not snapshot.doc.get("defer_destroy") or snapshot.holds or base_of(bases(pool), snapshot):
        return
    if not pool.tree().clones(snapshot.dataset, snapshot.txg):
        pool.remove_snapshot(t, snapshot)


def bookmark(
    pool: Pool, source: SnapshotName | BookmarkName, name: BookmarkName, recursive: bool = False
) -> None:
    """Make a bookmark; with `recursive`, also of the snapshots of the same name below."""
    if source.dataset != name.dataset:
        raise Refused(f"cannot create bookmark {name}: {source} is not of the same dataset")
    with pool.transaction() as t:
        if isinstance(source, BookmarkName):
            found: list[Snapshot | Bookmark] = [pool.bookmark(source)]
        else:
            found = [*snapshots_named(pool, source, recursive)] if recursive else [pool.snapshot(source)]
        for each in found:
            pool.add_bookmark(t, each, name.name)
        refuse_overdraft(pool, [each.dataset for each in found], f"cannot create bookmark {name}")
