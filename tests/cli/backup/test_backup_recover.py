"""zkeep backup --recover: a machine that lost what it knew goes on in the same destination."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from backupkit import ZKEEP, Done, Laptop
from zkeep.backup import fetch
from zkeep.names import DatasetName
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.store.catalog import Transaction

DEST = "ssh://box/vault/me"
CUT = """
case "$line" in *"--metadata "[0-9]*)
    ZKEEP_HOME={server} SSH_ORIGINAL_COMMAND="$line" {zkeep} server --root vault/me --allow receive,list,send \
        | head -c 3000
    exit 255 ;;
esac
"""


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Laptop:
    """A machine with a backup on a server."""
    made = Laptop(tmp_path, monkeypatch, capfd, "receive,list,send")
    monkeypatch.setattr(fetch, "PAUSES", (0.0,))
    monkeypatch.setattr(fetch, "TRIES", 1)
    monkeypatch.chdir(tmp_path)
    chance = random.Random(5)
    (made.source / "below").mkdir()
    (made.source / "below" / "large").write_bytes(chance.randbytes(300_000))
    for number in range(40):
        (made.source / "below" / f"n{number}").write_bytes(chance.randbytes(2000))
    os.link(made.source / "a", made.source / "another name")
    with (made.source / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 20)
        sparse.seek(400_000)
        sparse.write(b"in the middle")
    assert made.backup().status == 0
    return made


def recover(laptop: Laptop, *words: str, key: Path | None = None) -> Done:
    return laptop.run("backup", "--recover", "-L", (key or laptop.key).as_uri(), *words, str(laptop.source), DEST)


def change(laptop: Laptop) -> None:
    (laptop.source / "a").write_bytes(b"changed")
    (laptop.source / "below" / "n7").unlink()
    (laptop.source / "new").write_bytes(b"new")
    with (laptop.source / "below" / "large").open("r+b") as large:
        large.truncate(150_000)


def same(laptop: Laptop) -> bool:
    found = {str(p.relative_to(laptop.source)): p.read_bytes() for p in laptop.source.rglob("*") if p.is_file()}
    return laptop.files() == found


def test_it_goes_on_with_an_increment(laptop: Laptop) -> None:
    shutil.rmtree(laptop.folder / "home")
    refused = laptop.backup()
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "--recover -L" in refused.err
    laptop.said()
    change(laptop)
    done = recover(laptop, "-v")
    assert done.status == 0, done.err
    assert "recovered local/docs from vault/me@backup-" in done.err + done.out
    # It is an increment, and so is the next one, without any word more.
    assert len(laptop.snapshots()) == 2
    assert same(laptop)
    (laptop.source / "new").write_bytes(b"newer")
    assert laptop.run("backup", str(laptop.source), DEST).status == 0
    assert len(laptop.snapshots()) == 3
    assert same(laptop)
    # What it keeps is what it kept before: no contents, all of it authentic, and the record of what was sent.
    assert laptop.run("verify", "-L", laptop.key.as_uri(), "local/docs").status == 0
    assert recover(laptop).status == 1
    newest = laptop.serve("list", "-H", "-o", "name", "-t", "snapshot", "-s", "createtxg", "vault/me").out.split()[-1]
    assert laptop.serve("destroy", newest).status == 0
    assert laptop.run("restore", "-C", "out", DEST).status == 4


def test_nothing_is_kept_of_what_is_not_to_be_believed(laptop: Laptop) -> None:
    other = laptop.folder / "other"
    other.write_bytes(b"k" * 32)
    other.chmod(0o600)
    # Where a record of what was sent is left, an older state as the newest is refused.
    (laptop.source / "a").write_bytes(b"second")
    assert laptop.backup().status == 0
    moved = laptop.folder / "moved"
    laptop.source.rename(moved)
    laptop.source = moved
    refused = recover(laptop)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "zkeep set zkeep:backup-source=" in refused.err
    assert laptop.run("inherit", "zkeep:backup-destination", "local/docs").status == 0
    names = laptop.serve("list", "-H", "-o", "name", "-t", "snapshot", "-s", "createtxg", "vault/me").out.split()
    assert laptop.serve("rename", names[1], "vault/me@aside").status == 0
    refused = recover(laptop)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert laptop.serve("destroy", "vault/me@aside").status == 0
    refused = recover(laptop)
    assert (refused.status, refused.err.count("\n")) == (4, 1)
    shutil.rmtree(laptop.folder / "home")
    refused = recover(laptop, key=other)
    assert (refused.status, refused.err.count("\n")) == (1, 1), refused.err
    assert "key" in refused.err
    assert laptop.run("list", "-H", "-o", "name", "-r", "local").out.split() == ["local"]
    assert len(laptop.snapshots()) == 1


def test_a_line_that_breaks_is_taken_up_by_the_next_call(laptop: Laptop) -> None:
    shutil.rmtree(laptop.folder / "home")
    names = {"server": laptop.server, "zkeep": " ".join(ZKEEP)}
    (laptop.folder / "answer").write_text(CUT.format(**names))
    broken = recover(laptop)
    assert (broken.status, broken.err.count("\n")) == (5, 1)
    (laptop.folder / "answer").unlink()
    laptop.said()
    assert recover(laptop).status == 0
    assert not any("--metadata index" in line for line in laptop.said())
    assert same(laptop)


@pytest.mark.parametrize("words", [("ssh://box/vault/me",), ("--key-file", "none", "ssh://box/vault/me"), ("usb/me",)])
def test_wrong_calls(laptop: Laptop, words: tuple[str, ...]) -> None:
    shutil.rmtree(laptop.folder / "home")
    done = laptop.run("backup", "--recover", *words[:-1], str(laptop.source), words[-1])
    assert done.status in (1, 2)
    assert done.err.count("\n") == 1
    assert len(laptop.snapshots()) == 1


def test_a_receive_that_waits_there_is_told_before_anything_is_fetched(laptop: Laptop) -> None:
    (laptop.source / "new").write_bytes(random.Random(6).randbytes(3_000_000))
    (laptop.folder / "cut").write_text("1500000")
    assert laptop.backup().status == 5
    (laptop.folder / "cut").unlink()
    assert laptop.serve("get", "-H", "-o", "value", "receive_resume_token", "vault/me").out.strip() != "-"
    shutil.rmtree(laptop.folder / "home")
    laptop.said()
    refused = recover(laptop)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "zkeep receive -A vault/me" in refused.err
    assert not any("send" in line for line in laptop.said())
    assert laptop.serve("receive", "-A", "vault/me").status == 0
    assert recover(laptop).status == 0
    assert same(laptop)


def test_what_a_killed_call_leaves_is_found_by_the_next(laptop: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(laptop.folder / "home")

    def killed(pool: Pool, t: Transaction, old: DatasetName, new: DatasetName, parents: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(namespace, "rename_within", killed)
        assert recover(laptop).status != 0
    assert "recovering-" in laptop.run("list", "-H", "-o", "name", "-r", "local").out
    laptop.said()
    assert recover(laptop).status == 0
    assert not any("--metadata" in line for line in laptop.said())
    assert laptop.run("list", "-H", "-o", "name", "-r", "local").out.split() == ["local", "local/docs"]


@pytest.mark.parametrize("lost", ["home", "home/capture"])
def test_where_it_is_not_known_how_files_looked_only_what_changed_is_sent(laptop: Laptop, lost: str) -> None:
    for number in range(300):
        (laptop.source / f"f{number:03}").write_text(str(number))
    assert laptop.backup().status == 0
    shutil.rmtree(laptop.folder / lost)
    (laptop.source / "f100").write_text("changed")
    (laptop.source / "f200").unlink()
    done = recover(laptop, "-j") if lost == "home" else laptop.backup("-j")
    assert done.status == 0, done.err
    (sent,) = [int(str(event["bytes"])) for event in done.events("sent")]
    assert sent < 120_000  # all of them are 300,000
    assert same(laptop)
