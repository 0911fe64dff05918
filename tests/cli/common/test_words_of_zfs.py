"""What replication tools ask of a target beside send and receive, and the words in which they are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from commandkit import Vault
from zkeep.pool.datasets.model import Pool

DATA = Path(__file__).parents[2] / "data"
STORY = DATA / "opened" / "story"
STREAMS = DATA / "streams"


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vault:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    return Vault(tmp_path)


# Placeholders


@pytest.mark.parametrize("options", ["-o encryption=off", "-p -o encryption=off -o mountpoint=none -o zrepl:x=on"])
def test_a_placeholder_that_is_not_encrypted(box: Vault, options: str) -> None:
    box.text(f"create {options} vault/a")
    assert box.text("get -H -o value,source encryption vault/a") == "off\tdefault\n"


def test_a_pool_that_is_not_encrypted(box: Vault) -> None:
    box.text(f"pool create -O encryption=off other {box.path / 'other'}")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("on", "Keyformat required for new encryption root"),
        ("aes-256-gcm", "Keyformat required for new encryption root"),
        ("nonsense", "'encryption' must be one of 'on | off | aes-128-ccm"),
    ],
)
def test_an_encryption_that_cannot_be(box: Vault, value: str, why: str) -> None:
    box.refuses(f"create -o encryption={value} vault/a", why)
    box.refuses(f"pool create -o encryption={value} other {box.path / 'other'}", "no key is here to encrypt with")
    assert box.text("list -H -o name") == "vault\n"


def test_encryption_is_not_switched_off_afterwards(box: Vault) -> None:
    box.text("receive vault/j", (STREAMS / "full-Rw.zfs").read_bytes())
    box.refuses("set encryption=off vault/j", "cannot set property encryption")


# Columns


def test_inconsistent_while_the_first_snapshot_is_half_there(box: Vault) -> None:
    chain = DATA / "opened" / "chains"
    full = (chain / "gcm128-zstd-16k.full-s0.zfs").read_bytes()
    increment = (chain / "gcm128-zstd-16k.inc-s0-s1.zfs").read_bytes()
    assert box.run("receive -s vault/a", full[:-400]).returncode == 5
    assert box.text("list -H -p -o inconsistent vault vault/a") == "0\n1\n"
    assert "inconsistent" not in box.text("get -H -o property all vault/a")
    box.text("receive -s vault/b", full)
    assert box.run("receive -s vault/b", increment[:-400]).returncode == 5
    assert box.text("get -H -o value receive_resume_token vault/b") != "-\n"
    assert box.text("list -H -o inconsistent vault/b") == "0\n"


def test_volblocksize_is_that_of_the_object_that_is_the_disk(box: Vault) -> None:
    """What a stream says in the clear; a volume in all but name serves."""
    full = DATA / "opened" / "chains" / "gcm128-zstd-16k.full-s0.zfs"
    told = re.search(r"OBJECT object = 1 .*? blksz = (\d+)", box.text(f"dump -v {full}"))
    assert told
    box.text("receive vault/a", full.read_bytes())
    assert box.text("get -H -o value volblocksize vault/a") == "-\n"
    with Pool.open(box.path / "vault") as pool, pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(pool.full("a")), type="volume")
        pool.create_dataset(t, pool.full("empty"), "volume")
    assert box.text("list -H -p -o volblocksize,recordsize vault/a") == f"{told[1]}\t-\n"
    assert box.text("list -H -p -o volblocksize vault/empty") == "-\n"


# Mounting what is locked


def test_a_locked_dataset_is_not_mounted(box: Vault) -> None:
    box.text("receive vault/j", (STREAMS / "full-Rw.zfs").read_bytes())
    box.refuses("mount vault/j", "cannot mount 'vault/j': encryption key not loaded")
    box.refuses(f"mount vault/j {box.path}", "cannot mount 'vault/j': encryption key not loaded")
    box.refuses("mount vault/none", "cannot open")
    box.text("create vault/open")
    box.refuses("mount vault/open", "cannot mount 'vault/open': name a folder to show it in")


@pytest.mark.parametrize("verb", ["umount", "unmount"])
def test_what_is_not_mounted(box: Vault, verb: str) -> None:
    box.refuses(f"{verb} vault", "cannot unmount 'vault': not currently mounted")


# A key on standard input


def test_prompt_reads_standard_input_where_nobody_types(box: Vault) -> None:
    """A key may come by a pipe, as for load-key."""
    stream, key = STORY / "full-Rw.zfs", (STORY / "jambon-zfs-key").read_bytes()
    assert "jambons/2019/scan.raw" in box.text(f"ls -R {stream} blanc@to-remote-server -L prompt", key)
    done = box.run(f"ls {stream} -L prompt", b"x" * len(key))
    assert done.returncode != 0
    assert done.stderr.count(b"\n") == 1
    done = box.run(f"ls {stream}", key)
    assert b"no key is here that opens it" in done.stderr


def test_a_filter_does_not_take_its_stream_for_the_key(box: Vault) -> None:
    why = "-L prompt reads standard input, on which the stream comes"
    box.refuses("verify -L prompt", why, status=2, stdin=b"anything")


# Where a user may make no folder


@pytest.mark.skipif(os.geteuid() == 0, reason="root may make folders anywhere")
def test_a_folder_that_is_not_ours_as_a_user(box: Vault) -> None:
    box.refuses("pool create v2 /srv/v2", "install -d -o")


def test_a_folder_that_is_not_ours(
    box: Vault, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from zkeep.cli.main import run

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run(["pool", "create", "v2", "/srv/v2"]) == 1
    line = capsys.readouterr().err
    assert "cannot create pool v2: /srv/v2: Permission denied; choose a folder of yours, such as ~/v2" in line
    assert line.count("\n") == 1
