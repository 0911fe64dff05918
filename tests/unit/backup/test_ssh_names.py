"""A recovery sheet names hosts as any machine finds them, not as one machine's ssh_config calls them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from zkeep.backup.places import parse_destination
from zkeep.backup.ssh_names import Resolved, resolve
from zkeep.cli.keys.sheet import Sheet, destination_of, text

CONFIG = """
Host box
    HostName backup.example.org
    User backup
    Port 2222
Host far
    HostName fd00::7
    User me
    ProxyJump box,last@10.0.0.1
Host odd
    HostName odd.example.org
    User me
    ProxyCommand nc -X connect %h %p
"""
needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs OpenSSH's ssh")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ssh with a configuration of its own, which also has effect for hosts on the way."""
    path = tmp_path / "config"
    path.write_text(CONFIG)
    program = tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {path} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return path


def found(place: str, *ssh: str) -> tuple[str, tuple[str, ...]]:
    resolved = resolve(parse_destination(place), ssh)
    return str(resolved.place), resolved.options


@needs_ssh
def test_names_of_a_configuration(config: Path) -> None:
    assert found("ssh://box/v/me") == ("ssh://backup@backup.example.org:2222/v/me", ())
    assert found("ssh://root@box:22/zfs:v/me") == ("ssh://root@backup.example.org:22/zfs:v/me", ())
    assert found("ssh://box/v/me", "-o", "Port=7", "-i", "key") == ("ssh://backup@backup.example.org:7/v/me", ())
    jumps = "ProxyJump=backup@backup.example.org:2222,last@10.0.0.1"
    assert found("ssh://far/v/me") == ("ssh://me@[fd00::7]/v/me", (jumps,))
    assert found("ssh://odd/v/me") == ("ssh://me@odd.example.org/v/me", ("ProxyCommand=nc -X connect %h %p",))
    assert found("ssh://me@plain.example.org/v/me") == ("ssh://me@plain.example.org/v/me", ())


@needs_ssh
def test_the_sheet_says_both(config: Path) -> None:
    to = destination_of("ssh://far/v/me")
    sheet = text(Sheet("local/me", 1, 8, 2, 1, to.text, alias=to.alias, ssh=to.ssh))
    over = "--ssh-option ProxyJump=backup@backup.example.org:2222,last@10.0.0.1"
    assert f"zkeep restore 'ssh://me@[fd00::7]/v/me' {over} -L" in sheet
    assert "called ssh://far on the machine that made them" in sheet
    assert destination_of("ssh://me@plain/v/me").alias is None


@pytest.mark.parametrize("script", ["exit 1", "echo hostname -oX=y; echo user me; echo port 22", "", None])
def test_what_ssh_does_not_say_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script is not None:
        (tmp_path / "ssh").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    place = parse_destination("ssh://box/v/me")
    assert resolve(place) == Resolved(place)
    assert destination_of("vault/me").text == "vault/me"
    assert destination_of(None).text is None
