"""A dataset that is mounted read-write: its inodes, and the commits that make them durable.

    base        the newest state, opened: what the last commit made
    inodes      files and folders that were looked at; those that changed wait for the next commit
    commit()    writes what changed as one txg, which becomes the dataset's head, and the next base

After a crash the dataset is as its last commit left it. Nothing of what waits is ever on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from threading import RLock
from types import MappingProxyType

import numpy as np

from zkeep.clock import seconds_now
from zkeep.crypto.unwrap import GetKey, MasterKeys, unwrap
from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.format.compress_writer import sparing
from zkeep.format.folding import Naming
from zkeep.live.base import Base
from zkeep.live.begin import queued, refuse_unwritable, write_empty
from zkeep.live.commit import CommitWriter, Pending
from zkeep.live.contents import Contents
from zkeep.live.folders import Folders
from zkeep.live.inode import Inode, inode_of, new_inode
from zkeep.live.merging import Merging
from zkeep.live.numbers import Numbers
from zkeep.live.room import Room
from zkeep.live.settings import Storage
from zkeep.names import DatasetName
from zkeep.pool.datasets import head
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.snapshot.commit import NewSnapshot, commit_head, newest_wrap
from zkeep.snapshot.encrypted import EarlyEncryption
from zkeep.snapshot.keys import master_keys
from zkeep.snapshot.numbers import live_objects
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

MAX_DIRTY = 64 << 20
"Bytes of files that wait in memory: then a commit happens at once."
MAX_CHANGED = 20_000
"The number of changed files and folders."
MAX_CACHED = 50_000
"Inodes that stay in memory."
RETRY = 0.2
"Seconds between two tries."
ACCESSED = 60.0
"Seconds for which times of access may wait, if nothing else changed: who reads a tree need not write all the time."
PER_INODE = 1 << 10
"Bytes that a file that changed takes beside its content, about."
LAST_TRIES = 30.0
"Seconds for which the last commit is tried again while another process is in the way."
SOON = 15.0
"Seconds for which one is that somebody waits for."
SLACK = 1 << 20
"Bytes that are kept free, so that files can still be removed."


class LiveDataset:
    """Use it as a context manager; `lock` is held by every thread that reads or changes anything.

    Raises (all methods):
        Refused: the dataset cannot be written to, or its quota is used up.
        TryAgain: another process is writing to it, or it is mounted already.
    """

    def __init__(
        self,
        pool: Pool,
        new: NewSnapshot,
        recordsize: int,
        get_key: GetKey,
        on_lost: Callable[[Exception], object] = lambda error: None,
        places: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`on_lost` is called if the last commit fails, while the mount's lock is still held.

        `places`: for other sessions: the folder of the socket at which it answers (runtime), where it is mounted
        (folder).
        """
        self.lock = RLock()
        self.pool = pool
        self._id = pool.dataset(new.name.dataset).id
        self.recordsize = recordsize
        self.contents = Contents(recordsize, lambda: self.base)
        self.inodes: dict[int, Inode] = {}
        self.changed: dict[int, Inode] = {}
        self.nameless: dict[int, Inode] = {}
        "Files without a name that are in use; a commit puts them into the delete queue."
        self.uses: dict[int, int] = {}
        "How often the kernel looked up each file: it may ask for it until it has forgotten it as often."
        self._new = replace(new, compress=sparing(new.compress))
        self._get_key = get_key
        self._keys: MasterKeys | None = None
        self._stack = ExitStack()
        self.room = Room(pool, lambda: self.dataset)
        self._merging = Merging(pool, lambda: self.dataset)
        self._early: EarlyEncryption | None = None
        self._is_urgent = False
        "Something else changed than times of access."
        self._accessed_since = 0.0
        self._dirty_xattrs = 0
        "Bytes of extended attributes that wait for the next commit."
        self._generation = 0
        self._freed: set[int] = set()
        self._queued: set[int] = set()
        "What the delete queue of the base has."
        self.is_stale = False
        "Something else was written to the dataset, so that nothing can be committed any more."
        self.gone: set[int] = set()
        "Numbers by which the kernel knows files that a rollback took away."
        self.numbers: Numbers
        self._on_lost = on_lost
        self._places = places
        self.state: Snapshot
        "What the last commit made."
        self._base = Base(pool, get_key, self._state_now)
        self.folders = Folders(lambda: self.tree, self.inode, self.touch)

    @property
    def name(self) -> DatasetName:
        return self.dataset.name

    @property
    def dataset(self) -> Dataset:
        """The dataset as it is now: it may have been renamed since it was mounted.

        Raises:
            Refused: it was destroyed.
        """
        found = self.pool.tree().get(self._id)
        if found is None:
            raise Refused(f"'{self._new.name.dataset}' was destroyed")
        return found

    @property
    def base(self) -> OpenSnapshot:
        """The newest state. If it could not be opened after a commit, it is tried again."""
        return self._base.objects

    @property
    def tree(self) -> Filesystem:
        return self._base.tree

    def __enter__(self) -> LiveDataset:
        with ExitStack() as stack:
            dataset = self._locked(stack)
            state = head.current_state(self.pool, dataset)
            refuse_unwritable(dataset, state)
            with self.pool.transaction() as t:
                # From now on, destroying the newest snapshot leaves its state as the head. Look again after that.
                dataset = self.pool.update_dataset(t, dataset, live=True, **self._places)
            state = head.current_state(self.pool, dataset)
            self._keys = self._unwrapped(dataset, state)
            self._base.hand_on(self._keys)
            stack.callback(self._base.close)
            early = self._early = EarlyEncryption(self._keys, self._new.compress)
            stack.callback(early.close)
            self.contents.encrypt = early.begin
            if state is None:
                naming = Naming.of(dataset.doc.get("naming", {}))
                state = commit_head(self.pool, self._new, self._keys, None, partial(write_empty, naming))
            self._begin(state)
            self._stack = stack.pop_all()
        return self

    def _begin(self, state: Snapshot, known: Mapping[int, int] = MappingProxyType({})) -> None:
        """Open a state, to go on from it. `known`: generations of the files that the kernel knows, by number."""
        self.state = state
        self._base.open()
        self.gone |= {number for number, generation in known.items() if self._generation_of(number) != generation}
        self.numbers = Numbers(np.union1d(live_objects(self.base), np.array(sorted(self.gone), np.uint64)))
        self._merging.begin()
        self._drain()

    def return_to(self, state: Snapshot, known: Mapping[int, int]) -> None:
        """Go on from a state to which the dataset was rolled back: what waits is dropped, with all that is known."""
        for each in (self.inodes, self.changed, self.nameless):
            each.clear()
        self._freed.clear()
        self.contents.dirty = self._dirty_xattrs = 0
        self._is_urgent = False
        self.room.look_again()
        self.is_stale = True  # until all is as it should be, nothing may change
        self._begin(state, known)
        self.is_stale = False

    def _generation_of(self, number: int) -> int | None:
        """What tells a file from others that had its number at other times; None: there is no such file."""
        with suppress(ZkeepError):
            return self.inode(number).fields.generation
        return None

    def __exit__(self, kind: object, *_: object) -> None:
        with self._stack:
            # Whatever ended the mount, what waits in memory is whole.
            try:
                self._commit_last()
            except Exception as error:
                self._on_lost(error)
                if kind is None:
                    raise

    def _commit_last(self) -> None:
        """Commit at the end. If another process is in the way, try again for a while: what is left then is lost."""
        with self.lock:
            self.commit_soon(LAST_TRIES)

    def commit_soon(self, seconds: float = SOON) -> None:
        """Commit; if another process is in the way, try again for a while, as nothing is wrong yet."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.commit()
                return
            except TryAgain:
                if self.is_stale or time.monotonic() >= deadline:
                    raise
            time.sleep(RETRY)

    def _locked(self, stack: ExitStack) -> Dataset:
        """The dataset, once its lock shows that it is mounted."""
        busy = f"cannot mount '{self.name}': it is mounted, or written to by another process"
        stack.enter_context(self.pool.store.lock(head.mount_lock(self.dataset), wait=RETRY, busy=busy))
        return self.dataset

    def _unwrapped(self, dataset: Dataset, state: Snapshot | None) -> MasterKeys:
        if state is not None:
            return master_keys(self.pool, state, self._get_key)
        wrapped = newest_wrap(self.pool, dataset)
        return unwrap(wrapped, self._get_key(wrapped))

    def _state_now(self) -> Snapshot:
        self.state = head.as_it_is_now(self.pool, self.dataset, self.state)
        return self.state

    # Inodes

    @property
    def root(self) -> Inode:
        return self.inode(self.tree.root)

    def inode(self, number: int) -> Inode:
        """A file or folder by its number, which an entry or an open file tells."""
        found = self.inodes.get(number)
        if found is None:
            dnode = self.base.dnode(number)
            node = self.tree.znode(number)
            if not node.is_folder:
                self.tree.check_size(node)
            found = inode_of(node, dnode.blksz, dnode.maxblkid, self.recordsize)
            self.inodes[number] = found
        return found

    def make(self, mode: int, owner: tuple[int, int], parent: int) -> Inode:
        """A new inode, which no entry leads to yet."""
        number = self.numbers.take()
        # Each has another one, so that after a rollback it is seen whether a number still means the same file.
        self._generation = max(seconds_now(), self._generation + 1)
        made = new_inode(number, mode, owner, parent, self.recordsize, generation=self._generation)
        self.inodes[number] = self.changed[number] = made
        return made

    def touch(self, inode: Inode) -> None:
        """An inode changed: the next commit writes it."""
        inode.dirty = self._is_urgent = True
        self.changed[inode.number] = inode

    def touch_access(self, inode: Inode) -> None:
        """The time of an inode's last access changed: the next commit writes it, but need not come soon."""
        if not self.changed:
            self._accessed_since = time.monotonic()
        inode.dirty = True
        self.changed[inode.number] = inode

    def use(self, inode: Inode) -> None:
        """Somebody will ask for an inode by its number."""
        self.gone.discard(inode.number)
        self.uses[inode.number] = self.uses.get(inode.number, 0) + 1

    def forget(self, number: int, times: int = 1) -> None:
        """Somebody will ask for an inode no longer, as often as it was used."""
        left = self.uses.get(number, 0) - times
        if left > 0:
            self.uses[number] = left
            return
        self.uses.pop(number, None)
        self.gone.discard(number)
        if number in self.nameless:
            self.drop_if_unused(self.nameless[number])

    def drop_if_unused(self, inode: Inode) -> None:
        """Free an inode that has no names and is not in use; one that is waits for its last user."""
        if inode.fields.links > 0:
            return
        if inode.number in self.uses:
            self.nameless[inode.number] = inode
            return
        self.nameless.pop(inode.number, None)
        self.contents.forget(inode)
        self._free_xattrs(inode)
        self.changed.pop(inode.number, None)
        self.inodes.pop(inode.number, None)
        if inode.stored:
            self._freed.add(inode.number)
        else:
            self.numbers.give_back(inode.number)

    def _free_xattrs(self, inode: Inode) -> None:
        """Free the objects with extended attributes that the base has of an inode."""
        if inode.stored and not inode.new_xattrs and (folder := inode.fields.xattr_folder):
            self._freed.update({folder, *(entry.number for entry in self.tree.names(folder))})

    def change_xattrs(self, inode: Inode, xattrs: dict[bytes, bytes]) -> None:
        """Replace all extended attributes."""
        self._free_xattrs(inode)
        inode.fields.xattrs, inode.large, inode.new_xattrs = xattrs, {}, True
        self._dirty_xattrs += sum(len(name) + len(value) for name, value in xattrs.items())
        self.touch(inode)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        if inode.large is None:
            every = self.tree.xattrs(self.tree.znode(inode.number))
            inode.large = {name: value for name, value in every.items() if name not in inode.fields.xattrs}
        return {**inode.fields.xattrs, **inode.large}

    # Commits

    def check_room(self, size: int) -> None:
        """Raise OSError, EDQUOT or ENOSPC, if a quota or the disk has no room for `size` bytes more.

        What waits is counted as it is. If that is too much, it is committed, as it may have become less.
        """
        if self._needed(size) > self.room.left():
            self.commit_soon()
            if self._needed(size) > self.room.left():
                self.room.refuse()

    def _needed(self, size: int) -> int:
        return self.contents.dirty + self._dirty_xattrs + size + PER_INODE * len(self.changed) + SLACK

    def space(self) -> tuple[int, int]:
        """Free bytes and all bytes for files, as quotas and the disk leave them."""
        free = max(self.room.left() - self._needed(0), 0)
        return free, free + self.room.used()

    @property
    def is_dirty(self) -> bool:
        return bool(self.changed or self._freed or set(self.nameless) != self._queued)

    def commit_if_large(self) -> None:
        """Commit where as much waits as may. If another process is in the way, more may wait for a while."""
        waiting = self.contents.dirty + self._dirty_xattrs
        if waiting >= MAX_DIRTY or len(self.changed) >= MAX_CHANGED:
            try:
                self.commit()
            except TryAgain:
                if waiting >= 4 * MAX_DIRTY:
                    raise

    def commit_if_due(self) -> None:
        """Commit, unless all that changed are times of access, and few for a short time."""
        is_long = time.monotonic() - self._accessed_since >= ACCESSED or len(self.changed) >= MAX_CHANGED
        if self._is_urgent or self._freed or set(self.nameless) != self._queued or is_long:
            self.commit()

    def commit(self, *, even_if_clean: bool = False) -> None:
        """Make all that was done so far durable. What fails leaves it waiting.

        `even_if_clean`: make a head in any case, which the next snapshot names.
        """
        if not self.is_dirty and not even_if_clean:
            return
        queue = set(self.nameless)
        pending = Pending(
            *(list(self.changed.values()), set(self._freed)),
            queue=queue if queue != self._queued else None,
            queue_number=self.tree.master["DELETE_QUEUE"],
            flags=self.tree.naming.flags,
        )
        work = CommitWriter(pending, self.base, self.contents, self.recordsize, self.numbers.end)
        assert self._keys is not None
        name = self.name
        try:
            new = replace(self._new, name=name.snapshot(head.NAME))
            made = commit_head(self.pool, new, self._keys, self.base, lambda writer, base: work.write(writer))
        except ZkeepError as error:
            self.is_stale = self.is_stale or self._is_superseded()
            if not self.is_stale and name != self.name:
                raise TryAgain(f"'{name}' was renamed meanwhile") from error
            raise
        # It is durable: from here on this is the base, whatever fails.
        self.state = made
        self._settle(pending, work.attributes.next_number)
        self._queued = queue
        self.room.look_again()
        self._base.close()
        self._merging.after_commit()  # while nothing is open
        with suppress(ZkeepError, OSError):
            self._base.open()  # else who uses it next tries again, and is told

    def _is_superseded(self) -> bool:
        """Whether the dataset is gone, or its newest state is another one than what was committed here."""
        dataset = self.pool.tree().get(self._id)
        state = head.current_state(self.pool, dataset) if dataset is not None else None
        return state is None or state.guid != self.state.guid

    def _settle(self, pending: Pending, next_number: int) -> None:
        for inode in pending.inodes:
            self.contents.forget(inode)
            inode.committed(*pending.places[inode.number])
        self.changed.clear()
        self._is_urgent = False
        self._dirty_xattrs = 0
        self.numbers.end = next_number
        for number in pending.freed:
            self.numbers.give_back(number)
        self._freed.clear()

    def forget_unused(self, most: int = MAX_CACHED) -> None:
        """Drop inodes from memory that are not in use, if they are many. Call it between two operations only."""
        if len(self.inodes) > most:
            kept = (inode for inode in self.inodes.values() if inode.dirty or inode.number in self.nameless)
            self.inodes = {inode.number: inode for inode in kept}

    def store_as(self, storage: Storage) -> None:
        """Store what is written from now on so. A file keeps the size of its blocks, if it has several."""
        # Some of what waits may need the features that there were: to say too many of them does no harm.
        features = self._new.features | storage.new.features
        self._new = replace(self._new, compress=sparing(storage.new.compress), features=features)
        if self._early is not None:
            self._early.compress = self._new.compress
        self.recordsize = self.contents.recordsize = storage.recordsize
        self.forget_unused(0)  # files of one block may have larger ones from now on

    def _drain(self) -> None:
        """Free what a crash left in the delete queue: files that had no name any more, and were open."""
        self._queued = queued(self.tree, f"cannot mount '{self.name}'")
        for each in self._queued:
            inode = self.inode(each)
            inode.fields.links = 0
            self.drop_if_unused(inode)
