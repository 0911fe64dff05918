"""Values that will be asked for again, as many as fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """The values used last, as many as together weigh no more than `room`."""

    def __init__(self, room: int, weigh: Callable[[V], int] = lambda value: 1) -> None:
        self._room = room
        self._weigh = weigh
        self._weight = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
        return found

    def put(self, key: K, value: V) -> V:
        if (old := self._values.pop(key, None)) is not None:
            self._weight -= self._weigh(old)
        self._values[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._room and len(self._values) > 1:
            self._weight -= self._weigh(self._values.popitem(last=False)[1])
        return value
