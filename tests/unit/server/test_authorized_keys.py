"""Lines for authorized_keys: what is in a key file is checked before it goes there."""

from __future__ import annotations

import base64

import pytest

from zkeep.errors import Refused
from zkeep.server.keys import authorized_lines

KIND = "ssh-ed25519"
BLOB = base64.b64encode(b"\0\0\0\x0b" + KIND.encode() + b"\0\0\0 " + bytes(range(32))).decode()
KEY = f"{KIND} {BLOB} alice@laptop"


def test_a_line_is_the_command_with_quotes_escaped_and_the_key() -> None:
    (line,) = authorized_lines(f"# mine\n\n{KEY}\n", """zkeep server --root 'a "b" \\' --client {client}""", "k.pub")
    assert line.startswith('command="zkeep server --root \'a \\"b\\" \\\' --client SHA256:')
    assert line.endswith(f'",restrict {KEY}')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no public key"),
        ("# only a comment", "no public key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n", "private key"),
        (f'command="sh" {KEY}', "no kind of public key"),
        (f"no-pty {KEY}", "no kind of public key"),
        ("ssh-dss AAAAB3NzaC1kc3M=", "no kind of public key"),
        (f"{KIND} AAAA", "damaged"),
        (f"{KIND} !!!!", "damaged"),
        (f"ssh-rsa {BLOB}", "damaged"),
        (f"{KIND}", "damaged"),
        (f"{KEY}\n{KIND} {BLOB[:40]}", "damaged"),
        ("x" * 100_000, "too long"),
    ],
)
def test_other_files_are_refused(text: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        list(authorized_lines(text, "zkeep server", "k.pub"))


def test_a_comment_cannot_begin_a_line_of_its_own() -> None:
    (line,) = authorized_lines(f"{KIND} {BLOB} a\x0bb\x1b[31m\u2028{KEY}", "zkeep", "k.pub")
    assert line.isprintable()
