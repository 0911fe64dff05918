"""The properties that are computed: from space figures, the tree of datasets, the key's parameters, names.

Each is a function of the view and of a dataset, snapshot or bookmark; TABLE has them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from zkeep.errors import Damaged
from zkeep.pool.datasets.answers import NOTHING, Answer, Lookup, Thing, Value, head, type_name
from zkeep.pool.datasets.model import Bookmark, Dataset, Snapshot
from zkeep.pool.datasets.partial import state_of
from zkeep.pool.datasets.properties import PROPERTIES
from zkeep.pool.datasets.space import Amount
from zkeep.pool.datasets.things import RESUME

if TYPE_CHECKING:
    from zkeep.pool.datasets.keyrecords import KeyRecord

_DISK = 1
"The object of a volume that holds its data: OpenZFS include/sys/zvol.h, ZVOL_OBJ."
Derivation = Callable[[Lookup, Thing], Answer]


def _amount(view: Lookup, thing: Thing, field: str) -> Amount | None:
    if isinstance(thing, Bookmark):
        return None
    space = view.figures(head(thing))
    figures = space.snapshots[thing.txg] if isinstance(thing, Snapshot) else space
    amount: Amount = getattr(figures, field)
    return amount


def _stored(field: str) -> Derivation:
    def derive(view: Lookup, thing: Thing) -> Answer:
        amount = _amount(view, thing, field)
        return Answer(amount.stored) if amount else NOTHING

    return derive


def _logical(field: str) -> Derivation:
    def derive(view: Lookup, thing: Thing) -> Answer:
        amount = _amount(view, thing, field)
        return Answer(amount.logical) if amount else NOTHING

    return derive


def _ratio(field: str) -> Derivation:
    def derive(view: Lookup, thing: Thing) -> Answer:
        amount = _amount(view, thing, "referenced" if isinstance(thing, Snapshot) else field)
        return Answer(amount.ratio) if amount else NOTHING

    return derive


def _document(field: str) -> Derivation:
    return lambda view, thing: Answer(thing.doc.get(field))


def _always(value: Value, source: str = "-") -> Derivation:
    return lambda view, thing: Answer(value, source)


def _mountpoint(view: Lookup, thing: Thing) -> Answer:
    """An inherited path is extended by the names below the dataset that set it."""
    answer = view.setting(thing, PROPERTIES["mountpoint"])
    # tank/home has mountpoint=/srv/home: tank/home/ann/docs shows /srv/home/ann/docs, inherited from tank/home.
    path, name = str(answer.value), str(thing.name)
    if not path.startswith("/") or answer.source in ("local", "received"):
        return answer
    start = answer.source.removeprefix("inherited from ") if answer.source != "default" else ""
    below = name[len(start) :].strip("/")
    return Answer(f"{path.rstrip('/')}/{below}", answer.source, answer.received)


def _origin(view: Lookup, thing: Thing) -> Answer:
    origin = head(thing).origin
    snapshot = view.pool.snapshot_at(*origin) if origin else None
    return Answer(str(snapshot.name) if snapshot and view.pool.sees(snapshot.dataset.name) else None)


def _clones(view: Lookup, thing: Thing) -> Answer:
    if not isinstance(thing, Snapshot):
        return Answer(None)
    clones = view.tree.clones(thing.dataset, thing.txg)
    return Answer(",".join(c.name.text for c in clones if view.pool.sees(c.name)) or None)


def _crypt(thing: Thing) -> dict[str, int] | None:
    crypt: dict[str, int] | None = head(thing).doc.get("crypt")
    return crypt


def _coded(name: str, code: int) -> str | None:
    return next((text for text, known in PROPERTIES[name].codes.items() if known == code), None)


def _encryption(view: Lookup, thing: Thing) -> Answer:
    crypt = _crypt(thing)
    return Answer(_coded("encryption", crypt["suite"]) if crypt else "off", "-" if crypt else "default")


def _keyformat(view: Lookup, thing: Thing) -> Answer:
    crypt = _crypt(thing)
    return Answer(_coded("keyformat", crypt["keyformat"])) if crypt else Answer("none", "default")


def _pbkdf2iters(view: Lookup, thing: Thing) -> Answer:
    crypt = _crypt(thing)
    iterations = crypt["pbkdf2iters"] if crypt else 0
    return Answer(iterations, "-" if iterations else "default")


def encryption_root(view: Lookup, dataset: Dataset) -> Dataset | None:
    """The nearest dataset upwards that has a wrapped key of its own; None if the dataset is not encrypted."""
    if not _crypt(dataset):
        return None
    # A clone has the keys of its origin, wherever it lies. It may be a clone of what lies below it.
    level: Dataset | None = dataset
    seen = set()
    while level is not None and not level.has_own_key:
        seen.add(level.id)
        origin = view.tree.get(level.origin[0]) if level.origin is not None and _crypt(level) else None
        level = origin if origin is not None and origin.id not in seen else view.tree.parent(level)
    return level or dataset


def _encryptionroot(view: Lookup, thing: Thing) -> Answer:
    root = encryption_root(view, head(thing))
    return Answer(root.name.text if root else None)


def _keylocation(view: Lookup, thing: Thing) -> Answer:
    """`prompt` for an encryption root, unless it was set here: a location that came in a stream is never used."""
    is_root = encryption_root(view, head(thing)) is thing
    if not is_root:
        return Answer("none", "default")
    answer = view.setting(thing, PROPERTIES["keylocation"])
    if view.pool.scope is not None and str(answer.value).startswith("file:"):
        return Answer("prompt", "local", answer.received)  # where the administrator has it is not told
    return answer if answer.source != "default" else Answer("prompt", "local", answer.received)


def _token(view: Lookup, thing: Thing) -> Answer:
    # A receive that broke off inside the pool has a document; one that was encrypted on the way, a snapshot's field.
    state = state_of(view.pool.catalog, head(thing))
    if state is None:
        newest = view.pool.newest_snapshot(head(thing))
        state = newest.doc.get(RESUME) if newest is not None else None
    return Answer(state.get("token") if state else None)


def _inconsistent(view: Lookup, thing: Thing) -> Answer:
    """1 while a dataset has nothing but a partial receive of its first snapshot."""
    state = state_of(view.pool.catalog, thing) if isinstance(thing, Dataset) else None
    return Answer(int(bool(state and state.get("new"))))


def _volblocksize(view: Lookup, thing: Thing) -> Answer:
    """The block size of the object that holds the data; the property itself is encrypted in a stream."""
    from zkeep.pool.datasets.history import history_of

    dataset = head(thing)
    if dataset.is_volume and "volblocksize" in dataset.doc:
        return Answer(int(dataset.doc["volblocksize"]))
    # Read the OBJECT row of the volume's only data object; its block size is not encrypted.
    history = history_of(view.pool, dataset)
    if not dataset.is_volume or not history.runs:
        return NOTHING
    try:
        with history.timeline(view.pool.store) as timeline:
            objects = timeline.state(history.runs, (_DISK, 0), (_DISK + 1, 0)).objects
    except (Damaged, OSError):
        return NOTHING
    sizes = objects["blksz"][objects["object"] == _DISK]
    return Answer(int(sizes[0])) if len(sizes) else NOTHING


def _keystatus(view: Lookup, thing: Thing) -> Answer:
    root = encryption_root(view, head(thing))
    if root is None:
        return NOTHING
    return Answer("available" if root.id in view.loaded else "unavailable")


def _keyhistory(view: Lookup, thing: Thing) -> Answer:
    """Which wrapped key came with which snapshots, oldest first; then those that change-key made here."""
    from zkeep.pool.datasets import keyrecords

    if isinstance(thing, Bookmark) or not _crypt(thing):
        return NOTHING
    if isinstance(thing, Snapshot):
        record = keyrecords.of_snapshot(view.pool, thing)
        return Answer(_wrap_name(record) if record else None)
    return Answer(", ".join(_events(view, thing)) or None)


def _events(view: Lookup, dataset: Dataset) -> Iterator[str]:
    from zkeep.pool.datasets import keyrecords

    # Snapshots come oldest first, so each wrap lists the first and the last that came with it: `@mon%sun passphrase
    # 1f2e3d4c`.
    since: dict[str, list[str]] = {}
    for snapshot in view.snapshots[dataset.id]:
        if record := keyrecords.of_snapshot(view.pool, snapshot):
            since.setdefault(_wrap_name(record), []).append(snapshot.doc["name"])
    for wrap, names in since.items():
        yield f"@{names[0]} {wrap}" if len(names) == 1 else f"@{names[0]}%{names[-1]} {wrap}"
    for record in reversed(list(keyrecords.local(view.pool, dataset))):
        yield f"here {_wrap_name(record)}"


def _mounted(view: Lookup, thing: Thing) -> Answer:
    """Whether it is mounted read-write; a client of a server is not told."""
    from zkeep.pool.datasets.head import is_mounted

    dataset = head(thing)
    looks = view.pool.scope is None and bool(dataset.doc.get("live"))
    return Answer("yes" if looks and is_mounted(view.pool, dataset) else "no")


def _wrap_name(record: KeyRecord) -> str:
    return f"{_coded('keyformat', record.keyformat)} {record.mark}"


def _naming(name: str) -> Derivation:
    """Tell what was chosen when a filesystem was created here. Of others only their files tell, and no document."""

    def answer(view: Lookup, thing: Thing) -> Answer:
        document = head(thing).doc
        codes = document.get("naming") if document["received_name"] is None else None
        return Answer(_coded(name, int(codes.get(name, 0)))) if codes is not None else NOTHING

    return answer


TABLE: dict[str, Derivation] = {
    "name": lambda view, thing: Answer(str(thing.name)),
    "type": lambda view, thing: Answer(type_name(thing)),
    "creation": _document("creation"),
    "used": _stored("used"),
    "available": lambda view, thing: Answer(view.available(head(thing))),
    "referenced": _stored("referenced"),
    "compressratio": _ratio("used"),
    "refcompressratio": _ratio("referenced"),
    "mounted": _mounted,
    "origin": _origin,
    "mountpoint": _mountpoint,
    "createtxg": _document("createtxg"),
    "guid": _document("guid"),
    "ivsetguid": _document("ivset_guid"),
    "usedbysnapshots": _stored("by_snapshots"),
    "usedbydataset": _stored("by_dataset"),
    "usedbychildren": _stored("by_children"),
    "usedbyrefreservation": _always(0),
    "defer_destroy": lambda view, thing: Answer("on" if thing.doc.get("defer_destroy") else "off"),
    "userrefs": lambda view, thing: Answer(len(thing.doc.get("holds", ()))),
    # Nothing for a client of a server: numbers count the datasets of others, too.
    "objsetid": lambda view, thing: Answer(thing.doc.get("id") if view.pool.scope is None else None),
    "written": _stored("written"),
    **{name: _naming(name) for name in ("utf8only", "normalization", "casesensitivity")},
    "inconsistent": _inconsistent,
    "volblocksize": _volblocksize,
    "clones": _clones,
    "logicalused": _logical("used"),
    "logicalreferenced": _logical("referenced"),
    "filesystem_count": _always("none", "default"),
    "snapshot_count": _always("none", "default"),
    "receive_resume_token": _token,
    "encryption": _encryption,
    "keylocation": _keylocation,
    "keyformat": _keyformat,
    "pbkdf2iters": _pbkdf2iters,
    "encryptionroot": _encryptionroot,
    "keystatus": _keystatus,
    "keyguid": lambda view, thing: Answer((_crypt(thing) or {}).get("guid")),
    "keyhistory": _keyhistory,
    "snapshots_changed": _document("snapshots_changed"),
    "received_at": _document("received_at"),
}
