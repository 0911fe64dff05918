"""Names, settings, holds and destroys: sentences, and a machine that compares the pool with a plain dict."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zkeep.errors import Refused
from zkeep.names import BookmarkName, DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.destroy import DestroyOptions
from zkeep.pool.datasets.model import Exists, NotThere, Pool, txg_key
from zkeep.pool.datasets.view import View


def ds(text: str) -> DatasetName:
    return DatasetName.parse(text)


def snap(text: str) -> SnapshotName:
    return SnapshotName.parse(text)


def add(pool: Pool, text: str, **fields: Any) -> None:
    """A snapshot with a run of its own, as a receive would leave it; the dataset is made if need be."""
    name = snap(text)
    namespace.create(pool, name.dataset, {}, parents=True)
    with pool.transaction() as t:
        dataset, txg = pool.dataset(name.dataset), t.next_txg()
        run = {
            "txg": txg,
            "segments": [f"{txg:x}-0"],
            "bytes": 100,
            "logical": 100,
            "dead": fields.pop("dead", {}),
            "whole": True,
            **dict.fromkeys(("file_bytes", "records", "features", "fromguid", "from_txg", "maxblkid"), 0),
        }
        t.put("run", txg_key(dataset.id, txg), run)
        t.put("begin", txg_key(dataset.id, txg), {"header": "", "payload": "", "byteorder": "little"})
        pool.add_snapshot(t, dataset, name.name, txg, txg * 1000, **fields)


def clone(pool: Pool, origin: str, name: str) -> None:
    with pool.transaction() as t:
        snapshot = pool.snapshot(snap(origin))
        pool.create_dataset(t, ds(name), origin={"dataset": snapshot.dataset.id, "txg": snapshot.txg})


def names(pool: Pool) -> list[str]:
    return [str(t.name) for d in pool.tree().by_name.values() for t in (d, *pool.snapshots(d), *pool.bookmarks(d))]


def plan(pool: Pool, text: str, **options: bool) -> destroy.DestroyPlan:
    dataset, mark, spec = text.partition("@")
    view, chosen = View(pool), DestroyOptions(**options)
    return (
        destroy.plan_snapshots(view, ds(dataset), spec, chosen)
        if mark
        else destroy.plan_dataset(view, ds(dataset), chosen)
    )


def kill(pool: Pool, text: str, **options: bool) -> None:
    destroy.execute(pool, plan(pool, text, **options))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", "p") as found:
        yield found


def test_create(pool: Pool) -> None:
    namespace.create(pool, ds("p/a"), {"quota": "1G", "x:y": "z"})
    assert pool.dataset(ds("p/a")).doc["local"] == {"quota": str(1 << 30), "x:y": "z"}
    with pytest.raises(Exists):
        namespace.create(pool, ds("p/a"), {})
    with pytest.raises(NotThere, match="parent does not exist"):
        namespace.create(pool, ds("p/b/c"), {})
    namespace.create(pool, ds("p/b/c"), {}, parents=True)
    namespace.create(pool, ds("p/b/c"), {}, parents=True)
    assert names(pool) == ["p", "p/a", "p/b", "p/b/c"]
    with pytest.raises(NotThere, match="parent does not exist"):
        namespace.create(pool, ds("q/b"), {})


def test_a_bad_setting_leaves_nothing_behind(pool: Pool) -> None:
    with pytest.raises(Refused, match="none of this name"):
        namespace.create(pool, ds("p/b/c"), {"quota": "1G", "nonsense": "1"}, parents=True)
    assert names(pool) == ["p"]


def test_rename_takes_everything_along(pool: Pool) -> None:
    add(pool, "p/a/b@s")
    namespace.bookmark(pool, snap("p/a/b@s"), BookmarkName.parse("p/a/b#m"))
    namespace.rename(pool, ds("p/a"), ds("p/x"))
    assert names(pool) == ["p", "p/x", "p/x/b", "p/x/b@s", "p/x/b#m"]
    namespace.rename(pool, ds("p/x/b"), ds("p/y/z/b"), parents=True)
    assert "p/y/z/b@s" in names(pool)


def test_renames_that_are_refused(pool: Pool) -> None:
    add(pool, "p/a/b@" + "s" * 100)
    namespace.create(pool, ds("p/c"), {})
    with pool.transaction() as t:
        pool.create_dataset(t, ds("p/v"), "volume")
    before = names(pool)
    for old, new, why in [
        ("p/a", "p/c", "already exists"),
        ("p/a", "p/a", "already exists"),
        ("p/a", "p/a/b/c", "below itself"),
        ("p/a", "q/a", "same pool"),
        ("p", "p/q", "pool's own"),
        ("p/a", "p/n/o", "parent does not exist"),
        ("p/a", "p/v/a", "is a volume"),
        ("p/a", "p/" + "x" * 160, "too long"),
        ("p/nothing", "p/q", "does not exist"),
    ]:
        with pytest.raises(Refused, match=why):
            namespace.rename(pool, ds(old), ds(new))
    assert names(pool) == before


def test_a_dataset_does_not_leave_its_encryption_root(pool: Pool) -> None:
    crypt = {"suite": 8, "keyformat": 1, "pbkdf2iters": 0, "guid": 1, "version": 1}
    namespace.create(pool, ds("p/other"), {})
    with pool.transaction() as t:
        pool.create_dataset(t, ds("p/root"), crypt=crypt, encroot=True)
        pool.create_dataset(t, ds("p/root/a"), crypt=crypt, encroot=False)
    with pytest.raises(Refused, match="encryption root"):
        namespace.rename(pool, ds("p/root/a"), ds("p/other/a"))
    namespace.rename(pool, ds("p/root/a"), ds("p/root/b"))
    namespace.rename(pool, ds("p/root"), ds("p/other/root"))
    assert View(pool).get(pool.dataset(ds("p/other/root/b")), "encryptionroot").value == "p/other/root"


def test_rename_of_snapshots(pool: Pool) -> None:
    for name in ("p/a@s", "p/a/b@s", "p/a/c@t"):
        add(pool, name)
    namespace.rename_snapshot(pool, snap("p/a@s"), snap("p/a@u"), recursive=True)
    assert {"p/a@u", "p/a/b@u", "p/a/c@t"} <= set(names(pool))
    add(pool, "p/a@t")
    with pytest.raises(Exists):
        namespace.rename_snapshot(pool, snap("p/a@u"), snap("p/a@t"))
    with pytest.raises(Refused, match="same dataset"):
        namespace.rename_snapshot(pool, snap("p/a@u"), snap("p/a/b@x"))


def test_settings_are_inherited_hidden_and_reverted(pool: Pool) -> None:
    namespace.create(pool, ds("p/a/b"), {}, parents=True)
    with pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(ds("p/a")), received={"atime": "off", "canmount": "noauto"})

    def answer(name: str, prop: str) -> tuple[object, str]:
        found = View(pool).get(pool.dataset(ds(name)), prop)
        return found.value, found.source

    assert answer("p/a", "atime") == ("off", "received")
    assert answer("p/a/b", "atime") == ("off", "inherited from p/a")
    assert answer("p/a/b", "canmount") == ("on", "default")
    namespace.set_properties(pool, [ds("p/a")], {"atime": "on"})
    assert answer("p/a", "atime") == ("on", "local")
    assert View(pool).get(pool.dataset(ds("p/a")), "atime").received == "off"
    namespace.inherit(pool, [ds("p/a")], "atime", received=False, recursive=False)
    assert answer("p/a", "atime") == ("on", "default")
    namespace.inherit(pool, [ds("p/a")], "atime", received=True, recursive=False)
    assert answer("p/a", "atime") == ("off", "received")
    namespace.set_properties(pool, [ds("p"), ds("p/a/b")], {"x:y": "1"})
    namespace.inherit(pool, [ds("p")], "x:y", received=False, recursive=True)
    assert answer("p/a/b", "x:y") == (None, "-")


def test_mountpoints_follow_the_tree(pool: Pool) -> None:
    namespace.create(pool, ds("p/a/b/c"), {}, parents=True)

    def mountpoint(name: str) -> object:
        return View(pool).get(pool.dataset(ds(name)), "mountpoint").value

    assert mountpoint("p/a/b") == "/p/a/b"
    namespace.set_properties(pool, [ds("p/a")], {"mountpoint": "/mnt"})
    assert mountpoint("p/a/b/c") == "/mnt/b/c"
    namespace.set_properties(pool, [ds("p/a")], {"mountpoint": "/"})
    assert mountpoint("p/a/b/c") == "/b/c"
    namespace.set_properties(pool, [ds("p/a")], {"mountpoint": "none"})
    assert mountpoint("p/a/b/c") == "none"


def test_quota(pool: Pool) -> None:
    add(pool, "p/a@s")
    with pytest.raises(Refused, match="less than the 100 bytes in use"):
        namespace.set_properties(pool, [ds("p/a")], {"quota": "99"})
    namespace.set_properties(pool, [ds("p")], {"quota": "150"})
    assert View(pool).available(pool.dataset(ds("p/a"))) == 50
    assert View(pool).quota_room(pool.dataset(ds("p/a"))) == 50
    namespace.set_properties(pool, [ds("p")], {"quota": "none"})
    assert View(pool).quota_room(pool.dataset(ds("p/a"))) is None
    with pytest.raises(Refused, match="set quota=none"):
        namespace.inherit(pool, [ds("p")], "quota", received=False, recursive=False)


def test_destroy_needs_r_for_children(pool: Pool) -> None:
    add(pool, "p/a/b@s")
    for name in ("p/a", "p/a/b"):
        with pytest.raises(Refused, match="use -r"):
            kill(pool, name)
    kill(pool, "p/a", recursive=True)
    assert names(pool) == ["p"]
    for kind in ("run", "begin", "snapshot"):
        assert pool.catalog.keys(kind) == []
    with pytest.raises(Refused, match="pool destroy"):
        kill(pool, "p", recursive=True)


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        ("b", "acde"),
        ("b%d", "ae"),
        ("%b", "cde"),
        ("d%", "abc"),
        ("%", ""),
        ("a,c,e", "bd"),
        ("a%b,d%e", "c"),
        ("a%c,b", "de"),
        ("c%c", "abde"),
        ("nothing,b", "acde"),
    ],
)
def test_ranges(pool: Pool, spec: str, left: str) -> None:
    for letter in "abcde":
        add(pool, f"p/x@{letter}")
    kill(pool, f"p/x@{spec}")
    assert [s.doc["name"] for s in pool.snapshots(pool.dataset(ds("p/x")))] == list(left)


@pytest.mark.parametrize("spec", ["nothing", "d%b", "a%nothing", "nothing%", ","])
def test_ranges_without_snapshots(pool: Pool, spec: str) -> None:
    for letter in "abcd":
        add(pool, f"p/x@{letter}")
    with pytest.raises(NotThere, match="could not find any snapshots"):
        kill(pool, f"p/x@{spec}")


def test_destroy_by_name_below(pool: Pool) -> None:
    for name in ("p/a@s", "p/a@t", "p/a/b@s", "p/a/c@t"):
        add(pool, name)
    kill(pool, "p/a@s", recursive=True)
    assert [n for n in names(pool) if "@" in n] == ["p/a@t", "p/a/c@t"]


def test_held_snapshots_stay_and_all_of_the_request_with_them(pool: Pool) -> None:
    for name in ("p/a@s", "p/a@t"):
        add(pool, name)
    namespace.hold(pool, "keep", [snap("p/a@t")])
    with pytest.raises(Exists, match="keep"):
        namespace.hold(pool, "keep", [snap("p/a@t")])
    for text in ("p/a@s,t", "p/a@%", "p/a"):
        with pytest.raises(Refused, match=r"p/a@t: it is held \(keep\)"):
            kill(pool, text, recursive=True, clones=True)
    assert len(names(pool)) == 4
    with pytest.raises(Refused, match="no hold 'other'"):
        namespace.release(pool, "other", [snap("p/a@t")])
    namespace.release(pool, "keep", [snap("p/a@t")])
    kill(pool, "p/a@s,t")
    assert names(pool) == ["p", "p/a"]


def test_deferred_destroy(pool: Pool) -> None:
    add(pool, "p/a@s")
    namespace.hold(pool, "one", [snap("p/a@s")])
    namespace.hold(pool, "two", [snap("p/a@s")])
    kill(pool, "p/a@s", defer=True)
    assert View(pool).get(pool.snapshot(snap("p/a@s")), "defer_destroy").value == "on"
    namespace.release(pool, "one", [snap("p/a@s")])
    assert "p/a@s" in names(pool)
    namespace.release(pool, "two", [snap("p/a@s")])
    assert "p/a@s" not in names(pool)


def test_clones(pool: Pool) -> None:
    add(pool, "p/a@s")
    clone(pool, "p/a@s", "p/c")
    add(pool, "p/c@t")
    clone(pool, "p/c@t", "p/d")
    assert View(pool).get(pool.dataset(ds("p/c")), "origin").value == "p/a@s"
    assert View(pool).get(pool.snapshot(snap("p/a@s")), "clones").value == "p/c"
    for text in ("p/a@s", "p/a"):
        with pytest.raises(Refused, match="dependent clones; use -R to destroy also p/c"):
            kill(pool, text, recursive=True)
    kill(pool, "p/a@s", defer=True)
    doomed = plan(pool, "p/a", recursive=True, clones=True).names()
    assert doomed == ["p/d", "p/c@t", "p/c", "p/a@s", "p/a"]
    kill(pool, "p/d")
    kill(pool, "p/c", recursive=True)
    assert names(pool) == ["p", "p/a"], "the snapshot whose destruction was deferred went with its last clone"


def test_a_stale_plan_is_refused(pool: Pool) -> None:
    add(pool, "p/a@s")
    old, whole = plan(pool, "p/a@s"), plan(pool, "p/a", recursive=True)
    namespace.hold(pool, "keep", [snap("p/a@s")])
    with pytest.raises(Refused, match="changed meanwhile"):
        destroy.execute(pool, old)
    namespace.release(pool, "keep", [snap("p/a@s")])
    add(pool, "p/a@t")
    with pytest.raises(Refused, match="changed meanwhile"):
        destroy.execute(pool, whole)


def test_reclaims_is_what_used_falls_by(pool: Pool) -> None:
    add(pool, "p/a@1")
    first = pool.snapshot(snap("p/a@1")).txg
    add(pool, "p/a@2", dead={str(first): [40, 40]})
    add(pool, "p/a@3", dead={str(first): [5, 5]})
    for text, size in [("p/a@1", 40), ("p/a@2", 0), ("p/a@1%2", 45), ("p/a@%", 300), ("p/a", 300)]:
        view = View(pool)
        assert destroy.reclaims(view, plan(pool, text, recursive=True)) == size
    before = View(pool).figures(pool.dataset(ds("p"))).used.stored
    kill(pool, "p/a@1%2")
    assert View(pool).figures(pool.dataset(ds("p"))).used.stored == before - 45


def test_bookmarks(pool: Pool) -> None:
    add(pool, "p/a@s")
    namespace.bookmark(pool, snap("p/a@s"), BookmarkName.parse("p/a#m"))
    namespace.bookmark(pool, BookmarkName.parse("p/a#m"), BookmarkName.parse("p/a#n"))
    with pytest.raises(Exists):
        namespace.bookmark(pool, snap("p/a@s"), BookmarkName.parse("p/a#m"))
    with pytest.raises(Refused, match="same dataset"):
        namespace.bookmark(pool, snap("p/a@s"), BookmarkName.parse("p#m"))
    kill(pool, "p/a@s")
    found = pool.bookmark(BookmarkName.parse("p/a#n"))
    assert found.guid == found.txg * 1000
    assert pool.pins(pool.dataset(ds("p/a"))) == [found.txg]
    destroy.destroy_bookmark(pool, BookmarkName.parse("p/a#n"))
    assert names(pool) == ["p", "p/a", "p/a#m"]


LETTERS = st.sampled_from("abc")
PATHS = st.lists(LETTERS, min_size=1, max_size=3).map(lambda parts: "p/" + "/".join(parts))


class Machine(RuleBasedStateMachine):
    """The model: a dict from dataset name to a dict from snapshot name to its set of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.pool = Pool.create(Path(self.folder) / "pool", "p")
        self.model: dict[str, dict[str, set[str]]] = {"p": {}}

    def teardown(self) -> None:
        assert self.pool.catalog.verify() == []
        self.pool.close()
        shutil.rmtree(self.folder)

    def below(self, name: str) -> list[str]:
        return [n for n in self.model if n == name or n.startswith(name + "/")]

    def attempt(self, allowed: bool, act: Any, *arguments: Any, **options: Any) -> bool:
        if allowed:
            act(*arguments, **options)
        else:
            with pytest.raises(Refused):
                act(*arguments, **options)
        return allowed

    @rule(name=PATHS)
    def create(self, name: str) -> None:
        allowed = name not in self.model and name.rpartition("/")[0] in self.model
        if self.attempt(allowed, namespace.create, self.pool, ds(name), {}):
            self.model[name] = {}

    @rule(name=PATHS, snapshot=LETTERS)
    def take(self, name: str, snapshot: str) -> None:
        if name in self.model and snapshot not in self.model[name]:
            add(self.pool, f"{name}@{snapshot}")
            self.model[name][snapshot] = set()

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        within = new == old or new.startswith(old + "/")
        allowed = old in self.model and new not in self.model and not within and new.rpartition("/")[0] in self.model
        deepest = max((n.count("/") for n in self.below(old)), default=0) - old.count("/") + new.count("/")
        if deepest < 50 and self.attempt(allowed, namespace.rename, self.pool, ds(old), ds(new)):
            for name in self.below(old):
                self.model[new + name[len(old) :]] = self.model.pop(name)

    @rule(name=PATHS, old=LETTERS, new=LETTERS)
    def rename_snapshot(self, name: str, old: str, new: str) -> None:
        known = self.model.get(name, {})
        allowed = old in known and (new not in known or new == old)
        source, target = snap(f"{name}@{old}"), snap(f"{name}@{new}")
        if self.attempt(allowed, namespace.rename_snapshot, self.pool, source, target):
            known[new] = known.pop(old)

    @rule(name=PATHS, snapshot=LETTERS, tag=LETTERS)
    def hold(self, name: str, snapshot: str, tag: str) -> None:
        tags = self.model.get(name, {}).get(snapshot)
        allowed = tags is not None and tag not in tags
        if self.attempt(allowed, namespace.hold, self.pool, tag, [snap(f"{name}@{snapshot}")]) and tags is not None:
            tags.add(tag)

    @rule(name=PATHS, snapshot=LETTERS, tag=LETTERS)
    def release(self, name: str, snapshot: str, tag: str) -> None:
        tags = self.model.get(name, {}).get(snapshot)
        allowed = tags is not None and tag in tags
        if self.attempt(allowed, namespace.release, self.pool, tag, [snap(f"{name}@{snapshot}")]) and tags:
            tags.discard(tag)

    @rule(name=PATHS, recursive=st.booleans())
    def destroy(self, name: str, recursive: bool) -> None:
        doomed = self.below(name)
        held = any(tags for n in doomed for tags in self.model[n].values())
        alone = len(doomed) == 1 and not self.model[name]
        allowed = name in self.model and not held and (recursive or alone)
        if self.attempt(allowed, kill, self.pool, name, recursive=recursive):
            for each in doomed:
                del self.model[each]

    @rule(name=PATHS, snapshot=LETTERS, recursive=st.booleans())
    def destroy_snapshot(self, name: str, snapshot: str, recursive: bool) -> None:
        places = self.below(name) if recursive else [name]
        found = [n for n in places if snapshot in self.model.get(n, {})]
        allowed = bool(found) and name in self.model and not any(self.model[n][snapshot] for n in found)
        if self.attempt(allowed, kill, self.pool, f"{name}@{snapshot}", recursive=recursive):
            for each in found:
                del self.model[each][snapshot]

    @rule()
    def reopen(self) -> None:
        self.pool.close()
        self.pool = Pool.open(Path(self.folder) / "pool")

    @invariant()
    def agrees(self) -> None:
        real = {
            name: {s.doc["name"]: set(s.holds) for s in self.pool.snapshots(dataset)}
            for name, dataset in self.pool.tree().by_name.items()
        }
        assert real == self.model


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
