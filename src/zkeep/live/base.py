"""The newest state of a mounted dataset, opened: what the last commit made, and what the next one builds on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from zkeep.crypto.unwrap import GetKey, MasterKeys
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.snapshot.known import Known
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem


class Base:
    """Opens a state when it is first asked for. `state` says which; it is called each time.

    What a commit made is known to be authentic, and handed on to the state that is opened after it (Known).
    """

    def __init__(self, pool: Pool, get_key: GetKey, state: Callable[[], Snapshot]) -> None:
        self._pool = pool
        self._get_key = get_key
        self._state = state
        self._known: Known | None = None
        self._opened: tuple[OpenSnapshot, Filesystem] | None = None
        self._stack = ExitStack()

    def hand_on(self, keys: MasterKeys) -> None:
        """From now on, keep what was authenticated under these keys."""
        self._known = Known(keys)

    @property
    def objects(self) -> OpenSnapshot:
        return (self._opened or self.open())[0]

    @property
    def tree(self) -> Filesystem:
        return (self._opened or self.open())[1]

    def open(self) -> tuple[OpenSnapshot, Filesystem]:
        """Open the state as it is now."""
        self.close()
        with ExitStack() as stack:
            opened = OpenSnapshot(self._pool, self._state(), self._get_key, scattered=True, known=self._known)
            objects = stack.enter_context(opened)
            found = self._opened = objects, Filesystem(objects)
            self._stack = stack.pop_all()
        return found

    def close(self) -> None:
        self._opened = None
        self._stack.close()
