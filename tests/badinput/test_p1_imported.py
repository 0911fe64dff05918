"""P1, P4: what a pool from elsewhere says about this machine, its programs and its folders, does nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from badkit import Box

from zkeep.cli.mount import live
from zkeep.cli.mount.all import folder_for, mountpoint_of
from zkeep.errors import Refused
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import OUTWARD, Registry
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.notice import STATE


def touching(path: Path) -> str:
    return f"exec:/bin/touch {path}"


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    """A pool `v` that was made elsewhere, and imported. Its maker knows this machine's paths."""
    box = Box(tmp_path)
    assert box.zkeep("pool", "export", "v").status == 0
    with Pool.open(box.path, "v") as pool, pool.transaction() as t:
        top = pool.dataset(DatasetName("v"))
        pool.update_dataset(t, top, local={"notify": touching(tmp_path / "ran"), "mountpoint": str(tmp_path / "etc")})
        pool.create_dataset(t, DatasetName("v/a"))
        b = pool.create_dataset(t, DatasetName("v/b"), local={"notify": touching(tmp_path / "ran-b")})
        for each in (top, b):
            t.put(STATE, each.key, {"kinds": ["late"]})  # it was told that they are late: they have recovered
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "here"))
    assert box.zkeep("pool", "import", str(box.path)).status == 0
    return box


def folder_of(box: Box, name: str) -> str:
    with Registry(Path(os.environ["ZKEEP_HOME"])).open("v") as pool:
        return folder_for(pool, pool.dataset(DatasetName(name)))


def test_p1_a_program_that_another_machine_named_is_not_run(foreign: Box, tmp_path: Path) -> None:
    for _ in range(2):
        answer = foreign.zkeep("health", "--notify")
        assert answer.status == 5
        assert "exec: it was set on another machine; look at 'zkeep get notify v'" in answer.err
        assert not list(tmp_path.glob("ran*"))


@pytest.mark.parametrize(
    "line", ["set quota=1G v", "set max_age=1d v v/b", "inherit max_age v", "create -p -o a:b=c v", "rename v/b v/a/b"]
)
def test_p1_another_change_does_not_approve_it(foreign: Box, tmp_path: Path, line: str) -> None:
    assert foreign.zkeep(*line.split()).status == 0
    assert foreign.zkeep("health", "--notify").status == 5
    assert not list(tmp_path.glob("ran*"))
    with pytest.raises(Refused, match="was set on another machine"):
        folder_of(foreign, "v/a")


def test_p1_creating_what_is_there_approves_what_is_asked_for_only(foreign: Box, tmp_path: Path) -> None:
    assert foreign.zkeep("create", "-p", "-o", "notify=exec:/bin/true", "v").status == 0
    assert foreign.zkeep("health", "--notify").status == 5
    assert not list(tmp_path.glob("ran*"))


def test_p1_a_value_that_changed_elsewhere_is_approved_again(foreign: Box, tmp_path: Path) -> None:
    assert foreign.zkeep("set", f"notify={touching(tmp_path / 'mine')}", "v").status == 0
    with Pool.open(foreign.path, "v") as pool, pool.transaction() as t:
        top = pool.dataset(DatasetName("v"))
        pool.update_dataset(t, top, local={**top.doc["local"], "notify": touching(tmp_path / "ran")})
    assert foreign.zkeep("health", "--notify").status == 5
    assert not list(tmp_path.glob("ran*"))
    assert not (tmp_path / "mine").exists()


def test_what_is_set_here_acts_also_after_the_pool_was_away(foreign: Box, tmp_path: Path) -> None:
    mine = f"notify={touching(tmp_path / 'mine')}"
    for words in (["set", mine, f"mountpoint={tmp_path}/mnt", "v"], ["set", "notify=none", "v/b"]):
        assert foreign.zkeep(*words).status == 0
    assert foreign.zkeep("pool", "export", "v").status == 0
    assert foreign.zkeep("pool", "import", str(foreign.path)).status == 0
    assert foreign.zkeep("health", "--notify").status == 0
    assert (tmp_path / "mine").exists()
    assert folder_of(foreign, "v/a") == f"{tmp_path}/mnt/a"


def test_what_a_pool_or_dataset_is_made_with_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(tmp_path)
    told = [f"-onotify={touching(tmp_path / 'told')}", f"-omountpoint={tmp_path}/mnt"]
    assert box.zkeep("create", *told, "-o", "max_age=1s", "v/a").status == 0
    assert box.zkeep("pool", "create", *told, "-o", "max_scrub_age=1s", "w", str(tmp_path / "w")).status == 0
    with Registry(tmp_path / "home").open("w") as pool:
        assert folder_for(pool, pool.dataset(DatasetName("w"))) == f"{tmp_path}/mnt"
    assert folder_of(box, "v/a") == f"{tmp_path}/mnt"
    assert len(json.loads((tmp_path / "home" / "settings.json").read_text())) == 2 * len(OUTWARD)


def test_p1_files_do_not_appear_where_another_machine_says(foreign: Box, tmp_path: Path) -> None:
    with Registry(Path(os.environ["ZKEEP_HOME"])).open("v") as pool:
        assert mountpoint_of(pool, pool.dataset(DatasetName("v/a"))) is not None
    with pytest.raises(Refused, match="its mountpoint was set on another machine"):
        folder_of(foreign, "v/a")
    answer = foreign.zkeep("mount", "v/a")
    assert answer.status == 1
    assert not (tmp_path / "etc").exists()


@pytest.mark.parametrize("name", ["setuid", "exec", "devices", "canmount"])
def test_p1_a_stream_grants_nothing_that_was_taken_away_here(box: Box, name: str) -> None:
    with Pool.open(box.path, "v") as pool, pool.transaction() as t:
        own = {"canmount": "off"} if name == "canmount" else {}
        pool.update_dataset(t, pool.dataset(DatasetName("v")), local={name: "off"})
        pool.create_dataset(t, DatasetName("v/a"), received={name: "on"}, local=own)
        pool.create_dataset(t, DatasetName("v/b"), received={name: "off"}, local={})
    with Pool.open(box.path, "v") as pool:
        for dataset in ("v/a", "v/b"):
            assert not live.allows(View(pool), pool.dataset(DatasetName(dataset)), name)


def test_p1_a_stream_makes_nothing_writable(box: Box) -> None:
    with Pool.open(box.path, "v") as pool, pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(DatasetName("v")), local={"readonly": "on"})
        crypt = {"crypt": {"suite": 8}}
        pool.create_dataset(t, DatasetName("v/a"), received={"readonly": "off"}, **crypt)
        pool.create_dataset(t, DatasetName("v/b"), received={"readonly": "on"}, local={"readonly": "off"}, **crypt)
    with Pool.open(box.path, "v") as pool:
        assert not live.can_write(pool.dataset(DatasetName("v/a")), pool)
        assert live.can_write(pool.dataset(DatasetName("v/b")), pool)
