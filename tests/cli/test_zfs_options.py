"""Options of zfs and zpool that are not here: each says why and what to do instead; harmless ones are taken."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from commandkit import Vault
from zkeep.cli.common import usage
from zkeep.cli.common.zfs_options import REASONS
from zkeep.cli.main import cli, run


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vault:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)
    return Vault(tmp_path)


@pytest.mark.parametrize("verb", REASONS)
def test_an_option_that_is_not_here_says_why(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option, why in REASONS[verb].items():
        assert run([*verb.split(), option, "vault"]) == 2
        assert capsys.readouterr() == ("", f"zkeep: cannot {verb} {option}: {why}\n")


def test_options_that_are_here_have_no_reason() -> None:
    """What was added to a verb is not said to be missing any more."""
    for verb, reasons in REASONS.items():
        command: click.Command | None = cli
        ctx = click.Context(cli)
        for word in verb.split():
            assert isinstance(command, click.Group)
            command = command.get_command(ctx, word)
        assert command is not None
        known = {opt for p in command.params for opt in p.opts}
        assert not known & set(reasons), verb


def test_options_that_ask_for_nothing_here_are_taken(vault: Vault) -> None:
    plain = vault("pool list -H vault")
    assert vault("pool list -vgLP -H vault") == plain
    assert vault("pool status -LPtgipsDe vault") == vault("pool status vault")
    vault("pool upgrade -a")
    vault("mount -vO")


def test_pools_are_exported_all_at_once_and_found_again(vault: Vault, tmp_path: Path) -> None:
    vault.refuses("pool export", "name a pool, or -a for all", status=2)
    vault.refuses("pool export -a vault", "name a pool, or -a for all", status=2)
    folder = vault("pool list -Ho path vault").decode().strip()
    vault("pool export -a")
    assert vault("pool list", says="no pools available") == b""
    vault(f"pool import -Nmf {folder}")
    assert vault("pool list -Ho name") == b"vault\n"


def test_pool_destroy_does_not_take_what_zfs_destroy_takes(vault: Vault) -> None:
    """The usage of a verb of a group is its own, though zfs has one of the same name."""
    vault.refuses("pool destroy", "usage: zkeep pool destroy [-f] NAME", status=2)
    assert b"zkeep pool destroy [-f] NAME" in vault("pool destroy --help")
    assert "destroy [-fnpRrv] <filesystem|volume>" in usage.lines(click.Command("destroy"), "destroy")[0]
