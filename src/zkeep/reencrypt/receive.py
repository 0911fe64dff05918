"""Receive a plain stream encrypted: below an encrypted dataset nothing is ever kept in clear.

The plain records never reach the pool: they are written as the records of a raw snapshot, which is received as if a
sender had sent it. Guids, names, times and properties are the sender's, so that its increments find their sources.

A large stream becomes several transaction groups (`step` bytes each), so that memory and spool are bounded. Until the
last of them is there, the others are snapshots with names of their own, `@step-GUID`; a receive that fails takes them
away, and what was left by one that was killed is taken away by the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from zkeep.crypto.unwrap import GetKey, MasterKeys, WrappedKeys, unwrap
from zkeep.errors import Refused, ZkeepError
from zkeep.format.compress_writer import Compress, compressor
from zkeep.format.events import Batch, SubBegin, SubEnd
from zkeep.format.records import Begin, BeginFlag, Feature
from zkeep.names import DatasetName
from zkeep.pool.datasets import keyrecords
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.view import View
from zkeep.pool.transfer.admit import ReceiveTarget, clone_source, is_blind, nearest
from zkeep.pool.transfer.begin_rules import is_redacted_alike, redaction_of
from zkeep.pool.transfer.receive import Substream
from zkeep.pool.transfer.reserve import Charges
from zkeep.pool.transfer.session import judge, open_session
from zkeep.pool.types import Doc
from zkeep.reencrypt.leftovers import (
    MADE_FOR,
    PartialStream,
    continued,
    exclusive,
    has_steps,
    partial_of,
    remove_leftovers,
    resume,
)
from zkeep.reencrypt.objects import STEP as STEP_BYTES
from zkeep.reencrypt.objects import Translator
from zkeep.reencrypt.records import StreamRecords
from zkeep.snapshot.commit import REENCRYPTED, Group, opening_of, remove_steps, write_group
from zkeep.snapshot.keys import master_keys
from zkeep.snapshot.open import OpenSnapshot

ENCRYPTION = ("encryption", "keyformat", "keylocation", "pbkdf2iters", "pbkdf2salt")
"Properties that a plain stream brings, and that say nothing of the dataset here."
FORMS = Feature.LARGE_BLOCKS | Feature.LARGE_DNODE | Feature.ZSTD | Feature.LONGNAME | Feature.LARGE_MICROZAP
"Features of a plain stream that the raw one needs as well."
UNLIMITED = 1 << 62
REDACTED = "redacted"
"Field of a snapshot's document: guids of the snapshots for which the stream was redacted that it was made of."
UNSENT = "unsent"
"Field of a snapshot's document: a filter has to send it yet, and else takes it away."


@dataclass(frozen=True)
class ReceiveKeys:
    """The keys of a dataset that is made, and the fields of its document that say so."""

    wrapped: WrappedKeys
    keys: MasterKeys
    fields: Doc


class KeySource(Protocol):
    """Where keys come from; the command line implements it."""

    @property
    def get_key(self) -> GetKey: ...

    @property
    def makes_root(self) -> bool:
        """Whether the topmost dataset gets a key of its own."""
        ...

    def for_new(self, pool: Pool, name: DatasetName, *, top: bool) -> ReceiveKeys:
        """Make the keys of a new dataset. Raises Refused: the key above is not loaded."""
        ...

    def made(self, pool: Pool, dataset: Dataset) -> None:
        """The dataset for which for_new() made keys is there."""
        ...


class Follower(Protocol):
    """Takes each transaction group of a receive when it is there: see outgoing.py."""

    def takes(self) -> bool:
        """Whether it takes those of this stream. The last one then stays a step until it was taken, too."""
        ...

    def taken(self, pool: Pool, made: Snapshot, base: Snapshot | None, *, last: bool) -> Snapshot:
        """Take one group; returns its snapshot as it is then."""
        ...


@dataclass
class Reencryption:
    """Receives plain substreams that must not be kept as they are: see zkeep.pool.transfer.receive.Intake."""

    source: KeySource
    step: int = STEP_BYTES
    follower: Follower | None = None
    mended: int = 0
    "Spill blocks that broken senders sent as something else, so far."
    redacted: int = 0
    "Ranges that the senders of redacted streams left out, so far."

    def takes(self, pool: Pool, substream: Substream) -> bool:
        """Whether a substream is to be encrypted.

        Raises:
            Refused: it would have to be, and cannot.
        """
        # Raw ones are kept as they come; into an encrypted dataset, plain ones are encrypted.
        name, is_raw = substream.target.name, substream.event.begin.raw
        dataset = pool.find(name)
        if is_raw or (dataset is not None and dataset.doc.get("crypt")):
            return not is_raw
        # A new one is, below an encrypted dataset, or if -o makes it an encryption root.
        above = encrypted_above(pool, name)
        if above is None:
            return self.source.makes_root and substream.top
        if dataset is not None and pool.newest_snapshot(dataset):
            raise Refused(
                f"cannot receive {name}: its snapshots are in clear, below {above.name}, which is encrypted: "
                f"destroy it and receive it in full"
            )
        return True

    def receive(self, pool: Pool, substream: Substream, charges: Charges, events: Iterator[Batch | SubEnd]) -> SubEnd:
        """Write the snapshot of a substream, and commit it when its END was verified.

        Raises:
            Refused, BadStream: nothing of it is kept.
        """
        event, target = substream.event, substream.target
        _refuse_kind(event, target)
        if target.dry_run:
            return self._rehearse(pool, substream, charges, events)
        with exclusive(pool, target.name):
            # Go on after the last step that an earlier receive left, or clear it away.
            step = resume(pool, event, target)
            if step is None:
                remove_leftovers(pool, target.name)
            else:
                target = continued(target, step)
                substream = replace(substream, target=target)
            records = StreamRecords(events, keeps=target.resumable)
            # No steps where -F destroys snapshots: they are there until all of the stream is
            dataset = pool.find(target.name)
            source = _source_in(pool, event.begin, dataset)
            newer = dataset is not None and source is not None and pool.snapshots_after(dataset, source.txg)
            translator = Translator(event.begin, records, UNLIMITED if newer else self.step)
            # If this one breaks off, too, its steps go again unless it can be resumed (-s).
            with _Undo(pool, target) as undo:
                self._write(pool, substream, charges, translator, step)
                if records.broken is not None:
                    raise records.broken
                undo.done()
            self.mended += translator.mended
            self.redacted += translator.redacted
        assert records.end is not None
        return records.end

    def judge(self, pool: Pool, substream: Substream, charges: Charges) -> None:
        """Refuse what receive() would refuse at once; it changes nothing."""
        _refuse_kind(substream.event, substream.target)
        # What an earlier receive left is gone on from, or cleared away, when it is received; else as with -n.
        resume(pool, substream.event, substream.target)
        if not has_steps(pool, substream.target.name):
            judge(pool, *self._as_written(pool, substream), charges)

    @property
    def _follower(self) -> Follower | None:
        return self.follower if self.follower is not None and self.follower.takes() else None

    def kept(self, pool: Pool, target: ReceiveTarget) -> str | None:
        """The resume token of what is kept of a receive that broke off."""
        found = partial_of(pool, target.name)
        return str(found["token"]) if found is not None else None

    def gives_up(self, pool: Pool, name: DatasetName) -> bool:
        """Forget a receive that broke off (receive -A); returns whether there was one."""
        with exclusive(pool, name):
            there = partial_of(pool, name) is not None
            if there:
                remove_leftovers(pool, name)
        return there

    def _rehearse(
        self, pool: Pool, substream: Substream, charges: Charges, events: Iterator[Batch | SubEnd]
    ) -> SubEnd:
        """Receive with -n: decide as the real receive does, read and verify the stream, encrypt nothing."""
        event, target = self._as_written(pool, substream)
        with open_session(pool, event, target, charges) as session:
            end = next(event for event in events if isinstance(event, SubEnd))
            session.commit(end)
        return end

    def _as_written(self, pool: Pool, substream: Substream) -> tuple[SubBegin, ReceiveTarget]:
        """The BEGIN that a receive would write, and where: what its session decides by."""
        base = _source_of(pool, substream)
        group = self._group(pool, substream, base)
        before = (Feature(base.doc["features"]), int(base.doc["ivset_guid"])) if base else (Feature(0), 0)
        opening = opening_of(group, *before)
        event = SubBegin(opening.begin, opening.header, opening.payload, opening.nvlist, "little", 0)
        return event, group.target

    def _write(
        self, pool: Pool, substream: Substream, charges: Charges, translator: Translator, step: Snapshot | None
    ) -> None:
        """Write the transaction groups of a substream, after `step` if it is continued."""
        target = substream.target
        base = step or _source_of(pool, substream)
        is_new = base is None
        group = self._group(pool, substream, base)
        fields = group.step_fields()
        token_of = PartialStream(_opening(substream.event), target) if target.resumable else None
        group = replace(group, step_fields=lambda: fields | (token_of.fields(translator) if token_of else {}))
        if step is not None:
            group = _after(group, step)
        # Each group is a snapshot: the next one is written on top of it, so it is opened as the base.
        while True:
            with ExitStack() as stack:
                opened = stack.enter_context(OpenSnapshot(pool, base, self.source.get_key)) if base else None
                made = write_group(pool, group, opened, translator.fill, charges)
            # The dataset is there now: its new key can be loaded.
            if is_new:
                self.source.made(pool, made.dataset)
                is_new = False
            if self._follower is not None:
                made = self._follower.taken(pool, made, base, last=made.name.name == target.snapshot)
            if not made.doc.get(STEP):
                remove_steps(pool, made)
                return
            if translator.broken:
                return
            base = made
            group = _after(group, made)

    def _group(self, pool: Pool, substream: Substream, base: Snapshot | None) -> Group:
        begin = substream.event.begin
        found = self._keys(pool, substream, base)
        made_for = pool.find(substream.target.name) is None
        # Where the stream says plain, the dataset is encrypted from its first transaction group on.
        target = _encrypted_target(substream.target, found.fields)
        if redacted := redaction_of(_opening(substream.event)).get("redact_snaps"):
            target = replace(target, snapshot_fields={**target.snapshot_fields, REDACTED: list(redacted)})
        # If what is received leaves at once, each transaction group is a snapshot of its own until it was sent.
        if self._follower is not None:
            unsent = {STEP: True, UNSENT: True, MADE_FOR: made_for}
            target = replace(target, snapshot_fields={**target.snapshot_fields, **unsent})
        zstd = Feature.ZSTD if _compression(pool, target).startswith("zstd") else Feature(0)
        return Group(
            begin=replace(begin, versioninfo=0, payloadlen=0, toname=b""),
            features=begin.features & FORMS | zstd,
            target=target,
            compress=_compress(pool, target),
            wrapped=found.wrapped,
            keys=found.keys,
            step_fields=lambda: {REENCRYPTED: True, MADE_FOR: made_for},
        )

    def _keys(self, pool: Pool, substream: Substream, base: Snapshot | None) -> ReceiveKeys:
        """The keys of the dataset: those of the snapshot before, of the empty dataset that is there, or new ones.

        Where all snapshots were destroyed, their key records went with them.
        """
        target = substream.target
        dataset = pool.find(target.name)
        # An increment keeps its source's keys; a clone shares its origin's.
        if base is not None:
            fields = {} if dataset is not None else _clone_fields(pool, base, target.name)
            return ReceiveKeys(_newest_wrap(pool, base.dataset), self._opened(pool, base, base.dataset, target), fields)
        # An empty dataset that was created with a key gets its first contents.
        if dataset is not None and dataset.doc.get("crypt") and any(keyrecords.of_dataset(pool, dataset)):
            return ReceiveKeys(_newest_wrap(pool, dataset), self._opened(pool, None, dataset, target), {})
        try:
            return self.source.for_new(pool, target.name, top=substream.top)
        except Refused as error:
            # Where a blind pool may not take plain streams either, say the way that works without a key.
            needs_key = not self.source.makes_root and self.follower is None
            if needs_key and is_blind(pool, dataset or nearest(pool, target.name), target):
                raise Refused(f"{error}; or send it with zfs send -w: blind=on keeps nothing in clear") from None
            raise

    def _opened(self, pool: Pool, base: Snapshot | None, dataset: Dataset, target: ReceiveTarget) -> MasterKeys:
        """The keys of a snapshot, or of a dataset that has none yet."""
        try:
            if base is not None:
                return master_keys(pool, base, self.source.get_key)
            wrapped = _newest_wrap(pool, dataset)
            return unwrap(wrapped, self.source.get_key(wrapped))
        except Refused:
            root = (encryption_root(View(pool), dataset) or dataset).name
            why = f"the key of '{root}' is not loaded: zkeep load-key {root}"
            raise Refused(f"cannot receive {target.name}: {why}") from None


def _refuse_kind(event: SubBegin, target: ReceiveTarget) -> None:
    """Refuse a plain stream that cannot be encrypted here."""
    where = f"cannot receive {target.name}"
    if event.byteorder == "big":
        raise Refused(
            f"{where}: the stream is of a big-endian host, and cannot be encrypted here: receive it with zfs on a "
            "little-endian host, and send it from there"
        )


def _opening(event: SubBegin) -> Opening:
    return Opening(event.header, event.payload, event.byteorder)


def encrypted_above(pool: Pool, name: DatasetName) -> Dataset | None:
    """The nearest encrypted dataset above a name."""
    above = name.parent
    while above is not None:
        found = pool.find(above)
        if found is not None and found.doc.get("crypt"):
            return found
        above = above.parent
    return None


def _after(group: Group, step: Snapshot) -> Group:
    """The next group: it follows the step, in the dataset that is there now."""
    flags = int(group.begin.flags) & ~int(BeginFlag.CLONE)
    begin = replace(group.begin, fromguid=step.guid, flags=flags)
    return replace(group, begin=begin, target=replace(group.target, force=False, origin=None))


# The source, and what is made of the target


def _source_in(pool: Pool, begin: Begin, dataset: Dataset | None) -> Snapshot | None:
    if dataset is None or not begin.fromguid:
        return None
    return next(iter(pool.snapshots_by_guid(begin.fromguid, dataset)), None)


def _source_of(pool: Pool, substream: Substream) -> Snapshot | None:
    """The snapshot that an increment follows; None: it is full, or the source is not there, which admit() refuses.

    Raises:
        Refused: the source was not encrypted here, or lacks what the increment takes for granted.
    """
    begin, target = substream.event.begin, substream.target
    if not begin.fromguid:
        return None
    dataset = pool.find(target.name)
    # A clone's source is a snapshot of another dataset.
    wants_new = bool(begin.flags & BeginFlag.CLONE) or target.origin is not None
    if dataset is None or wants_new:
        where = f"cannot receive incremental stream into {target.name}"
        found: Snapshot | None = clone_source(pool, where, begin, target)
    else:
        found = _source_in(pool, begin, dataset)
    # Only what was encrypted here can be followed: the blocks of the increment are encrypted with the same keys.
    if found is None or found.doc.get(REENCRYPTED) or found.is_made_here:
        lacking = found.doc.get(REDACTED) if found is not None else None
        if found is not None and lacking and not is_redacted_alike(_opening(substream.event), lacking):
            where = f"cannot receive incremental stream into {target.name}"
            raise Refused(f"{where}: {found.name} is redacted, and the stream does not say that it was made for it")
        return found
    why = "was received raw, so the increment must be raw, too: zfs send -w -i"
    if not found.dataset.doc.get("crypt"):
        why = "is in clear: receive it in full, below an encrypted dataset"
    raise Refused(f"cannot receive incremental stream into {target.name}: {found.name} {why}")


def _clone_fields(pool: Pool, origin: Snapshot, name: DatasetName) -> Doc:
    """A clone has its origin's keys: it inherits them where the origin does, else it is an encryption root itself."""
    root = encryption_root(View(pool), origin.dataset)
    inherits = root is not None and name.is_within(root.name) and name != root.name
    return {"crypt": origin.dataset.doc["crypt"], "encroot": not inherits}


def _newest_wrap(pool: Pool, dataset: Dataset) -> WrappedKeys:
    record = next(keyrecords.of_dataset(pool, dataset), None)
    if record is None:
        raise Refused(f"cannot receive into {dataset.name}: it has no key record")
    return WrappedKeys.of(record.fields)


def _encrypted_target(target: ReceiveTarget, key_fields: Doc) -> ReceiveTarget:
    """The target as it is for the raw snapshot: what the sender says of its encryption has no place here."""
    fields = {**target.fields, **key_fields}
    if "received" in fields:
        received: Doc = fields["received"]
        fields["received"] = {name: text for name, text in received.items() if name not in ENCRYPTION}
    if "local" in key_fields or "local" in target.fields:
        fields["local"] = {**target.fields.get("local", {}), **key_fields.get("local", {})}
    snapshot_fields = {**target.snapshot_fields, REENCRYPTED: True}
    return replace(target, fields=fields, snapshot_fields=snapshot_fields, resumable=False)


def _compression(pool: Pool, target: ReceiveTarget) -> str:
    """The dataset's property as it will be when the stream is received."""
    dataset = pool.find(target.name)
    local = {**(dataset.doc["local"] if dataset else {}), **target.fields.get("local", {})}
    received: Doc = target.fields.get("received") or (dataset.doc.get("received", {}) if dataset else {})
    if local.get("compression"):
        return str(local["compression"])
    if "compression" not in local and received.get("compression"):
        return str(received["compression"])
    return str(View(pool).get(nearest(pool, target.name), "compression").value)


def _compress(pool: Pool, target: ReceiveTarget) -> Compress:
    try:
        return compressor(_compression(pool, target))
    except ValueError:  # lzjb is only read here
        return compressor("lz4")


class _Undo:
    """Takes away the steps of a receive that fails; one that can be resumed keeps them."""

    def __init__(self, pool: Pool, target: ReceiveTarget) -> None:
        self._pool, self._target = pool, target
        self._done = target.resumable

    def __enter__(self) -> _Undo:
        return self

    def done(self) -> None:
        self._done = True

    def __exit__(self, *_: object) -> None:
        if not self._done:
            with suppress(ZkeepError, OSError):
                remove_leftovers(self._pool, self._target.name)
