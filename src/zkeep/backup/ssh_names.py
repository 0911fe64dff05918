"""Asks ssh what a host of its configuration is: for a recovery sheet, which is read where that configuration is not.

Source: ssh(1), -G; ssh_config(5), ProxyJump.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zkeep.backup.places import Host, Place, parse_host
from zkeep.errors import WrongUsage
from zkeep.names import whole_number

SECONDS = 10
"How long ssh may take to read its configuration."
MOST_JUMPS = 8


@dataclass(frozen=True)
class Resolved:
    """A place as any machine finds it. `options`: what ssh needs beside it, each as --ssh-option takes it."""

    place: Place
    options: tuple[str, ...] = ()


def resolve(place: Place, ssh: Sequence[str] = ()) -> Resolved:
    """Replace a name of ssh_config by the host, user and port that it stands for; unknown where ssh does not say.

    `ssh`: more words for ssh, before the host.
    """
    if place.host is None or not (said := _ask(place.host, ssh)):
        return Resolved(place)
    found = Resolved(replace(place, host=_host(place.host, said)))
    jump, command = said.get("proxyjump", "none"), said.get("proxycommand", "none")
    if jump != "none":
        return replace(found, options=(f"ProxyJump={','.join(map(_jump, jump.split(',')[:MOST_JUMPS]))}",))
    if command != "none" and command.isprintable():
        return replace(found, options=(f"ProxyCommand={command}",))
    return found


def _ask(host: Host, ssh: Sequence[str]) -> dict[str, str]:
    """What ssh would do, by the names of its options; empty where it does not say."""
    port = ["-p", str(host.port)] if host.port else []
    words = ["ssh", "-G", *ssh, *port, "--", f"{host.user}@{host.name}" if host.user else host.name]
    try:
        done = subprocess.run(words, capture_output=True, timeout=SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if done.returncode:
        return {}
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def _host(host: Host, said: dict[str, str]) -> Host:
    """The host with its real name, the user and a port that is not the usual one."""
    try:
        port = whole_number(said.get("port", "22"), 65535, 1)
        name = parse_host(said["hostname"] if ":" not in said["hostname"] else f"[{said['hostname']}]").name
        user = parse_host(f"{said['user']}@x").user
    except (KeyError, ValueError, WrongUsage):
        return host
    return Host(name, user, port if port != 22 or host.port else 0)


def _jump(text: str) -> str:
    """A host on the way, which may be a name of the configuration, too."""
    try:
        host = parse_host(text.removeprefix("ssh://"))
    except WrongUsage:
        return text
    return str(_host(host, _ask(host, ())))
