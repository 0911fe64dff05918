"""The cache that all rooms use."""

from __future__ import annotations

from zkeep.cache import Cache


def test_the_values_used_longest_ago_leave() -> None:
    cache: Cache[str, int] = Cache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_weights_add_up_also_when_a_value_is_replaced() -> None:
    cache: Cache[str, bytes] = Cache(10, len)
    cache.put("a", bytes(6))
    cache.put("a", bytes(2))
    cache.put("b", bytes(8))
    assert cache.values() == [bytes(2), bytes(8)]


def test_the_last_value_stays_however_much_it_weighs() -> None:
    cache: Cache[str, bytes] = Cache(10, len)
    cache.put("a", bytes(1))
    assert cache.put("b", bytes(100)) == bytes(100)
    assert "a" not in cache
    assert "b" in cache


def test_each_value_that_leaves_is_dropped_once() -> None:
    dropped: list[int] = []
    cache: Cache[str, int] = Cache(2, on_drop=dropped.append)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        cache.put(key, value)
    assert dropped == [1, 2]
    cache.clear()
    assert dropped == [1, 2, 3, 4]
    assert not cache.values()
