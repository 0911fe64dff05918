"""zkeep restore -r: a dataset with those below, from a server, from a pool here; and with the key that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from backupkit import ZKEEP, Laptop

ROLES = "receive,list,send"
TREE = "ssh://box/vault/me/tree"


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Laptop:
    """A machine with a tree of datasets in its pool `own`, of which all but one were sent to a server."""
    made = Laptop(tmp_path, monkeypatch, capfd, ROLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made.key.write_bytes(bytes(range(32)))
    made.key.chmod(0o600)
    options = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{made.key}")
    assert made.run("pool", "create", "own", str(tmp_path / "own")).status == 0
    for name in ("own/tree", "own/tree/kid", "own/tree/kid/grand"):
        (made.source / "name").write_text(name)
        assert made.run("create", *options, name).status == 0
        key = f"file://{made.key}"
        assert made.run("snapshot", "--from", str(made.source), "-L", key, f"{name}@s").status == 0
    env = {**os.environ, "ZKEEP_HOME": str(tmp_path / "home")}
    sent = subprocess.run([*ZKEEP, "send", "-Rw", "own/tree@s"], env=env, capture_output=True, check=True).stdout
    env["ZKEEP_HOME"] = str(made.server)
    subprocess.run([*ZKEEP, "receive", "vault/me/tree"], env=env, input=sent, check=True)
    assert made.serve("create", "vault/me/tree/late").status == 0
    made.run("unload-key", "-a")  # create loaded it, where the path of its socket is short enough
    return made


def names(folder: str) -> dict[str, str]:
    """What the file `name` of each dataset has, by its folder."""
    return {str(path.parent.relative_to(folder)): path.read_text() for path in Path(folder).rglob("name")}


ALL = {".": "own/tree", "kid": "own/tree/kid", "kid/grand": "own/tree/kid/grand"}


def test_a_tree_comes_from_a_server(laptop: Laptop) -> None:
    key = f"file://{laptop.key}"
    done = laptop.run("restore", "-r", TREE, "-L", key, "-C", "new")
    assert (done.status, done.out, names("new")) == (0, "", ALL)
    assert done.err == "zkeep: vault/me/tree@s: not included: vault/me/tree/late: they have no @s\n"
    done = laptop.run("restore", TREE, "-L", key, "-C", "top")
    assert (done.status, names("top")) == (0, {".": "own/tree"})
    assert "not included: vault/me/tree/kid, vault/me/tree/late; restore -r takes" in done.err
    assert laptop.run("restore", TREE, "-L", key, "-C", "one", "name").err == ""
    assert laptop.run("restore", "-r", TREE, "-L", key, "name").status == 2
    assert [name for name in os.listdir() if name.startswith("zkeep-")] == []


def test_a_tree_goes_into_datasets(laptop: Laptop) -> None:
    done = laptop.run("restore", "-r", TREE, "-L", f"file://{laptop.key}", "--to", "own/back")
    assert done.status == 0
    assert laptop.run("extract", "-r", "-L", f"file://{laptop.key}", "-C", "new", "own/back@s").status == 0
    assert names("new") == ALL
    (laptop.folder / "wrong").write_bytes(bytes(32))
    (laptop.folder / "wrong").chmod(0o600)
    done = laptop.run("restore", "-r", TREE, "-L", f"file://{laptop.folder}/wrong", "--to", "own/other")
    assert (done.status, laptop.run("list", "own/other").status) == (1, 1)


def test_a_tree_from_a_pool_here_with_its_own_key(laptop: Laptop) -> None:
    done = laptop.run("restore", "-r", "own/tree", "-C", "new")
    assert (done.status, done.err, names("new")) == (0, "", ALL)
    assert "restore -r takes what lies below" in laptop.run("restore", "own/tree", "-C", "top").err
    laptop.key.rename(laptop.folder / "elsewhere")
    done = laptop.run("restore", "own/tree", "-C", "none")
    assert done.status == 1
    assert "warning: the key" in done.err
    assert names("none") == {}


def test_the_machine_that_made_the_backups_finds_its_key(laptop: Laptop) -> None:
    assert laptop.backup(to="ssh://box/vault/me/docs").status == 0
    assert laptop.run("restore", "ssh://box/vault/me/docs", "-C", "new").status == 0
    assert names("new") == {".": "own/tree/kid/grand"}


def test_what_the_disk_has_no_room_for_is_not_begun(laptop: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    laptop.said()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    done = laptop.run("restore", TREE, "-L", f"file://{laptop.key}", "-C", "new")
    assert (done.status, "and '" in done.err, "--spool DIR" in done.err) == (1, True, True)
    assert all(" send " not in line for line in laptop.said())
