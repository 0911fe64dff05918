"""The figures agree with one another, and with a model that keeps every block by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zkeep.pool.datasets.space import Amount, DatasetSpace, compute


@dataclass
class Block:
    born: int
    size: int
    died: int = 2**64

    def seen(self, txg: int) -> bool:
        return self.born <= txg < self.died


@dataclass
class Model:
    """One dataset: blocks with birth and death, runs as the catalog would have them."""

    blocks: list[Block] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    pins: list[int] = field(default_factory=list)

    def run(self, txg: int, sizes: list[int], kills: list[int]) -> None:
        dead: dict[str, list[int]] = {}
        alive = [b for b in self.blocks if b.died > txg]
        for block in {id(alive[k % len(alive)]): alive[k % len(alive)] for k in kills if alive}.values():
            block.died = txg
            entry = dead.setdefault(str(block.born), [0, 0])
            entry[0] += block.size
            entry[1] += 3 * block.size
        self.blocks += [Block(txg, size) for size in sizes]
        self.runs.append({"txg": txg, "segments": [], "bytes": sum(sizes), "logical": 3 * sum(sizes), "dead": dead})


HEAD = 2**64 - 1
sizes = st.lists(st.integers(1, 1000), max_size=5)
step = st.tuples(sizes, st.lists(st.integers(0, 50), max_size=6), st.booleans())


def build(steps: list[tuple[list[int], list[int], bool]]) -> Model:
    model = Model()
    for txg, (born, kills, snapshot) in enumerate(steps, 1):
        model.run(txg * 10, born, kills)
        if snapshot:
            model.pins.append(txg * 10)
    return model


def figures(model: Model, pins: list[int] | None = None) -> DatasetSpace:
    docs = {1: {"name": "", "origin": None}}
    return compute(docs, {1: model.runs}, {1: model.pins if pins is None else pins}).datasets[1]


def seen_by(model: Model, pins: list[int]) -> dict[int, set[int]]:
    """For each block (by its place in the list) the snapshots, and HEAD, that refer to it."""
    return {at: {t for t in [*pins, HEAD] if b.seen(t)} for at, b in enumerate(model.blocks)}


def total(model: Model, chosen: list[int]) -> Amount:
    size = sum(model.blocks[at].size for at in chosen)
    return Amount(size, 3 * size)


@given(st.lists(step, max_size=12))
def test_figures_are_those_of_a_model_that_keeps_every_block(steps: list[Any]) -> None:
    model = build(steps)
    space, seen = figures(model), seen_by(model, model.pins)
    assert space.referenced == space.by_dataset == total(model, [a for a, s in seen.items() if HEAD in s])
    assert space.by_snapshots == total(model, [a for a, s in seen.items() if s and HEAD not in s])
    previous = 0
    for pin in model.pins:
        one = space.snapshots[pin]
        assert one.referenced == total(model, [a for a, s in seen.items() if pin in s])
        assert one.used == total(model, [a for a, s in seen.items() if s == {pin}])
        assert one.written == total(model, [a for a, s in seen.items() if pin in s and model.blocks[a].born > previous])
        previous = pin
    assert space.written == total(model, [a for a, s in seen.items() if HEAD in s and model.blocks[a].born > previous])


@given(st.lists(step, min_size=1, max_size=12), st.data())
def test_destroying_a_snapshot_frees_what_used_said(steps: list[Any], data: st.DataObject) -> None:
    model = build(steps)
    pins = list(model.pins)
    while pins:
        before = figures(model, pins)
        gone = data.draw(st.sampled_from(pins))
        pins.remove(gone)
        after = figures(model, pins)
        freed = before.snapshots[gone].used
        assert after.used == before.used.minus(freed)
        assert after.referenced == before.referenced
        for pin in pins:
            assert after.snapshots[pin].referenced == before.snapshots[pin].referenced
            assert after.snapshots[pin].used.stored >= before.snapshots[pin].used.stored


def test_a_clone_refers_to_its_origin_but_does_not_pay_for_it() -> None:
    origin, clone = Model(), Model()
    origin.run(10, [100], [])
    origin.run(20, [7], [])
    clone.runs.append({"txg": 30, "segments": [], "bytes": 5, "logical": 5, "dead": {"10": [60, 60]}})
    docs = {
        1: {"name": "", "origin": None},
        2: {"name": "a", "origin": None},
        3: {"name": "a/clone", "origin": {"dataset": 2, "txg": 10}},
    }
    found = compute(docs, {2: origin.runs, 3: clone.runs}, {2: [10, 20], 3: [30]}).datasets
    assert found[3].referenced.stored == 100 - 60 + 5
    assert found[3].by_dataset.stored == found[3].used.stored == 5
    assert found[2].by_children.stored == 5
    assert found[1].used.stored == found[2].used.stored == 100 + 7 + 5


def test_written_since() -> None:
    model = Model()
    model.run(10, [100], [])
    model.run(20, [10, 20], [])
    model.run(30, [1], [1])
    past = compute({1: {"name": "", "origin": None}}, {1: model.runs}, {}).histories[1]
    assert past.written(10).stored == 21
    assert past.written(10, 20).stored == 30
    assert past.referenced(20).stored == 130


def test_ratio_never_falls_below_one() -> None:
    assert Amount(100, 250).ratio == 250
    assert Amount(100, 50).ratio == Amount().ratio == 100
