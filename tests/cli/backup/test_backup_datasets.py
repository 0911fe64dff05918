"""zkeep backup of datasets: of zkeep, and of ZFS, for which a program stands that notes how it is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backupkit import ZKEEP, Laptop

LONG = pytest.mark.skipif(not os.environ.get("ZKEEP_BACKUPS"), reason="ZKEEP_BACKUPS=1 plays it")
ZFS = """#!/bin/sh
# A zkeep with a home of its own, which takes snapshots of a folder. The files `plain` and
# `child` tell what it says of its encryption.
echo "$@" >> {folder}/zfs.log
export ZKEEP_HOME={folder}/zfs
for name; do :; done
case "$*" in
  snapshot*) exec {zkeep} snapshot --from {docs} -L file://{folder}/zfs.key "$name" ;;
  get*encryption*) [ -e {folder}/plain ] && cat {folder}/plain && exit
    [ -e {folder}/child ] && printf 'tank/home\\taes-256-gcm\\ntank/home/sub/a\\toff\\n' && exit ;;
esac
exec {zkeep} "$@"
"""


class ZfsHost(Laptop):
    """The user's machine has the dataset tank/home of ZFS."""

    def prepare(self) -> None:
        program = self.folder / "bin" / "zfs"
        program.write_text(ZFS.format(folder=self.folder, zkeep=" ".join(ZKEEP), docs=self.source))
        program.chmod(0o755)
        key = self.folder / "zfs.key"
        key.write_bytes(bytes(range(32)))
        key.chmod(0o600)
        keys = ["-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={key.as_uri()}"]
        assert self.zfs("pool", "create", "tank", str(self.folder / "pt")) == ""
        assert self.zfs("create", *keys, "tank/home") == ""
        self.zfs("unload-key", "-a")

    def zfs(self, *words: str) -> str:
        done = self._run(self.folder / "zfs", *words)
        assert done.status == 0, done.err
        return done.out

    def called(self) -> list[str]:
        """What zfs was asked to change, since this was asked the last time."""
        log = self.folder / "zfs.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line for line in lines if line.split()[0] not in ("list", "get")]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> ZfsHost:
    return ZfsHost(tmp_path, monkeypatch, capfd)


def words_of(lines: list[str], prefix: str) -> list[str]:
    """Calls without times and numbers."""
    return [" ".join(word.partition(prefix)[0] + word.partition(prefix)[1] for word in line.split()) for line in lines]


@LONG
def test_where_nobody_answers_no_snapshots_pile_up(host: ZfsHost) -> None:
    host.prepare()
    (host.folder / "down").touch()
    assert host.run("backup", "zfs:tank/home", "ssh://box/vault/me/home").status == 5
    assert host.called() == []
    (host.folder / "down").unlink()
    dry = host.run("backup", "-n", "zfs:tank/home", "ssh://box/vault/me/home")
    assert (dry.status, host.called()) == (0, [])  # it has no snapshot yet, and none was taken
    taken, sent = dry.out.splitlines()
    name = taken.removeprefix("would take tank/home")
    assert sent == f"would send {name} in full from tank/home to vault/me/home on box"


def test_a_dry_run_plans_with_the_snapshot_that_it_does_not_take(host: ZfsHost) -> None:
    host.prepare()
    host.zfs("snapshot", "--from", str(host.source), "-L", f"file://{host.folder}/zfs.key", "tank/home@mine")
    host.called()
    dry = host.run("backup", "-n", "zfs:tank/home", "ssh://box/vault/me/home")
    assert (dry.status, host.called()) == (0, [])
    taken, sent = dry.out.splitlines()
    assert sent.split()[2] == taken.removeprefix("would take tank/home").strip()


def test_zfs_as_the_destination_is_received_into_without_mounting(host: ZfsHost) -> None:
    host.prepare()
    assert host.backup(to="zfs:tank/docs").status == 0
    assert host.called()[-1] == "receive -s -u tank/docs"
    assert len(host.zfs("list", "-H", "-o", "name", "-t", "snapshot", "tank/docs").split()) == 1


def test_a_dataset_below_that_is_not_encrypted_is_named_before_anything_is_taken_or_sent(host: ZfsHost) -> None:
    host.prepare()
    (host.folder / "child").touch()
    for more in ((), ("-n",)):
        done = host.run("backup", "-r", *more, "zfs:tank/home", "ssh://box/vault/me/home")
        assert (done.status, done.out, host.called(), host.said()) == (1, "", [], [])
        assert "with -r: tank/home/sub/a is not encrypted" in done.err


@LONG
def test_a_dataset_of_zkeep_and_those_below_it(host: ZfsHost) -> None:
    """What a pool has is sent on, as it is, and pulled from there into a third one."""
    host.prepare()
    docs = str(host.source)
    key = f"file://{host.folder}/zfs.key"
    for name in ("tank/home@a", "tank/home@b"):
        host.zfs("snapshot", "--from", docs, "-L", key, name)
    keys = ["-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={key}"]
    host.zfs("create", *keys, "tank/home/sub")
    host.zfs("snapshot", "--from", docs, "-L", key, "tank/home/sub@a")
    host.zfs("unload-key", "-a")
    host.zfs("backup", "-r", "tank/home", "ssh://box/vault/me/home")
    assert len(host.snapshots("vault/me/home")) == 1  # the first time, the newest
    assert len(host.snapshots("vault/me/home/sub")) == 1
    assert host.run("pool", "create", "third", str(host.folder / "p3")).status == 0
    host.write_ssh("list,send")
    pulled = host.run("backup", "ssh://box/vault/me/home", "third/home")
    assert pulled.status == 0, pulled.err
    assert host.run("list", "-H", "-o", "name", "-t", "snapshot", "third/home").out == "third/home@b\n"


@LONG
def test_without_encryption_it_is_encrypted_on_its_way(host: ZfsHost) -> None:
    host.prepare()
    (host.folder / "plain").write_text("tank/home\toff\n")
    command = ("backup", "--yes", "--key-file", str(host.key), "zfs:tank/home", "ssh://box/vault/me/home")
    try:
        host.zfs("load-key", "tank/home")  # with it, what is sent without -w is plain
        for name in ("b", "c"):
            (host.source / name).write_bytes(name.encode())
            done = host.run(*command)
            assert done.status == 0, done.err
        sent = [line for line in host.called() if line.startswith("send")]
    finally:
        host.zfs("unload-key", "-a")
    assert words_of(sent, "backup-") == ["send -L tank/home@backup-", "send -L -i tank/home@backup- tank/home@backup-"]
    assert len(host.snapshots("vault/me/home")) == 2
    assert host.files("vault/me/home") == {"a": b"first", "b": b"b", "c": b"c"}
    names = host.zfs("list", "-H", "-o", "name", "-t", "snapshot,bookmark", "-s", "createtxg", "-d", "1", "tank/home")
    assert [name.partition("home")[2][:8] for name in names.split()] == ["@backup-", "#backup-"]
    assert host.run("get", "-H", "-o", "value", "contents", "local/home/zfs").out == "metadata\n"


def test_a_tree_without_encryption_is_encrypted_on_its_way(host: ZfsHost) -> None:
    """Each dataset into one of its own, with one key; what is encrypted by itself among them is named before."""
    host.prepare()
    host.zfs("load-key", "tank/home")
    host.zfs("create", "tank/home/sub")
    (host.source / "b").write_bytes(b"b")
    # The program that stands for zfs knows no `snapshot -r`: the one below is there already.
    host.zfs("snapshot", "--from", str(host.source), "tank/home/sub@mine")
    command = ("backup", "--yes", "--key-file", str(host.key), "-r", "zfs:tank/home", "ssh://box/vault/me/home")
    (host.folder / "plain").write_text("tank/home\toff\ntank/home/sub\taes-256-gcm\n")
    assert "tank/home/sub is: name them one by one" in host.run(*command).err
    (host.folder / "plain").write_text("tank/home\toff\ntank/home/sub\toff\n")
    host.called()
    for _ in range(2):
        done = host.run(*command)
        assert done.status == 0, done.err
    host.zfs("unload-key", "-a")
    assert len(host.snapshots("vault/me/home")) == 2
    assert len(host.snapshots("vault/me/home/sub")) == 1
    assert host.files("vault/me/home/sub") == host.files("vault/me/home") == {"a": b"first", "b": b"b"}
    again = host.run(*command[:-1], "ssh://box/vault/me/home/sub")
    assert (again.status, "it has backups from elsewhere" in again.err) == (1, True)
