"""A cache of values that will probably be asked for again. All rooms use this one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps the most recently used values, as long as together they weigh no more than `room`.

    By default each value weighs 1, so that `room` is how many there may be. The last value that was put stays, however
    much it weighs. `on_drop` is called with each value that leaves, for those that have to be closed.
    Threads that share a cache need a lock of their own around it.
    """

    def __init__(
        self,
        room: int,
        weigh: Callable[[V], int] = lambda value: 1,
        on_drop: Callable[[V], object] = lambda value: None,
    ) -> None:
        self._room = room
        self._weigh = weigh
        self._on_drop = on_drop
        self._weight = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
        return found

    def put(self, key: K, value: V) -> V:
        """Keep a value under a key, and return it; the values that were used longest ago make room."""
        if key in self._values:
            self._drop(self._values.pop(key))
        self._values[key] = value
        self._weight += self._weigh(value)
        # The oldest go first; the newest stays in any case, or a large value could never be used.
        while self._weight > self._room and len(self._values) > 1:
            self._drop(self._values.popitem(last=False)[1])
        return value

    def values(self) -> list[V]:
        return list(self._values.values())

    def clear(self) -> None:
        while self._values:
            self._drop(self._values.popitem(last=False)[1])

    def _drop(self, value: V) -> None:
        self._weight -= self._weigh(value)
        self._on_drop(value)
