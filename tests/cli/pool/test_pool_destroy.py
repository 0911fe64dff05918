"""Destroying a pool: what it asks, what it refuses, and the way back."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.pool.datasets import destroyed
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.store.catalog import INDEX
from zkeep.pool.store.files import LocalStore

STREAMS = Path(__file__).parents[2] / "data" / "streams"
Shell = Callable[..., str]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    """Runs `zkeep ARGUMENTS`, expects the status, and returns what was printed."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_WAIT", "0.05")
    monkeypatch.chdir(tmp_path)

    def call(line: str, status: int = 0) -> str:
        found = run(line.split())
        out, err = capfd.readouterr()
        assert found == status, out + err
        return out + err

    return call


@pytest.fixture
def vault(shell: Shell, tmp_path: Path) -> Path:
    shell("pool create vault srv/vault")
    environment = {**os.environ, "ZKEEP_HOME": str(tmp_path / "home")}
    stream = (STREAMS / "full-Rw.zfs").read_bytes()
    subprocess.run(
        [sys.executable, "-m", "zkeep", "receive", "vault/jambon"], input=stream, check=True, env=environment
    )
    return tmp_path / "srv" / "vault"


def test_what_goes_is_named_and_comes_back(shell: Shell, vault: Path) -> None:
    before = shell("list -Hp -r -t all -o name,guid,used vault")
    said = shell("pool destroy vault")
    assert "will destroy vault/jambon/bayonne (2 snapshots)\n" in said
    assert "'zkeep pool import -D vault' brings it back until" in said
    shell("list vault", 1)
    assert "no pools" in shell("pool list")
    shell("pool import srv/vault", 1)
    assert "vault" in shell("pool import -D")
    shell("pool import -D vault")
    assert shell("list -Hp -r -t all -o name,guid,used vault") == before
    assert shell("pool import -D").count("\n") == 1
    shell("pool scrub vault")


def test_what_is_held_stays(shell: Shell, vault: Path) -> None:
    shell("hold keep vault/jambon/blanc@2019")
    for line in ("pool destroy vault", "pool destroy -f vault"):
        assert "vault/jambon/blanc@2019 is held (keep)" in shell(line, 1)
    shell("list vault")
    shell("release keep vault/jambon/blanc@2019")
    shell("pool destroy vault")


def test_it_comes_back_under_another_name_and_elsewhere(shell: Shell, vault: Path, tmp_path: Path) -> None:
    shell("pool destroy -f vault")
    shell("pool create vault srv/new")
    assert "known already" in shell("pool import -D vault", 1)
    shell("pool import -D vault old")
    assert "old/jambon" in shell("list -r old")
    shell("pool destroy -f old")
    (tmp_path / "home" / "destroyed.json").unlink()
    assert "old" not in shell("pool import -D")
    assert "old" in shell("pool import -D -d srv")
    shell("pool import -D -d srv old")


def test_compact_of_its_name_removes_it_for_good(shell: Shell, vault: Path) -> None:
    shell("pool destroy -f vault")
    assert "freed" in shell("pool compact -v vault")
    assert not vault.exists()
    shell("pool import -D vault", 1)
    shell("pool compact vault", 1)


def test_its_time_ends(shell: Shell, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell("pool destroy -f vault")
    now = time.time()
    monkeypatch.setattr(destroyed.time, "time", lambda: now + destroyed.KEPT - 60)
    shell("pool create other srv/other")
    assert vault.exists()
    monkeypatch.setattr(destroyed.time, "time", lambda: now + destroyed.KEPT + 60)
    shell("pool compact other")
    assert not vault.exists()
    assert Registry(vault.parent.parent / "home").buried() == []


def test_no_pool_is_made_over_one_that_can_be_brought_back(shell: Shell, vault: Path) -> None:
    shell("pool destroy -f vault")
    assert "a destroyed pool lies in" in shell("pool create vault srv/vault", 1)
    shell("pool compact vault")
    shell("pool create vault srv/vault")
    assert shell("list -H -o name -r -t all") == "vault\n"


def test_a_pool_that_cannot_be_read_needs_force(shell: Shell, vault: Path) -> None:
    log = next((vault / "journal").glob("*.log"))
    log.write_bytes(b"garbage\n")
    (vault / INDEX).write_bytes(b"garbage" * 99)
    assert "-f destroys it all the same" in shell("pool destroy vault", 1)
    shell("pool destroy -f vault")
    assert "vault" in shell("pool import -D")


def test_a_pool_that_is_not_there_is_forgotten(shell: Shell, vault: Path) -> None:
    vault.rename(vault.parent / "moved")
    shell("pool destroy vault")
    assert "no pools" in shell("pool list")
    shell("pool import srv/moved")


def test_what_lies_beside_a_pool_in_its_folder_stays(shell: Shell, vault: Path) -> None:
    (vault / "lost+found").mkdir()
    (vault / "segments" / "link").symlink_to(vault.parent)
    (vault.parent / "precious").write_text("x")
    shell("pool destroy -f vault")
    shell("pool compact vault")
    assert sorted(p.name for p in vault.iterdir()) == ["lost+found"]
    assert (vault.parent / "precious").exists()


@pytest.mark.parametrize(("answer", "status"), [(b"n\n", 1), (b"\n", 1), (b"y\n", 0)])
def test_on_a_terminal_it_asks(vault: Path, answer: bytes, status: int) -> None:
    mine, its = pty.openpty()
    os.write(mine, answer)
    command = [sys.executable, "-m", "zkeep", "pool", "destroy", "vault"]
    try:
        found = subprocess.run(command, stdin=its, capture_output=True, timeout=60, check=False)
    finally:
        os.close(mine)
        os.close(its)
    assert found.returncode == status, found.stderr
    assert b"destroy vault?" in found.stderr
    assert (vault / "POOL").exists() == bool(status)


def test_a_pool_in_use_is_busy(shell: Shell, vault: Path) -> None:
    from zkeep.pool.store.files import LocalStore

    with LocalStore(vault).lock("readers", shared=True):
        assert "busy" in shell("pool destroy -f vault", 5)
    shell("list vault")
    assert not (vault / "DESTROYED").exists()


@pytest.mark.parametrize("line", ["pool export vault", "pool destroy -f vault"])
def test_what_is_received_into_stays_known(shell: Shell, vault: Path, tmp_path: Path, line: str) -> None:
    full = (STREAMS / "plain-blanc-2018.zfs").read_bytes()
    environment = {**os.environ, "ZKEEP_HOME": str(tmp_path / "home")}
    shell("create -o blind=off vault/plain")
    command = [sys.executable, "-m", "zkeep", "receive", "vault/plain/blanc"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        assert process.stdin
        process.stdin.write(full[:4096])
        process.stdin.flush()
        while not list((vault / "lock").glob("receive-*")):
            assert process.poll() is None
        assert "pool is busy" in shell(line, 5)
        process.stdin.write(full[4096:])
        process.stdin.close()
        assert process.wait() == 0
    assert "vault/plain/blanc@2018" in shell("list -r -t all vault")
    shell(line)


def test_a_pool_whose_folder_is_gone_can_be_exported(shell: Shell, vault: Path) -> None:
    vault.rename(vault.with_name("elsewhere"))
    shell("pool export vault")
    assert "no pools" in shell("pool list")


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_what_fails_while_a_pool_comes_back_is_taken_back(
    shell: Shell, vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shell("list -Hp -r -t all -o name,guid,used vault")
    shell("pool destroy vault")
    for undone in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "add", full)
            if not undone:
                patch.setattr(LocalStore, "delete", lambda self, name: full() if self.exists(name) else None)
            shell("pool import -D vault", 1)
        assert (vault / "POOL").exists() is not undone
        assert "vault" in shell("pool import -D")
    shell("pool import -D vault")
    assert shell("list -Hp -r -t all -o name,guid,used vault") == before
    assert not (vault / "DESTROYED").exists()


def test_a_pool_that_is_made_and_cannot_be_known_is_named(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "add", full)
        shell("pool create other srv/other", 1)
        assert not (tmp_path / "srv" / "other").exists()
        patch.setattr(destroyed, "erase", full)
        assert "'zkeep pool import srv/other other' makes it known" in shell("pool create other srv/other", 5)
    shell("pool import srv/other other")
    assert "other" in shell("pool list")


# Several pools of one name


@pytest.fixture
def namesakes(shell: Shell, vault: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two destroyed pools that were called vault; the first one holds a backup."""
    shell("pool destroy vault")
    shell("pool create vault srv/second")
    shell("pool destroy vault")
    return vault, tmp_path / "srv" / "second"


def test_of_two_destroyed_pools_none_is_removed_by_their_name(shell: Shell, namesakes: tuple[Path, Path]) -> None:
    assert "give the path of one" in shell("pool compact vault", 1)
    assert "give the path of one" in shell("pool import -D vault", 1)
    shell(f"pool compact {namesakes[1]}")
    assert not namesakes[1].exists()
    shell("pool import -D vault")
    assert "vault/jambon/bayonne" in shell("list -r vault")


def test_a_path_names_the_destroyed_pool_beside_one_in_use(shell: Shell, namesakes: tuple[Path, Path]) -> None:
    shell(f"pool import -D {namesakes[0]}")
    shell("pool compact vault")
    assert str(namesakes[1]) in shell("pool import -D")
    shell(f"pool compact {namesakes[1]}")
    assert "vault/jambon/bayonne" in shell("list -r vault")


def test_all_destroyed_pools_are_brought_back_or_none(shell: Shell, namesakes: tuple[Path, Path]) -> None:
    listed = shell("pool import -D")
    assert "several of them are called vault" in shell("pool import -D -a", 1)
    assert "no pools" in shell("pool list")
    assert shell("pool import -D") == listed
    shell(f"pool import -D {namesakes[1]} other")
    shell("pool import -D -a")
    assert {line.split()[0] for line in shell("pool list -H").splitlines()} == {"other", "vault"}


def test_all_pools_of_a_folder_are_imported_or_none(shell: Shell, vault: Path) -> None:
    shell("pool create next srv/next")
    shell("pool export vault next")
    shell("pool create vault elsewhere")
    assert "a pool vault is known already" in shell("pool import -d srv -a", 1)
    assert "next" not in shell("pool list -H")
    shell(f"pool import {vault} old")
    shell("pool import -d srv -a")
    shell("pool import -d srv -a")
    assert {line.split()[0] for line in shell("pool list -H").splitlines()} == {"next", "old", "vault"}
